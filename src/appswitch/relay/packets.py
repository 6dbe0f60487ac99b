"""IP packets as a program's namespace sends them and as it gets them back: pure functions over bytes.

Whatever the bytes are, nothing here raises. Checksums of what arrives are not looked at: nothing can have
damaged a packet between two ends on one machine, and most are not filled in (linux.vnet).
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

from appswitch.linux.vnet import FINISHED, MOST, Unfinished
from appswitch.model.address import MAPPED, is_v4

ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58

_HOP_BY_HOP, _ROUTING, _FRAGMENT, _DESTINATION_OPTIONS = 0, 43, 44, 60
_HOPS = 64
# An ICMP error may be this long with its IP header: RFC 1812, 4.3.2.3, and RFC 4443, 3.1.
_ERROR_V4, _ERROR_V6 = 576, 1280

_FIN, _SYN, _RST, _ACK = 1, 2, 4, 16


@dataclass(frozen=True)
class Packet:
    """One IP packet. Addresses are packed (4 or 16 octets); the transport header begins at `at` in `raw`.

    `raw` ends where the IP header says. `partial`: a fragment; `first`: it holds the transport header. `left`: of a
    UDP packet, what is to be done for it yet.
    """

    raw: bytes
    source: bytes
    destination: bytes
    protocol: int
    at: int
    partial: bool
    first: bool
    left: Unfinished = FINISHED

    @property
    def transport(self) -> bytes:
        """The transport header and what follows it."""
        return self.raw[self.at :]

    @cached_property
    def datagram(self) -> Datagram | None:
        """The UDP datagram inside, if that is what the packet holds and it is whole."""
        if self.protocol != UDP or self.partial or len(self.raw) < self.at + 8:
            return None
        source_port, port, length = struct.unpack_from("!HHH", self.raw, self.at)
        if not 8 <= length <= len(self.raw) - self.at:
            return None
        return Datagram(source_port, port, self.raw[self.at + 8 : self.at + length])

    @cached_property
    def payloads(self) -> list[bytes]:
        """What the datagrams inside hold: one, or those of a batch; none where there is no whole one."""
        datagram, segment = self.datagram, self.left.segment
        if datagram is None:
            return []
        if not segment:
            return [datagram.payload]
        return [datagram.payload[at : at + segment] for at in range(0, len(datagram.payload), segment)]

    @property
    def port(self) -> int:
        """The destination port; 0 where the protocol has none or the header is not there."""
        if self.protocol not in (TCP, UDP) or not self.first or len(self.raw) < self.at + 4:
            return 0
        return int.from_bytes(self.raw[self.at + 2 : self.at + 4], "big")


@dataclass(frozen=True, slots=True)
class Datagram:
    """A UDP datagram's ports and content."""

    source_port: int
    port: int
    payload: bytes


def stored(address: bytes) -> bytes:
    """A packed address as the table has it."""
    return MAPPED + address if len(address) == 4 else address


def packed(address: bytes) -> bytes:
    """An address of the table as packets have it."""
    return address[12:] if is_v4(address) else address


def text(address: bytes) -> str:
    """A packed address as text."""
    return socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)


def parse(raw: bytes, left: Unfinished = FINISHED) -> Packet | None:
    """The packet that these bytes are, or None when they are no whole, well-formed IP packet.

    `left` counts for UDP alone; None also where it does not fit the packet.
    """
    if not raw:
        return None
    if raw[0] >> 4 == 4:
        return _parse_v4(raw, left)
    return _parse_v6(raw, left) if raw[0] >> 4 == 6 else None


def _parse_v4(raw: bytes, left: Unfinished) -> Packet | None:
    header = (raw[0] & 15) * 4
    if header < 20 or len(raw) < header:
        return None
    total, _, fragment, _, protocol = struct.unpack_from("!HHHBB", raw, 2)
    if not header <= total <= len(raw):
        return None
    if protocol != UDP or not left.start:
        left = FINISHED
    elif not fits(left, header, total - header, bool(fragment & 0x3FFF)):
        return None
    return Packet(
        raw[:total],
        source=raw[12:16],
        destination=raw[16:20],
        protocol=protocol,
        at=header,
        partial=bool(fragment & 0x3FFF),
        first=not fragment & 0x1FFF,
        left=left,
    )


def _parse_v6(raw: bytes, left: Unfinished) -> Packet | None:
    if len(raw) < 40:
        return None
    total = 40 + int.from_bytes(raw[4:6], "big")
    if total > len(raw):
        return None
    protocol, at, partial, first = raw[6], 40, False, True
    while protocol in (_HOP_BY_HOP, _ROUTING, _FRAGMENT, _DESTINATION_OPTIONS) and first:
        if at + 8 > total:
            return None
        if protocol == _FRAGMENT:
            offset = int.from_bytes(raw[at + 2 : at + 4], "big")
            partial, first = partial or bool(offset & 0xFFF9), not offset & 0xFFF8
            length = 8
        else:
            length = 8 + raw[at + 1] * 8
        protocol = raw[at]
        at += length
    if at > total:
        return None
    if protocol != UDP or not left.start:
        left = FINISHED
    elif not fits(left, at, total - at, partial):
        return None
    return Packet(raw[:total], raw[8:24], raw[24:40], protocol, at, partial, first, left)


def fits(left: Unfinished, at: int, length: int, partial: bool = False) -> bool:
    """Can that be left of a packet whose datagram begins at `at`, with a header and so many bytes in all?"""
    return left.start == at and length >= 8 and not partial and (not left.segment or length - 8 <= MOST * left.segment)


def key(packet: Packet) -> bytes | None:
    """Addresses and ports of the UDP datagram in `packet`, or in the first part of one: see flows.Key."""
    if packet.protocol != UDP or not packet.first or len(packet.raw) < packet.at + 8:
        return None
    return packet.source + packet.destination + packet.raw[packet.at : packet.at + 4]


def fragment(packet: Packet) -> bytes:
    """What the fragments of one datagram have in common."""
    identification = packet.raw[4:6] if len(packet.source) == 4 else packet.raw[packet.at - 4 : packet.at]
    return packet.source + packet.destination + identification


class Whole:
    """The datagram of fragments that come one after the other, as a kernel sends them."""

    def __init__(self) -> None:
        self._parts = bytearray()

    def add(self, packet: Packet) -> bytes | None:
        """The payload, if this fragment is the last one; None also when one before it is missing."""
        at = 6 if len(packet.source) == 4 else packet.at - 6
        word = int.from_bytes(packet.raw[at : at + 2], "big")
        offset, more = ((word & 0x1FFF) * 8, word & 0x2000) if at == 6 else (word & 0xFFF8, word & 1)
        if offset != len(self._parts):
            return None
        self._parts += packet.transport
        length = int.from_bytes(self._parts[4:6], "big")
        if more or not 8 <= length <= len(self._parts):
            return None
        return bytes(self._parts[8:length])


def traffic_class(packet: Packet) -> int:
    """The octet with which its sender marked the packet: ip(7), IP_TOS; ipv6(7), IPV6_TCLASS."""
    if len(packet.source) == 4:
        return packet.raw[1]
    return (packet.raw[0] & 15) << 4 | packet.raw[1] >> 4


def udp(
    source: bytes,
    source_port: int,
    destination: bytes,
    port: int,
    payload: bytes,
    traffic_class: int = 0,
    *,
    summed: bool = True,
) -> bytes | None:
    """The packet with this UDP datagram; None when `payload` fits no packet.

    `summed`: with its checksum, else the packet is what `unsummed` says.
    """
    length = 8 + len(payload)
    if length > 65535 - (20 if len(source) == 4 else 0):
        return None
    header = struct.pack("!HHHH", source_port, port, length, 0)
    check = udp_sum(source, destination, header + payload) if summed else pseudo_sum(source, destination, length)
    return _ip(source, destination, UDP, header[:6] + check.to_bytes(2, "big") + payload, traffic_class)


def halves(packet: bytes, identification: int) -> list[bytes]:
    """An IPv6 packet without extension headers as two fragments (RFC 8200, 4.5)."""
    body = packet[40:]
    at = len(body) // 2 & ~7
    found = []
    for part, where in ((body[:at], 1), (body[at:], at)):  # 1: there is more
        part = struct.pack("!BBHI", packet[6], 0, where, identification) + part
        found.append(packet[:4] + struct.pack("!HB", len(part), _FRAGMENT) + packet[7:40] + part)
    return found


def unsummed(packet: bytes) -> Unfinished:
    """What is left to be done for a packet of `udp` without a checksum."""
    return Unfinished(20 if packet[0] >> 4 == 4 else 40)


def udp_sum(source: bytes, destination: bytes, datagram: bytes) -> int:
    """The checksum of a UDP header, its own checksum 0, and what follows."""
    # A sum of zero would mean "no checksum" (RFC 768).
    return internet_sum(_pseudo(source, destination, UDP, len(datagram)) + datagram) or 0xFFFF


def pseudo_sum(source: bytes, destination: bytes, length: int) -> int:
    """What stands for the checksum while it is not computed: the sum of what else it is made of."""
    return ~internet_sum(_pseudo(source, destination, UDP, length)) & 0xFFFF


def udp_reply(packet: Packet, payload: bytes) -> bytes | None:
    """The packet that brings `payload` to the sender of the datagram in `packet`, from its destination.

    None when `packet` holds no datagram or `payload` fits no packet.
    """
    asked = packet.datagram
    if asked is None:
        return None
    return udp(packet.destination, asked.port, packet.source, asked.source_port, payload)


class Reason(Enum):
    """Why a datagram was not delivered, as codes of ICMP and ICMPv6 "destination unreachable".

    A program with a connected socket gets the error of icmp(7) for it; the kernel passes on those alone that are
    final. PORT: ECONNREFUSED. POLICY: EHOSTUNREACH, by IPv6 EACCES. NOBODY: EHOSTUNREACH, by IPv6 ECONNREFUSED.
    """

    PORT = 3, 4
    POLICY = 13, 1
    NOBODY = 10, 4


def unreachable(packet: Packet, reason: Reason) -> bytes | None:
    """What tells the sender of `packet` that it was not delivered; None where silence is the rule, as in `refusal`."""
    if not packet.first or not _single(packet.source) or not _single(packet.destination):
        return None
    code4, code6 = reason.value
    return _unreachable_v4(packet, code4) if len(packet.source) == 4 else _unreachable_v6(packet, code6)


def refusal(packet: Packet) -> bytes | None:
    """What tells the sender of `packet` at once that it will not be carried; None where silence is the rule.

    UDP: ICMP port unreachable; TCP: a reset; others: host or protocol unreachable. Never about an ICMP error,
    to or about a group, or about a later fragment (RFC 1122, 3.2.2; RFC 4443, 2.4 e).
    """
    if not packet.first or not _single(packet.source) or not _single(packet.destination):
        return None
    v4 = len(packet.source) == 4
    if packet.protocol == TCP:
        return _reset(packet)
    if packet.protocol == UDP:
        return _unreachable_v4(packet, 3) if v4 else _unreachable_v6(packet, 4)
    if packet.protocol == (ICMP if v4 else ICMPV6):
        asks = packet.raw[packet.at : packet.at + 1] in ((b"\x08", b"\x0d") if v4 else (b"\x80",))
        if not asks:  # an error, an answer, neighbour or multicast housekeeping
            return None
        return _unreachable_v4(packet, 1) if v4 else _unreachable_v6(packet, 3)
    return _unreachable_v4(packet, 2) if v4 else _unreachable_v6(packet, 3)


def is_group(address: bytes) -> bool:
    """Whether `address` is a multicast or broadcast one."""
    if len(address) == 16:
        return address[0] == 0xFF
    return address[0] >= 224  # multicast, and the reserved class E with the broadcast address


def _single(address: bytes) -> bool:
    """Whether an error may go to or speak for `address`: it stands for one host.

    127/8 does: it is the source of a program that has no other IPv4 address.
    """
    if len(address) == 16:
        return not is_group(address) and (any(address[:15]) or address[15] > 1)
    return not is_group(address) and address[0] != 0


def _unreachable_v4(packet: Packet, code: int) -> bytes:
    quoted = packet.raw[: _ERROR_V4 - 28]
    head = struct.pack("!BBHI", 3, code, 0, 0)
    check = internet_sum(head + quoted)
    body = head[:2] + check.to_bytes(2, "big") + head[4:] + quoted
    return _ip(packet.destination, packet.source, ICMP, body)


def _unreachable_v6(packet: Packet, code: int) -> bytes:
    quoted = packet.raw[: _ERROR_V6 - 48]
    head = struct.pack("!BBHI", 1, code, 0, 0)
    check = internet_sum(_pseudo(packet.destination, packet.source, ICMPV6, 8 + len(quoted)) + head + quoted)
    body = head[:2] + check.to_bytes(2, "big") + head[4:] + quoted
    return _ip(packet.destination, packet.source, ICMPV6, body)


def _reset(packet: Packet) -> bytes | None:
    """The answer of a closed port (RFC 9293, 3.10.7.1)."""
    segment = packet.transport
    if len(segment) < 20 or packet.partial:
        return None
    source_port, port, sequence, acknowledged, offset, flags = struct.unpack_from("!HHIIBB", segment)
    header = (offset >> 4) * 4
    if flags & _RST or not 20 <= header <= len(segment):
        return None
    if flags & _ACK:
        sequence, acknowledged, answer = acknowledged, 0, _RST
    else:
        length = len(segment) - header + bool(flags & _SYN) + bool(flags & _FIN)
        sequence, acknowledged, answer = 0, (sequence + length) & 0xFFFFFFFF, _RST | _ACK
    head = struct.pack("!HHIIBBHHH", port, source_port, sequence, acknowledged, 5 << 4, answer, 0, 0, 0)
    check = internet_sum(_pseudo(packet.destination, packet.source, TCP, 20) + head)
    return _ip(packet.destination, packet.source, TCP, head[:16] + check.to_bytes(2, "big") + head[18:])


def _ip(source: bytes, destination: bytes, protocol: int, body: bytes, traffic_class: int = 0) -> bytes:
    if len(source) == 16:
        first = 6 << 28 | traffic_class << 20
        return struct.pack("!IHBB", first, len(body), protocol, _HOPS) + source + destination + body
    head = struct.pack("!BBHHHBBH", 0x45, traffic_class, 20 + len(body), 0, 0, _HOPS, protocol, 0)
    head += source + destination
    return head[:10] + internet_sum(head).to_bytes(2, "big") + head[12:] + body


def _pseudo(source: bytes, destination: bytes, protocol: int, length: int) -> bytes:
    if len(source) == 16:
        return source + destination + struct.pack("!II", length, protocol)
    return source + destination + struct.pack("!HH", protocol, length)


def internet_sum(data: bytes) -> int:
    """The Internet checksum (RFC 1071): the complement of the ones' complement sum of the 16-bit words."""
    if len(data) & 1:
        data += b"\0"
    # 2**16 is 1 modulo 65535: the number that the bytes spell leaves the same rest as the sum of its words.
    rest = int.from_bytes(data, "big") % 65535
    return ~rest & 0xFFFF if rest or not any(data) else 0
