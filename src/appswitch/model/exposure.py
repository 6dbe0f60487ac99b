"""`--expose`: which ports of this host lead to which service (paper, section 4: gateways).

Pure: what was asked for, what of it clashes, and which listeners it is for.
"""

from __future__ import annotations

from typing import NamedTuple

from .address import is_any, is_v4, pack, unpack
from .identity import Refusal
from .number import whole
from .service import Service

ANY4, ANY6 = "0.0.0.0", "::"


class Exposure(NamedTuple):
    """`port` of a service is to be reached at `host_port` of an address of this host; "" is all, of both families."""

    address: str
    host_port: int
    port: int

    def places(self) -> list[Place]:
        """The sockets that this takes."""
        addresses = [self.address] if self.address else [ANY4, ANY6]
        return [Place(address, self.host_port, self.port) for address in addresses]


class Place(NamedTuple):
    """One socket of this host for `port` of a service."""

    address: str
    host_port: int
    port: int

    def __str__(self) -> str:
        return f"[{self.address}]:{self.host_port}" if ":" in self.address else f"{self.address}:{self.host_port}"

    def overlaps(self, other: Place) -> bool:
        """Can the two not both be listened to (bind(2))?"""
        if self.host_port != other.host_port or (":" in self.address) != (":" in other.address):
            return False
        return self.address == other.address or bool({ANY4, ANY6}.intersection((self.address, other.address)))

    def is_for(self, row: Service) -> bool:
        """Does what comes in here go to this listener, which is of a program that asked for it?

        As bind(2) has it: what is bound to loopback is for its own virtual IP alone, and a client of one family does
        not come to a listener of the other.
        """
        if row.port != self.port or row.own_only or row.state != "up":
            return False
        return (row.dual and is_any(row.bound)) or is_v4(row.bound) == (":" not in self.address)


def parse(text: str) -> Exposure:
    """HOSTPORT:PORT, ADDRESS:HOSTPORT:PORT, [V6ADDRESS]:HOSTPORT:PORT, or PORT for both; Refusal."""
    if text.startswith("["):
        address, bracket, rest = text[1:].partition("]:")
        ports = rest.split(":") if bracket and ":" in address else []
        if len(ports) != 2:
            raise _wrong(text)
    else:
        *addresses, host_port, port = [text, text] if ":" not in text else text.split(":")
        if len(addresses) > 1:
            raise _wrong(text)
        address, ports = "".join(addresses), [host_port, port]
        if addresses and not address:
            raise _wrong(text)
    if any(whole(port, 1, 65535) is None for port in ports):
        raise _wrong(text)
    try:
        return Exposure(unpack(pack(address)) if address else "", int(ports[0]), int(ports[1]))
    except ValueError as error:
        raise Refusal(f"--expose {text}: {error}; give one of this host's, or leave it out") from None


def _wrong(text: str) -> Refusal:
    return Refusal(
        "--expose takes HOSTPORT:PORT, ADDRESS:HOSTPORT:PORT or one PORT for both, with ports from 1 to 65535, "
        f"not {text[:80]!r}"
    )
