"""Who waits for room in a full accept queue: here the kernel gives no event (its own connects wait inside it)."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

from .events import Events

#: Seconds after which one that waits tries again by itself: the accept() may have been another worker's to serve.
RETRY = 0.2


class Room:
    """Callbacks that wait for room in listeners' queues, by the listener's cookie; the first to come is the first."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._waiting: dict[int, dict[int, Callable[[], None]]] = {}
        self._order = itertools.count()

    def when(self, cookie: int, callback: Callable[[], None]) -> None:
        """Call back when there may be room: after an accept() here, at the latest in a moment."""
        key = next(self._order)
        self._waiting.setdefault(cookie, {})[key] = callback
        self._events.after(time.monotonic() + RETRY, lambda: self._try(cookie, key))

    def made(self, cookie: int) -> None:
        """One was taken from this listener's queue: it is the turn of the first that waits."""
        if cookie in self._waiting:
            self._events.after(0.0, lambda: self._try(cookie))

    def _try(self, cookie: int, key: int | None = None) -> None:
        waiting = self._waiting.get(cookie)
        if waiting is None:
            return
        callback = waiting.pop(next(iter(waiting)) if key is None else key, None)
        if not waiting:
            del self._waiting[cookie]
        if callback is not None:
            callback()
