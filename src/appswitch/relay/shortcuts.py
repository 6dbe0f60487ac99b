"""Which conversations take the way past the relay, and by which entries: pure.

An entry holds for one direction. It is due when both programs have their doors, and when nothing is left with the relay
of what the sender sent before, for that would be overtaken.
"""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

from .flows import Flow, Key, Owner
from .offload_code import KEY


class Entry(NamedTuple):
    """A key of the map, and the number of the receiver's end."""

    key: bytes
    end: int


class _Direction(NamedTuple):
    """Of a conversation: by which key its datagrams are found, and who gets them."""

    key: Key
    receiver: Owner


class Shortcuts:
    """Programs' doors, and the conversations that wait for them or have entries."""

    def __init__(self) -> None:
        self._ends: dict[Owner, int] = {}
        #: Programs whose doors are being made, and those that can have none.
        self._asked: set[Owner] = set()
        self._refused: set[Owner] = set()
        #: By the sender.
        self._waiting: defaultdict[Owner, dict[Flow, list[_Direction]]] = defaultdict(dict)
        self._entered: dict[Flow, list[Entry]] = {}

    def want(self, flow: Flow) -> list[Owner]:
        """A conversation of two programs of this host is to take the way: who must have a door made for that."""
        (one, there), (other, back) = flow.keys
        if self._refused.intersection((one, other)):
            return []
        self._waiting[one].setdefault(flow, []).append(_Direction(there, other))
        self._waiting[other].setdefault(flow, []).append(_Direction(back, one))
        missing = [owner for owner in dict.fromkeys((one, other)) if not (owner in self._ends or owner in self._asked)]
        self._asked.update(missing)
        return missing

    def opened(self, owner: Owner, end: int | None) -> None:
        """A program's door is there, or None: it can have none."""
        self._asked.discard(owner)
        if end is not None:
            self._ends[owner] = end
        else:
            self._refused.add(owner)

    def waits(self, owner: Owner) -> bool:
        """Is something due as soon as the relay has nothing left of this sender's?"""
        return owner in self._ends and any(
            each.receiver in self._ends for found in self._waiting.get(owner, {}).values() for each in found
        )

    def due(self, owner: Owner) -> list[tuple[Flow, Entry]]:
        """Nothing is left of this sender's: the entries that are to be made now, and count as made."""
        waiting, found = self._waiting.get(owner, {}), []
        if owner not in self._ends:
            return []
        for flow, directions in list(waiting.items()):
            ready = [each for each in directions if each.receiver in self._ends]
            for each in ready:
                directions.remove(each)
                entry = Entry(map_key(self._ends[owner], each.key), self._ends[each.receiver])
                self._entered.setdefault(flow, []).append(entry)
                found.append((flow, entry))
            if not directions:
                del waiting[flow]
        return found

    def entries(self, flow: Flow) -> list[Entry]:
        """What the conversation has."""
        return self._entered.get(flow, [])

    def end(self, flow: Flow) -> list[Entry]:
        """The conversation is over, or goes by the relay from now on: what is to be struck out."""
        for owner, _ in flow.keys:
            if owner in self._waiting:
                self._waiting[owner].pop(flow, None)
        return self._entered.pop(flow, [])

    def leave(self, owner: Owner) -> None:
        """The program has ended, after its conversations."""
        self._waiting.pop(owner, None)
        self._ends.pop(owner, None)
        self._asked.discard(owner)
        self._refused.discard(owner)


def map_key(end: int, key: Key) -> bytes:
    """The map's key for datagrams with this key that come from the program with this end."""
    return KEY.pack(end, 4 if len(key) == 12 else 6, key)
