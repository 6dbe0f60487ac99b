"""signalfd(2): signals as something to read, so that they never interrupt anything."""

from __future__ import annotations

import os
import signal

from .libc import call

_SIGSET_SIZE = 128  # sizeof(sigset_t)


def block_all(but_read: signal.Signals) -> int:
    """Block whatever can be blocked in this thread; returns a descriptor that is readable once `but_read` has come."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    mask = (1 << (but_read - 1)).to_bytes(_SIGSET_SIZE, "little")
    return call("signalfd", -1, mask, os.O_NONBLOCK | os.O_CLOEXEC)
