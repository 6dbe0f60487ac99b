"""A datagram that is too long to go between hosts at once goes in two parts: to cut it, and to put it together. Pure.

Each part is a datagram of its own (`datagram`): all its fields are the whole one's, but FIRST or REST stands in its
kind, it has a part of the payload, and a counter of its own; the rest's is the first's and one.
"""

from __future__ import annotations

from collections.abc import Callable

from ..model.identity import TAGS_MOST
from .datagram import FIRST, LARGEST, REST, SIZE, Datagram
from .identity import tags_text

#: Parts that wait for the other one at a time, of all senders together, and for how many seconds.
MOST, WAIT = 64, 1.0
_SURELY = LARGEST - SIZE - TAGS_MOST


def goes_whole(whole: Datagram) -> bool:
    """Has it room in one datagram?"""
    length = len(whole.payload)
    return length <= _SURELY or length + len(tags_text(whole.tags)) <= LARGEST - SIZE


def cut(whole: Datagram, counter: int) -> tuple[Datagram, Datagram]:
    """The two parts. `counter`: the rest's."""
    half = len(whole.payload) // 2
    return (
        whole._replace(kind=whole.kind | FIRST, payload=whole.payload[:half]),
        whole._replace(kind=whole.kind | REST, payload=whole.payload[half:], counter=counter),
    )


class Parts:
    """Those that have come alone. `lost` is called for each whose other one is not waited for any more."""

    def __init__(self, lost: Callable[[], object]) -> None:
        self._lost = lost
        #: By sender and the counter of the first, in the order in which they came; until when.
        self._waiting: dict[tuple[bytes, int], tuple[float, Datagram]] = {}

    def join(self, part: Datagram, now: float) -> Datagram | None:
        """The whole, if this is the second of its parts to come. `now`: seconds on a clock that never goes back.

        Two that do not fit each other are no parts of one datagram: both are lost.
        """
        self.expire(now)
        key = part.sender, part.counter - bool(part.kind & REST)
        _, other = self._waiting.pop(key, (0.0, None))
        if other is None:
            if len(self._waiting) >= MOST:
                self._drop()
            self._waiting[key] = now + WAIT, part
            return None
        first, rest = (part, other) if part.kind & FIRST else (other, part)
        whole = first._replace(kind=first.kind & ~FIRST, payload=first.payload + rest.payload)
        if rest._replace(kind=rest.kind & ~REST, counter=first.counter, payload=whole.payload) != whole:
            self._lost()
            return None
        return whole

    def expire(self, now: float) -> None:
        """Wait no longer for what has not come in time."""
        while self._waiting and next(iter(self._waiting.values()))[0] <= now:
            self._drop()

    def timeout(self, now: float) -> float | None:
        """Seconds until `expire` must be called; None when nothing waits."""
        return max(0.0, next(iter(self._waiting.values()))[0] - now) if self._waiting else None

    def _drop(self) -> None:
        del self._waiting[next(iter(self._waiting))]
        self._lost()
