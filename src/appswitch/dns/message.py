"""The few things about a DNS message that are needed before, or without, decoding it whole (RFC 1035, 4.1).

A query comes from a program that may be hostile, so what is read here is read by a parser that does work
proportional to the message and follows no compression pointer: in a query the question is the first name, so
there is nothing that it could point at. What an upstream says is in `dns.upstream`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

HEADER = struct.Struct("!6H")
_FIELDS = struct.Struct("!HHIH")  # of a record after its name: type, class, TTL, length of its data
LIMIT = 65535  # octets; what the length prefix of DNS over TCP can say
CLASSIC = 512  # octets; a UDP message without EDNS0 (RFC 1035, 4.2.1)
EDNS_SIZE = 1232  # octets; what we send and announce: fits every IPv6 path without fragments (RFC 9715)

QR, AA, TC, RD, RA, AD, CD = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080, 0x0020, 0x0010
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = range(6)
A, NS, CNAME, SOA, PTR, AAAA, SRV, OPT, IXFR, AXFR, ANY = 1, 2, 5, 6, 12, 28, 33, 41, 251, 252, 255
IN = 1


class Malformed(ValueError):
    """The message breaks its own grammar."""


@dataclass(frozen=True, slots=True)
class Edns:
    """A query's OPT record (RFC 6891): the UDP size that its sender takes, version, DNSSEC OK bit."""

    size: int
    version: int
    dnssec_ok: bool


@dataclass(frozen=True, slots=True)
class Query:
    """A well-formed query with one question.

    `labels` are the question's labels as spelled, without the root; `end` is the offset after the question.
    """

    id: int
    flags: int
    labels: tuple[bytes, ...]
    qtype: int
    qclass: int
    end: int
    edns: Edns | None

    @property
    def size(self) -> int:
        """The largest answer that may go to this client by UDP, in octets."""
        if self.edns is None:
            return CLASSIC
        return max(CLASSIC, min(self.edns.size, EDNS_SIZE))


def opcode(flags: int) -> int:
    """The operation that the header's flag word names; 0 is QUERY."""
    return flags >> 11 & 15


def _question(message: bytes) -> tuple[tuple[bytes, ...], int, int, int]:
    """The first question as (labels, type, class, offset after it)."""
    labels: list[bytes] = []
    at = HEADER.size
    while True:
        if at >= len(message):
            raise Malformed("the question's name has no end")
        length = message[at]
        at += 1
        if length == 0:
            break
        if length > 63:
            raise Malformed("the question's name holds a pointer or an unknown kind of label")
        label = message[at : at + length]
        at += length
        labels.append(label)
        if at - HEADER.size >= 255:
            raise Malformed("the question's name is longer than 255 octets")
    if at + 4 > len(message):
        raise Malformed("the question is cut off")
    qtype, qclass = struct.unpack_from("!HH", message, at)
    return tuple(labels), qtype, qclass, at + 4


def _skip_name(message: bytes, at: int) -> int:
    """The offset after the name at `at`; a pointer ends a name and is not followed."""
    while at < len(message):
        length = message[at]
        if length == 0:
            return at + 1
        if length >= 0xC0:
            return at + 2
        if length > 63:
            break
        at += 1 + length
    raise Malformed("a record's name has no end")


class Record(NamedTuple):
    """Where a record is in its message: its name, its fields after the name, its data and the end of that."""

    at: int
    fields: int
    data: int
    end: int
    rtype: int
    rclass: int
    ttl: int


def records(message: bytes, at: int, count: int) -> Iterator[Record]:
    """The `count` records that begin at `at`. Raises Malformed where one cannot be read."""
    for _ in range(count):
        fields = _skip_name(message, at)
        data = fields + _FIELDS.size
        if data > len(message):
            raise Malformed("a record is cut off")
        rtype, rclass, ttl, rdlength = _FIELDS.unpack_from(message, fields)
        if data + rdlength > len(message):
            raise Malformed("a record's data is cut off")
        yield Record(at, fields, data, data + rdlength, rtype, rclass, ttl)
        at = data + rdlength


def _edns(message: bytes, at: int, count: int, additional: int) -> Edns | None:
    """The OPT record among the last `additional` of the `count` records that begin at `at`."""
    found: Edns | None = None
    for index, record in enumerate(records(message, at, count)):
        if record.rtype != OPT:
            continue
        if found is not None or message[record.at] != 0 or index < count - additional:
            raise Malformed("an OPT record in a place where none may be")
        found = Edns(record.rclass, record.ttl >> 16 & 0xFF, bool(record.ttl & 0x8000))
    return found


def name(labels: Sequence[bytes]) -> bytes:
    """A name as it is written, without compression; labels must be such as may be."""
    return b"".join(bytes((len(label),)) + label for label in labels) + b"\0"


def pointer(at: int) -> bytes:
    """What stands for the rest of a name that begins at `at`, below 16384 (RFC 1035, 4.1.4)."""
    return (0xC000 | at).to_bytes(2, "big")


def record(owner: bytes, rtype: int, ttl: int, data: bytes) -> bytes:
    """A record of class IN; `owner` as it is written."""
    return owner + _FIELDS.pack(rtype, IN, ttl, len(data)) + data


def opt(dnssec_ok: bool, rcode: int = 0) -> bytes:
    """An OPT record of ours: version 0, no options; `rcode` whole, of which its upper bits go in here."""
    return b"\0" + _FIELDS.pack(OPT, EDNS_SIZE, rcode >> 4 << 24 | (0x8000 if dnssec_ok else 0), 0)


def parse_query(message: bytes) -> Query:
    """Read a query. Raises Malformed when it breaks the grammar; one question is the rule (RFC 9619)."""
    if len(message) < HEADER.size:
        raise Malformed("shorter than a header")
    ident, flags, questions, answers, authority, additional = HEADER.unpack_from(message)
    if questions != 1:
        raise Malformed(f"{questions} questions")
    labels, qtype, qclass, end = _question(message)
    edns = _edns(message, end, answers + authority + additional, additional)
    return Query(ident, flags, labels, qtype, qclass, end, edns)


def error(message: bytes, rcode: int) -> bytes:
    """The answer to `message` that says only `rcode`; question and EDNS are repeated where they can be read.

    `message` must hold at least a header.
    """
    ident, flags, questions, *_ = HEADER.unpack_from(message)
    question = record = b""
    try:
        if questions == 1:
            question = message[HEADER.size : _question(message)[3]]
        edns = parse_query(message).edns
        record = b"" if edns is None else opt(edns.dnssec_ok)
    except Malformed:
        pass
    flags = QR | RA | flags & (0x7800 | RD | CD) | rcode
    return HEADER.pack(ident, flags, 1 if question else 0, 0, 0, 1 if record else 0) + question + record


def truncated(answer: bytes, size: int = 0) -> bytes:
    """`answer` with TC set: the client asks again over TCP (RFC 2181, 9).

    Of its records only the OPT stays, and of the answers those that fit into `size` octets: there are resolvers
    that ask no more and make do with them (musl before 1.2.4). An answer that cannot be read comes back unchanged.
    """
    try:
        ident, flags, questions, answers, *others = HEADER.unpack_from(answer)
        end = _question(answer)[3] if questions == 1 else HEADER.size
        all_records = list(records(answer, end, answers + sum(others)))
    except (struct.error, Malformed):
        return answer
    opts = [answer[record.at : record.end] for record in all_records if record.rtype == OPT][:1]
    room = size - sum(map(len, opts))
    kept = [record.end for record in all_records[:answers] if record.end <= room]
    head = HEADER.pack(ident, flags | TC, 1 if questions == 1 else 0, len(kept), 0, len(opts))
    return head + answer[HEADER.size : kept[-1] if kept else end] + b"".join(opts)


def question_end(message: bytes) -> int:
    """The offset after the first question. Raises Malformed when that cannot be read."""
    return _question(message)[3]


def with_id(message: bytes, ident: int) -> bytes:
    """`message` under another id."""
    return struct.pack("!H", ident) + message[2:]


def answers_query(answer: bytes, query: bytes) -> bool:
    """Whether `answer` is a response to `query`: id, operation and question agree (RFC 5452, 9.1).

    Spelling does not matter (some servers fold case). An error without a question counts when the id agrees:
    servers that could not read the question answer so.
    """
    if len(answer) < HEADER.size:
        return False
    ident, flags, questions, *_ = HEADER.unpack_from(answer)
    asked_id, asked_flags, *_ = HEADER.unpack_from(query)
    if ident != asked_id or not flags & QR or opcode(flags) != opcode(asked_flags):
        return False
    if questions != 1:
        return questions == 0 and int(flags) & 15 != NOERROR
    try:
        labels, qtype, qclass, _ = _question(answer)
        asked_labels, asked_qtype, asked_qclass, _ = _question(query)
    except Malformed:
        return False
    same_name = [label.lower() for label in labels] == [label.lower() for label in asked_labels]
    return same_name and (qtype, qclass) == (asked_qtype, asked_qclass)
