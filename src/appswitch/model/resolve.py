"""resolve → policy: what becomes of a connect(), from the client's identity, the address and the table's rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .address import is_any, is_loopback, loopback_like, show
from .identity import Identity, behind
from .policy import check
from .service import Service


@dataclass(frozen=True, slots=True)
class Reach:
    """Connect to one of these; `source` and `destination` are what both sides will see."""

    instances: Sequence[Service]
    destination: bytes
    source: bytes


@dataclass(frozen=True, slots=True)
class Refuse:
    """Nothing listens there: ECONNREFUSED."""


@dataclass(frozen=True, slots=True)
class Deny:
    """Policy forbids it: EACCES (connect(2)), recorded under `rule`."""

    rule: str
    service: str


@dataclass(frozen=True, slots=True)
class Egress:
    """Not an address of ours: the host's network, if the program may."""


Decision = Reach | Refuse | Deny | Egress


def where(client: Identity, destination: bytes) -> tuple[bytes, bytes]:
    """(virtual IP to look under, address as the peer sees it): loopback and 0.0.0.0 mean one's own virtual IP."""
    if is_any(destination):
        return client.vip, loopback_like(destination)
    if is_loopback(destination):
        return client.vip, destination
    return behind(destination), destination


def resolve(
    client: Identity, destination: bytes, port: int, rows: Sequence[Service], *, known: bool
) -> Decision:
    """`rows`: all instances under (`where()`'s virtual IP, port); `known`: whether that virtual IP is anybody's."""
    vip, shown = where(client, destination)
    own = vip == client.vip
    instances = [row for row in rows if row.takes(shown) and row.state == "up" and (own or not row.own_only)]
    if not instances:
        return Refuse() if known or own or rows else Egress()
    # Figure 1 puts two groups under one virtual IP: the rule holds inside it too.
    verdicts = [check(client.tags, row.tags) for row in instances]
    allowed = [row for row, verdict in zip(instances, verdicts, strict=True) if verdict.allowed]
    if not allowed:
        return Deny(verdicts[0].rule, instances[0].name or show(vip, port))
    source = shown if own else client.source_for(shown)
    if is_loopback(shown):
        source = loopback_like(shown)  # 127.0.0.1 for all of 127/8, as the kernel has it
    return Reach(allowed, shown, source)


def arrives(row: Service, client: bytes, destination: bytes, port: int) -> bool:
    """Can a connection of another host be for this row, by the virtual addresses that its caller's host gives?

    A loopback address stands for the virtual IP that both sides have.
    """
    loopback = is_loopback(destination)
    if port != row.port or not row.takes(destination) or not (loopback or behind(destination) == row.vip):
        return False
    own = is_loopback(client) if loopback else behind(client) == row.vip
    return own or not (row.own_only or loopback)
