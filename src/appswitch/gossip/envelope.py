"""What lies around the messages of a datagram, from outside in: label, sealed box, checksum, compression, compound.

memberlist's order exactly. Each layer stands at most once, so that what a hostile datagram can unfold to is bounded.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from .lzw import expand
from .refused import Refused
from .seal import OVERHEAD, KeyRing
from .wire import Fields, Kind, malformed, unpack

#: Octets of a datagram that is received, and of what it unfolds to.
LARGEST = 65536
#: Octets that a compound adds to all of it, and to each message.
COMPOUND_HEADER, COMPOUND_PART = 2, 2
MOST_PARTS = 255
_CRC_HEADER = 5


def label_header(label: bytes) -> bytes:
    """What precedes every packet and stream of the cluster; nothing when it has no label."""
    return bytes([Kind.LABEL, len(label)]) + label if label else b""


def make_compound(messages: Sequence[bytes]) -> bytes:
    """1 to 255 messages as one."""
    if len(messages) == 1:
        return messages[0]
    parts = [bytes([Kind.COMPOUND, len(messages)])]
    parts.extend(len(message).to_bytes(2, "big") for message in messages)
    parts.extend(messages)
    return b"".join(parts)


def split_compound(message: bytes) -> list[bytes]:
    """The messages of a compound; another message alone."""
    if not message or message[0] != Kind.COMPOUND:
        return [message]
    count = message[1] if len(message) > 1 else 0
    at = COMPOUND_HEADER + COMPOUND_PART * count
    if len(message) < at:
        raise malformed("a compound that is cut off")
    parts: list[bytes] = []
    for index in range(count):
        head = COMPOUND_HEADER + COMPOUND_PART * index
        length = int.from_bytes(message[head : head + COMPOUND_PART], "big")
        if at + length > len(message):
            raise malformed("a compound that is cut off")
        parts.append(message[at : at + length])
        at += length
    return parts


def add_crc(message: bytes) -> bytes:
    """With the CRC-32 that peers of protocol 5 check."""
    return bytes([Kind.CRC]) + zlib.crc32(message).to_bytes(4, "big") + message


def expand_fields(fields: Fields, limit: int) -> bytes:
    """What a compress message holds."""
    if fields.number(b"Algo", 255) != 0:
        raise malformed("an unknown compression")
    return expand(fields.octets(b"Buf", limit), limit)


class Envelope:
    """One cluster's way to wrap datagrams."""

    def __init__(self, label: str, keys: KeyRing | None, packet: int) -> None:
        """`packet`: octets that a datagram may have, all told. ValueError for a label over 255 octets."""
        self.label = label.encode()
        if len(self.label) > 255:
            raise ValueError("a cluster's label has at most 255 octets")
        self.keys = keys
        self._header = label_header(self.label)
        around = len(self._header) + (OVERHEAD if keys else _CRC_HEADER)
        #: Octets that messages in one datagram may have, with the compound's headers.
        self.room = packet - around

    def wrap(self, message: bytes, *, crc: bool = False) -> bytes:
        """The datagram for a message or compound. `crc`: add a checksum, unless it is sealed anyway."""
        if self.keys is not None:
            return self._header + self.keys.seal(message, self.label)
        return self._header + (add_crc(message) if crc else message)

    def unwrap(self, datagram: bytes) -> list[bytes]:
        """The messages of a datagram, none of them a compound. Refused with the reason."""
        if len(datagram) > LARGEST:
            raise Refused("oversized", f"a datagram over {LARGEST} octets")
        message = self._unlabel(datagram)
        if self.keys is not None:
            message = self.keys.open(message, self.label)
        if message[:1] == b"\x0c":
            if len(message) < _CRC_HEADER or zlib.crc32(message[_CRC_HEADER:]) != int.from_bytes(message[1:5], "big"):
                raise malformed("the checksum is wrong")
            message = message[_CRC_HEADER:]
        if message[:1] == b"\x09":
            message = expand_fields(unpack(message[1:]), LARGEST)
        return split_compound(message)

    def _unlabel(self, datagram: bytes) -> bytes:
        if not self._header:
            if datagram[:1] == b"\xf4":
                raise Refused("foreign_cluster", "a packet with a label")
            return datagram
        if not datagram.startswith(self._header):
            raise Refused("foreign_cluster", "a packet without this cluster's label")
        return datagram[len(self._header) :]
