"""The PROXY protocol, version 2, for TCP over IPv4 and IPv6 (haproxy's doc/proxy-protocol.txt, 2.2).

Addresses are those of the table: 16 bytes, IPv4 v4-mapped.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from ..model.address import MAPPED, is_v4
from .refused import Malformed, Missing, Truncated

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
#: Signature, version and command, family and protocol, length of what follows.
FIXED = struct.Struct("!12sBBH")
#: No header is longer: what a caller may make us hold before it is known to be anybody.
LARGEST = 2048
#: Types that the specification leaves to applications (PP2_TYPE_MIN_CUSTOM to PP2_TYPE_MAX_CUSTOM).
FIRST_CUSTOM, LAST_CUSTOM = 0xE0, 0xEF

_PROXY, _TCP4, _TCP6 = 0x21, 0x11, 0x21
_V4 = struct.Struct("!4s4sHH")
_V6 = struct.Struct("!16s16sHH")
_TLV = struct.Struct("!BH")


class Proxied(NamedTuple):
    """What a header says. `fields`: its TLVs as (type, value) in their order."""

    client: bytes
    client_port: int
    server: bytes
    server_port: int
    fields: list[tuple[int, bytes]]


def encode(client: bytes, client_port: int, server: bytes, server_port: int, fields: bytes) -> bytes:
    """A header; `fields` are its TLVs, each made by `field`. ValueError when it would be too long."""
    if is_v4(client) and is_v4(server):
        family = _TCP4
        addresses = _V4.pack(client[12:], server[12:], client_port, server_port)
    else:
        family = _TCP6
        addresses = _V6.pack(client, server, client_port, server_port)
    length = len(addresses) + len(fields)
    if FIXED.size + length > LARGEST:
        raise ValueError(f"a header of {FIXED.size + length} bytes, more than {LARGEST}")
    return FIXED.pack(SIGNATURE, _PROXY, family, length) + addresses + fields


def field(kind: int, value: bytes) -> bytes:
    """One TLV."""
    return _TLV.pack(kind, len(value)) + value


def size(data: bytes) -> int:
    """How many bytes the header has that `data` begins with.

    Truncated when that cannot be told yet, Missing when there is none, Malformed when it is of another kind.
    """
    if len(data) < FIXED.size:
        if not SIGNATURE.startswith(data[: len(SIGNATURE)]):
            raise Missing("the stream does not begin with a PROXY header")
        raise Truncated(FIXED.size)
    signature, command, family, length = FIXED.unpack_from(data)
    if signature != SIGNATURE:
        raise Missing("the stream does not begin with a PROXY header")
    if command != _PROXY or family not in (_TCP4, _TCP6):
        raise Malformed(f"version and command {command:#x}, family and protocol {family:#x}: not a proxied TCP stream")
    if FIXED.size + length > LARGEST:
        raise Malformed(f"a header of {FIXED.size + length} bytes, more than {LARGEST}")
    return FIXED.size + int(length)


def decode(data: bytes) -> Proxied:
    """The header that `data` begins with; what follows it is the stream's. Truncated, Missing or Malformed."""
    end = size(data)
    if len(data) < end:
        raise Truncated(end)
    at = FIXED.size
    try:
        if data[13] == _TCP4:
            client, server, client_port, server_port = _V4.unpack_from(data[:end], at)
            client, server = MAPPED + client, MAPPED + server
            at += _V4.size
        else:
            client, server, client_port, server_port = _V6.unpack_from(data[:end], at)
            at += _V6.size
        fields = []
        while at < end:
            kind, length = _TLV.unpack_from(data, at)
            at += _TLV.size + length
            fields.append((kind, data[at - length : at]))
    except struct.error:
        raise Malformed("a header too short for what it says") from None
    if at != end:
        raise Malformed("a field that reaches beyond the header")
    return Proxied(client, client_port, server, server_port, fields)
