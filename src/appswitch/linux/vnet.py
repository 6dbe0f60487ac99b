"""The virtio-net header: what a packet's checksum and length leave to whoever takes it.

Virtio 1.2, 5.1.6, as TUN devices (Documentation/networking/tuntap.rst) and packet sockets (packet(7),
PACKET_VNET_HDR) speak it; its numbers are in the machine's byte order. With it checksums are not computed that
nobody looks at, and a batch that was sent with UDP_SEGMENT (udp(7)) stays one packet up to the socket that takes it:
whole with UDP_GRO, else the receiver's kernel cuts it.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

SIZE = 10
MOST = 128
"""Datagrams of a batch: UDP_MAX_SEGMENTS."""

_HEADER = struct.Struct("=BBHHHH")
_NEEDS_CHECKSUM, _UDP_L4 = 1, 5
_UDP_HEADER, _CHECKSUM_AT = 8, 6


class Unfinished(NamedTuple):
    """What is left to be done for a packet; nothing where both are 0.

    `start`: of the UDP header, whose checksum covers the addresses, protocol and length alone. `segment`: the packet
    is a batch, and that many bytes are a datagram's; the last one's may be fewer.
    """

    start: int = 0
    segment: int = 0


FINISHED = Unfinished()


def pack(left: Unfinished, link: int) -> bytes:
    """The header before a packet with a link-layer header of so many bytes."""
    start, segment = left
    if not start:
        return bytes(SIZE)
    if not segment:
        return _HEADER.pack(_NEEDS_CHECKSUM, 0, 0, 0, link + start, _CHECKSUM_AT)
    return _HEADER.pack(
        _NEEDS_CHECKSUM, _UDP_L4, link + start + _UDP_HEADER, segment, link + start, _CHECKSUM_AT
    )


def unpack(header: bytes, link: int) -> Unfinished:
    """What the header says of a UDP packet; of others it is of no use: what they leave undone is not said."""
    flags, kind, _, segment, start, offset = _HEADER.unpack_from(header)
    if not flags & _NEEDS_CHECKSUM or offset != _CHECKSUM_AT:
        return FINISHED
    return Unfinished(start - link, segment if kind == _UDP_L4 else 0)
