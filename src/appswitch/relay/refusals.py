"""Which refusals deserve a line in the log: each (program, destination, port) once in a while, and only so
many for one program, so that a port scan does not fill the log. Pure: the clock is handed in."""

from __future__ import annotations

from collections.abc import Hashable

INTERVAL = 60.0  # seconds between two lines about the same thing, and for which a program's lines count
BURST = 20  # lines that one program gets in an interval


class Refusals:
    """Remembers what was said lately; bounded by BURST entries for each program."""

    def __init__(self, interval: float = INTERVAL, burst: int = BURST) -> None:
        self._interval, self._burst = interval, burst
        self._said: dict[str, dict[Hashable, float]] = {}

    def worth_a_line(self, program: str, what: Hashable, now: float) -> bool:
        """Whether to write a line about `what`, which `program` did at `now` (seconds, monotonic)."""
        said = self._said.setdefault(program, {})
        for old in [key for key, when in said.items() if now - when >= self._interval]:
            del said[old]
        if what in said or len(said) >= self._burst:
            return False
        said[what] = now
        return True

    def forget(self, program: str) -> None:
        """The program is gone."""
        self._said.pop(program, None)
