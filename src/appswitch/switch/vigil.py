"""Noticing that the control socket was removed from under a switch: nobody can reach it any more (inotify(7))."""

from __future__ import annotations

import os

from ..linux import libc
from .paths import RunDir

_NONBLOCK_CLOEXEC = os.O_NONBLOCK | os.O_CLOEXEC
_IN_DELETE, _IN_MOVED_FROM, _IN_DELETE_SELF, _IN_MOVE_SELF = 0x200, 0x40, 0x400, 0x800


def watch(run_dir: RunDir) -> int:
    """A descriptor that becomes readable when something is removed from the run directory; OSError."""
    fd = libc.call("inotify_init1", _NONBLOCK_CLOEXEC)
    mask = _IN_DELETE | _IN_MOVED_FROM | _IN_DELETE_SELF | _IN_MOVE_SELF
    try:
        libc.call("inotify_add_watch", fd, os.fsencode(run_dir.path), mask)
    except OSError:
        os.close(fd)
        raise
    return fd


def lost(fd: int, run_dir: RunDir) -> bool:
    """After an event: has the control socket gone?"""
    try:
        while os.read(fd, 4096):
            pass
    except BlockingIOError:
        pass
    return not os.path.exists(run_dir.control)
