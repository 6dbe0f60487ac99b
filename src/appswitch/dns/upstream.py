"""Questions as the host's resolvers are asked, and their answers as clients get them, at once or later from the cache.

What belongs to one hop stays there: the id, the spelling of the question, and EDNS (RFC 6891, 6.2.6), of which
options are neither sent on nor kept for others.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from appswitch.dns import message as m

LONGEST = 60  # seconds for which an answer is kept at most: the host's own resolver keeps it as long as it may
_NEVER = 0x80000000  # a TTL from here on counts as none (RFC 2181, 8)


def key_of(query: m.Query, raw: bytes) -> Hashable:
    """What two queries have in common that may have one answer: name, type, class, and what bears on the contents."""
    edns = None if query.edns is None else query.edns.dnssec_ok
    name = raw[m.HEADER.size : query.end - 4].lower()  # of lengths, at most 63, it leaves every octet as it is
    return name, raw[query.end - 4 : query.end], query.flags & (m.RD | m.AD | m.CD), edns


def question(query: m.Query, raw: bytes, ident: int) -> bytes:
    """The message by which an upstream is asked what the client asked by `raw`."""
    extra = b"" if query.edns is None else m.opt(query.edns.dnssec_ok)
    header = m.HEADER.pack(ident, query.flags & (m.RD | m.AD | m.CD), 1, 0, 0, 1 if extra else 0)
    return header + raw[m.HEADER.size : query.end] + extra


@dataclass(frozen=True, slots=True)
class Answer:
    """An upstream's answer: its message, where its TTLs are, and the seconds for which it may be kept (0: not)."""

    message: bytes
    ttls: tuple[int, ...]
    lifetime: int

    @property
    def rcode(self) -> int:
        """The lower four bits of it; the upper ones of EDNS belong to errors that are passed on as they are."""
        return self.message[3] & 15

    @property
    def truncated(self) -> bool:
        """Whether there is more, over TCP."""
        return bool(self.message[2] & m.TC >> 8)

    def to(self, query: m.Query, raw: bytes, over_tcp: bool, age: int | None = None) -> bytes:
        """The message for a client that asked by `raw`; `age`: seconds that this was kept, if it was.

        The question's letters come back as the client spelled them, and with them, by compression, owners' names.
        """
        whole = bytearray(self.message)
        whole[:2] = raw[:2]
        if whole[4:6] == b"\0\1":
            whole[m.HEADER.size : query.end] = raw[m.HEADER.size : query.end]
        if age is not None:
            whole[2] &= ~(m.AA >> 8)  # not the authority's own word any more (RFC 1035, 4.1.1)
            for at in self.ttls:
                left = max(0, int.from_bytes(whole[at : at + 4], "big") - age)
                whole[at : at + 4] = left.to_bytes(4, "big")
        message = bytes(whole)
        size = m.LIMIT if over_tcp else query.size
        return message if len(message) <= size else m.truncated(message, size)


def read(message: bytes) -> Answer:
    """An answer that is known to be one to our question. Raises Malformed when its records cannot be read."""
    _, flags, questions, answers, authority, additional = m.HEADER.unpack_from(message)
    if questions != 1:
        return Answer(message[: m.HEADER.size - 8] + bytes(8), (), 0)
    end = m.question_end(message)
    wanted = int.from_bytes(message[end - 4 : end - 2], "big")
    patched = bytearray(message)
    ttls: list[int] = []
    lifetime = LONGEST
    rcode = flags & 15
    found = False  # what was asked for is there
    denied = False  # or an SOA that says for how long it is not (RFC 2308, 5)
    last = end
    for index, record in enumerate(m.records(message, end, answers + authority + additional)):
        last = record.end
        if record.rtype == m.OPT and index >= answers + authority:
            patched[record.fields + 2 : record.fields + 4] = m.EDNS_SIZE.to_bytes(2, "big")
            rcode |= record.ttl >> 24 << 4
            continue
        ttls.append(record.fields + 4)
        lifetime = min(lifetime, record.ttl if record.ttl < _NEVER else 0)
        if index < answers:
            found = found or wanted in (record.rtype, m.ANY)
        elif index < answers + authority and record.rtype == m.SOA and record.end - record.data >= 22:
            denied = True
            minimum = int.from_bytes(message[record.end - 4 : record.end], "big")
            lifetime = min(lifetime, minimum if minimum < _NEVER else 0)
    certain = (rcode == m.NOERROR and found) or (rcode in (m.NOERROR, m.NXDOMAIN) and denied)
    if flags & m.TC or not certain:
        lifetime = 0
    return Answer(bytes(patched[:last]), tuple(ttls), lifetime)
