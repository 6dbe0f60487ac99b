"""Which sockets exist, as the kernel tells, on a socket that somebody else has asked on before."""

import socket
import struct
from collections.abc import Iterator

import pytest

from appswitch.linux import sock_diag

SO_COOKIE = 57
MANY = 800
"""Sockets whose list does not fit into one read."""


@pytest.fixture
def listeners() -> Iterator[set[int]]:
    made = [socket.socket() for _ in range(MANY)]
    try:
        for sock in made:
            sock.bind(("127.0.0.1", 0))
            sock.listen(1)
        yield {struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8))[0] for sock in made}
    finally:
        for sock in made:
            sock.close()


def begin(netlink: socket.socket) -> None:
    """Ask as one does who dies before the whole answer is read."""
    request = sock_diag._INET_REQUEST.pack(
        socket.AF_INET, socket.IPPROTO_TCP, 0, 0, sock_diag.LISTEN, bytes(40) + b"\xff" * 8
    )
    header = sock_diag._HEADER.pack(sock_diag._HEADER.size + len(request), sock_diag._BY_FAMILY, sock_diag._DUMP, 1, 0)
    netlink.send(header + request)


def test_all_are_told(listeners: set[int]) -> None:
    with sock_diag.open_socket() as netlink:
        assert listeners <= sock_diag.tcp_cookies(netlink)
        assert listeners <= sock_diag.tcp_cookies(netlink, sock_diag.LISTEN)
        assert not listeners & sock_diag.tcp_cookies(netlink, 1 << 1)


@pytest.mark.parametrize("reads", [0, 1])
def test_all_are_told_where_another_has_died_while_it_asked(listeners: set[int], reads: int) -> None:
    with sock_diag.open_socket() as netlink:
        begin(netlink)
        for _ in range(reads):
            netlink.recv(1 << 16)
        assert listeners <= sock_diag.tcp_cookies(netlink)
