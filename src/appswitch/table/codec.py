"""Rows of the service table as bytes, and their keys in the order in which they are looked up."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import fields
from functools import lru_cache
from typing import Any

import msgpack

from ..model.service import Service

_PREFIX = struct.Struct("!16sBH")
_KEY = struct.Struct("!16sBH8sQ")
KEY_SIZE = _KEY.size
#: Where a key has the host's id.
_HOST = slice(19, 27)
#: The host id of this host's own rows.
OWN = bytes(8)
_FIELDS = tuple(field.name for field in fields(Service))
_SETTERS = tuple(getattr(Service, name).__set__ for name in _FIELDS)


def service_prefix(vip: bytes, port: int, proto: int) -> bytes:
    """What the keys of all instances of one service begin with."""
    return _PREFIX.pack(vip, proto, port)


@lru_cache(maxsize=1024)
def host_id(host: str) -> bytes:
    """8 bytes that stand for a host in keys: zeros for this host, else from its member name."""
    return hashlib.sha256(host.encode()).digest()[:8] if host else OWN


def service_key(row: Service) -> bytes:
    return _KEY.pack(row.vip, row.proto, row.port, host_id(row.host), row.instance)


def host_of_key(key: bytes) -> bytes:
    """The host id in a service's key."""
    return key[_HOST]


def vip_of_key(key: bytes) -> bytes:
    """The virtual IP in a service's key."""
    return key[:16]


def encode_service(row: Service) -> bytes:
    return pack([getattr(row, name) for name in _FIELDS])


def read_service(value: bytes) -> Service:
    """The row in these bytes."""
    row = Service.__new__(Service)
    # By its slots: the constructor of a frozen dataclass takes half as long again as all the rest.
    for put, field in zip(_SETTERS, msgpack.unpackb(value, raw=False, use_list=False), strict=True):
        put(row, field)
    return row


#: The same, cached by the bytes, because the same few are read at every connect. No more than stay in the processor's
#: cache: with thousands, a row that is not among them costs half as much again as without this.
decode_service = lru_cache(maxsize=256)(read_service)


def pack(value: Any) -> bytes:
    return bytes(msgpack.packb(value, use_bin_type=True))


def unpack(value: bytes) -> Any:
    return msgpack.unpackb(value, raw=False)
