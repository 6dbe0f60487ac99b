"""A datagram goes on under other addresses or ports than it came with, and what an ICMP error says of one: pure."""

from __future__ import annotations

import struct
from typing import NamedTuple

from .flows import Change
from .packets import ICMP, ICMPV6, UDP, Packet, Reason, internet_sum, pseudo_sum

_UNREACHABLE4, _UNREACHABLE6 = 3, 1
#: Codes that the kernel of the receiver sends, and what they come to; for anything else it is as if nobody were there.
_REASONS4 = {3: Reason.PORT, 9: Reason.POLICY, 10: Reason.POLICY, 13: Reason.POLICY}
_REASONS6 = {4: Reason.PORT, 1: Reason.POLICY}


def readdressed(packet: Packet, change: Change) -> bytes:
    """The packet with the addresses and, in the first or only part of a datagram, ports of `change`.

    Checksums are brought up to date with what has changed (RFC 1624): those of the data stay as they are.
    """
    raw = bytearray(packet.raw)
    v4 = len(packet.source) == 4
    start, end = (12, 20) if v4 else (8, 40)
    before = bytes(raw[start:end])
    raw[start:end] = after = change.source + change.destination
    if v4:
        raw[10:12] = b"\0\0"
        raw[10:12] = internet_sum(bytes(raw[: packet.at])).to_bytes(2, "big")
    if packet.first and packet.protocol == UDP and len(raw) >= packet.at + 8:
        at = packet.at
        before += bytes(raw[at : at + 4])
        raw[at : at + 4] = ports = struct.pack("!HH", change.source_port, change.port)
        check = int.from_bytes(raw[at + 6 : at + 8], "big")
        if packet.left.start:
            length = int.from_bytes(raw[at + 4 : at + 6], "big")
            raw[at + 6 : at + 8] = pseudo_sum(change.source, change.destination, length).to_bytes(2, "big")
        elif check:  # else it has none
            raw[at + 6 : at + 8] = _updated(check, before, after + ports).to_bytes(2, "big")
    return bytes(raw)


def _updated(check: int, before: bytes, after: bytes) -> int:
    """RFC 1624, 3: HC' = ~(~HC + ~m + m'), in ones' complement."""
    total = (~check & 0xFFFF) - int.from_bytes(before, "big") % 65535 + int.from_bytes(after, "big") % 65535
    return ~(total % 65535) & 0xFFFF or 0xFFFF


class Complaint(NamedTuple):
    """An ICMP error about a datagram: why, the (packed) addresses and ports that it came with, and how it began."""

    reason: Reason
    source: bytes
    source_port: int
    destination: bytes
    port: int
    payload: bytes


def complaint(packet: Packet) -> Complaint | None:
    """What the packet complains of: that a UDP datagram could not be delivered; None if it is no such error."""
    body = packet.transport
    if packet.partial or len(body) < 8:
        return None
    kind, code, quoted = body[0], body[1], body[8:]
    if packet.protocol == ICMP and kind == _UNREACHABLE4:
        header = (quoted[0] & 15) * 4 if quoted else 0
        if header < 20 or len(quoted) < header + 4 or quoted[9] != UDP:
            return None
        addresses, reason = (quoted[12:16], quoted[16:20]), _REASONS4.get(code, Reason.NOBODY)
    elif packet.protocol == ICMPV6 and kind == _UNREACHABLE6:
        header = 40
        if len(quoted) < header + 4 or quoted[6] != UDP:
            return None
        addresses, reason = (quoted[8:24], quoted[24:40]), _REASONS6.get(code, Reason.NOBODY)
    else:
        return None
    source_port, port = struct.unpack_from("!HH", quoted, header)
    return Complaint(reason, addresses[0], source_port, addresses[1], port, quoted[header + 8 :])
