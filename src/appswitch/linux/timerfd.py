"""timerfd_create(2): a timer as a descriptor. Of two processes that hold it, one winds it and one hears it run out."""

from __future__ import annotations

import os
import struct
import time

from .libc import call

_TIMES = struct.Struct("qqqq")


def create() -> int:
    """A timer of the monotonic clock that does not run (close-on-exec, non-blocking)."""
    return call("timerfd_create", time.CLOCK_MONOTONIC, os.O_CLOEXEC | os.O_NONBLOCK)


def wind(fd: int, seconds: float) -> None:
    """Make it readable once after so long, whatever was set before; 0 stops it."""
    whole = int(seconds)
    call("timerfd_settime", fd, 0, _TIMES.pack(0, 0, whole, int((seconds - whole) * 1e9)), None)


def ran_out(fd: int) -> bool:
    """Has it run out since this was asked last?"""
    try:
        return bool(os.read(fd, 8))
    except BlockingIOError:
        return False  # it was wound again, or stopped
