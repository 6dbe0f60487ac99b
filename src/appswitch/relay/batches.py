"""Several datagrams in one packet, and checksums that are not filled in (linux.vnet): made, and done without. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from appswitch.linux.vnet import Unfinished

from . import packets
from .packets import Packet

_V6_HEADER, _UDP_HEADER = 40, 8


def finished(packet: bytes, left: Unfinished) -> Iterator[bytes]:
    """The packets that come of one where nothing is left to be done."""
    found = packets.parse(packet, left)
    if found is None or not left.start:
        yield packet
        return
    for payload in found.payloads:
        yield _with(found, payload)


def _with(packet: Packet, payload: bytes) -> bytes:
    """A packet with the headers of this one, one datagram, and its checksum if it needs one."""
    length = _UDP_HEADER + len(payload)
    datagram = packet.raw[packet.at : packet.at + 4] + length.to_bytes(2, "big") + b"\0\0" + payload
    if len(packet.source) == 16:  # IPv4 does not insist on one (RFC 768), and nothing damages it from here on
        check = packets.udp_sum(packet.source, packet.destination, datagram)
        datagram = datagram[:6] + check.to_bytes(2, "big") + payload
    return resized(packet.raw[: packet.at], length) + datagram


def resized(header: bytes, length: int) -> bytes:
    """The IP header of a packet with so many bytes after it."""
    if header[0] >> 4 == 6:
        return header[:4] + (len(header) - _V6_HEADER + length).to_bytes(2, "big") + header[6:]
    header = header[:2] + (len(header) + length).to_bytes(2, "big") + header[4:10] + b"\0\0" + header[12:]
    return header[:10] + packets.internet_sum(header).to_bytes(2, "big") + header[12:]


def joined(frames: Sequence[bytes], before: int, at: int) -> list[bytes]:
    """One packet with the payloads of these: its headers, then one payload after the other.

    They are whole ones of one conversation, of one length, and none has its checksum yet. The IP header begins at
    `before`, the UDP header at `at`.
    """
    first, start = frames[0], at + _UDP_HEADER
    old = len(first) - at
    new = _UDP_HEADER + (old - _UDP_HEADER) * len(frames)
    # What stands for the checksum is the sum of the addresses, the protocol and the length.
    total = int.from_bytes(first[at + 6 : start], "big") + new - old
    check = (total & 0xFFFF) + (total >> 16)
    datagram = first[at : at + 4] + new.to_bytes(2, "big") + check.to_bytes(2, "big")
    return [resized(first[before:at], new) + datagram, *[frame[start:] for frame in frames]]
