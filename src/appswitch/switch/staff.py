"""The supervisor's staff: its child processes, started again when they die, each told what is its concern."""

from __future__ import annotations

import logging
import os
import select
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from . import wire
from .children import AGAIN, Child, PidRing, receive_last
from .forks import Forks
from .keeping import Keeping
from .loop import Loop

log = logging.getLogger("appswitch.supervisor")


class Staff:
    """`greet` is called with each child that has been started, to tell it what it is for; `heard` with what one says
    and its descriptors, which it must close; `ended` when one has ended, and says whether it is to be started again.
    """

    def __init__(
        self,
        loop: Loop,
        greet: Callable[[Child], None],
        heard: Callable[[Child, wire.Message, list[int]], None],
        ended: Callable[[Child], bool],
        forks: Forks,
        keeping: Keeping,
        started: float,
    ) -> None:
        """`started`: when the switch came up, by the monotonic clock."""
        self._loop, self._greet, self._heard, self._ended = loop, greet, heard, ended
        self._forks, self._keeping, self._started = forks, keeping, started
        self._children: list[Child] = []
        self._restart_at: dict[Child, float] = {}
        self.pids: PidRing

    def alive(self) -> list[Child]:
        return [child for child in self._children if child.alive]

    def start(self, child: Child) -> None:
        """Start it, now or as soon as a process can be had."""
        if child not in self._children:
            self._children.append(child)
        self._restart_at.pop(child, None)
        try:
            child.start(self._forks)
        except OSError as error:
            log.error("%s cannot be started: %s", child.role, error)
            self._restart_at[child] = time.monotonic() + AGAIN
            return
        assert child.control is not None
        if child.role.startswith("worker"):  # before the first message: until then it connects to nobody
            self.pids.add(child.pid)
        self._keeping.put(f"child/{child.role}", {}, [child.pidfd, child.control.fileno()])
        self._keeping.put("staff", {"started": self._started, "pids": self.pids.count})
        self._loop.watch(child.control.fileno(), select.EPOLLIN, partial(self._on_child, child))
        self._loop.watch(child.pidfd, select.EPOLLIN, partial(self._on_death, child))
        self._greet(child)

    def tell(self, child: Child, number: int, message: dict[str, Any], fds: list[int] | None = None) -> None:
        """Tell it about program `number` (0: none), as soon as it listens."""
        if child.tell(number, message, fds or []) and child.control is not None:
            self._loop.change(child.control.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def dismiss(self, child: Child) -> None:
        """Part from it: it ends by itself."""
        self._restart_at.pop(child, None)
        if child.alive:
            self._part(child)

    def _part(self, child: Child) -> None:
        self._keeping.put(f"child/{child.role}", {}, [child.pidfd])
        self._loop.close(child.hang_up())

    def dismiss_all(self) -> None:
        self._restart_at.clear()
        for child in self.alive():
            self.dismiss(child)

    def orphan_all(self) -> None:
        """Have all end as if the supervisor had died; what they say last is still heard."""
        self._restart_at.clear()
        for child in self.alive():
            child.orphan()

    def moments(self) -> list[float]:
        """When something will be due; empty as a rule."""
        return list(self._restart_at.values())

    def due(self, now: float) -> None:
        """Do what is due at this time of the monotonic clock."""
        for child, moment in list(self._restart_at.items()):
            if moment <= now:
                self.start(child)

    def abandon(self) -> None:
        """In a forked process: let go of every descriptor without closing it."""
        for child in self._children:
            child.abandon()

    def _on_death(self, child: Child, _: int) -> None:
        words = child.ended()
        if words is None:
            return
        self._hear_last(child)
        self._keeping.drop(f"child/{child.role}")
        self._loop.close(child.vacate())
        self._fill_again(child, words)

    def replace(self, child: Child) -> None:
        """Its place is free though it has not ended: it was killed, and will end when the kernel lets it."""
        pid, (pidfd, *rest) = child.pid, child.vacate()
        self._loop.unwatch(pidfd)
        self._loop.watch(pidfd, select.EPOLLIN, partial(self._reap, pidfd, pid))
        self._loop.close(rest)
        self._keeping.drop(f"child/{child.role}")
        self._fill_again(child, "does not end")

    def _reap(self, pidfd: int, pid: int, _: int) -> None:
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
        log.info("process %d, which could not be killed, has ended", pid)
        self._loop.close([pidfd])

    def _fill_again(self, child: Child, words: str) -> None:
        if not self._ended(child):
            return
        self._keeping.count_restart()
        log.error("%s %s; it is started again", child.role, words)
        delay = child.deaths.pause()
        if delay:
            self._restart_at[child] = time.monotonic() + delay
        else:
            self.start(child)

    def _on_child(self, child: Child, events: int) -> None:
        if events & select.EPOLLOUT and not child.flush() and child.control is not None:
            self._loop.change(child.control.fileno(), select.EPOLLIN)
        if not events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
            return
        if not self._hear(child):
            # It is dying; should it not be, it is of no more use.
            self._part(child)
            child.kill()

    def _hear_last(self, child: Child) -> None:
        """What it said before it died."""
        line, child.control = child.control, None
        if line is None:
            return
        self._loop.unwatch(line.fileno())
        with line:
            for message, fds in receive_last(line, child.role):
                self._heard(child, message, fds)

    def _hear(self, child: Child) -> bool:
        """Have heard what it has said; False at the end of that."""
        try:
            for message, fds in child.receive():
                self._heard(child, message, fds)
        except wire.Closed:
            return False
        return True
