"""pidfd_open(2) of a thread, and pidfd_getfd(2): a copy of another process's descriptor."""

from __future__ import annotations

import ctypes
import errno
import os
import threading

from . import features
from .arch import NR
from .libc import libc

_THREAD = os.O_EXCL  # PIDFD_THREAD, Linux 6.9
_syscall = libc.syscall
#: What `threads_can_be_named` has found out.
_by_thread: bool | None = None


def open_thread(tid: int) -> int:
    """A descriptor for the thread; on kernels before 6.9, where only leaders can be named, for its process."""
    global _by_thread
    if _by_thread is None:
        _by_thread = threads_can_be_named()
    fd = _syscall(NR.pidfd_open, tid, _THREAD) if _by_thread else _syscall(NR.pidfd_open, thread_group(tid), 0)
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(fd)


def threads_can_be_named() -> bool:
    """Does this kernel know PIDFD_THREAD?"""
    if features.left_out(features.PIDFD_THREAD):
        return False
    fd = _syscall(NR.pidfd_open, threading.get_native_id(), _THREAD)
    if fd < 0:
        return ctypes.get_errno() != errno.EINVAL
    os.close(fd)
    return True


def copy_descriptor(pidfd: int, number: int) -> int:
    """Our own descriptor (close-on-exec) for the open file behind the other's `number`; OSError EBADF, ESRCH, EPERM."""
    fd = _syscall(NR.pidfd_getfd, pidfd, number, 0)
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(fd)


def thread_group(tid: int) -> int:
    """The process that a thread belongs to (Tgid in proc_pid_status(5))."""
    with open(f"/proc/{tid}/status", "rb") as file:
        for line in file:
            if line.startswith(b"Tgid:"):
                return int(line[5:])
    raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))


def copy_of(pid: int, number: int) -> int:
    """Our own descriptor for another process's `number`; -1 when it cannot be had."""
    try:
        handle = open_thread(pid)
        try:
            return copy_descriptor(handle, number)
        finally:
            os.close(handle)
    except OSError:
        return -1
