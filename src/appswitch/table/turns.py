"""Large changes as many short transactions, between which the table's other writers get their turn."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

#: Seconds between two transactions. LMDB's write lock goes to whoever asks for it first after it was given back: who
#: asks again at once keeps it from those that were woken for it.
PAUSE = 0.0003


def in_turns(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """The items, `size` at a time, for a transaction each."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
        if start + size <= len(items):
            time.sleep(PAUSE)
