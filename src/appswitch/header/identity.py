"""The header of a connection between hosts: a caller's identity, for one instance, once.

A PROXY header with three fields of ours: what it is for (instance, epoch) and who wrote it (sender, counter, key);
the client's tags; and, as the last, an HMAC over all bytes before it. It is fresh because the server's host chose
the epoch when it opened the listener, and remembers the counters since: no clock is asked, on either side.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from ..model.identity import TAGS_MOST, Tags
from ..model.resolve import arrives
from ..model.service import Service
from . import proxy2
from .keys import MAC_SIZE, KeyRing
from .refused import Malformed, Misdirected, Replayed, Stale, Unauthenticated
from .window import Windows

EPOCH_SIZE = SENDER_SIZE = 8
_PROOF, _TAGS, _MAC = 0xE0, 0xE1, 0xE2
_PROOF_VALUE = struct.Struct("!Q8s8sQ4s")
_PROOF_FIELD = struct.Struct("!BHQ8s8sQ4s")
_MAC_HEAD = proxy2.field(_MAC, bytes(MAC_SIZE))[:-MAC_SIZE]
_INSTANCES_KEPT = 10_000


class Header(NamedTuple):
    """The virtual addresses of both sides, the client's tags, and what proves them.

    `instance` and `epoch`: of the service's row. `sender`: 8 random bytes, one's for some time; `counter`: its
    headers to that epoch, from 1.
    """

    client: bytes
    client_port: int
    server: bytes
    server_port: int
    tags: Tags
    instance: int
    epoch: bytes
    sender: bytes
    counter: int


class Sender:
    """Writes headers, each with a counter of its own. `random` gives that many bytes which nobody else has."""

    def __init__(self, random: Callable[[int], bytes]) -> None:
        self._random = random
        self._id = random(SENDER_SIZE)
        self._counters: dict[bytes, int] = {}

    def write(
        self, ring: KeyRing, row: Service, client: bytes, client_port: int, server: bytes, server_port: int, tags: Tags
    ) -> bytes:
        """The next header to this instance."""
        count = self._counters.get(row.epoch, 0) + 1
        if count == 1 and len(self._counters) >= _INSTANCES_KEPT:
            self._counters.clear()  # under another name everything may begin anew
            self._id = self._random(SENDER_SIZE)
        self._counters[row.epoch] = count
        return encode(
            Header(client, client_port, server, server_port, tags, row.instance, row.epoch, self._id, count), ring
        )


def encode(header: Header, ring: KeyRing) -> bytes:
    """The header as bytes, under the ring's first key. ValueError when its tags are too long."""
    client, client_port, server, server_port, tags, instance, epoch, sender, counter = header
    key = ring.first
    proof = _PROOF_FIELD.pack(_PROOF, _PROOF_VALUE.size, instance, epoch, sender, counter, key.id)
    room = bytes(MAC_SIZE)
    data = proxy2.encode(
        client, client_port, server, server_port, b"".join((proof, _tags_field(tags), _MAC_HEAD, room))
    )[:-MAC_SIZE]
    return data + key.mac(data)


def verify(data: bytes, ring: KeyRing, row: Service, windows: Windows) -> Header:
    """The header, if `data` begins with a whole one which lets its writer in to this instance, now.

    One of the exceptions of `refused` otherwise. `windows`: of the row's epoch; the header is entered there.
    """
    client, client_port, server, server_port, fields = proxy2.decode(data)
    proof = tags = None
    for kind, value in fields:
        if kind == _PROOF:
            if proof is not None or len(value) != _PROOF_VALUE.size:
                raise Malformed("the field that proves the header is there twice, or of another version")
            proof = value
        elif kind == _TAGS:
            if tags is not None:
                raise Malformed("two fields with tags")
            tags = value
    if proof is None or tags is None:
        raise Malformed("a PROXY header without an identity")
    kind, mac = fields[-1]
    length = proxy2.size(data)
    if kind != _MAC or len(mac) != MAC_SIZE:
        raise Malformed("a header that does not end with its proof")
    instance, epoch, sender, counter, key_id = _PROOF_VALUE.unpack(proof)
    if not ring.authentic(key_id, data[: length - MAC_SIZE], mac):
        raise Unauthenticated("no key of this cluster made this header")
    header = Header(client, client_port, server, server_port, parse_tags(tags), instance, epoch, sender, counter)
    if instance != row.instance or not arrives(row, client, server, server_port):
        raise Misdirected("a header for another service or instance")
    if epoch != row.epoch:
        raise Stale("a header for an earlier opening of this listener")
    if not windows.add(sender, counter):
        raise Replayed(f"header {counter} of this sender was here before, or is too old")
    return header


@lru_cache(maxsize=1024)
def _tags_field(tags: Tags) -> bytes:
    return proxy2.field(_TAGS, tags_text(tags))


@lru_cache(maxsize=1024)
def tags_text(tags: Tags) -> bytes:
    """As they travel. ValueError when they are too long."""
    value = ",".join([f"{key}={value}" for key, value in tags]).encode()
    if len(value) > TAGS_MOST:
        raise ValueError(f"tags of {len(value)} bytes, more than {TAGS_MOST}")
    return value


@lru_cache(maxsize=1024)
def parse_tags(value: bytes) -> Tags:
    """Of an authentic header: so its writer is of the cluster, but perhaps of another version."""
    if len(value) > TAGS_MOST:
        raise Malformed("too many tags")
    try:
        pairs = [text.partition("=") for text in value.decode().split(",")] if value else []
    except UnicodeDecodeError:
        raise Malformed("tags that are no text") from None
    if not all(key and sign and val for key, sign, val in pairs):
        raise Malformed("tags that are not key=value")
    return tuple((key, val) for key, _, val in pairs)
