"""A member's meta as tags, in Serf's format, so that its tools show them: 0xff and a msgpack map of texts."""

from __future__ import annotations

from collections.abc import Mapping

import msgpack

from .member import MAX_META

_MAGIC = b"\xff"


def pack(tags: Mapping[str, str]) -> bytes:
    """The meta. ValueError when it would be too long."""
    meta: bytes = _MAGIC + msgpack.packb(dict(tags), use_bin_type=False)
    if len(meta) > MAX_META:
        raise ValueError(f"tags of {len(meta)} octets: at most {MAX_META}")
    return meta


def unpack(meta: bytes) -> dict[str, str]:
    """The tags, from anybody's meta: none when it is of another format. They may be shown to people as they are."""
    if meta[:1] != _MAGIC:
        return {}
    try:
        found = msgpack.unpackb(meta[1:], raw=False)
    except Exception:  # msgpack has many
        return {}
    if not isinstance(found, dict):
        return {}
    return {key: value for key, value in found.items() if _shown(key) and _shown(value)}


def _shown(text: object) -> bool:
    return isinstance(text, str) and text.isprintable()
