"""Calls that wait in accept() on a listener, and hold it open meanwhile, as they do natively."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable

from ..linux import seccomp
from .events import Events
from .parked import Pending, Waiter
from .program import Program
from .sockets import Listener


class Accepting:
    """`listeners` gives all that may be waited on; `arrived` is told of what comes to one on which calls wait, or that
    it was shut down.
    """

    def __init__(
        self,
        events: Events,
        pending: Pending,
        listeners: Callable[[], Iterable[Listener]],
        arrived: Callable[[Listener], object],
    ) -> None:
        self._events = events
        self._pending = pending
        self._listeners = listeners
        self._resume = arrived
        #: Processes that have waited in accept(), as pidfds.
        self._lives: dict[int, int] = {}

    def watch(self, listener: Listener) -> None:
        """Make ready for calls on a new one."""
        listener.handle, listener.number = self._events.new_watch(lambda _: self._arrived(listener))

    def unwatch(self, listener: Listener) -> None:
        self._events.end_watch(listener.handle, listener.number)

    def _arrived(self, listener: Listener) -> None:
        listener.armed = False
        self._resume(listener)

    def end_all(self, listener: Listener) -> None:
        """It is closed: answer the calls on it as the kernel does."""
        while (waiter := self.next_waiter(listener)) is not None:
            waiter.program.fail(waiter.call, errno.EINVAL)
            self._pending.unpark(waiter)

    def forget_program(self, program: Program) -> None:
        """It has ended; its threads may have waited on others' listeners."""
        for listener in self._listeners():
            for tid in [tid for tid, waiter in listener.waiting.items() if waiter.program is program]:
                self._pending.unpark(listener.waiting.pop(tid))
            self.let_go(listener)

    def wait(self, listener: Listener, waiter: Waiter, fd: int) -> None:
        """Park an accept() until something arrives; `fd` is a copy of the listener."""
        listener.waiting[waiter.call.tid] = self._pending.park(waiter)
        self.arm(listener, fd)
        self._watch_life(waiter.program, waiter.call.tid)

    def arm(self, listener: Listener, fd: int) -> None:
        """Report the next arrival, once, and hold the listener open until nobody waits for it (`let_go`)."""
        number = listener.number
        if not listener.held:
            os.dup2(fd, number, inheritable=False)
            listener.held = True
        if listener.armed:
            return
        self._events.arm(listener.handle, number)
        listener.armed = True

    def let_go(self, listener: Listener) -> None:
        """Unless calls wait on this listener, leave it to its program alone: its close is the end then."""
        if listener.held and not listener.waiting:
            listener.held = False
            self._events.vacate(listener.number)

    def still_waited_for(self, listener: Listener) -> bool:
        """Whether a call on this listener is still being made; those that are not are forgotten."""
        while listener.waiting:
            waiter = next(iter(listener.waiting.values()))
            if seccomp.valid(waiter.program.listener, waiter.call.id):
                return True
            del listener.waiting[waiter.call.tid]
            self._pending.unpark(waiter)
        self.let_go(listener)
        return False

    def next_waiter(self, listener: Listener) -> Waiter | None:
        """The longest parked call on this listener that is still being made; to be unparked when it is answered."""
        if not self.still_waited_for(listener):
            return None
        _, waiter = listener.waiting.popitem(last=False)
        self.let_go(listener)
        return waiter

    def forget_waiter(self, listener: Listener, tid: int) -> None:
        """A thread that calls again does not make its parked call any more."""
        waiter = listener.waiting.pop(tid, None)
        if waiter is not None:
            self._pending.unpark(waiter)

    def forget_cancelled(self) -> None:
        """Calls that are not being made any more hold no listener."""
        for listener in self._listeners():
            if listener.held:
                self.still_waited_for(listener)

    def _watch_life(self, program: Program, tid: int) -> None:
        """A process that dies in accept() must not keep its listener open through us."""
        group = program.group(tid)
        if group in self._lives:
            return
        try:
            self._lives[group] = life = os.pidfd_open(group)
        except OSError:
            return  # it has just ended
        handle = self._events.watch(life, lambda _: self._ended(group, handle))

    def _ended(self, group: int, handle: int) -> None:
        self._events.forget(handle)
        os.close(self._lives.pop(group))
        self.forget_cancelled()
