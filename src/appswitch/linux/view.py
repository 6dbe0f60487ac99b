"""Socket calls on descriptors that come and go, without making and unmaking a socket object for each.

A view is a socket object that does not own its descriptor: there is one for every number that was ever borrowed.
"""

from __future__ import annotations

import _socket
import fcntl
import os
from socket import AF_UNIX, SOCK_STREAM
from typing import TypeAlias

View: TypeAlias = _socket.socket

_views: dict[int, View] = {}
_get = _views.get


def view(fd: int) -> View:
    """The view of descriptor `fd`, which need not be a socket. getsockname() goes by the address it gets."""
    return _get(fd) or _views.setdefault(fd, _make(fd))


def _make(fd: int) -> View:
    """A view, made while a socket of our own is at that number: making one asks for the socket's name, for which
    the kernel takes a lock that the socket's program may hold; and what is no socket has none.
    """
    pattern = _socket.socket(AF_UNIX, SOCK_STREAM)
    kept = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0)
    try:
        os.dup2(pattern.fileno(), fd, inheritable=False)
        return _socket.socket(AF_UNIX, SOCK_STREAM, 0, fd)
    finally:
        os.dup2(kept, fd, inheritable=False)
        os.close(kept)
        pattern.close()


def release(borrowed: View) -> None:
    """Close the descriptor that is viewed."""
    os.close(borrowed.fileno())
