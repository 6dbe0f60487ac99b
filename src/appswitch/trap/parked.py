"""Calls that wait: parked by thread, because a thread has one and a cancelled call is not announced (design, 4).

Also the shared list of threads whose call this worker has received and not answered: whoever takes over from a
dead worker makes exactly these threads repeat their calls, and who finds one stuck sees by whose.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass

from ..linux.seccomp import Call
from ..linux.storage import reserve
from .events import Events
from .program import Program

_SLOTS = 1 << 16
#: Bytes of the file that have room on disk from the beginning.
RESERVED = 1 << 14
_TID = 0xFFFFFFFF
#: Calls that were interrupted, or whose worker died, and that may never come again: the longest ago are forgotten.
_BINDINGS = 64


@dataclass(slots=True)
class Waiter:
    """A parked call. `expire` is called when `deadline` (monotonic seconds) has passed."""

    program: Program
    call: Call
    number: int
    flags: int
    deadline: float | None = None
    expire: Callable[[], None] | None = None
    slot: int = 0
    timer: int = -1
    done: bool = False


class Pending:
    """The unanswered calls' threads, and their programs (in the upper half), in a file that outlives the worker.

    Slot 0: the call in hand.
    """

    def __init__(self, path: str, events: Events) -> None:
        self._events = events
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(fd, _SLOTS * 8)
        reserve(fd, RESERVED)
        self._room = RESERVED // 8
        self._slots = memoryview(mmap.mmap(fd, _SLOTS * 8)).cast("Q")
        self._fd = fd
        self._free = list(range(_SLOTS - 1, 0, -1))
        found = memoryview(os.pread(fd, 8 * _SLOTS, 0)).cast("Q")  # by the mapping holes would take room, too
        slots = [slot for slot, call in enumerate(found) if call]
        for slot in slots:
            self._slots[slot] = 0
        self._left_over = sorted({found[slot] & _TID for slot in slots})

    def left_over(self) -> list[int]:
        """The threads that a predecessor left without an answer; told once."""
        tids, self._left_over = self._left_over, []
        return tids

    def begin(self, tid: int, program: int) -> None:
        self._slots[0] = program << 32 | tid

    def end(self) -> None:
        self._slots[0] = 0

    def park(self, waiter: Waiter) -> Waiter:
        """Leave the call unanswered until an event resumes it.

        When all 65,535 slots are taken, or the disk is full, it gets none, and is not recovered after a crash.
        """
        if self._free and (self._free[-1] < self._room or self._grow()):
            waiter.slot = self._free.pop()
            self._slots[waiter.slot] = waiter.program.number << 32 | waiter.call.tid
        if waiter.deadline is not None and waiter.expire is not None:
            waiter.timer = self._events.after(waiter.deadline, waiter.expire)
        return waiter

    def _grow(self) -> bool:
        """Twice the room on disk; False when there is none."""
        try:
            reserve(self._fd, 16 * self._room)
        except OSError:
            return False
        self._room *= 2
        return True

    def unpark(self, waiter: Waiter) -> None:
        if not waiter.done:
            waiter.done = True
            if waiter.timer >= 0:
                self._events.cancel(waiter.timer)
            if waiter.slot:
                self._slots[waiter.slot] = 0
                self._free.append(waiter.slot)


class Binding:
    """Sockets on which a worker makes bind(2) for a program, by cookie, in a file that outlives the worker.

    When it dies between that and the answer, the call comes again, and finds the socket bound.
    """

    def __init__(self, path: str) -> None:
        reserve(path, _BINDINGS * 8)
        with open(path, "r+b") as file:
            self._slots = memoryview(mmap.mmap(file.fileno(), _BINDINGS * 8)).cast("Q")
        self._last = 0

    def begin(self, cookie: int) -> None:
        free = (slot for slot in range(_BINDINGS) if not self._slots[slot])
        self._last = next(free, (self._last + 1) % _BINDINGS)  # of calls that never came again
        self._slots[self._last] = cookie

    def is_begun(self, cookie: int) -> bool:
        return cookie in self._slots

    def end(self, cookie: int) -> None:
        """The program has been answered."""
        for slot in range(_BINDINGS):
            if self._slots[slot] == cookie:
                self._slots[slot] = 0


def unanswered(path: str) -> dict[int, int]:
    """The threads whose calls a worker has not answered, and their programs."""
    with open(path, "rb") as file:
        return {slot & _TID: slot >> 32 for slot in memoryview(file.read()).cast("Q") if slot}


def in_hand(path: str) -> int:
    """The program whose call the worker is answering; 0 when there is none."""
    with open(path, "rb") as file:
        return memoryview(file.read(8)).cast("Q")[0] >> 32
