"""epoll(7) from outside: is a file registered in another process's epoll, and is anybody else holding a file?"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import struct
from typing import NamedTuple

from .arch import NR
from .libc import libc

_KCMP_EPOLL_TFD = 7
EVENTPOLL = "anon_inode:[eventpoll]"
_CTL_ADD, _CTL_DEL, _CTL_MOD = 1, 2, 3
_epoll_ctl = libc.epoll_ctl
_epoll_ctl.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_char_p)
_EVENT = struct.Struct("=IQ" if os.uname().machine == "x86_64" else "I4xQ")  # packed on x86-64 alone
_me = os.getpid

#: Our numbers of files with record locks, all of which are lost when any of their descriptors is closed (fcntl(2)).
never_lent: set[int] = set()
_ALWAYS = select.EPOLLOUT | select.EPOLLHUP
#: Reported whether asked for or not, unless EPOLLONESHOT has fired.
_UNASKED = select.EPOLLERR | select.EPOLLHUP


class _Slot(ctypes.Structure):
    _fields_ = (("efd", ctypes.c_uint32), ("tfd", ctypes.c_uint32), ("toff", ctypes.c_uint32))


def registered(tid: int, epoll_number: int, number: int, ours: int) -> bool | None:
    """Is the file of our descriptor `ours` registered under `number` in the thread's epoll descriptor (kcmp(2))?

    None when that descriptor is no epoll (any more).
    """
    slot = _Slot(epoll_number, number, 0)
    while True:
        result = libc.syscall(NR.kcmp, _me(), tid, _KCMP_EPOLL_TFD, ours, ctypes.byref(slot))
        if result == 0:
            return True
        if result < 0:
            return False if ctypes.get_errno() == 2 else None
        slot.toff += 1  # another file was registered under the same number before


def add(epoll: int, fd: int, events: int, data: int) -> None:
    """EPOLL_CTL_ADD with data of our choice (select.epoll always gives the descriptor's number)."""
    _control(epoll, _CTL_ADD, fd, events, data)


def modify(epoll: int, fd: int, events: int, data: int) -> None:
    _control(epoll, _CTL_MOD, fd, events, data)


def _control(epoll: int, operation: int, fd: int, events: int, data: int) -> None:
    if _epoll_ctl(epoll, operation, fd, _EVENT.pack(events, data)) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


class LastReference:
    """Tells whether a descriptor of ours is the last reference to its open file.

    An epoll item lives as long as the file does: add it, close our descriptor, and see whether it still reports.
    """

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._epoll = select.epoll()

    def close_and_tell(self, fd: int) -> bool:
        """Close `fd` (of a socket that is always ready, as an unconnected TCP one is); True if nobody else has it."""
        try:
            self._epoll.register(fd, _ALWAYS)
        finally:
            os.close(fd)
        if not self._epoll.poll(0, 1):
            return True
        self._epoll.close()  # the item cannot be named any more: begin anew
        self._begin()
        return False


def registration(tid: int, epoll_number: int, number: int) -> tuple[int, int] | None:
    """(events, data) under which `number` is registered in the thread's epoll (proc_pid_fdinfo(5), "tfd:")."""
    with open(f"/proc/{tid}/fdinfo/{epoll_number}", "rb") as file:
        for line in file:
            if line.startswith(b"tfd:"):
                words = line.split()
                if int(words[1]) == number:
                    return int(words[3], 16), int(words[5], 16)
    return None


class Item(NamedTuple):
    """One registration: the number under which it was made, its events and data (epoll_ctl(2))."""

    number: int
    events: int
    data: int

    @property
    def armed(self) -> bool:
        """False when EPOLLONESHOT has switched it off: such a one cannot be made anew from outside."""
        return bool(self.events & _UNASKED)


def items(tid: int, epoll_number: int, inode: int) -> tuple[list[Item], int]:
    """All registrations of a file in the thread's epoll, also under numbers that are closed by now; and the length
    of the list that the kernel makes for that, all of it while it holds the epoll's lock.
    """
    with open(f"/proc/{tid}/fdinfo/{epoll_number}", "rb") as file:
        data = file.read()
    found = []
    for line in data.splitlines() if b" ino:%x " % inode in data else ():
        if line.startswith(b"tfd:") and b" ino:%x " % inode in line:
            words = line.split()
            found.append(Item(int(words[1]), int(words[3], 16), int(words[5], 16)))
    return found, len(data)


def put(epoll: int, item: Item, new: int) -> None:
    """Register our `new` in a program's epoll, of which `epoll` is our copy, as if the program had it at its number."""
    _as_if_at(epoll, item.number, (new, _CTL_ADD, item.events, item.data))


def take(epoll: int, number: int, fd: int) -> None:
    """Remove the registration of our `fd` under a number of the program's; none is there: nothing happens."""
    try:
        _as_if_at(epoll, number, (fd, _CTL_DEL, 0, 0))
    except FileNotFoundError:
        pass


def move(epoll: int, number: int, old: int, new: int, events: int, data: int) -> None:
    """In a program's epoll let `new` take the place of `old` under `number`."""
    _as_if_at(epoll, number, (new, _CTL_ADD, events, data), (old, _CTL_DEL, 0, 0))


_Change = tuple[int, int, int, int]
"""Our descriptor, operation, events, data."""


def _as_if_at(epoll: int, number: int, *changes: _Change) -> None:
    """An item is known by file and number, so for a moment our own table has these files at that number; a child's,
    if it is one of `never_lent`.
    """
    if epoll == number:
        raise ValueError("the epoll itself is at that number")
    if number not in never_lent:
        _change(epoll, number, changes)
        return
    child = os.fork()
    if child == 0:
        code = errno.EIO
        try:
            _change(epoll, number, changes)
            code = 0
        except OSError as error:
            code = error.errno or code
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        raise OSError(code, os.strerror(code))


def _change(epoll: int, number: int, changes: tuple[_Change, ...]) -> None:
    above = number + 1  # a copy must not come to lie at that very number
    kept = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above) for fd, _, _, _ in changes]
    try:
        saved = fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, above)
    except OSError:
        saved = -1
    try:
        for fd, (_, operation, events, data) in zip(kept, changes, strict=True):
            os.dup2(fd, number, inheritable=False)
            _control(epoll, operation, number, events, data)
    finally:
        for fd in kept:
            os.close(fd)
        if saved >= 0:
            os.dup2(saved, number, inheritable=False)
            os.close(saved)
        else:
            os.close(number)
