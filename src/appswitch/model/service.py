"""One row of the service table: an instance of a service, that is, one listener or UDP port of one program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from .address import is_any, is_loopback, is_v4
from .identity import Tags

TCP, UDP = 6, 17


class Place(NamedTuple):
    """Where a host's relay takes other hosts' datagrams, and the relay's life (`header.datagram`), 8 bytes."""

    address: tuple[str, int]
    life: bytes


@dataclass(frozen=True, slots=True)
class Service:
    """A listener that can be connected to (design, section 6).

    `bound` is the address given to bind() (any, loopback, or the virtual IP); `dual` tells that an IPv6
    listener takes IPv4 too. `listener` names the local Unix listener, below the run directory; `real` is the
    host's address and port where other hosts arrive, ("", 0) when there is none. `since` orders instances, and
    travels with the row, so that all hosts see one order: seconds since the epoch of the author's clock when it
    began to listen. `alone`: its program has no identity that others could reach.

    `host` is the member name of the host whose row this is, and its only author; "" is this host. `epoch`: 8
    random bytes of the real listener, chosen when it was opened, by which a caller's header is fresh; b"" when
    there is none. `listener`, `program` and `cookie` mean something on the author's host only; in the rows of
    others `listener` is "" and `cookie` is 0.
    """

    vip: bytes
    port: int
    instance: int
    program: int
    name: str | None
    tags: Tags
    bound: bytes
    dual: bool
    listener: str
    real: tuple[str, int]
    balance: str
    transport: str
    since: float
    uid: int
    cookie: int
    host: str = ""
    proto: int = TCP
    state: str = "up"
    weight: int = 1
    version: int = 1
    alone: bool = False
    epoch: bytes = b""

    @property
    def remote(self) -> bool:
        """Another host's."""
        return self.host != ""

    @property
    def own_only(self) -> bool:
        """Bound to loopback, or of a link-local client: for programs of the same virtual IP alone."""
        return self.alone or is_loopback(self.bound)

    def takes(self, destination: bytes) -> bool:
        """Does a connection to this destination address arrive at this listener, as bind(2) has it?"""
        if not is_any(self.bound):
            return self.bound == destination
        return self.dual or is_v4(self.bound) == is_v4(destination)
