"""The supervisor's event loop: epoll(7), level triggered."""

from __future__ import annotations

import logging
import os
import select
from collections.abc import Callable, Iterable

log = logging.getLogger("appswitch.supervisor")

Handler = Callable[[int], None]


class Loop:
    """Calls back who watches a descriptor; an error in a call is logged, and the loop goes on."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._closing: list[int] = []

    def watch(self, fd: int, events: int, handler: Handler) -> None:
        """Call `handler` with the events of `fd`; EPOLLHUP and EPOLLERR are always among them."""
        self._epoll.register(fd, events)
        self._handlers[fd] = handler

    def change(self, fd: int, events: int) -> None:
        """Watch for other events."""
        self._epoll.modify(fd, events)

    def unwatch(self, fd: int) -> None:
        """To come before the close: others may hold the same open file, and its events would go on."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def close(self, fds: Iterable[int]) -> None:
        """Close descriptors at the end of the turn: a number used again within it would get another's events."""
        for fd in fds:
            self.unwatch(fd)
            self._closing.append(fd)

    def turn(self, timeout: float | None) -> None:
        """Wait for events, at most `timeout` seconds (None: as long as it takes), and make the calls."""
        for fd, events in self._epoll.poll(timeout):
            handler = self._handlers.get(fd)
            if handler is not None:
                self.guard(handler, events)
        for fd in self._closing:
            os.close(fd)
        self._closing.clear()

    def guard(self, function: Callable[..., None], *args: int) -> None:
        """Make a call whose error must not end the loop."""
        try:
            function(*args)
        except Exception:
            log.exception("error in the supervisor; it goes on")

    def abandon(self) -> None:
        """In a forked process: let go of the epoll, which goes on for the parent."""
        self._epoll.close()
