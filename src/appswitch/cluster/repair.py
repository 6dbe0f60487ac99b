"""When to ask whom for rows that are missing, and who is to be heard when members come back. No I/O, no clock.

Rows that others are known to have are fetched after a moment, in which the news may still come: from their authors,
and by turns from another member, which may know as much. A member that is new tells its rows itself. If nothing has
come from one in a while, what it knows is compared with what is known here: with few of them, however many came back
together, for those have heard of each other.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .replica import Replica

#: Seconds until what is missing is fetched, and the most that this grows to.
FETCH, FETCH_MOST = 0.2, 5.0
#: Seconds until a member that came is asked if it has told nothing.
GREET = 1.0
#: Members asked at a time, and hosts whose rows are asked for at a time.
ASKED, WANTED = 4, 256


@dataclass(frozen=True, slots=True)
class Ask:
    """Fetch from `whom` what is later than these versions; if there are none, compare all with it."""

    whom: str
    wanted: dict[str, bytes] = field(default_factory=dict)


class Repair:
    """One host's. `others`: names of the members that live, without it. Times are seconds of any clock."""

    def __init__(self, replica: Replica, rng: random.Random, others: Callable[[], Sequence[str]]) -> None:
        self._replica, self._rng, self._others = replica, rng, others
        self._silent: dict[str, tuple[int, int]] = {}  # what was known of them when they came
        self._greet_at = self._fetch_at = math.inf
        self._pause = FETCH
        self._turn = self._left = 0

    def joined(self, host: str, now: float) -> None:
        """A member has come, or come back."""
        self._silent[host] = self._replica.version(host)
        if self._greet_at == math.inf:
            self._greet_at = now + GREET * self._rng.uniform(0.5, 1.0)

    def gone(self, host: str) -> None:
        self._silent.pop(host, None)

    def look(self, now: float) -> None:
        """Something has come in: is anything missing?"""
        if self._fetch_at == math.inf and self._replica.behind():
            self._fetch_at = now + self._pause * self._rng.uniform(0.5, 1.0)

    def due(self) -> float:
        """When `tick` has something to do."""
        return min(self._greet_at, self._fetch_at)

    def tick(self, now: float) -> list[Ask]:
        """Whom to ask now."""
        asks: list[Ask] = []
        if now >= self._greet_at:
            self._greet_at = math.inf
            silent = [host for host, version in self._silent.items() if self._replica.version(host) == version]
            self._silent.clear()
            asks += [Ask(host) for host in self._some(silent)]
        if now >= self._fetch_at:
            self._fetch_at = math.inf
            behind = self._replica.behind()
            if len(behind) < self._left:  # it goes on well
                self._pause, self._turn = FETCH, 0
            self._left = len(behind)
            if behind:
                asks += self._fetches(behind)
                self._turn += 1
                self._pause = min(2 * self._pause, FETCH_MOST)
                self.look(now)
            else:
                self._pause, self._turn = FETCH, 0
        return asks

    def _fetches(self, behind: Sequence[str]) -> list[Ask]:
        """From the authors at first if there are few of them, from another at first if there are many."""
        others = self._others()
        if others and (len(behind) > ASKED) != (self._turn % 2 == 1):
            return [Ask(self._rng.choice(others), {host: self._replica.packed(host) for host in behind[:WANTED]})]
        # One that has told nothing of use may not know that it has lived before: a comparison tells it.
        futile = self._turn > 1
        return [Ask(host, {} if futile else {host: self._replica.packed(host)}) for host in self._some(behind)]

    def _some(self, hosts: Sequence[str]) -> list[str]:
        return self._rng.sample(hosts, min(ASKED, len(hosts)))
