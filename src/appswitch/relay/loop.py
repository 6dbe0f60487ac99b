"""The relay's event loop: epoll(7), level triggered, and nothing else."""

from __future__ import annotations

import select
from collections.abc import Callable

Ready = Callable[[int], None]


class Loop:
    """Calls back who watches a descriptor when it is ready. Meets `appswitch.dns.forward.Poller`.

    A call may come although there is nothing to do (the descriptor's number passed to another in the same
    turn): who watches must not block.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._ready: dict[int, Ready] = {}

    def watch(self, fd: int, events: int, ready: Ready) -> None:
        """Call `ready` with the events whenever `fd` has some of `events`, an error or a hang-up."""
        self._epoll.register(fd, events)
        self._ready[fd] = ready

    def change(self, fd: int, events: int) -> None:
        """Watch for other events."""
        self._epoll.modify(fd, events)

    def forget(self, fd: int) -> None:
        """Stop watching; must come before the close, for others may hold copies of the open file."""
        if self._ready.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def turn(self, timeout: float | None) -> int:
        """Wait for events, at most `timeout` seconds (None: as long as it takes), and make the calls; how many."""
        found = self._epoll.poll(timeout, 256)
        for fd, events in found:
            ready = self._ready.get(fd)
            if ready is not None:
                ready(events)
        return len(found)

    def close(self) -> None:
        """Give the epoll descriptor back."""
        self._epoll.close()
