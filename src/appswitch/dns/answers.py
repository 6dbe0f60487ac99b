"""What to say to a program's DNS query: a pure decision over the query's bytes and the service table's names.

A name of the table is answered here, bare (`web`) and under the domain (`web.appswitch`), and so are the names of its
services below it (`_80._tcp.web`, `_http._tcp.web`); also everything below the domain, `localhost` (RFC 6761, 6.3) and
the reverse names of the virtual range, known or not. The rest is for the host's resolvers.

Answers are the same whoever asks, but for what a program waits for (`Expecting`), and are kept nowhere here.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from typing import Any, Protocol

from appswitch.dns import message as m
from appswitch.dns import ports

TTL = 5  # seconds; names move, so neither an answer nor a denial may be kept for long
BADVERS = 16  # RFC 6891, 9: an extended code, its upper bits travel in OPT

Labels = tuple[bytes, ...]
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Directory(Protocol):
    """The service table's names as the resolver needs them. Names are lower case and without the domain."""

    def addresses(self, name: str) -> list[str] | None:
        """The virtual addresses of `name` as text, IPv4 and IPv6; None when no program has that name."""

    def names(self, address: str) -> list[str]:
        """The names that `address` (canonical text) goes by; empty when unknown."""

    def below(self, name: str) -> bool:
        """Whether a name that somebody has ends in this one after a dot, as `a.b` does in `b`."""

    def serves(self, name: str, protocol: int, port: int) -> bool:
        """Whether programs in general find a service of `name` at that port; `protocol` is an IP protocol number."""


@dataclass(frozen=True, slots=True)
class Expecting:
    """A directory in which some names have addresses before anybody has them."""

    known: Directory
    expected: Mapping[str, str]

    def addresses(self, name: str) -> list[str] | None:
        found = self.known.addresses(name)
        return [self.expected[name]] if found is None and name in self.expected else found

    def names(self, address: str) -> list[str]:
        return self.known.names(address)

    def below(self, name: str) -> bool:
        return self.known.below(name) or any(other.endswith("." + name) for other in self.expected)

    def serves(self, name: str, protocol: int, port: int) -> bool:
        return self.known.serves(name, protocol, port)


@dataclass(frozen=True, slots=True)
class Reply:
    """Send `message` to the client."""

    message: bytes


@dataclass(frozen=True, slots=True)
class Forward:
    """The query is for the host's resolvers."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Say nothing: an answer would be wrong or could be abused."""

    reason: str


Decision = Reply | Forward | Drop


def decide(
    query: bytes,
    directory: Directory,
    *,
    domain: str = "appswitch",
    over_tcp: bool,
    virtual_range: str = "100.64.0.0/10",
) -> Decision:
    """What to do with `query`, a DNS message without length prefix, whatever its bytes are.

    Raises only what `directory` raises, and ValueError when an address that it gives is none.
    """
    if len(query) < m.HEADER.size:
        return Drop("shorter than a DNS header")
    _, flags, *_ = m.HEADER.unpack_from(query)
    if flags & m.QR:
        return Drop("a response, not a query")
    if m.opcode(flags) != 0:
        return Reply(m.error(query, m.NOTIMP))
    try:
        asked = m.parse_query(query)
    except m.Malformed:
        return Reply(m.error(query, m.FORMERR))
    if asked.edns is not None and asked.edns.version != 0:
        found: _Found | None = _Found(BADVERS, ())
    else:
        found = _look_up(asked, directory, domain, _network(virtual_range))
    if found is None:
        return Forward()
    return Reply(_build(asked, found, over_tcp))


@dataclass(frozen=True, slots=True)
class _Found:
    """An answer of ours: code, records as (type, value), and the zone whose SOA goes with an empty answer.

    `beside`: addresses of the name that the records point at.
    """

    rcode: int
    records: Sequence[tuple[int, Any]]
    zone: Labels | None = None
    beside: Sequence[tuple[int, str]] = ()


@lru_cache(maxsize=8)
def _network(text: str) -> Network:
    return ipaddress.ip_network(text)


def _text(labels: Sequence[bytes]) -> str | None:
    """Labels as a lower-case dotted name; None when one holds what no name of ours can hold."""
    joined = b".".join(labels).lower()
    if joined.count(b".") != max(0, len(labels) - 1) or not all(0x21 <= octet <= 0x7E for octet in joined):
        return None
    return joined.decode("ascii")


def _look_up(asked: m.Query, directory: Directory, domain: str, virtual: Network) -> _Found | None:
    """Our answer to a well-formed question, or None when it is not ours to answer."""
    if asked.qtype in (m.AXFR, m.IXFR):
        return _Found(m.REFUSED, ())  # nor could we carry another's zone: that is many messages
    if asked.qclass not in (m.IN, m.ANY) or not asked.labels:
        return None
    labels = asked.labels
    if labels[-1].lower() == b"localhost":
        return _there(asked, _addresses(["127.0.0.1", "::1"]), labels[-1:])
    reverse = _look_up_reverse(asked, directory, domain, virtual) if labels[-1].lower() == b"arpa" else None
    if reverse is not None:
        return reverse
    suffix = tuple(domain.lower().encode("ascii").split(b".")) if domain else ()
    if suffix and tuple(label.lower() for label in labels[-len(suffix) :]) == suffix:
        zone = labels[-len(suffix) :]
        if len(labels) == len(suffix):
            return _there(asked, (), zone)
        return _look_up_name(asked, labels[: -len(suffix)], directory, domain, zone) or _Found(m.NXDOMAIN, (), zone)
    # A bare name stands alone: it is its own zone, so a denial about it says nothing about others.
    return _look_up_name(asked, labels, directory, domain, None)


def _look_up_name(
    asked: m.Query, labels: Labels, directory: Directory, domain: str, zone: Labels | None
) -> _Found | None:
    """The answer for a name without our domain; None when nobody has it. `zone`: None for a bare name."""
    name = _text(labels)
    if name is None:
        return None
    known = directory.addresses(name)
    if known is not None:
        return _there(asked, _addresses(known), zone or labels)
    protocol = next((at for at in (0, 1) if at < len(labels) - 1 and labels[at].lower() in _PROTOCOLS), None)
    if protocol is not None:
        owner = labels[protocol + 1 :]
        known = directory.addresses(name.split(".", protocol + 1)[-1])
        if known is not None:
            return _look_up_service(asked, labels[: protocol + 1], owner, known, directory, domain, zone or owner)
    # Others' names under this one: it exists, and has nothing of its own (RFC 8020, 2).
    return _there(asked, (), zone) if zone is not None and directory.below(name) else None


_PROTOCOLS = {b"_tcp": 6, b"_udp": 17}


def _look_up_service(
    asked: m.Query,
    service: Labels,
    owner: Labels,
    addresses: list[str],
    directory: Directory,
    domain: str,
    zone: Labels,
) -> _Found:
    """`service` below a known name (RFC 2782): `_tcp` alone, or with a port or its name before it."""
    if len(service) == 1:
        return _there(asked, (), zone)
    name = b".".join(owner).decode("ascii").lower()
    protocol = _PROTOCOLS[service[1].lower()]
    port = ports.port_of(service[0].decode("ascii").lower())
    if port is None or not directory.serves(name, protocol, port):
        return _Found(m.NXDOMAIN, (), zone)
    found = _there(asked, [(m.SRV, (port, *_under([name], domain)))], zone)
    return replace(found, beside=_addresses(addresses)) if found.records else found


def _addresses(texts: Sequence[str]) -> list[tuple[int, Any]]:
    return [(m.AAAA if ":" in text else m.A, text) for text in texts]


def _there(asked: m.Query, records: Sequence[tuple[int, Any]], zone: Labels) -> _Found:
    """The answer for a name that exists and has these records."""
    if len(asked.labels) == len(zone) and (asked.qtype != m.ANY or not records):
        records = [*records, (m.SOA, None), (m.NS, None)]  # as RFC 6303, 3 has it for zones that are served locally
    return _Found(m.NOERROR, [r for r in records if asked.qtype in (r[0], m.ANY)], zone)


def _look_up_reverse(asked: m.Query, directory: Directory, domain: str, virtual: Network) -> _Found | None:
    address = _reverse(asked.labels)
    names: list[str] = []
    if address is not None:
        names = ["localhost"] if address.is_loopback else _under(directory.names(str(address)), domain)
    depth = _inside(asked.labels, virtual)
    if not names and depth is None:
        return None
    zone = asked.labels if depth is None else asked.labels[-depth:]
    # A part of an address stands above whole ones, and so exists.
    part = len(asked.labels) < (6 if virtual.version == 4 else 34) and _spells(asked.labels[:-2], virtual.version)
    if not names and not part:
        return _Found(m.NXDOMAIN, (), zone)
    return _there(asked, [(m.PTR, name) for name in names], zone)


def _inside(labels: Labels, virtual: Network) -> int | None:
    """How many labels the zone has, of those that we serve for the virtual range, in which a reverse name is.

    A zone is cut at the first label's boundary below which everything is inside the range.
    """
    v4 = virtual.version == 4
    bits = 8 if v4 else 4
    steps = -(-virtual.prefixlen // bits)
    depth = steps + 2
    if [label.lower() for label in labels[-2:]] != [b"in-addr" if v4 else b"ip6", b"arpa"] or len(labels) < depth:
        return None
    cut = labels[-depth:-2]
    if not _spells(cut, virtual.version):
        return None
    number = 0
    for label in reversed(cut):
        number = number << bits | int(label, 10 if v4 else 16)
    first = number << (virtual.max_prefixlen - steps * bits)
    return depth if ipaddress.ip_address(first.to_bytes(virtual.max_prefixlen // 8, "big")) in virtual else None


def _spells(labels: Labels, version: int) -> bool:
    """Whether these are octets, or nibbles, as reverse names have them."""
    if version == 4:
        return all(label.isdigit() and len(label) <= 3 and int(label) <= 255 for label in labels)
    return all(len(label) == 1 and label.lower() in b"0123456789abcdef" for label in labels)


def _under(names: list[str], domain: str) -> list[str]:
    return [f"{name}.{domain}" if domain else name for name in names]


def _reverse(labels: Labels) -> Address | None:
    """The address that a whole reverse name spells (RFC 1035, 3.5; RFC 3596, 2.5), if it spells one."""
    lower = [label.lower() for label in labels]
    try:
        if lower[-2:] == [b"in-addr", b"arpa"] and len(lower) == 6:
            return ipaddress.IPv4Address(b".".join(reversed(lower[:4])).decode("ascii"))
        if lower[-2:] == [b"ip6", b"arpa"] and [len(label) for label in lower[:-2]] == [1] * 32:
            return ipaddress.IPv6Address(bytes.fromhex(b"".join(reversed(lower[:-2])).decode("ascii")))
    except ValueError:
        pass
    return None


def _build(asked: m.Query, found: _Found, over_tcp: bool) -> bytes:
    """The message for `found`, cut to what the client takes."""
    flags = m.QR | m.RA | (asked.flags & (m.RD | m.CD)) | (found.rcode & 15)
    zone = found.zone
    if zone is not None:
        flags |= m.AA
        # Every zone of ours is an end of the question's name: a pointer says it (RFC 1035, 4.1.4).
        apex = m.pointer(m.HEADER.size + len(m.name(asked.labels[: len(asked.labels) - len(zone)])) - 1)
    else:
        apex = b"\0"
    question = m.name(asked.labels) + asked.qtype.to_bytes(2, "big") + asked.qclass.to_bytes(2, "big")
    owner = m.pointer(m.HEADER.size)
    limit = m.LIMIT if over_tcp else asked.size
    records = found.records[: limit // 16 + 1]  # one takes 16 octets or more
    answers = [m.record(owner, kind, TTL, _data(kind, value, apex)) for kind, value in records]
    authority = [] if answers or zone is None else [m.record(apex, m.SOA, TTL, _data(m.SOA, None, apex))]
    beside = [
        m.record(_wire(value[1]), kind, TTL, _data(kind, text, apex))
        for of, value in found.records
        if of == m.SRV
        for kind, text in found.beside
    ]
    opt = [] if asked.edns is None else [m.opt(asked.edns.dnssec_ok, found.rcode)]

    def message(flags: int, *sections: Sequence[bytes]) -> bytes:
        header = m.HEADER.pack(asked.id, flags, 1, *map(len, sections))
        return b"".join([header, question, *chain(*sections)])

    # What is only beside an answer may be missing (RFC 2181, 9).
    for extra in ([*beside, *opt], opt):
        whole = message(flags, answers, authority, extra)
        if len(whole) <= limit:
            return whole
    return message(flags | m.TC, [], [], opt)


def _wire(text: str) -> bytes:
    return m.name([label.encode("ascii") for label in text.split(".")])


def _data(kind: int, value: Any, apex: bytes) -> bytes:
    """A record's data; `apex` is the name of the zone."""
    if kind == m.PTR:
        return _wire(value)
    if kind == m.SOA:
        # The last field is how long a denial may be kept (RFC 2308, 4).
        return apex + b"\x0ahostmaster" + apex + struct.pack("!5I", 1, 60, 60, 60, TTL)
    if kind == m.NS:
        return apex
    if kind == m.SRV:
        # One virtual address stands for all instances: which is taken is decided at connect().
        port, target = value
        return struct.pack("!3H", 0, 0, port) + _wire(target)
    return ipaddress.ip_address(value).packed
