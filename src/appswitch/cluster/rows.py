"""What a host tells the others: its services, its claims and a word about itself, as keys and values of a replica.

    s + virtual IP, protocol, port, instance    a service: the fields of its row that mean something elsewhere
    c + virtual IP                              claims: [[name, user, derived, open, stamp], ...]
    i                                           the host: {"programs": count, "relay": [address, port, life]}
    k                                           the cluster's keys as the host has them (`ring`)

Lists may grow at their end in later versions; what follows the known fields is ignored. What comes in was written
by another host, and is checked before it is a row.
"""

from __future__ import annotations

import ipaddress
import math
import struct
from collections.abc import Iterable
from typing import Any

import msgpack

from ..model.balance import METHODS, ROUND_ROBIN
from ..model.identity import TAGS_MOST, Claim, Tags
from ..model.service import Place, Service
from .ring import Ring

_KEY = struct.Struct("!16sBHQ")
_SERVICE, _CLAIMS, INFO, RING = b"s", b"c", b"i", b"k"
_NAME, _TEXT = 255, 64
_U32, _U63 = 1 << 32, 1 << 63
#: Claims to one virtual IP on one host.
_CLAIMS_MOST = 4096


class Malformed(ValueError):
    """Another host's row that is none."""


def published(row: Service) -> bool:
    """Is this row of this host's of use to others: have they where to connect to, and may anybody?"""
    return bool(row.epoch and row.real[0]) and not row.alone


def service_key(row: Service) -> bytes:
    return _SERVICE + _KEY.pack(row.vip, row.proto, row.port, row.instance)


def service_key_of(service: bytes, instance: bytes) -> bytes:
    """From the packed parts: virtual IP, protocol and port; instance."""
    return _SERVICE + service + instance


def service_value(row: Service) -> bytes:
    return _pack(
        [
            row.name,
            [list(pair) for pair in row.tags],
            row.bound,
            row.dual,
            row.real[0],
            row.real[1],
            row.epoch,
            row.balance,
            row.transport,
            row.since,
            row.uid,
            row.program,
            row.state,
            row.weight,
            row.version,
        ]
    )


def claims_key(vip: bytes) -> bytes:
    return _CLAIMS + vip


def claims_value(claims: Iterable[Claim]) -> bytes:
    return _pack([[claim.name, claim.uid, claim.derived, claim.open, claim.stamp] for claim in claims])


def info_value(programs: int, relay: Place | None = None) -> bytes:
    told = {} if relay is None else {"relay": [*relay.address, relay.life]}
    return _pack({"programs": programs} | told)


def ring_value(ring: Ring) -> bytes:
    return _pack(ring.document())


def vip_of_claims(key: bytes) -> bytes | None:
    """The virtual IP of a key of claims; None for any other key."""
    return key[1:] if key[:1] == _CLAIMS and len(key) == 17 else None


def is_service(key: bytes) -> bool:
    return key[:1] == _SERVICE and len(key) == 1 + _KEY.size


def service_of_key(host: str, key: bytes) -> Service:
    """A row with nothing but what the key says."""
    vip, proto, port, instance = _KEY.unpack(key[1:])
    return Service(
        vip, port, instance, 0, None, (), bytes(16), False, "", ("", 0), ROUND_ROBIN, "", 0.0, 0, 0, host, proto
    )


def service(host: str, key: bytes, value: bytes) -> Service:
    """Another host's row. Malformed when it is none."""
    if not is_service(key):
        raise Malformed("not a service's key")
    vip, proto, port, instance = _KEY.unpack(key[1:])
    fields = _unpack(value)
    if not isinstance(fields, list) or len(fields) < 15:
        raise Malformed("not a service")
    name, tags, bound, dual, address, real_port, epoch, balance, transport, since, uid, program, state, weight, ver = (
        fields[:15]
    )
    _check(isinstance(bound, bytes) and len(bound) == 16, "bound")
    _check(type(dual) is bool, "dual")
    _check(isinstance(epoch, bytes) and len(epoch) == 8, "epoch")
    _check(type(since) in (int, float) and math.isfinite(since), "since")
    return Service(
        vip,
        port,
        instance,
        _number(program, _U63),
        _name(name),
        _tags(tags),
        bound,
        dual,
        "",
        (_address(address), _number(real_port, 65536, least=1)),
        balance if balance in METHODS else ROUND_ROBIN,
        _text(transport),
        float(since),
        _number(uid, _U32),
        0,
        host,
        proto,
        _text(state),
        _number(weight, _U32),
        _number(ver, _U63),
        False,
        epoch,
    )


def claims(host: str, key: bytes, value: bytes) -> list[Claim]:
    """Another host's claims to a virtual IP. Malformed when they are none."""
    vip = vip_of_claims(key)
    fields = _unpack(value)
    _check(vip is not None and isinstance(fields, list) and len(fields) <= _CLAIMS_MOST, "claims")
    found = []
    for item in fields:
        _check(isinstance(item, list) and len(item) >= 5, "claim")
        name, uid, derived, is_open, stamp = item[:5]
        _check(type(derived) is bool and type(is_open) is bool, "claim")
        found.append(Claim(_name(name), vip or b"", _number(uid, _U32), derived, is_open, _number(stamp, _U63), host))
    return found


def programs(value: bytes) -> int:
    """How many programs a host says it has; 0 when it says nothing that is understood."""
    try:
        found = _unpack(value)
        return _number(found.get("programs"), _U32) if isinstance(found, dict) else 0
    except Malformed:
        return 0


def relay(value: bytes) -> Place | None:
    """Where a host says that its relay takes datagrams; None when it says nothing that is understood."""
    try:
        found = _unpack(value)
        told = found.get("relay") if isinstance(found, dict) else None
        if not isinstance(told, list) or len(told) < 3:
            return None
        address, port, life = told[:3]
        _check(isinstance(life, bytes) and len(life) == 8, "life")
        return Place((_address(address), _number(port, 65536, least=1)), life)
    except Malformed:
        return None


def ring(value: bytes) -> Ring:
    """The keys that a host has. Malformed when they are none."""
    try:
        return Ring.of(_unpack(value))
    except ValueError as error:
        raise Malformed(str(error)) from None


def _check(right: bool, what: str) -> None:
    if not right:
        raise Malformed(f"{what} is not right")


def _number(value: Any, limit: int, least: int = 0) -> int:
    _check(type(value) is int and least <= value < limit, "a number")
    return int(value)


def _text(value: Any) -> str:
    _check(isinstance(value, str) and len(value) <= _TEXT, "a text")
    return str(value)


def _name(value: Any) -> str | None:
    _check(value is None or (isinstance(value, str) and 0 < len(value) <= _NAME and value.isascii()), "a name")
    return None if value is None else str(value)


def _tags(value: Any) -> Tags:
    _check(isinstance(value, list), "tags")
    pairs = []
    for pair in value:
        _check(isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair), "a tag")
        pairs.append((pair[0], pair[1]))
    _check(sum(len(key.encode()) + len(word.encode()) + 2 for key, word in pairs) <= TAGS_MOST + 2, "tags")
    return tuple(pairs)


def _address(value: Any) -> str:
    try:
        _check(isinstance(value, str), "an address")
        return str(ipaddress.ip_address(value))
    except ValueError:
        raise Malformed("an address is not right") from None


def _pack(value: Any) -> bytes:
    return bytes(msgpack.packb(value, use_bin_type=True))


def _unpack(value: bytes) -> Any:
    try:
        return msgpack.unpackb(value, raw=False, strict_map_key=True)
    except Exception as error:  # msgpack has many
        raise Malformed(f"not msgpack: {error}") from None


