"""Conversations instead of whole states: what two members know is compared, and only what differs is told.

What is compared is one tree of all living members and of what the delegate has of each. Those that are gone are left
out of it, for they are forgotten at different times; but where one member lives for the one and is gone for the other,
that differs, and both tell it.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from .digest import SALT, Comparison, Item, Node, Tree
from .effect import MergeState, Told
from .exchange import FETCH, Compare, Compared, Fetch, Fetched, Said, Swap, Swapped, decode, encode
from .outbox import Outbox
from .roster import Roster
from .settings import Address, Limits
from .wire import malformed

_MEMBER, _DELEGATE = 0, 1
_VERSION = struct.Struct("!IB")  # incarnation, state


class Ledger(Protocol):
    """What the delegate has, by names that mean something to it, each with a version of at most 32 octets."""

    def versions(self) -> Mapping[str, bytes]:
        """All of it."""

    def part(self, wanted: Mapping[str, bytes]) -> bytes:
        """The state of those that are later here than these versions: something for a peer's `merge_state`."""

    def told(self, versions: Mapping[str, bytes]) -> None:
        """A peer has these, which are not the versions here: earlier, later, or unknown here."""


@dataclass(frozen=True, slots=True)
class Asking:
    """A conversation that this member began: its next question, and what was found so far.

    No question: too much differs, so that whole states are to be exchanged.
    """

    to: Address
    question: Compare | Swap | Fetch | None
    comparison: Comparison | None = None


class Exchanger:
    """Asks and answers. Refused: the peer said what cannot be."""

    def __init__(self, roster: Roster, outbox: Outbox, ledger: Ledger, rng: random.Random, limits: Limits) -> None:
        self._roster = roster
        self._outbox = outbox
        self._ledger = ledger
        self._rng = rng
        self._most = 2 * limits.members
        self._octets = limits.stream

    # asking

    def compare(self, to: Address) -> Asking:
        """Begin to compare all."""
        salt = self._rng.randbytes(SALT)
        comparison = Comparison(self._tree(salt))
        return Asking(to, Compare(salt, tuple(comparison.question())), comparison)

    def fetch(self, to: Address, wanted: Mapping[str, bytes]) -> Asking:
        """Have the delegate's state of these, if it is later than these versions. ValueError for more than 256."""
        if len(wanted) > FETCH:
            raise ValueError(f"a fetch of {len(wanted)}: at most {FETCH}")
        return Asking(to, Fetch(wanted))

    def heard(self, asking: Asking, answer: bytes, now: float) -> Asking | None:
        """Take in an answer; how the conversation goes on, if it does."""
        match asking.question, self._decode(answer):
            case Compare(salt), Compared(nodes) if asking.comparison is not None:
                return self._compared(asking.to, asking.comparison, salt, nodes)
            case Swap(), Swapped(members):
                self._roster.check(members)
                self._roster.merge(members, now)
            case Fetch(), Fetched(state):
                self._outbox.effects.append(MergeState(state, False))
            case _:
                raise malformed("an answer to something else")
        return None

    def _compared(self, to: Address, comparison: Comparison, salt: bytes, nodes: Sequence[Node]) -> Asking | None:
        comparison.answered(nodes)
        if comparison.vast:
            return Asking(to, None)
        if question := comparison.question():
            return Asking(to, Compare(salt, tuple(question)), comparison)
        names = [name for realm, name in comparison.differing if realm == _MEMBER]
        ours: dict[str, bytes] = {}
        theirs: dict[str, bytes] = {}
        for (realm, name), (here, there) in comparison.differing.items():
            if realm == _DELEGATE:
                ours |= {name: here} if here is not None else {}
                theirs |= {name: there} if there is not None else {}
        self._tell(theirs)
        if names or ours:
            return Asking(to, Swap(self._roster.known(names), tuple(names), ours))
        return None

    # answering

    def answer(self, question: bytes, now: float) -> bytes:
        """What to say to a peer that asks this."""
        match self._decode(question):
            case Compare(salt, nodes):
                tree = self._tree(salt)
                return encode(Compared(tuple(tree.answer(prefix, digest) for prefix, digest in nodes)))
            case Swap(members, wanted, versions):
                self._roster.check(members)
                self._roster.merge(members, now)
                self._tell(versions)
                return encode(Swapped(self._roster.known(wanted)))
            case Fetch(wanted):
                self._tell(wanted)
                return encode(Fetched(self._ledger.part(wanted)))
            case _:
                raise malformed("an answer to nothing")

    def _decode(self, data: bytes) -> Said:
        return decode(data, self._most, self._octets)

    def _tell(self, versions: Mapping[str, bytes]) -> None:
        if versions:
            self._outbox.effects.append(Told(versions))

    def _tree(self, salt: bytes) -> Tree:
        return Tree(salt, [*self._members(), *self._delegates()])

    def _members(self) -> Iterable[Item]:
        for record in self._roster.records.values():
            if record.reachable:
                yield Item(_MEMBER, record.name, _VERSION.pack(record.incarnation, record.state))

    def _delegates(self) -> Iterable[Item]:
        for name, version in self._ledger.versions().items():
            yield Item(_DELEGATE, name, version)
