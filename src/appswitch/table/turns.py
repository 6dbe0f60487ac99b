"""Between the transactions of a large change the table's other writers get their turn.

LMDB's write lock is not fair: it goes to whoever asks first after it was given back, and who asks again at once keeps
it from those that were woken for it. So a writer says that it waits, by a lock on a file that all of them share
(fcntl(2), open file description locks: the kernel takes it back from who dies), and a large change goes on when nobody
says so any more. Nobody but a large change waits for that lock.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time

#: The file in the table's directory.
NAME = "turns"
#: Seconds that a large change pauses before it looks whether others wait. Who has just slept keeps its processor for a
#: while: without a pause it would lose it in the middle of a transaction, again and again, and keep the lock meanwhile.
PAUSE = 0.0002
#: Seconds for which it waits at most before each transaction: some who wait are stopped, or come again and again.
PATIENCE = 0.01

_FLOCK = struct.Struct("hhqqi4x")


def _flock(kind: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, 0, 1, 0)


_ANNOUNCE, _WITHDRAW, _TEST = _flock(fcntl.F_RDLCK), _flock(fcntl.F_UNLCK), _flock(fcntl.F_WRLCK)


class Turns:
    """One process's part in it. Writers hold the lock shared, so that none of them waits for another's."""

    def __init__(self, path: str | None) -> None:
        """`path`: of the table's directory; None for one that never writes."""
        self._fd = -1
        if path is not None:
            self._fd = os.open(os.path.join(path, NAME), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def announce(self) -> None:
        """From now on this process waits for the write lock."""
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _ANNOUNCE)
        except OSError:
            pass  # the kernel has no memory for it: it takes its chance

    def withdraw(self) -> None:
        """It has the write lock, or does not want it any more."""
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _WITHDRAW)
        except OSError:
            pass

    def others_wait(self) -> bool:
        """Whether another process, or another handle of this one, waits for the write lock."""
        found: bytes = fcntl.fcntl(self._fd, fcntl.F_OFD_GETLK, _TEST)
        return bool(_FLOCK.unpack(found)[0] != fcntl.F_UNLCK)

    def give_way(self) -> None:
        """Return when no other waits any more, or has not been served for too long; after a pause in any case."""
        until = time.monotonic() + PATIENCE
        while True:
            time.sleep(PAUSE)
            if not self.others_wait() or time.monotonic() >= until:
                return
