"""Upstreams' answers, kept as long as they may be (RFC 2181, 5; RFC 2308, 5). Pure: the clock is handed in.

Whole messages are kept, each for its own question: what came along in an answer is never used for another one.
"""

from __future__ import annotations

from collections.abc import Hashable

from appswitch.dns.upstream import Answer

ENTRIES = 2048
SIZE = 4 << 20  # octets of messages


class Cache:
    """Bounded; who was not asked for longest makes room."""

    def __init__(self, entries: int = ENTRIES, size: int = SIZE) -> None:
        self._most, self._largest = entries, size
        self._kept: dict[Hashable, tuple[float, Answer]] = {}
        self._size = 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable, now: float) -> tuple[Answer, int] | None:
        """The answer and for how many whole seconds it was kept; None when there is none that may still be used."""
        found = self._kept.pop(key, None)
        if found is None:
            return None
        since, answer = found
        age = int(now - since)
        if age >= answer.lifetime:
            self._size -= len(answer.message)
            return None
        self._kept[key] = found  # at the end: it was asked for last
        return answer, age

    def put(self, key: Hashable, answer: Answer, now: float) -> None:
        """Keep an answer that came now, if it may be kept."""
        self._drop(key)
        if not 0 < len(answer.message) <= self._largest // 16 or answer.lifetime <= 0:
            return
        self._kept[key] = now, answer
        self._size += len(answer.message)
        while len(self._kept) > self._most or self._size > self._largest:
            self._drop(next(iter(self._kept)))

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()
        self._size = 0

    def _drop(self, key: Hashable) -> None:
        found = self._kept.pop(key, None)
        if found is not None:
            self._size -= len(found[1].message)
