"""A datagram between hosts: who sent it to whom, and a proof that a host of the cluster says so. Pure.

    version, kind, traffic class    1 byte each
    key                             4: which key made the proof
    proof                           16: HMAC-SHA256 over everything else, the payload included
    to, sender, counter             8 each: the life of the receiving relay, of the sending one, and the number of its
                                    datagrams to that life
    instance                        8: of the service's row; 0 in what goes back and in questions
    source, destination             16 each, as in the table
    ports                           2 each
    tags                            2 and as many bytes: the client's, in what it sends

A host asks another who of its programs takes such datagrams (ASK: the payload is a number, 8 bytes). The answer (TELL)
repeats the payload and adds a byte: DATA, and who it is in `instance`; NOBODY; or DENIED.

DATA and ANSWER that are too long come in two parts, with FIRST and REST in their kinds (`parts`).

It is fresh because the receiver chose its life when it began, and remembers the counters since (`window`): no clock
is asked. A relay's life stands in its rows, so that others know it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

from ..model.identity import Tags
from .identity import parse_tags, tags_text
from .keys import MAC_SIZE, KeyRing
from .refused import Malformed, Replayed, Stale, Unauthenticated
from .window import Windows

VERSION = 1
#: From a client to a service, and back; nobody has the port; policy forbids it; a question, and what became of it.
DATA, ANSWER, NOBODY, DENIED, ASK, TELL = range(6)
#: With DATA and ANSWER: who does not know of parts takes these for malformed, and drops and counts them.
FIRST, REST = 0x40, 0x80
_KINDS = frozenset({*range(6), *(kind | part for kind in (DATA, ANSWER) for part in (FIRST, REST))})
LIFE_SIZE = 8
_HEAD = struct.Struct("!BBB4s")
_PROOF_AT, _BODY_AT = _HEAD.size, _HEAD.size + MAC_SIZE
_BODY = struct.Struct("!8s8sQQ16s16sHHH")
#: Bytes of a datagram between hosts without tags and payload.
SIZE = _BODY_AT + _BODY.size
#: Of what can be sent by UDP over IPv4.
LARGEST = 65507


class Datagram(NamedTuple):
    """`instance`, `tags`, `source` …: see above."""

    kind: int
    traffic_class: int
    to: bytes
    sender: bytes
    counter: int
    instance: int
    source: bytes
    destination: bytes
    source_port: int
    port: int
    tags: Tags
    payload: bytes


class Sender:
    """Numbers what one relay sends, by the lives that it is for. `random` gives that many bytes nobody else has."""

    def __init__(self, random: Callable[[int], bytes]) -> None:
        self.life = random(LIFE_SIZE)
        self._counters: dict[bytes, int] = {}

    def next(self, to: bytes) -> int:
        """The number of the next datagram to this life."""
        count = self._counters[to] = self._counters.get(to, 0) + 1
        return count


def encode(datagram: Datagram, ring: KeyRing) -> bytes:
    """As bytes, under the ring's first key. ValueError when the tags are too long."""
    kind, traffic_class, to, sender, counter, instance, source, destination, source_port, port, tags, payload = datagram
    text = tags_text(tags)
    key = ring.first
    head = _HEAD.pack(VERSION, kind, traffic_class, key.id)
    body = _BODY.pack(to, sender, counter, instance, source, destination, source_port, port, len(text))
    body = b"".join((body, text, payload))
    return head + key.mac(head + body) + body


def verify(data: bytes, ring: KeyRing, life: bytes, windows: Windows) -> Datagram:
    """The datagram, if a host of the cluster sent it to this life, and it was not here before.

    One of the exceptions of `refused` otherwise. `windows`: of this life; the datagram is entered there.
    """
    if len(data) < SIZE:
        raise Malformed("too short for a datagram between hosts")
    version, kind, traffic_class, key_id = _HEAD.unpack_from(data)
    if version != VERSION or kind not in _KINDS:
        raise Malformed("not a datagram of this version")
    body = data[_BODY_AT:]
    if not ring.authentic(key_id, data[:_PROOF_AT] + body, data[_PROOF_AT:_BODY_AT]):
        raise Unauthenticated("no key of this cluster made this datagram")
    to, sender, counter, instance, source, destination, source_port, port, length = _BODY.unpack_from(body)
    if len(body) < _BODY.size + length:
        raise Malformed("tags that reach beyond the datagram")
    tags = parse_tags(body[_BODY.size : _BODY.size + length])
    if to != life:
        raise Stale("a datagram for an earlier life of this host's relay")
    if not windows.add(sender, counter):
        raise Replayed(f"datagram {counter} of this sender was here before, or is too old")
    payload = body[_BODY.size + length :]
    return Datagram(
        kind, traffic_class, to, sender, counter, instance, source, destination, source_port, port, tags, payload
    )
