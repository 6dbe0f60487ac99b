"""Members and what is known of them."""

from __future__ import annotations

import enum
import functools
import ipaddress
from dataclasses import dataclass

from .settings import Address

#: The largest incarnation that is believed: far beyond what refuting reaches, far below where u32 wraps.
MAX_INCARNATION = 1 << 31
MAX_NAME = 255
MAX_META = 512


class State(enum.IntEnum):
    """As numbered on the wire."""

    ALIVE = 0
    SUSPECT = 1
    DEAD = 2
    LEFT = 3


class Event(enum.Enum):
    """What happened to a member."""

    JOINED = "joined"
    LEFT = "left"
    FAILED = "failed"
    UPDATED = "updated"  # its address or its meta


@dataclass(frozen=True, slots=True)
class Member:
    """A member as others see it."""

    name: str
    address: str
    port: int
    state: State
    incarnation: int
    meta: bytes = b""

    @property
    def reachable(self) -> bool:
        """Alive as far as anybody knows."""
        return self.state <= State.SUSPECT


def pack_address(address: str) -> bytes:
    """4 or 16 octets."""
    return ipaddress.ip_address(address).packed


@functools.lru_cache(1 << 14)
def unpack_address(raw: bytes) -> str:
    """The canonical text of 4 or 16 octets; IPv4-mapped is IPv4. ValueError otherwise."""
    found = ipaddress.ip_address(raw)
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(found)


@dataclass(slots=True)
class Record:
    """The core's own, mutable entry of a member."""

    name: str
    raw_address: bytes  # as its owner spelled it: others compare octets
    address: str
    port: int
    meta: bytes
    versions: bytes
    incarnation: int
    state: State
    since: float  # when the state changed

    @property
    def to(self) -> Address:
        return (self.address, self.port)

    @property
    def reachable(self) -> bool:
        return self.state <= State.SUSPECT

    def snapshot(self) -> Member:
        return Member(self.name, self.address, self.port, self.state, self.incarnation, self.meta)
