"""The worker's events: descriptors, timers, and nothing that runs when neither has anything to tell."""

from __future__ import annotations

import _socket
import fcntl
import heapq
import itertools
import logging
import os
import resource
import select
import time
from collections.abc import Callable

from ..linux import epoll, timerfd
from ..table.counters import Counters

log = logging.getLogger("appswitch.worker")

#: Seconds without a turn of the loop after which a worker that has something to do is late (switch/watchdog.py).
LATE = 1.0
_WIND_EVERY = LATE / 2
#: Cancelled timers that may lie about before they are cleared away.
_CANCELLED_KEPT = 1024
#: Seconds that epoll_wait(2) can wait are some 24 days; programs' time-outs may be longer.
_LONGEST = 1e6
_FIRST_HANDLE = 1 << 24  # below are the descriptors of seccomp listeners, which stand for themselves


class Events:
    """An epoll with callbacks, and timers of the monotonic clock. A callback that fails is logged, not fatal."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[int], object]] = {}
        self._handles = itertools.count(_FIRST_HANDLE)
        self._timers: list[tuple[float, int]] = []
        self._due: dict[int, Callable[[], object]] = {}
        self._order = itertools.count()
        # Numbers for watches of files that are not ours for long are kept by this while no file is there.
        self._nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._numbers = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2
        #: Runs out when a turn of the loop takes too long; wound now and then while there is something to do.
        self.alarm = timerfd.create()
        self._at_rest, self._wound = True, False

    # descriptors ------------------------------------------------------------------------------------

    def add_listener(self, fd: int) -> None:
        """A seccomp listener: its events come from `wait` under its own number."""
        self._epoll.register(fd, select.EPOLLIN)

    def remove_listener(self, fd: int) -> None:
        self._epoll.unregister(fd)

    def watch(self, fd: int, callback: Callable[[int], object], events: int = select.EPOLLIN) -> int:
        """Call back with the events of a descriptor; returns the handle to end it with."""
        handle = next(self._handles)
        self._callbacks[handle] = callback
        epoll.add(self._epoll.fileno(), fd, events, handle)
        return handle

    def unwatch(self, sock: _socket.socket | int, handle: int) -> None:
        if self._callbacks.pop(handle, None) is not None:
            self._epoll.unregister(sock)

    def forget(self, handle: int) -> None:
        """No callback any more; for a descriptor that is closed, or about to be."""
        self._callbacks.pop(handle, None)

    def new_watch(self, callback: Callable[[int], object]) -> tuple[int, int]:
        """(handle, descriptor number) for a watch that `arm` arms, again and again, under that number.

        The number is there for files to be put at it. OSError when there is none left.
        """
        number = fcntl.fcntl(self._nothing, fcntl.F_DUPFD_CLOEXEC, self._numbers)
        handle = next(self._handles)
        self._callbacks[handle] = callback
        return handle, number

    def vacate(self, number: int) -> None:
        """Let go of the file at the number of a watch."""
        os.dup2(self._nothing, number, inheritable=False)

    def end_watch(self, handle: int, number: int) -> None:
        """Of a watch that may never have been made (number -1)."""
        self.forget(handle)
        if number >= 0:
            os.close(number)

    def arm(self, handle: int, number: int) -> None:
        """Report the next readiness of the file that is at `number` now, once."""
        events = select.EPOLLIN | select.EPOLLONESHOT
        try:
            epoll.modify(self._epoll.fileno(), number, events, handle)
        except FileNotFoundError:
            epoll.add(self._epoll.fileno(), number, events, handle)

    # time -------------------------------------------------------------------------------------------

    def after(self, deadline: float, callback: Callable[[], object]) -> int:
        """Call back at a time of the monotonic clock; returns what `cancel` takes."""
        timer = next(self._order)
        self._due[timer] = callback
        heapq.heappush(self._timers, (deadline, timer))
        return timer

    def cancel(self, timer: int) -> None:
        """Do not call back; nothing happens if that was done."""
        self._due.pop(timer, None)
        if len(self._timers) > 2 * len(self._due) + _CANCELLED_KEPT:
            self._timers = [item for item in self._timers if item[1] in self._due]
            heapq.heapify(self._timers)

    # the loop ---------------------------------------------------------------------------------------

    def wait(self) -> list[tuple[int, int]]:
        """The next events of seccomp listeners; those with a callback, and the timers, are served on the way."""
        ready = self._epoll.poll(self._serve_timers() if self._timers else None, 64)
        if self._at_rest and ready:
            self._begin()
        for handle, events in ready:
            callback = self._callbacks.get(handle)
            if callback is not None:
                self.guard(callback, events)
        return ready

    def _serve_timers(self) -> float | None:
        """Call what is due; the seconds until the next is."""
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            callback = self._due.pop(heapq.heappop(self._timers)[1], None)
            if callback is None:
                continue  # cancelled
            if self._at_rest and callback != self._wind:
                self._begin()
            self.guard(callback)
        return min(max(0.0, self._timers[0][0] - now), _LONGEST) if self._timers else None

    def _begin(self) -> None:
        """There is something to do again: who may not be late must be waited for."""
        self._at_rest = False
        if not self._wound:
            self._wind()

    def _wind(self) -> None:
        self._wound = not self._at_rest
        timerfd.wind(self.alarm, LATE if self._wound else 0)
        if self._wound:
            self._at_rest = True
            self.after(time.monotonic() + _WIND_EVERY, self._wind)

    def guard(self, function: Callable[..., object], *args: object) -> None:
        """Call; an error is logged and counted, and the loop goes on."""
        try:
            function(*args)
        except Exception:
            self._counters.add("faults")
            log.exception("error in the trap worker; it goes on")
