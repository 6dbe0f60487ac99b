"""How long a suspect has to say that it lives (Lifeguard, section IV.B: dynamic suspicion time-outs)."""

from __future__ import annotations

import math

from .settings import Timings


class Suspicion:
    """A deadline that comes nearer with every other member that suspects the same one."""

    def __init__(self, source: str, members: int, timings: Timings, now: float) -> None:
        self._confirmations = timings.suspicion_mult - 2
        if members - 2 < self._confirmations:
            self._confirmations = 0  # nobody is left who could confirm
        self._least = timings.suspicion_mult * max(1.0, math.log10(max(1, members))) * timings.probe_interval
        self._most = timings.suspicion_max_mult * self._least
        self._since = now
        self._sources = {source}
        self.deadline = now + (self._most if self._confirmations > 0 else self._least)

    def confirm(self, source: str) -> bool:
        """Whether this is news that is worth passing on: a member that did not suspect it yet, and is still wanted."""
        if len(self._sources) > self._confirmations or source in self._sources:
            return False
        self._sources.add(source)
        share = math.log(len(self._sources)) / math.log(self._confirmations + 1)
        self.deadline = self._since + max(self._least, self._most - share * (self._most - self._least))
        return True
