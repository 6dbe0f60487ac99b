"""Where the lines of a trace go. A reader that is slow or gone never keeps the worker: lines are left out then."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable

_AT_ONCE = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
_RWF_NOWAIT = 8  # linux/fs.h; for pipes since Linux 6.4

Write = Callable[[bytes], int]


class Sink:
    """`fd` is ours from now on: a pipe, terminal, socket or file. OSError when it cannot be written without waiting."""

    def __init__(self, fd: int) -> None:
        self.lost = 0
        self._rest = b""
        self._write, self._close = _writer(fd)

    def write(self, line: str) -> None:
        """Write a line, or count it as lost."""
        told = f"... {self.lost} lines lost\n" if self.lost else ""
        if self._send(f"{told}{line}\n".encode(errors="backslashreplace")):
            self.lost = 0
        else:
            self.lost += 1

    def _send(self, data: bytes) -> bool:
        """False when nothing of it could be written. What was cut off by a full terminal goes first next time."""
        try:
            done = self._write(self._rest + data)
        except OSError:
            return False  # full, or nobody reads any more
        whole = self._rest + data
        taken = done > len(self._rest) or not self._rest
        self._rest = whole[done:] if taken else self._rest[done:]
        return taken

    def close(self) -> None:
        self._close()


def check(fd: int, uid: int) -> int:
    """The descriptor, if a process of user `uid` can make a sink of it; OSError."""
    if uid != 0 and stat.S_ISCHR(os.fstat(fd).st_mode):
        os.close(_open_again(fd))
    return fd


def _writer(fd: int) -> tuple[Write, Callable[[], None]]:
    """What writes to it and never waits, and what closes it.

    O_NONBLOCK is never set, nor relied on: it belongs to whoever else has the file open, the program first of all.
    """
    mode = os.fstat(fd).st_mode
    if stat.S_ISSOCK(mode):
        sock = socket.socket(fileno=fd)
        return lambda data: sock.send(data, _AT_ONCE), sock.close
    if stat.S_ISFIFO(mode):
        return lambda data: os.pwritev(fd, [data], -1, _RWF_NOWAIT), lambda: os.close(fd)
    if stat.S_ISREG(mode):  # with the same offset as the program's own writes
        return lambda data: os.write(fd, data), lambda: os.close(fd)
    try:
        ours = _open_again(fd)
    finally:
        os.close(fd)
    return lambda data: os.write(ours, data), lambda: os.close(ours)


def _open_again(fd: int) -> int:
    """The terminal that a descriptor writes to, for writes that never wait."""
    return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
