"""Serf's own messages, which travel as the gossip's user messages: what a member says and answers. No I/O, no clock.

Each is one octet of type and a msgpack map (serf/messages.go of Serf 0.9). A member passes on what is news, says when
it joins and leaves (else Serf shows one that left as failed), answers queries that want to know who hears them (`serf
reachability`), hands on others' answers, and follows `serf keys`. Events are for programs that Serf starts; here there
are none.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgpack

from .member import unpack_address
from .refused import Refused
from .seal import KEY_SIZES
from .settings import Address
from .wire import MSGPACK_ERRORS, Fields, malformed, unpack

#: Of Serf's delegate protocol: lowest, highest, current.
VERSIONS = (2, 5, 4)
LEAVE, JOIN, PUSH_PULL, USER_EVENT, QUERY, RESPONSE, _, KEY_REQUEST, KEY_RESPONSE, RELAY = range(10)
#: Flags of a query, the first of a response, too.
ACK, NO_BROADCAST = 1, 2
#: Keys at a time.
MOST_KEYS = 8
#: Seconds that a message is remembered in, longer than it goes round; how many, beyond which none is passed on.
_MEMORY, _MOST = 60.0, 4096
_LTIME_MOST = 1 << 62
_OCTETS = 9 << 10
_NODE_FILTER, _TAG_FILTER = 0, 1
_DIGEST = 16
_CLOCKS = (b"LTime", b"EventLTime", b"QueryLTime")
_NIL = 0xC0  # of msgpack


@dataclass(frozen=True, slots=True)
class Spread:
    """Broadcast this; `relay`: somebody else's."""

    payload: bytes
    relay: bool = False


@dataclass(frozen=True, slots=True)
class Respond:
    """Send this to the member at this address."""

    to: Address
    payload: bytes


@dataclass(frozen=True, slots=True)
class Rekey:
    """Have these keys from now on, the first to seal."""

    keys: tuple[bytes, ...]


Action = Spread | Respond | Rekey


class Talk:
    """One member's part. `keys`: the first seals; none in a cluster that is not encrypted.

    Times are of any clock. Methods that read what a peer sent raise Refused when it is not right.
    """

    def __init__(self, name: str, tags: Mapping[str, str], keys: Sequence[bytes]) -> None:
        self._name, self._tags = name, dict(tags)
        self.keys = tuple(keys)
        self._clock, self._event_clock, self._query_clock = 1, 1, 1  # Lamport's
        self._since = 0  # when this member last joined, by that
        self._leaving = False
        self._seen: dict[bytes, float] = {}  # digest → when, the oldest first

    # what it says ----------------------------------------------------------------------------------------

    def join(self) -> Spread:
        """It is there."""
        self._since = self._tick()
        return Spread(pack(JOIN, LTime=self._since, Node=self._name))

    def leave(self) -> Spread:
        """It goes."""
        self._leaving = True
        return Spread(pack(LEAVE, LTime=self._tick(), Node=self._name, Prune=False))

    def state(self) -> bytes:
        """The user state of a push/pull: the clocks, and itself; of others Serf's members tell each other."""
        clocks = {"LTime": self._clock, "EventLTime": self._event_clock, "QueryLTime": self._query_clock}
        return pack(PUSH_PULL, **clocks, StatusLTimes={self._name: self._since}, LeftMembers=[], Events=[])

    def _tick(self) -> int:
        self._clock += 1
        return self._clock - 1

    # what it hears ---------------------------------------------------------------------------------------

    def merge(self, state: bytes) -> list[Action]:
        """A peer's user state."""
        clocks, left = _read_state(state)
        self._clock, self._event_clock, self._query_clock = map(
            max, clocks, (self._clock, self._event_clock, self._query_clock)
        )
        return self._still_here() if self._name.encode() in left else []

    def hear(self, payload: bytes, now: float) -> list[Action]:
        """A user message."""
        kind = payload[0] if payload else -1
        if kind == RELAY:  # in plain anybody could have us send anything to anybody
            return [_relayed(payload[1:])] if self.keys else []
        if kind not in (LEAVE, JOIN, USER_EVENT, QUERY) or not self._is_news(payload, now):
            return []
        fields = unpack(payload[1:])
        ltime = fields.number(b"LTime", _LTIME_MOST)
        if kind == QUERY:
            self._query_clock = max(self._query_clock, ltime + 1)
            passed_on = not fields.number(b"Flags", 0xFFFFFFFF) & NO_BROADCAST
            return [*([Spread(payload, relay=True)] if passed_on else []), *self._answer(fields, ltime)]
        actions: list[Action] = [Spread(payload, relay=True)]
        if kind == USER_EVENT:
            self._event_clock = max(self._event_clock, ltime + 1)
        else:
            self._clock = max(self._clock, ltime + 1)
            if kind == LEAVE and fields.name(b"Node") == self._name:
                actions += self._still_here()
        return actions

    def _is_news(self, payload: bytes, now: float) -> bool:
        while self._seen and next(iter(self._seen.values())) <= now - _MEMORY:
            del self._seen[next(iter(self._seen))]
        digest = hashlib.blake2b(payload, digest_size=_DIGEST).digest()
        if digest in self._seen:
            return False
        if len(self._seen) >= _MOST:
            raise Refused("full", "more of Serf's messages than can be remembered")
        self._seen[digest] = now
        return True

    def _still_here(self) -> list[Action]:
        return [] if self._leaving else [self.join()]

    # queries ---------------------------------------------------------------------------------------------

    def _answer(self, query: Fields, ltime: int) -> list[Action]:
        try:
            asker = (unpack_address(query.address(b"Addr")), query.number(b"Port", 0xFFFF))
        except ValueError:
            raise malformed("a query from nowhere") from None
        name = query.octets(b"Name", _OCTETS).decode(errors="replace")
        about = {"LTime": ltime, "ID": query.number(b"ID", 0xFFFFFFFF), "From": self._name}
        if not all(self._meant(one) for one in query.list(b"Filters")):
            return []
        actions: list[Action] = []
        if query.number(b"Flags", 0xFFFFFFFF) & ACK:
            actions.append(Respond(asker, pack(RESPONSE, **about, Flags=ACK, Payload=b"")))
        if (change := _KEY_QUERIES.get(name)) is not None:
            before = self.keys
            payload = self._change_keys(change, query.octets(b"Payload", _OCTETS))
            if self.keys != before:
                actions.append(Rekey(self.keys))
            actions.append(Respond(asker, pack(RESPONSE, **about, Flags=0, Payload=payload)))
        return actions

    def _meant(self, which: object) -> bool:
        """Whether a query's filter lets us through."""
        if not isinstance(which, bytes) or not which:
            return False
        try:
            found = msgpack.unpackb(which[1:], raw=True, strict_map_key=False)
            if which[0] == _NODE_FILTER:
                return self._name.encode() in found
            tag, pattern = found[b"Tag"].decode(), found[b"Expr"].decode()
        except (AttributeError, KeyError, *MSGPACK_ERRORS):
            return False
        return which[0] == _TAG_FILTER and _matches(pattern, self._tags.get(tag, ""))

    def _change_keys(self, change: _Change, request: bytes) -> bytes:
        problem = ""
        try:
            if not self.keys:
                raise _Wrong("No keyring to modify (encryption not enabled)")
            key = unpack(request[1:]).octets(b"Key", max(KEY_SIZES)) if request[:1] == bytes([KEY_REQUEST]) else b""
            self.keys = change(self.keys, key)
        except _Wrong as wrong:
            problem = str(wrong)
        names = [base64.b64encode(key).decode() for key in self.keys]
        primary = names[0] if names else ""
        return pack(KEY_RESPONSE, Result=not problem, Message=problem, Keys=names, PrimaryKey=primary)


def _matches(pattern: str, value: str) -> bool:
    """Of patterns only plain texts, perhaps with ^ and $, are tried: others may take for ever."""
    return re.fullmatch(r"\^?[\w -]*\$?", pattern) is not None and re.search(pattern, value) is not None


class _Wrong(Exception):
    """Why keys are not changed, in Serf's words."""


_Change = Callable[[tuple[bytes, ...], bytes], tuple[bytes, ...]]


def _install(keys: tuple[bytes, ...], key: bytes) -> tuple[bytes, ...]:
    if len(key) not in KEY_SIZES:
        raise _Wrong("key size must be 16, 24 or 32 bytes")
    if len(keys) >= MOST_KEYS:
        raise _Wrong("too many keys")
    return keys if key in keys else (*keys, key)


def _use(keys: tuple[bytes, ...], key: bytes) -> tuple[bytes, ...]:
    if key not in keys:
        raise _Wrong("Requested key is not in the keyring")
    return (key, *(one for one in keys if one != key))


def _remove(keys: tuple[bytes, ...], key: bytes) -> tuple[bytes, ...]:
    if key == keys[0]:
        raise _Wrong("Removing the primary key is not allowed")
    return tuple(one for one in keys if one != key)


_KEY_QUERIES: dict[str, _Change] = {
    "_serf_install-key": _install,
    "_serf_use-key": _use,
    "_serf_remove-key": _remove,
    "_serf_list-keys": lambda keys, _: keys,
}


def _relayed(message: bytes) -> Respond:
    """What is to be handed on: an answer to a query, for its asker has this member try another way, too."""
    items = msgpack.Unpacker(raw=True, max_buffer_size=max(1, len(message)), max_array_len=64, max_map_len=64)
    items.feed(message)
    try:
        where = Fields(Fields(items.unpack()).map(b"DestAddr"))
        to = (unpack_address(where.address(b"IP")), where.number(b"Port", 0xFFFF))
    except (msgpack.UnpackException, *MSGPACK_ERRORS) as error:
        raise malformed(f"nothing to be relayed: {error}") from None
    answer = message[items.tell() :]
    if answer[:1] != bytes([RESPONSE]):
        raise malformed("nothing to be relayed but answers")
    return Respond(to, answer)


def _read_state(state: bytes) -> tuple[list[int], list[object]]:
    """The clocks, and who has left; the rest, which may be large, is not taken apart."""
    if state[:1] != bytes([PUSH_PULL]):
        raise malformed("not a state of Serf's")
    items = msgpack.Unpacker(raw=True, max_buffer_size=len(state), max_array_len=0, max_map_len=0)
    items.feed(state[1:])
    found: dict[object, object] = {}
    left: list[object] = []
    try:
        for _ in range(items.read_map_header()):
            name = items.unpack()
            if name in _CLOCKS:
                found[name] = items.unpack()
            elif name == b"LeftMembers" and state[1 + items.tell()] != _NIL:
                left = [items.unpack() for _ in range(items.read_array_header())]
            else:
                items.skip()
    except (IndexError, msgpack.UnpackException, *MSGPACK_ERRORS) as error:
        raise malformed(f"not a state of Serf's: {error}") from None
    fields = Fields(found)
    return [fields.number(name, _LTIME_MOST) for name in _CLOCKS], left


def pack(kind: int, **fields: Any) -> bytes:
    """A message of Serf's."""
    return bytes([kind]) + bytes(msgpack.packb(fields, use_bin_type=False))
