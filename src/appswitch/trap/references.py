"""Sockets to ask the kernel with: what would TCP say to this option?"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from socket import AF_INET, IPPROTO_TCP, SOCK_STREAM, TCP_CONGESTION

#: The longest value of an option that the kernel gives here.
LARGEST = 1024
_TCP_ULP = 31
#: Options of TCP whose setting depends on more than the value: modules and rules of the host.
_VARIABLE = (TCP_CONGESTION, _TCP_ULP)
_REMEMBERED = 1024
_LONGEST_REMEMBERED = 32


class References:
    """Real TCP sockets of this host's loopback, connected or listening, to ask the kernel with."""

    def __init__(self) -> None:
        self._sockets: dict[tuple[int, bool], tuple[socket.socket, ...]] = {}
        self._answers: dict[tuple[int, bool, int, int, bytes, int], bytes] = {}

    def set(self, family: int, listening: bool, level: int, name: int, value: bytes, uid: int) -> bytes | None:
        """What an option reads after this user has set it on a socket with the defaults; OSError as the kernel has it.

        None: it can only be set.

        Programs set the same few on each connection, and a question costs a new reference: what TCP itself has
        taken once it takes again.
        """
        key = (family, listening, level, name, value, uid)
        answer = self._answers.get(key)
        if answer is None:
            reference = self.get(family, listening)
            try:
                with _acting_as(uid):
                    reference.setsockopt(level, name, value)
                    answer = _read(reference, level, name)
            finally:
                self._discard(family, listening)
            if answer is None:
                return None
            if level == IPPROTO_TCP and name not in _VARIABLE and len(value) <= _LONGEST_REMEMBERED:
                if len(self._answers) >= _REMEMBERED:
                    self._answers.clear()
                self._answers[key] = answer
        return answer

    def get(self, family: int, listening: bool) -> socket.socket:
        found = self._sockets.get((family, listening))
        if found is None:
            found = self._sockets[family, listening] = _make(family, listening)
        return found[0]

    def _discard(self, family: int, listening: bool) -> None:
        """An option was set on it: the next question needs one with the defaults."""
        for sock in self._sockets.pop((family, listening), ()):
            sock.close()


def _read(reference: socket.socket, level: int, name: int) -> bytes | None:
    try:
        return reference.getsockopt(level, name, LARGEST)
    except OSError:
        return None


@contextlib.contextmanager
def _acting_as(uid: int) -> Iterator[None]:
    """The kernel is asked with the rights of the program's user, not of root's switch."""
    if uid == os.geteuid():
        yield
        return
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


def _make(family: int, listening: bool) -> tuple[socket.socket, ...]:
    server = socket.socket(family, SOCK_STREAM)
    server.bind(("127.0.0.1" if family == AF_INET else "::1", 0))
    server.listen(8)
    if listening:
        return (server,)
    with server:
        client = socket.create_connection(server.getsockname()[:2], timeout=1)
        client.setblocking(True)
        while True:
            other, address = server.accept()
            if address[:2] == client.getsockname()[:2]:
                return client, other
            other.close()
