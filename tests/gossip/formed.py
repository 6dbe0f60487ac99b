"""Clusters of thousands that stand already: everybody knows everybody, without having joined one by one.

The core runs as it is; only what would be the same for every message or on every host is done once:

- what is known of members, and of their rows, is shared by all hosts until one of them looks closer at it;
- a message's octets are decoded once for all that receive it;
- datagrams are put into boxes as long as sealed ones, but not encrypted.
"""

import contextlib
import dataclasses
import functools
import gc
import operator
from collections.abc import Callable, ItemsView, Iterator
from copy import copy
from typing import Any, cast
from unittest import mock

from appswitch.cluster import wire as replica_wire
from appswitch.cluster.replica import Changes, Replica
from appswitch.gossip import core, wire
from appswitch.gossip.member import Record
from appswitch.gossip.roster import Roster
from appswitch.gossip.seal import OVERHEAD

from .simulator import Delegate, Host, World
from .tables import Tables, tables

#: As the switch's: its label has the length of a real one, its key is of the length of a real one.
LABEL, KEYS = "cluster1", (bytes(32),)
_BOX = bytes(OVERHEAD)
#: So many orders of probing are drawn; all begin somewhere in one of them.
_ORDERS = 64
_FIELDS = operator.attrgetter(*(field.name for field in dataclasses.fields(Record)))


class Box:
    """In place of a key ring: boxes of the same size."""

    def __init__(self, keys: tuple[bytes, ...]) -> None:
        pass

    def seal(self, plain: bytes, context: bytes, cipher: None = None) -> bytes:
        return _BOX + plain

    def open(self, box: bytes, context: bytes) -> bytes:
        return box[OVERHEAD:]

    def open_by(self, box: bytes, context: bytes) -> tuple[bytes, None]:
        return box[OVERHEAD:], None


@contextlib.contextmanager
def shortcuts() -> Iterator[None]:
    """Do once what would be the same for all hosts."""
    with (
        mock.patch.object(core, "KeyRing", Box),
        mock.patch.object(wire, "decode", functools.lru_cache(1 << 16)(wire.decode)),
        mock.patch.object(replica_wire, "read_message", functools.lru_cache(1 << 14)(replica_wire.read_message)),
    ):
        gc.collect()
        gc.disable()
        try:
            yield
        finally:
            gc.enable()


class _Members(dict[str, Record]):
    """What one host knows of all: of each member the common record, until it is looked up."""

    def __init__(self, common: dict[str, Record], places: dict[str, int], begin: int, roster: Roster) -> None:
        """`places`: in an order of all; the roster's began at `begin` and leaves out its own."""
        super().__init__(common)
        self._common, self._places, self._begin, self._roster = common, places, begin, roster

    def get(self, name: str, default: Any = None) -> Any:
        record = super().get(name)
        if record is None:
            return default
        return self._own(name, record)

    def __getitem__(self, name: str) -> Record:
        return self._own(name, super().__getitem__(name))

    def _own(self, name: str, record: Record) -> Record:
        if record is not self._common.get(name):
            return record
        own = Record(*_FIELDS(record))
        super().__setitem__(name, own)
        order, size = self._roster.order, len(self._places)
        place, mine = ((self._places[one] - self._begin) % size for one in (name, self._roster.local.name))
        place -= place > mine
        if place >= len(order) or order[place] is not record:
            place = next(place for place, known in enumerate(order) if known is record)
        order[place] = own
        return own


class _States(dict[str, Any]):
    """What one host knows of all hosts' rows: of each the common state, until it is looked up."""

    def __init__(self, common: dict[str, Any], me: str, own: Any) -> None:
        super().__init__({me: own})
        self._common = common

    def get(self, name: str, default: Any = None) -> Any:
        state = super().get(name)
        if state is None and (known := self._common.get(name)) is not None:
            state = self[name] = dataclasses.replace(known, rows=dict(known.rows), waiting={})
        return default if state is None else state

    def items(self) -> ItemsView[str, Any]:
        return cast(ItemsView[str, Any], (self._common | self).items())


def formed(
    world: World, size: int, rows: Callable[[int], Changes] | None = None, **settings: object
) -> list[Host]:
    """So many members that know each other, and, if `rows` says what each has, each other's rows."""
    delegate: Callable[[World, Host], Delegate] | None = Tables if rows is not None else None
    settings = {"label": LABEL, "keys": KEYS} | settings
    hosts = [world.add(f"n{number}", delegate=delegate, **settings) for number in range(size)]  # type: ignore[arg-type]
    common = {host.name: copy(host.core._roster.local) for host in hosts}
    orders = [list(common.values()) for _ in range(min(size, _ORDERS))]
    for order in orders:
        world.rng.shuffle(order)
    places = [{record.name: place for place, record in enumerate(order)} for order in orders]
    for number, host in enumerate(hosts):
        which = number % len(orders)
        _introduce(host, common, orders[which], places[which], world.rng.randrange(size))
        # As after a while: whole states are exchanged evenly over the interval.
        interval = world.timings.push_pull_interval * core.push_pull_scale(size)
        host.core._next_push_pull = world.now + interval * (number + world.rng.random()) / size
    if rows is not None:
        _tell_rows(hosts, rows)
    return hosts


def _introduce(
    host: Host, common: dict[str, Record], order: list[Record], places: dict[str, int], begin: int
) -> None:
    roster = host.core._roster
    roster.order = order[begin:] + order[:begin]
    del roster.order[(places[host.name] - begin) % len(order)]
    members = _Members(common, places, begin, roster)
    dict.__setitem__(members, host.name, roster.local)
    roster.records = members
    roster._alter_live(len(roster.order))


def _tell_rows(hosts: list[Host], rows: Callable[[int], Changes]) -> None:
    common: dict[str, Any] = {}
    for number, host in enumerate(hosts):
        found = tables(host).replica
        found.change(rows(number))
        common[host.name] = found._states[host.name]
    common = {name: copy(state) for name, state in common.items()}
    for state in common.values():
        state.rows = dict(state.rows)
    for host in hosts:
        delegate = tables(host)
        delegate.table = None
        _share(delegate.replica, common)


def _share(one: Replica, common: dict[str, Any]) -> None:
    one._states = _States(common, one._me, one._states[one._me])
