"""seccomp user notification (seccomp_unotify(2)): installing a filter, receiving calls, answering them."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import struct
from typing import NamedTuple

from . import features
from .arch import NR
from .libc import libc

_SET_MODE_FILTER = 1
_FLAG_NEW_LISTENER = 8
_PR_SET_NO_NEW_PRIVS = 38

_RECV = 0xC0502100
_SEND = 0xC0182101
ID_VALID = 0x40082102
_ADDFD = 0x40182103
_SET_FLAGS = 0x40082104
_SYNC_WAKE_UP = 1
_ADDFD_SETFD = 1
_ADDFD_SEND = 2
_CONTINUE = 1

_NOTIFICATION = struct.Struct("QIIiIQ6Q")
_RESPONSE = struct.Struct("QqiI")
_ADD = struct.Struct("QIIII")
_ID = struct.Struct("Q")
_new = tuple.__new__  # what Call._make comes to
# Requests are written in place: for `bytes` fcntl.ioctl() first makes an error, and then thinks better of it.
_id, _response, _addition = bytearray(_ID.size), bytearray(_RESPONSE.size), bytearray(_ADD.size)
_ZERO = bytes(_NOTIFICATION.size)


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))


class Call(NamedTuple):
    """A trapped system call: the id that answers it, the calling thread, the call and its raw arguments."""

    id: int
    tid: int
    flags: int
    nr: int
    arch: int
    ip: int
    a0: int
    a1: int
    a2: int
    a3: int
    a4: int
    a5: int


class AlreadyFiltered(Exception):
    """The task has a listener already: one per task is all the kernel gives (EBUSY)."""


def install(program: bytes) -> int:
    """Install a filter for this thread and what it becomes; returns the listener's descriptor (close-on-exec).

    Needs CAP_SYS_ADMIN in the task's user namespace; without it NO_NEW_PRIVS is set first. AlreadyFiltered; OSError.
    """
    if features.left_out(features.NOTIFY):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    request = _Filter(len(program) // 8, program)
    for attempt in (0, 1):
        listener = libc.syscall(NR.seccomp, _SET_MODE_FILTER, _FLAG_NEW_LISTENER, ctypes.byref(request))
        if listener >= 0:
            return int(listener)
        error = ctypes.get_errno()
        if error == errno.EBUSY:
            raise AlreadyFiltered
        if error != errno.EACCES or attempt:
            raise OSError(error, os.strerror(error))
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    raise AssertionError


def prefer_sync_wake_up(listener: int) -> bool:
    """Have a trap switch straight from the program to the handler on its core (Linux 6.6); False where unknown."""
    if features.left_out(features.SYNC_WAKE_UP):
        return False
    try:
        fcntl.ioctl(listener, _SET_FLAGS, _SYNC_WAKE_UP)
    except OSError:
        return False
    return True


def receive(listener: int) -> Call | None:
    """The next call; None when the thread that made it was interrupted or died meanwhile."""
    buffer = bytearray(_ZERO)
    try:
        fcntl.ioctl(listener, _RECV, buffer)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINTR):
            return None
        raise
    return _new(Call, _NOTIFICATION.unpack(buffer))


def any_received(listener: int) -> bool:
    """Is there a call that somebody has received and not answered (poll(2) says POLLOUT then)?"""
    poll = select.poll()
    poll.register(listener, select.POLLOUT)
    return bool(poll.poll(0))


def valid(listener: int, call_id: int) -> bool:
    """Does the thread still wait for this answer?"""
    if listener < 0:
        return False
    try:
        _ID.pack_into(_id, 0, call_id)
        fcntl.ioctl(listener, ID_VALID, _id)
    except OSError:
        return False
    return True


def answer(listener: int, call_id: int, value: int, error: int = 0) -> bool:
    """Answer with a value, or with an errno; False when the call is gone (its thread was interrupted or died)."""
    return _send(listener, call_id, value, -error, 0)


def proceed(listener: int, call_id: int) -> bool:
    """Let the kernel carry the call out itself ("continue"). Only where the outcome cannot do harm."""
    return _send(listener, call_id, 0, 0, _CONTINUE)


def _send(listener: int, call_id: int, value: int, error: int, flags: int) -> bool:
    if listener < 0:
        return False  # the whole program has ended
    _RESPONSE.pack_into(_response, 0, call_id, value, error, flags)
    try:
        fcntl.ioctl(listener, _SEND, _response)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESRCH, errno.EINPROGRESS):
            return False
        raise
    return True


def replace_fd(listener: int, call_id: int, source: int, target: int, cloexec: bool) -> None:
    """Put our descriptor `source` at the caller's number `target`; the call is still to be answered."""
    _ADD.pack_into(_addition, 0, call_id, _ADDFD_SETFD, source, target, _cloexec(cloexec))
    fcntl.ioctl(listener, _ADDFD, _addition)


def hand_over(listener: int, call_id: int, source: int, cloexec: bool) -> int:
    """Give the caller a new descriptor and answer the call with its number, in one atomic step; that number.

    OSError: ENOENT or ESRCH when the call is gone and nothing was given, EMFILE as the caller's limit has it. Must not
    be interrupted: the kernel would answer the call with 0 and give nothing. (ADDFD, then SEND, would lose what it gave
    whenever a signal meets the answer: SEND succeeds then, and nobody hears it.)
    """
    _ADD.pack_into(_addition, 0, call_id, _ADDFD_SEND, source, 0, _cloexec(cloexec))
    number: int = fcntl.ioctl(listener, _ADDFD, _addition)
    return number


def _cloexec(wanted: bool) -> int:
    return os.O_CLOEXEC if wanted else 0
