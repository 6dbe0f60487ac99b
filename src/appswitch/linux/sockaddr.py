"""struct sockaddr of IPv4 and IPv6 (ip(7), ipv6(7)) from and to stored addresses of 16 bytes."""

from __future__ import annotations

import struct
from socket import AF_INET, AF_INET6

_MAPPED = bytes(10) + b"\xff\xff"
_IN = struct.Struct("=H2s4s8x")
_IN6 = struct.Struct("=H2s4x16s4x")
IN_SIZE = _IN.size
IN6_SIZE = _IN6.size
IN6_MINIMUM = 24  # SIN6_LEN_RFC2133: what the kernel accepts
_INET = int(AF_INET)
LARGEST = 128  # sizeof(struct sockaddr_storage)


def decode(raw: bytes) -> tuple[bytes, int]:
    """(address, port) of a sockaddr_in or sockaddr_in6 that is long enough."""
    port = raw[2] << 8 | raw[3]
    return (_MAPPED + raw[4:8] if raw[0] == _INET else raw[8:24]), port


def encode(family: int, address: bytes, port: int) -> bytes:
    """As a socket of `family` shows it: IPv4 peers of an AF_INET6 socket are v4-mapped."""
    if family == AF_INET6:
        return _IN6.pack(AF_INET6, port.to_bytes(2, "big"), address)
    return _IN.pack(AF_INET, port.to_bytes(2, "big"), address[12:])
