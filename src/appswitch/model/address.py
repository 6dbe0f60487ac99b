"""Addresses as the table keeps them: 16 bytes, IPv4 in its v4-mapped form (RFC 4291, 2.5.5.2).

One form for both families makes keys of one length, and makes what an AF_INET6 socket shows of an IPv4
peer the very bytes that are stored.
"""

from __future__ import annotations

from socket import AF_INET, AF_INET6, inet_ntop, inet_pton

MAPPED = bytes(10) + b"\xff\xff"
ANY = bytes(16)
ANY4 = MAPPED + bytes(4)
LOOPBACK4 = MAPPED + b"\x7f\0\0\1"
LOOPBACK6 = bytes(15) + b"\1"


def pack(text: str) -> bytes:
    """The 16 bytes of an address written as text; ValueError when it is neither IPv4 nor IPv6."""
    try:
        return pack6(text) if ":" in text else MAPPED + inet_pton(AF_INET, text)
    except (OSError, UnicodeError):
        raise ValueError(f"{text!r} is not an IPv4 or IPv6 address") from None


def pack6(text: str) -> bytes:
    return inet_pton(AF_INET6, text)


def unpack(address: bytes) -> str:
    """The usual text of a stored address."""
    if address.startswith(MAPPED):
        return inet_ntop(AF_INET, address[12:])
    return inet_ntop(AF_INET6, address)


def is_v4(address: bytes) -> bool:
    return address.startswith(MAPPED)


def is_any(address: bytes) -> bool:
    """True for 0.0.0.0 and :: — what connect() takes for loopback and bind() for every address."""
    return address in (ANY, ANY4)


def is_loopback(address: bytes) -> bool:
    return address == LOOPBACK6 or (address[:12] == MAPPED and address[12] == 127)


def loopback_like(address: bytes) -> bytes:
    """The loopback address of the same family."""
    return LOOPBACK4 if is_v4(address) else LOOPBACK6


def is_multicast(address: bytes) -> bool:
    return (224 <= address[12] <= 239 or address[12:] == b"\xff" * 4) if is_v4(address) else address[0] == 0xFF


def show(address: bytes, port: int) -> str:
    """`1.2.3.4:80` or `[2001:db8::1]:80`."""
    return f"{unpack(address)}:{port}" if is_v4(address) else f"[{unpack(address)}]:{port}"
