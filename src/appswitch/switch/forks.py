"""Forking processes from the supervisor.

A process just forked has copies of all descriptors of the supervisor's, until it has closed them: so long a port stays
taken that a program has given up.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable, Iterable

from . import processes
from .loop import Loop


class Forks:
    """`forget` makes a forked process let go of the supervisor's descriptors without closing them: `processes.fork`."""

    def __init__(self, loop: Loop, forget: Callable[[], None]) -> None:
        self._loop, self._forget = loop, forget
        #: Of processes that have not closed their copies yet: what becomes readable then.
        self._young: set[int] = set()
        self._waiting: list[tuple[set[int], Callable[[], None]]] = []

    def fork(
        self, name: str, body: Callable[[], object], keep: Iterable[int], orphaned: signal.Signals | None = None
    ) -> int:
        """As `processes.fork`."""
        read, write = os.pipe()
        try:
            pid = processes.fork(name, body, keep, self._forget, orphaned, close_last=write)
        except OSError:
            os.close(read)
            raise
        finally:
            os.close(write)
        self._young.add(read)
        self._loop.watch(read, select.EPOLLIN, lambda _: self._grown(read))
        return pid

    def when_closed(self, then: Callable[[], None]) -> None:
        """Call when no process forked until now has copies that it should not: at once, as a rule."""
        if self._young:
            self._waiting.append((set(self._young), then))
        else:
            then()

    def _grown(self, read: int) -> None:
        self._young.discard(read)
        self._loop.close([read])
        waiting, self._waiting = self._waiting, []
        for young, then in waiting:
            young.discard(read)
            if young:
                self._waiting.append((young, then))
            else:
                then()
