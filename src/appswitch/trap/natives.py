"""The native sockets of listeners, which hold their ports in the program's namespace.

The supervisor keeps copies of them for the worker after this one.
"""

from __future__ import annotations

from collections.abc import Callable

from ..linux import seccomp
from ..linux.seccomp import Call
from .events import Events
from .parked import Pending, Waiter
from .program import Program
from .sockets import Listener
from .supervision import Supervisor


class KeptNatives:
    """A port is free only when the supervisor, too, has closed its copy."""

    def __init__(self, events: Events, pending: Pending, supervisor: Supervisor) -> None:
        self._events = events
        self._pending = pending
        self._supervisor = supervisor
        #: Of dropped listeners that the supervisor still holds copies of: program, port, who waits for it.
        self._leaving: dict[str, tuple[int, int, list[Callable[[], None]]]] = {}

    def keep(self, program: Program, listener: Listener) -> None:
        """Have the supervisor keep the port taken, for the worker after this one."""
        self._supervisor.keep(key_of(listener.cookie), program.number, [listener.native])

    def forget(self, key: str, program: int, port: int) -> None:
        """Have the supervisor close its copies of a native socket, which hold this port."""
        self._leaving[key] = (program, port, [])
        self._supervisor.forget(key)

    def forgotten(self, key: str) -> None:
        """The supervisor has closed its copies of what was kept under this key."""
        leaving = self._leaving.pop(key, None)
        if leaving is not None:
            for resume in leaving[2]:
                self._events.guard(resume)

    def hold(self, program: Program, port: int) -> bool:
        """Does the copy of a closed listener still hold this port of the program?"""
        return bool(self._at(program, port))

    def when_free(self, program: Program, port: int, call: Call, resume: Callable[[], object]) -> None:
        """Resume a call once no copy of a closed listener of the program holds this port: at once, as a rule."""
        holding = self._at(program, port)
        if not holding:
            resume()
            return
        waiter = self._pending.park(Waiter(program, call, -1, 0))

        def once() -> None:
            if seccomp.valid(program.listener, call.id):
                resume()
            self._pending.unpark(waiter)

        holding[-1][2].append(once)

    def _at(self, program: Program, port: int) -> list[tuple[int, int, list[Callable[[], None]]]]:
        return [leaving for leaving in self._leaving.values() if leaving[:2] == (program.number, port)]


def key_of(cookie: int) -> str:
    """Under which the supervisor keeps a listener's native socket."""
    return f"native-{cookie}"
