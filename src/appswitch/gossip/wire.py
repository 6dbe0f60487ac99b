"""memberlist's messages: one octet of type, then a body, mostly a msgpack map keyed by Go's field names.

msgpack is of the old specification: text and octets are both "raw". Fields that are absent are zero, unknown ones are
passed over, as Go's decoder does. Everything that comes from a peer is checked here, once.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgpack

from .member import MAX_INCARNATION, MAX_META, MAX_NAME, State, pack_address, unpack_address
from .refused import Refused


class Kind(enum.IntEnum):
    """The octet that begins a message."""

    PING = 0
    INDIRECT_PING = 1
    ACK = 2
    SUSPECT = 3
    ALIVE = 4
    DEAD = 5
    PUSH_PULL = 6
    COMPOUND = 7
    USER = 8
    COMPRESS = 9
    ENCRYPT = 10
    NACK = 11
    CRC = 12
    ERROR = 13
    EXCHANGE = 128  # ours; see exchange.py
    LABEL = 244


@dataclass(frozen=True, slots=True)
class Ping:
    """Do you live? An empty `node` asks whoever is there."""

    seq: int
    node: str


@dataclass(frozen=True, slots=True)
class IndirectPing:
    """Ask that one for me; say so when it does not answer, if `nack`."""

    seq: int
    target: str
    port: int
    node: str
    nack: bool


@dataclass(frozen=True, slots=True)
class Ack:
    """I live, or: the one you asked about does."""

    seq: int
    payload: bytes = b""


@dataclass(frozen=True, slots=True)
class Nack:
    """The one you asked about did not answer me; but I did."""

    seq: int


@dataclass(frozen=True, slots=True)
class Suspect:
    """`source` had no answer from `node`."""

    incarnation: int
    node: str
    source: str


@dataclass(frozen=True, slots=True)
class Dead:
    """`source` declares `node` dead; one that declares itself so has left."""

    incarnation: int
    node: str
    source: str


@dataclass(frozen=True, slots=True)
class Alive:
    """`node` lives, there."""

    incarnation: int
    node: str
    raw_address: bytes
    port: int
    meta: bytes
    versions: bytes

    @property
    def address(self) -> str:
        return unpack_address(self.raw_address)


@dataclass(frozen=True, slots=True)
class User:
    """The delegate's own."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Error:
    """Why a stream was refused."""

    text: str


@dataclass(frozen=True, slots=True)
class Known:
    """One member in a `PushPull`."""

    alive: Alive
    state: State


@dataclass(frozen=True, slots=True)
class PushPull:
    """A member's whole state."""

    members: tuple[Known, ...]
    user: bytes
    join: bool


@dataclass(frozen=True, slots=True)
class Exchange:
    """A question or an answer between members who understand it (`exchange`)."""

    said: bytes


Message = Ping | IndirectPing | Ack | Nack | Suspect | Dead | Alive | User | Error | PushPull | Exchange

#: What is assumed of one that does not say: protocol 1 to 2, speaking 2; no delegate.
OLD_VERSIONS = bytes([1, 2, 2, 0, 0, 0])

#: What msgpack raises: its own are ValueErrors, a map's key that is a map makes a TypeError.
MSGPACK_ERRORS = (ValueError, TypeError, RecursionError)

_ADDRESS_SIZES = (4, 16)


def malformed(text: str) -> Refused:
    return Refused("malformed", text)


def _pack(kind: Kind, fields: dict[str, object]) -> bytes:
    body: bytes = msgpack.packb(fields, use_bin_type=False)
    return bytes([kind]) + body


def _alive_fields(alive: Alive) -> dict[str, object]:
    return {
        "Incarnation": alive.incarnation,
        "Node": alive.node,
        "Addr": alive.raw_address,
        "Port": alive.port,
        "Meta": alive.meta,
        "Vsn": alive.versions,
    }


def encode(message: Message) -> bytes:
    """The message as it stands in a datagram (a `User` and a `PushPull`: as they stand in a stream)."""
    match message:
        case Ping(seq, node):
            return _pack(Kind.PING, {"SeqNo": seq, "Node": node})
        case Ack(seq, payload):
            return _pack(Kind.ACK, {"SeqNo": seq, "Payload": payload})
        case User(payload):
            return bytes([Kind.USER]) + payload
        case IndirectPing(seq, target, port, node, nack):
            return _pack(
                Kind.INDIRECT_PING,
                {"SeqNo": seq, "Target": pack_address(target), "Port": port, "Node": node, "Nack": nack},
            )
        case Nack(seq):
            return _pack(Kind.NACK, {"SeqNo": seq})
        case Suspect(incarnation, node, source):
            return _pack(Kind.SUSPECT, {"Incarnation": incarnation, "Node": node, "From": source})
        case Dead(incarnation, node, source):
            return _pack(Kind.DEAD, {"Incarnation": incarnation, "Node": node, "From": source})
        case Alive():
            return _pack(Kind.ALIVE, _alive_fields(message))
        case Error(text):
            return _pack(Kind.ERROR, {"Error": text})
        case PushPull():
            return _encode_push_pull(message)
        case Exchange(said):
            return _pack(Kind.EXCHANGE, {"Len": len(said)}) + said


def encode_stream_user(payload: bytes) -> bytes:
    """A user message as it stands in a stream, where its length comes first."""
    return _pack(Kind.USER, {"UserMsgLen": len(payload)}) + payload


def _encode_push_pull(message: PushPull) -> bytes:
    head: dict[str, object] = {"Nodes": len(message.members), "UserStateLen": len(message.user), "Join": message.join}
    parts = [_pack(Kind.PUSH_PULL, head)]
    for known in message.members:
        fields = _alive_fields(known.alive)
        fields["Name"] = fields.pop("Node")
        fields["State"] = int(known.state)
        parts.append(msgpack.packb(fields, use_bin_type=False))
    parts.append(message.user)
    return b"".join(parts)


class Fields:
    """A msgpack map from a peer, read field by field with its type and bounds checked."""

    def __init__(self, found: object) -> None:
        if not isinstance(found, dict):
            raise malformed("the body is not a map")
        self._found: dict[Any, Any] = found

    def number(self, name: bytes, most: int) -> int:
        value = self._found.get(name, 0)
        if type(value) is not int or not 0 <= value <= most:
            raise malformed(f"{name.decode()} is not a number from 0 to {most}")
        return value

    def octets(self, name: bytes, most: int) -> bytes:
        value = self._found.get(name)
        if value is None:
            return b""
        if type(value) is not bytes or len(value) > most:
            raise malformed(f"{name.decode()} is not at most {most} octets")
        return value

    def list(self, name: bytes) -> list[Any]:
        value = self._found.get(name)
        if value is not None and type(value) is not list:
            raise malformed(f"{name.decode()} is not a list")
        return value or []

    def map(self, name: bytes) -> object:
        return self._found.get(name)

    def flag(self, name: bytes) -> bool:
        value = self._found.get(name, False)
        if type(value) is not bool:
            raise malformed(f"{name.decode()} is neither true nor false")
        return value

    def name(self, name: bytes, *, empty: bool = False) -> str:
        try:
            value = self.octets(name, MAX_NAME).decode()
        except UnicodeDecodeError:
            raise malformed(f"{name.decode()} is not UTF-8") from None
        if not value and not empty:
            raise malformed(f"{name.decode()} is empty")
        if not value.isprintable():  # it will be shown to people
            raise malformed(f"{name.decode()} has unprintable characters")
        return value

    def address(self, name: bytes) -> bytes:
        value = self.octets(name, 16)
        if len(value) not in _ADDRESS_SIZES:
            raise malformed(f"{name.decode()} is neither an IPv4 nor an IPv6 address")
        return value

    def seq(self) -> int:
        return self.number(b"SeqNo", 0xFFFFFFFF)

    def incarnation(self) -> int:
        return self.number(b"Incarnation", MAX_INCARNATION)


def unpack(body: bytes) -> Fields:
    """The one msgpack map that `body` is."""
    try:
        return Fields(msgpack.unpackb(body, raw=True, strict_map_key=False, max_map_len=64, max_array_len=64))
    except MSGPACK_ERRORS as error:
        raise malformed(f"not msgpack: {error}") from None


def read_alive(fields: Fields, name: bytes = b"Node") -> Alive:
    """A member's description; in a push/pull the name's field has another name."""
    versions = fields.octets(b"Vsn", 16)
    if versions and len(versions) < 6:
        raise malformed("Vsn is not six octets")
    return Alive(
        incarnation=fields.incarnation(),
        node=fields.name(name),
        raw_address=fields.address(b"Addr"),
        port=fields.number(b"Port", 0xFFFF),
        meta=fields.octets(b"Meta", MAX_META),
        versions=versions[:6] or OLD_VERSIONS,
    )


def read_known(fields: Fields) -> Known:
    return Known(read_alive(fields, b"Name"), State(fields.number(b"State", State.LEFT)))


def _accusation(kind: type[Suspect] | type[Dead], fields: Fields) -> Message:
    return kind(fields.incarnation(), fields.name(b"Node"), fields.name(b"From", empty=True))


def _printable(text: bytes) -> str:
    return "".join(character if character.isprintable() else "?" for character in text.decode(errors="replace")[:200])


_READERS: dict[int, Callable[[Fields], Message]] = {
    Kind.PING: lambda fields: Ping(fields.seq(), fields.name(b"Node", empty=True)),
    Kind.INDIRECT_PING: lambda fields: IndirectPing(
        fields.seq(),
        unpack_address(fields.address(b"Target")),
        fields.number(b"Port", 0xFFFF),
        fields.name(b"Node", empty=True),
        fields.flag(b"Nack"),
    ),
    Kind.ACK: lambda fields: Ack(fields.seq(), fields.octets(b"Payload", 0xFFFF)),
    Kind.NACK: lambda fields: Nack(fields.seq()),
    Kind.SUSPECT: lambda fields: _accusation(Suspect, fields),
    Kind.DEAD: lambda fields: _accusation(Dead, fields),
    Kind.ALIVE: read_alive,
    Kind.ERROR: lambda fields: Error(_printable(fields.octets(b"Error", 4096))),
}


def read(kind: int, fields: Fields) -> Message:
    """The message of this type whose body is one map."""
    reader = _READERS.get(kind)
    if reader is None:
        raise malformed(f"message type {kind} does not stand here")
    return reader(fields)


def decode(message: bytes) -> Message:
    """One simple message of a datagram: no compound, nothing around it. Refused("malformed")."""
    if not message:
        raise malformed("an empty message")
    if message[0] == Kind.USER:
        return User(message[1:])
    if message[0] not in _READERS:
        raise malformed(f"message type {message[0]} does not stand here")
    return read(message[0], unpack(message[1:]))
