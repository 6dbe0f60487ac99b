"""One message on a TCP connection, read as it comes in: label, then sealed or not, compressed or not.

A peer sends one message and keeps the connection open for the answer, so the message's end has to be found in it.
"""

from __future__ import annotations

from collections.abc import Generator

import msgpack
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from . import envelope, wire
from .refused import Refused
from .seal import OVERHEAD, KeyRing
from .wire import Exchange, Fields, Kind, Known, Message, PushPull, User, malformed

_SEALED_HEADER = 5
_FIELDS = 64  # in a map; more than any message has


def seal(message: bytes, label: bytes, keys: KeyRing | None, cipher: AESGCM | None = None) -> bytes:
    """The message as it goes onto a connection; `cipher`: the key to seal with, if not the first."""
    header = envelope.label_header(label)
    if keys is None:
        return header + message
    head = bytes([Kind.ENCRYPT]) + (len(message) + OVERHEAD).to_bytes(4, "big")
    return header + head + keys.seal(message, head + label, cipher)


class Reader:
    """Octets in, one message out."""

    def __init__(self, label: bytes, keys: KeyRing | None, limit: int, members: int) -> None:
        """`limit`: octets of the message, packed or unpacked; `members`: entries of a push/pull."""
        self._header = envelope.label_header(label)
        self._label = label
        self._keys = keys
        self._limit = limit
        self._members = members
        self._buffer = bytearray()
        self._body: _Body | None = None
        #: The key that the message was sealed with.
        self.cipher: AESGCM | None = None

    def feed(self, data: bytes) -> Message | None:
        """The message once it is complete, else None. Refused as soon as it cannot become one."""
        if self._body is not None:
            return self._body.feed(data)
        self._buffer += data
        header = self._header or b""
        if not header.startswith(self._buffer[: len(header)]) or (not header and self._buffer[:1] == b"\xf4"):
            raise Refused("foreign_cluster", "a stream without this cluster's label")
        rest = len(self._buffer) - len(header)
        if rest < 1:
            return None
        if self._keys is None:
            self._body = _Body(self._limit, self._members)
            return self._body.feed(bytes(self._buffer[len(header) :]))
        return self._sealed(self._keys, len(header), rest)

    def _sealed(self, keys: KeyRing, at: int, rest: int) -> Message | None:
        if self._buffer[at] != Kind.ENCRYPT:
            raise Refused("unsealed", "a stream that is not encrypted")
        if rest < _SEALED_HEADER:
            return None
        start = at + _SEALED_HEADER
        head = bytes(self._buffer[at:start])
        length = int.from_bytes(head[1:], "big")
        if length > self._limit + OVERHEAD:
            raise Refused("oversized", f"a stream over {self._limit} octets")
        if rest < _SEALED_HEADER + length:
            return None
        plain, self.cipher = keys.open_by(bytes(self._buffer[start : start + length]), head + self._label)
        return _whole(plain, self._limit, self._members)


def _whole(message: bytes, limit: int, members: int, compressed: bool = False) -> Message:
    """A message that is all there."""
    found = _Body(limit, members, compressed).feed(message)
    if found is None:
        raise malformed("a message that is cut off")
    return found


class _Body:
    """A message in clear text: type octet, msgpack maps, then perhaps raw octets."""

    def __init__(self, limit: int, members: int, compressed: bool = False) -> None:
        self._limit = limit
        self._members = members
        self._compressed = compressed  # this one was; within it none may be
        self._fed = 0
        self._unpacker = msgpack.Unpacker(
            raw=True, strict_map_key=False, max_buffer_size=limit + 1, max_map_len=_FIELDS, max_array_len=_FIELDS
        )
        self._kind: int | None = None
        self._parser: Generator[None, None, Message] | None = None

    def feed(self, data: bytes) -> Message | None:
        if self._parser is None:
            if not data:
                return None
            self._parser = self._parse(data[0])
            data = data[1:]
        try:
            self._unpacker.feed(data)
        except msgpack.BufferFull:
            raise Refused("oversized", f"a stream over {self._limit} octets") from None
        self._fed += len(data)
        try:
            next(self._parser)
        except StopIteration as done:
            message: Message = done.value
            return message
        return None

    def _parse(self, kind: int) -> Generator[None, None, Message]:
        if kind == Kind.PUSH_PULL:
            return (yield from self._push_pull())
        if kind == Kind.USER:
            length = (yield from self._map()).number(b"UserMsgLen", self._limit)
            return User((yield from self._octets(length)))
        if kind == Kind.EXCHANGE:
            length = (yield from self._map()).number(b"Len", self._limit)
            return Exchange((yield from self._octets(length)))
        if kind == Kind.COMPRESS and not self._compressed:
            fields = yield from self._map()
            return _whole(envelope.expand_fields(fields, self._limit), self._limit, self._members, True)
        if kind in (Kind.PING, Kind.ACK, Kind.ERROR):
            return wire.read(kind, (yield from self._map()))
        raise malformed(f"message type {kind} does not stand in a stream")

    def _push_pull(self) -> Generator[None, None, PushPull]:
        head = yield from self._map()
        count = head.number(b"Nodes", self._members)
        length = head.number(b"UserStateLen", self._limit)
        members: list[Known] = []
        for _ in range(count):
            members.append(wire.read_known((yield from self._map())))
        return PushPull(tuple(members), (yield from self._octets(length)), head.flag(b"Join"))

    def _map(self) -> Generator[None, None, Fields]:
        while True:
            try:
                return Fields(self._unpacker.unpack())
            except msgpack.OutOfData:
                yield
            except wire.MSGPACK_ERRORS as error:
                raise malformed(f"not msgpack: {error}") from None

    def _octets(self, length: int) -> Generator[None, None, bytes]:
        while self._fed - self._unpacker.tell() < length:
            yield
        found: bytes = self._unpacker.read_bytes(length)
        return found
