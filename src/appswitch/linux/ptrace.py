"""Making threads leave their system calls and make them again, without their noticing (ptrace(2))."""

from __future__ import annotations

import ctypes
import os

from .libc import libc

_SEIZE, _INTERRUPT, _DETACH = 0x4206, 0x4207, 17
_WALL = 0x40000000


def interrupt(tid: int) -> bool:
    """Have the thread leave the call that it is blocked in; True if `let_go` is to follow. False: gone, or traced."""
    libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
    return bool(libc.ptrace(_SEIZE, tid, None, None) >= 0 and libc.ptrace(_INTERRUPT, tid, None, None) >= 0)


def let_go(tid: int) -> bool:
    """Let it make its call again; False when it has not left it yet: one that waits for memory only does then."""
    try:
        if not os.waitpid(tid, _WALL | os.WNOHANG)[0]:
            return False
    except ChildProcessError:
        return True  # it has ended
    libc.ptrace(_DETACH, tid, None, None)
    return True
