"""LZW, least significant bit first, eight-bit literals, codes up to twelve bits: what compressed messages use.

The same format as in GIF images (GIF89a specification, appendix F) and in Go's compress/lzw.
"""

from __future__ import annotations

from .refused import Refused

_CLEAR, _END, _FIRST = 256, 257, 258
_MOST_BITS = 12


def expand(data: bytes, limit: int) -> bytes:
    """The original. Refused("malformed"), or Refused("oversized") as soon as it passes `limit` octets."""
    table: list[bytes] = []
    literals = [bytes([octet]) for octet in range(256)] + [b"", b""]
    out: list[bytes] = []
    size = 0
    width, bits, held = 9, 0, 0
    previous = b""
    for octet in data:
        bits |= octet << held
        held += 8
        if held < width:
            continue
        code = bits & ((1 << width) - 1)
        bits >>= width
        held -= width
        if code == _CLEAR:
            table, width, previous = literals.copy(), 9, b""
            continue
        if code == _END:
            return b"".join(out)
        if not table:
            table = literals.copy()
        if code < len(table):
            entry = table[code]
        elif code == len(table) and previous:
            entry = previous + previous[:1]
        else:
            raise Refused("malformed", "LZW code that stands for nothing")
        size += len(entry)
        if size > limit:
            raise Refused("oversized", f"more than {limit} octets after decompression")
        out.append(entry)
        if previous and len(table) < 1 << _MOST_BITS:
            table.append(previous + entry[:1])
        previous = entry
        # The next code may name the entry that is not complete yet, which will be number len(table).
        if len(table) >= 1 << width and width < _MOST_BITS:
            width += 1
    raise Refused("malformed", "LZW data without an end")
