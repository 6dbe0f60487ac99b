"""Workers that a program holds up: found by their alarms, ended, and followed by others.

What a worker asks of a program's memory, sockets and epolls can be made to wait for ever: memory that a FUSE file
system or userfaultfd(2) fills, a lock that a thread holds which waits for such memory. No call that asks has a
time-out. Therefore each worker winds a timer (trap/events.py) of which the supervisor has a copy: it runs out only
when a turn of the worker's loop takes too long, so that nobody wakes up for a worker that is well.
"""

from __future__ import annotations

import logging
import os
import select
from collections.abc import Callable
from functools import partial

from ..linux import procfs, timerfd
from ..linux.arch import NUMBERS
from ..trap import parked
from .children import Child
from .loop import Loop
from .staff import Staff

log = logging.getLogger("appswitch.supervisor")

#: Seconds between the look that finds a late worker blocked and the one that finds it so still: then it is stuck.
_LOOK_AGAIN = 0.25
#: Seconds that a killed worker has to end; one that waits for a lock in the kernel does not.
_GOING = 0.5
_IDLE = {NUMBERS[name] for name in ("epoll_wait", "epoll_pwait") if name in NUMBERS}
_OF_MEMORY = {NUMBERS[name] for name in ("process_vm_readv", "process_vm_writev") if name in NUMBERS}

Report = Callable[[Child, int, str], None]


class Watchdog:
    """`pending` tells a worker's list of unanswered calls (trap/parked.py); `held_up` is told of a worker that is
    about to be ended, the program that did it (0: not known) and how.
    """

    def __init__(self, loop: Loop, staff: Staff, pending: Callable[[Child], str], held_up: Report) -> None:
        self._loop, self._staff, self._pending, self._held_up = loop, staff, pending, held_up
        self._alarms: dict[Child, int] = {}
        self._blocked: dict[Child, procfs.Standstill] = {}

    def watch(self, child: Child, alarm: int) -> None:
        """From now on; the descriptor is ours."""
        self.forget(child)
        self._alarms[child] = alarm
        self._loop.watch(alarm, select.EPOLLIN, partial(self._late, child, alarm))

    def forget(self, child: Child) -> None:
        """It has ended, or another has its place."""
        self._blocked.pop(child, None)
        alarm = self._alarms.pop(child, None)
        if alarm is not None:
            self._loop.close([alarm])

    def _late(self, child: Child, alarm: int, _: int) -> None:
        if not timerfd.ran_out(alarm) or not child.alive:
            return
        if child.killed:
            log.error("%s cannot even be killed before what it waits for is over: another takes its place", child.role)
            self.forget(child)
            self._staff.replace(child)
            return
        found = procfs.standstill(child.pid)
        if found is not None and found.call in _IDLE:
            return
        if found is None or found != self._blocked.get(child):
            if found is not None:
                self._blocked[child] = found
            timerfd.wind(alarm, _LOOK_AGAIN)
            return
        timerfd.wind(alarm, _GOING)
        log.info("%s stands still in system call %d, with %s", child.role, found.call, found.arguments)
        program, how = self._whose(child, found)
        child.kill()
        self._held_up(child, program, how)

    def _whose(self, child: Child, found: procfs.Standstill) -> tuple[int, str]:
        """(the program that makes it wait or 0, by what)."""
        try:
            if found.call in _OF_MEMORY:
                unanswered = parked.unanswered(self._pending(child))
                return unanswered.get(found.arguments[0], 0), "its memory does not answer"
            return parked.in_hand(self._pending(child)), "its sockets or epolls do not answer"
        except OSError as error:
            return 0, os.strerror(error.errno or 0)
