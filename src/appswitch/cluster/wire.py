"""What hosts tell each other of their rows, as octets: msgpack.

    change   [1, host, epoch, seq, [[key, value | nil], ...]]      a user broadcast of the gossip
    head     [2, host, epoch, seq]                                 likewise: a change too large for a datagram
    states   [[host, epoch, seq, [[key, value], ...] | nil], ...]  of all hosts, in a push/pull, or of some
                                                                   nil: so far it has got, but not known here
    version  epoch and seq, 8 octets each, big-endian: of two, the larger is the later
"""

from __future__ import annotations

import struct
from typing import Any

import msgpack

CHANGE, HEAD = 1, 2
_NIL = 0xC0  # of msgpack
#: Octets that a message may have.
MESSAGE = 2048
#: Octets of a name, a key and a value.
NAME, KEY, VALUE = 128, 256, 1 << 16
_VERSION = struct.Struct("!QQ")

Rows = dict[bytes, bytes]
Part = list[tuple[bytes, bytes | None]]


class Malformed(ValueError):
    """These bytes are no message of ours."""


def pack(value: Any) -> bytes:
    return bytes(msgpack.packb(value, use_bin_type=True))


def _unpack(data: bytes) -> Any:
    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=True)
    except Exception as error:  # msgpack has many
        raise Malformed(f"not msgpack: {error}") from None


def read_message(payload: bytes) -> tuple[int, str, int, int, Part]:
    """Kind, host, epoch, seq, changes; of a head none. Malformed."""
    if len(payload) > MESSAGE:
        raise Malformed(f"a message of more than {MESSAGE} bytes")
    fields = _unpack(payload)
    if not isinstance(fields, list) or len(fields) < 4:
        raise Malformed("not a message")
    kind, host, epoch, seq, *rest = fields
    _check_version(host, epoch, seq)
    if kind == HEAD and not rest:
        return kind, host, epoch, seq, []
    if kind == CHANGE and len(rest) == 1:
        return kind, host, epoch, seq, _read_changes(rest[0])
    raise Malformed("of no known kind")


def read_states(data: bytes, hosts: int, most: int) -> list[tuple[str, int, int, Rows | None]]:
    """At most two for each of so many hosts, and so many rows.

    Item by item: what does not belong there is noticed before it takes many times its size in memory.
    """
    items = msgpack.Unpacker(raw=False, max_buffer_size=max(1, len(data)), max_array_len=0, max_map_len=0)
    items.feed(data)
    found: list[tuple[str, int, int, Rows | None]] = []
    left = most
    try:
        count = items.read_array_header()
        if count > 2 * hosts:
            raise Malformed(f"states of more than {hosts} hosts")
        for _ in range(count):
            if items.read_array_header() != 4:
                raise Malformed("not a state")
            host, epoch, seq = items.unpack(), items.unpack(), items.unpack()
            _check_version(host, epoch, seq)
            if data[items.tell()] == _NIL:
                items.skip()
                found.append((host, epoch, seq, None))
                continue
            length = items.read_array_header()
            left -= length
            if left < 0:
                raise Malformed(f"more than {most} rows")
            found.append((host, epoch, seq, dict(_read_row(items) for _ in range(length))))
        if items.tell() != len(data):
            raise Malformed("more than states")
    except Malformed:
        raise
    except Exception as error:  # msgpack has many
        raise Malformed(f"not states: {error}") from None
    return found


def _read_row(items: msgpack.Unpacker) -> tuple[bytes, bytes]:
    if items.read_array_header() != 2:
        raise Malformed("no row")
    key, value = items.unpack(), items.unpack()
    if not isinstance(key, bytes) or not 0 < len(key) <= KEY:
        raise Malformed("no key")
    if not isinstance(value, bytes) or len(value) > VALUE:
        raise Malformed("no value")
    return key, value


def _check_version(host: object, epoch: object, seq: object) -> None:
    if not isinstance(host, str) or not 0 < len(host) <= NAME:
        raise Malformed("no host")
    if type(epoch) is not int or type(seq) is not int or not (0 < epoch < 1 << 63 and 0 <= seq < 1 << 63):
        raise Malformed("no version")


def pack_version(epoch: int, seq: int) -> bytes:
    return _VERSION.pack(epoch, seq)


def read_version(host: str, packed: bytes) -> tuple[int, int]:
    if len(packed) != _VERSION.size:
        raise Malformed("no version")
    epoch, seq = _VERSION.unpack(packed)
    if (epoch, seq) != (0, 0):  # nothing known
        _check_version(host, epoch, seq)
    return epoch, seq


def _read_changes(items: object) -> Part:
    if not isinstance(items, list):
        raise Malformed("no rows")
    found: Part = []
    for item in items:
        if not isinstance(item, list) or len(item) != 2:
            raise Malformed("no row")
        key, value = item
        if not isinstance(key, bytes) or not 0 < len(key) <= KEY:
            raise Malformed("no key")
        if value is not None and not (isinstance(value, bytes) and len(value) <= VALUE):
            raise Malformed("no value")
        found.append((key, value))
    return found
