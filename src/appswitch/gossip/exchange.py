"""What members who understand it say to each other instead of exchanging whole states: octets and their meaning.

A question and its answer are a stream each way, in a message of a type that memberlist does not have; so it is said
only to members whose meta has `TAG`. All are msgpack arrays, of the old specification as everything here:

    compare   1, salt, [[node, digest], ...]            do we know the same? (digest.py)
    compared  2, [nil | [sixteen digests] | [[realm, name, version], ...], ...]
    swap      3, [member, ...], [name, ...], [[name, version], ...]
                                  members as known here; tell me of those; versions of the delegate's here
    swapped   4, [member, ...]
    fetch     5, [[name, version], ...]                 the delegate's state of these, if it is later
    fetched   6, state

A member is [name, address, port, meta, incarnation, state, versions], as in a push/pull.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgpack

from . import tags, wire
from .digest import DEPTH, DIGEST, NODES, SALT, Item, Node
from .refused import Refused
from .wire import Fields, Known, malformed

#: In the meta of those who understand this.
TAG = {"exchange": "1"}
#: Octets of a delegate's version.
VERSION = 32
#: Names and versions in a fetch.
FETCH = 256
_FIELDS = (b"Name", b"Addr", b"Port", b"Meta", b"Incarnation", b"State", b"Vsn")
_NIL = 0xC0  # of msgpack
_CHILDREN = 16
_T = TypeVar("_T")


class _Kind(enum.IntEnum):
    COMPARE = 1
    COMPARED = 2
    SWAP = 3
    SWAPPED = 4
    FETCH = 5
    FETCHED = 6


def understood(meta: bytes) -> bool:
    """Whether the member with this meta understands any of this."""
    found = tags.unpack(meta)
    return all(found.get(key) == value for key, value in TAG.items())


@dataclass(frozen=True, slots=True)
class Compare:
    salt: bytes
    nodes: tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, slots=True)
class Compared:
    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Swap:
    members: tuple[Known, ...]
    wanted: tuple[str, ...]
    versions: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Swapped:
    members: tuple[Known, ...]


@dataclass(frozen=True, slots=True)
class Fetch:
    wanted: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Fetched:
    state: bytes


Said = Compare | Compared | Swap | Swapped | Fetch | Fetched


def encode(said: Said) -> bytes:
    match said:
        case Compare(salt, nodes):
            return _pack([_Kind.COMPARE, salt, nodes])
        case Compared(answers):
            return _pack([_Kind.COMPARED, [_node(answer) for answer in answers]])
        case Swap(members, wanted, versions):
            return _pack([_Kind.SWAP, [_member(known) for known in members], wanted, list(versions.items())])
        case Swapped(members):
            return _pack([_Kind.SWAPPED, [_member(known) for known in members]])
        case Fetch(versions):
            return _pack([_Kind.FETCH, list(versions.items())])
        case Fetched(state):
            return _pack([_Kind.FETCHED, state])


def _pack(value: Any) -> bytes:
    return bytes(msgpack.packb(value, use_bin_type=False))


def _node(node: Node) -> Any:
    return node and [(item.realm, item.name, item.version) if isinstance(item, Item) else item for item in node]


def _member(known: Known) -> list[object]:
    alive = known.alive
    return [
        alive.node,
        alive.raw_address,
        alive.port,
        alive.meta,
        alive.incarnation,
        int(known.state),
        alive.versions,
    ]


def decode(data: bytes, most: int, octets: int) -> Said:
    """What was said. Refused("malformed"). `most`: items and members in all; `octets` of a state."""
    reader = _Reader(data, most, octets)
    try:
        found = reader.said()
    except Refused:
        raise
    except Exception as error:  # msgpack has many
        raise malformed(f"not msgpack: {error}") from None
    return found


class _Reader:
    """Scalar by scalar: what does not belong there is noticed before it takes many times its size in memory."""

    def __init__(self, data: bytes, most: int, octets: int) -> None:
        self._data = data
        self._left = self._most = most
        self._octets = octets
        self._scalars = msgpack.Unpacker(raw=True, max_buffer_size=max(1, len(data)), max_array_len=0, max_map_len=0)
        self._scalars.feed(data)

    def said(self) -> Said:
        fields = self._scalars.read_array_header()
        kind = self._number(255)
        found: Said
        match kind, fields:
            case (_Kind.COMPARE, 3):
                found = Compare(self._exactly(SALT), self._nodes())
            case (_Kind.COMPARED, 2):
                found = Compared(self._list(self._answer, NODES))
            case (_Kind.SWAP, 4):
                members = self._list(self._known, self._most)
                found = Swap(members, self._list(self._name, self._most), self._versions(self._most))
            case (_Kind.SWAPPED, 2):
                found = Swapped(self._list(self._known, self._most))
            case (_Kind.FETCH, 2):
                found = Fetch(self._versions(FETCH))
            case (_Kind.FETCHED, 2):
                found = Fetched(self._bytes(self._octets))
            case _:
                raise malformed("an exchange of no known kind")
        if self._scalars.tell() != len(self._data):
            raise malformed("more than an exchange")
        return found

    def _array(self, length: int) -> None:
        if self._scalars.read_array_header() != length:
            raise malformed("not as many fields as it has")

    def _list(self, read: Callable[[], _T], most: int) -> tuple[_T, ...]:
        count = self._scalars.read_array_header()
        if count > most:
            raise malformed(f"a list of more than {most}")
        return tuple(read() for _ in range(count))

    def _number(self, most: int) -> int:
        value = self._scalars.unpack()
        if type(value) is not int or not 0 <= value <= most:
            raise malformed(f"not a number from 0 to {most}")
        return value

    def _bytes(self, most: int) -> bytes:
        value = self._scalars.unpack()
        if type(value) is not bytes or len(value) > most:
            raise malformed(f"not at most {most} octets")
        return value

    def _exactly(self, length: int) -> bytes:
        value = self._bytes(length)
        if len(value) != length:
            raise malformed(f"not {length} octets")
        return value

    def _name(self) -> str:
        return Fields({b"Name": self._scalars.unpack()}).name(b"Name")

    def _nodes(self) -> tuple[tuple[str, bytes], ...]:
        def read() -> tuple[str, bytes]:
            self._array(2)
            prefix = self._bytes(DEPTH).decode("ascii")
            if prefix.strip("0123456789abcdef"):
                raise malformed("no node of a tree")
            return prefix, self._exactly(DIGEST)

        nodes = self._list(read, NODES)
        prefixes = [prefix for prefix, _ in nodes]
        if not nodes or prefixes != sorted(set(prefixes)) or len(set(map(len, prefixes))) > 1:
            raise malformed("nodes out of order")  # so no item is told twice
        return nodes

    def _answer(self) -> Node:
        if self._data[self._scalars.tell()] == _NIL:
            self._scalars.skip()
            return None
        count = self._scalars.read_array_header()
        if not count:
            return ()
        if self._data[self._scalars.tell()] & 0xF0 == 0x90:  # an array
            self._left -= count
            if self._left < 0:
                raise malformed("too many items")
            return tuple(self._item() for _ in range(count))
        if count != _CHILDREN:
            raise malformed("not sixteen children")
        return tuple(self._exactly(DIGEST) for _ in range(count))

    def _item(self) -> Item:
        self._array(3)
        return Item(self._number(1), self._name(), self._bytes(VERSION))

    def _versions(self, most: int) -> dict[str, bytes]:
        def read() -> tuple[str, bytes]:
            self._array(2)
            return self._name(), self._bytes(VERSION)

        return dict(self._list(read, most))

    def _known(self) -> Known:
        self._array(len(_FIELDS))
        return wire.read_known(Fields({name: self._scalars.unpack() for name in _FIELDS}))
