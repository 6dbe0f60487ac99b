"""The C library, once: calls that Python's standard library has no name for.

Every call returns the C return value and raises OSError with the call's errno when that is -1.
"""

from __future__ import annotations

import ctypes
import os

libc = ctypes.CDLL(None, use_errno=True)
"""The handle itself, for calls whose arguments need declaring."""

_syscall = libc.syscall
_syscall.restype = ctypes.c_long

#: The library itself, for hot paths that look at errno themselves.
libc = libc

Argument = int | bytes | None | ctypes.Array[ctypes.c_char]


def call(name: str, *args: Argument) -> int:
    """Call the C function `name`; its result is taken as a C int."""
    result: int = getattr(libc, name)(*_wide(args))
    if result == -1:
        raise _error(name)
    return result


def syscall(number: int, *args: Argument) -> int:
    """Make the system call `number` of this machine's table (syscall(2)); its result is a C long."""
    result: int = _syscall(ctypes.c_long(number), *_wide(args))
    if result == -1:
        raise _error(f"system call {number}")
    return result


def _wide(args: tuple[Argument, ...]) -> list[object]:
    # ctypes would pass a Python int as a 32-bit int: flags and addresses need the whole register.
    return [ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]


def _error(what: str) -> OSError:
    errno = ctypes.get_errno()
    return OSError(errno, f"{what}: {os.strerror(errno)}")
