"""What no service has: an address of the host's network, or a virtual IP that is nobody's."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from .address import MAPPED
from .identity import behind
from .resolve import Deny

#: Of programs that have neither a name nor an address (RFC 3927).
_LINK_LOCAL = "169.254.0.0/16"
_DENIED = Deny("this program was started with --egress deny", "outside")


@dataclass(frozen=True, slots=True)
class Outside:
    """The host's network: directly."""


@dataclass(frozen=True, slots=True)
class Nobody:
    """A virtual IP that nobody has, which never leaves the host: EHOSTUNREACH."""


class Virtual:
    """The addresses that only switches give out: `in` says whether one is never an address of the host's network."""

    def __init__(self, network: str) -> None:
        """`network`: where virtual IPs are derived from, in CIDR notation; ValueError when it is none of IPv4."""
        self._ranges = [_bounds(network), _bounds(_LINK_LOCAL)]

    def __contains__(self, address: bytes) -> bool:
        return behind(address) != address or any(low <= address <= high for low, high in self._ranges)


def leave(destination: bytes, virtual: Virtual, *, denied: bool) -> Outside | Nobody | Deny:
    """What becomes of a packed address that `resolve` found to be no service's. `denied`: `--egress deny`."""
    if denied:
        return _DENIED
    return Nobody() if destination in virtual else Outside()


def _bounds(network: str) -> tuple[bytes, bytes]:
    parsed = ipaddress.IPv4Network(network)
    return MAPPED + parsed.network_address.packed, MAPPED + parsed.broadcast_address.packed
