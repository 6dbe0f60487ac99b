"""How well this member itself does (Lifeguard, section IV.A: local health multiplier)."""

from __future__ import annotations


class Health:
    """A score from 0, well, to `most - 1`. Answered probes lower it; missed nacks and doubts about us raise it."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.score = 0

    def change(self, by: int) -> None:
        self.score = max(0, min(self._most - 1, self.score + by))

    def scale(self, time: float) -> float:
        """A slow member gives the others more time: it may be its own fault that they seem silent."""
        return time * (self.score + 1)
