"""sock_diag(7) for UDP in one network namespace: who takes a datagram, what is bound, and when that ends.

UDP has no listen(): what the kernel would do with a datagram is asked of the kernel.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

_BY_FAMILY, _DONE, _ERROR = 20, 3, 2
_REQUEST, _DUMP = 0x001, 0x301
_ALL, _ESTABLISHED = 0xFFFFFFFF, 1  # all states; TCP_ESTABLISHED
_V6ONLY = 11  # INET_DIAG_SKV6ONLY
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_DESTROYED = (2, 4)  # SKNLGRP_INET_UDP_DESTROY, SKNLGRP_INET6_UDP_DESTROY

_HEADER = struct.Struct("=IHHII")
_QUESTION = struct.Struct("=BBBBI")
_ID = struct.Struct("!HH16s16s4x")
_ANY_COOKIE = b"\xff" * 8
# struct inet_diag_msg: 4 bytes (the second is the state), then the socket's id (ports, addresses, interface, cookie)
_PORT_AT, _ADDRESS_AT, _COOKIE_AT, _ATTRIBUTES_AT = 4, 8, 44, 72


class UdpSocket(NamedTuple):
    """A UDP socket that has a port. `address` is packed; `dual`: an IPv6 one that takes IPv4 too."""

    cookie: int
    address: bytes
    port: int
    dual: bool
    connected: bool


class UdpDiag:
    """On a socket that sock_diag.open_socket gave in that namespace and that nobody else reads; not closed here.

    `stale` is set when sockets have been destroyed since it was unset.
    """

    def __init__(self, netlink: socket.socket) -> None:
        self.socket = netlink
        self.stale = False
        self._number = 0

    def takes(self, source: bytes, source_port: int, destination: bytes, port: int) -> bool:
        """Has the kernel a socket for a datagram with these (packed) addresses? None is delivered for it."""
        family = socket.AF_INET if len(source) == 4 else socket.AF_INET6
        question = _QUESTION.pack(family, socket.IPPROTO_UDP, 0, 0, _ALL)
        question += _ID.pack(source_port, port, source, destination) + _ANY_COOKIE
        # Without an answer the datagram itself must find out.
        return all(kind != _ERROR for kind, _ in self._ask(_REQUEST, question))

    def bound(self) -> list[UdpSocket]:
        """Those that have a port, of both families."""
        found = []
        for family in (socket.AF_INET, socket.AF_INET6):
            question = _QUESTION.pack(family, socket.IPPROTO_UDP, 0, 0, _ALL) + bytes(40) + _ANY_COOKIE
            for kind, body in self._ask(_DUMP, question):
                if kind != _BY_FAMILY:
                    continue
                (port,) = struct.unpack_from("!H", body, _PORT_AT)
                low, high = struct.unpack_from("=II", body, _COOKIE_AT)
                address = body[_ADDRESS_AT : _ADDRESS_AT + (4 if family == socket.AF_INET else 16)]
                dual = family == socket.AF_INET6 and _attribute(body[_ATTRIBUTES_AT:], _V6ONLY) == b"\0"
                found.append(UdpSocket(low | high << 32, address, port, dual, body[1] == _ESTABLISHED))
        return found

    def watch_ends(self) -> None:
        """From now on the socket is readable, and `stale` set by `hear`, when a UDP socket was destroyed."""
        for group in _DESTROYED:
            with suppress(OSError):
                self.socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)

    def hear(self) -> None:
        """Take in what was told of destroyed sockets."""
        while True:
            try:
                self.socket.recv(4096, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                pass  # too much was told at a time
            self.stale = True

    def _ask(self, flags: int, question: bytes) -> Iterator[tuple[int, bytes]]:
        """The answers, which are there as soon as the question was sent; what is told between them is noted."""
        self.hear()
        self._number = self._number % 0xFFFF + 1
        self.socket.send(_HEADER.pack(_HEADER.size + len(question), _BY_FAMILY, flags, self._number, 0) + question)
        while True:
            try:
                data = self.socket.recv(1 << 16, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                self.stale = True
                continue
            at = 0
            while at + _HEADER.size <= len(data):
                length, kind, _, number, _ = _HEADER.unpack_from(data, at)
                if number != self._number:
                    self.stale = True
                elif kind == _DONE:
                    return
                else:
                    yield kind, data[at + _HEADER.size : at + length]
                    if flags == _REQUEST:
                        return
                at += max(_HEADER.size, (length + 3) & ~3)


def _attribute(attributes: bytes, wanted: int) -> bytes | None:
    at = 0
    while at + 4 <= len(attributes):
        length, kind = struct.unpack_from("=HH", attributes, at)
        if kind == wanted:
            return attributes[at + 4 : at + length]
        at += max(4, (length + 3) & ~3)
    return None
