"""Programs that are about to begin: each waits until those who serve it have taken it.

These are its worker and, where others have its virtual IP, the relay: they are to reach each other by UDP at once. A
relay that hangs holds no program up for long; one that is alone with its virtual IP does not wait for it either.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from .children import Child
from .control import Client

log = logging.getLogger("appswitch.supervisor")

#: Seconds that the relay has to take a program: some milliseconds are usual.
RELAY_PATIENCE = 1.0


class Beginnings:
    """`begin` is called with the client of a program that all have taken."""

    def __init__(self, relay: Child, begin: Callable[[Client], None]) -> None:
        self._relay, self._begin = relay, begin
        self._clients: dict[int, Client] = {}
        self._awaited: dict[int, set[str]] = {}
        # Until when the relay is waited for. All waits are equally long, so the first in order ends first.
        self._patience: dict[int, float] = {}

    def wait(self, number: int, client: Client, *, shared: bool) -> None:
        """A program is about to be told of; `shared`: others have its virtual IP."""
        self._clients[number] = client
        self._awaited[number] = {"worker", "relay"} if shared else {"worker"}
        if shared:
            self._patience[number] = time.monotonic() + RELAY_PATIENCE

    def awaits_relay(self, number: int) -> bool:
        return number in self._patience

    def taken(self, number: Any, by: str) -> None:
        """Its worker or the relay has taken a program, which begins when all have."""
        awaited = self._awaited.get(number)
        if awaited is None:
            return  # a process that was started again has told of one that runs
        awaited.discard(by)
        if by == "relay":
            self._patience.pop(number, None)
        if not awaited and (client := self.forget(number)) is not None:
            self._begin(client)

    def forget(self, number: int) -> Client | None:
        """Nobody waits for this program any more; who did."""
        self._awaited.pop(number, None)
        self._patience.pop(number, None)
        return self._clients.pop(number, None)

    def moments(self) -> list[float]:
        """When something will be due; empty while the relay is not waited for."""
        return [next(iter(self._patience.values()))] if self._patience else []

    def due(self, now: float) -> None:
        """Do what is due at this time of the monotonic clock."""
        while self._patience and (first := next(iter(self._patience.items())))[1] <= now:
            log.error(
                "the relay (process %d) has not taken program %d in time, which begins: its UDP and DNS go on when "
                "the relay does; should it not, kill it, and it is started again",
                self._relay.pid,
                first[0],
            )
            self.taken(first[0], "relay")
