"""One port space for the UDP of all programs of a virtual IP: which datagrams must leave a namespace for that, pure.

Loopback and the virtual IP lead into the program's own namespace, where others of the same virtual IP are not. Rules
(`linux.rules`) lead out to the relay what those have bound and it has not. Ports that the kernel chose need not differ
between namespaces: such clients are shown with ports of `SHOWN`, which no kernel chooses and which lead out of all.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Hashable, Iterable, Mapping
from itertools import islice
from typing import Generic, NamedTuple, TypeVar

from appswitch.linux.rules import Rule
from appswitch.model.address import LOOPBACK4, is_any, is_v4

from . import packets

#: Above the kernel's own choice (ip_local_port_range), as far as nobody has changed that. A rule's range ends at 65534.
SHOWN = range(61000, 65535)
#: Rules of one program: each costs what it sends over loopback.
MOST = 128
#: Places of one program of which its others are told; what it sends to itself at more may take the way by the relay.
PORTS = 256
_DNS_PORT = 53

Owner = TypeVar("Owner", bound=Hashable)


class Socket(NamedTuple):
    """A bound socket: the address (as the table keeps it) and port; `dual`: an IPv6 one that takes IPv4 too."""

    address: bytes
    port: int
    dual: bool


class Place(NamedTuple):
    """One of the addresses (as the table keeps them) that mean the program itself, and a port there."""

    destination: bytes
    port: int


def meant(vip: bytes) -> tuple[bytes, bytes]:
    """The addresses that mean the programs of a virtual IP. Not ::1: the kernel lets it pass no device."""
    return LOOPBACK4, vip


def places(vip: bytes, sockets: Iterable[Socket]) -> frozenset[Place]:
    """Where a program with these sockets takes datagrams: at `PORTS` at most, the lowest."""
    found = {
        Place(destination, sock.port)
        for sock in sockets
        if sock.port != _DNS_PORT
        for destination in meant(vip)
        if _takes(sock, destination)
    }
    if len(found) > PORTS:
        return frozenset(heapq.nsmallest(PORTS, found, key=_low_ports_first))
    return frozenset(found)


def _low_ports_first(place: Place) -> tuple[int, bytes]:
    return place.port, place.destination


def _takes(sock: Socket, destination: bytes) -> bool:
    if not is_any(sock.address):
        return sock.address == destination
    return sock.dual or is_v4(sock.address) == is_v4(destination)


def plan(vip: bytes, taken: Mapping[Owner, Collection[Place]]) -> dict[Owner, frozenset[Rule]]:
    """The rules of each program of a virtual IP, by where each takes datagrams. None for one that is alone.

    As many as there may be: those of low ports come first.
    """
    everywhere = frozenset().union(*taken.values())
    if len(taken) < 2 or not everywhere:
        return dict.fromkeys(taken, frozenset())
    answers = [Rule(packets.packed(destination), SHOWN.start, SHOWN.stop - 1) for destination in meant(vip)]
    most = MOST - len(answers)
    # Of more than its own and as many as there may be of the others', nobody needs any.
    needed = heapq.nsmallest(most + max(map(len, taken.values())), everywhere, key=_low_ports_first)
    rules = [(place, Rule(packets.packed(place.destination), place.port, place.port)) for place in needed]
    return {
        owner: frozenset([*answers, *islice((rule for place, rule in rules if place not in own), most)])
        for owner, own in taken.items()
    }


class Allowance:
    """What one may cost others: `most` seconds at once, and then `share` of the time that goes by."""

    def __init__(self, most: float, share: float, now: float) -> None:
        self._most, self._share = most, share
        self._left, self._at = most, now

    def is_left(self, now: float) -> bool:
        self._left = min(self._most, self._left + (now - self._at) * self._share)
        self._at = now
        return self._left > 0

    def take(self, seconds: float) -> None:
        self._left -= seconds


class Retries:
    """When what has failed is tried again: after ever longer pauses, then never. What lies far back does not count."""

    #: Seconds.
    PAUSES = (0.5, 5.0, 60.0, 600.0)
    FORGIVEN = 3600.0

    def __init__(self) -> None:
        self._count, self._last = 0, 0.0

    def failed(self, now: float) -> float | None:
        """It has, just now: the moment of the next try, None when there is none."""
        if now - self._last > self.FORGIVEN:
            self._count = 0
        self._count, self._last = self._count + 1, now
        return now + self.PAUSES[self._count - 1] if self._count <= len(self.PAUSES) else None


class Shown(Generic[Owner]):
    """The ports of `SHOWN` by which clients of one virtual IP are known to its other programs."""

    def __init__(self) -> None:
        #: The longest unused first.
        self._by_port: dict[int, tuple[Owner, int]] = {}
        self._by_client: dict[tuple[Owner, int], int] = {}
        self._last = SHOWN.start - 1

    def port(self, owner: Owner, port: int, taken: Collection[int]) -> int:
        """The port by which a client is shown that sends from `port`; none of `taken`. The client's own if all are."""
        shown = self._by_client.get((owner, port))
        if shown is not None:
            self._forget(shown)  # to come last
        if shown is None or shown in taken:
            shown = self._free(taken)
        if shown is None:
            return port
        self._forget(shown)
        self._by_port[shown] = owner, port
        self._by_client[owner, port] = shown
        return shown

    def client(self, shown: int) -> tuple[Owner, int] | None:
        """Who is shown with this port, and from which one he sends."""
        return self._by_port.get(shown)

    def leave(self, owner: Owner) -> None:
        """He has ended."""
        for port in [port for port, (other, _) in self._by_port.items() if other == owner]:
            self._forget(port)

    def _free(self, taken: Collection[int]) -> int | None:
        """One that was not used for long; if all are in use, the one that was not for the longest."""
        if len(self._by_port) + len(taken) < len(SHOWN):
            for _ in SHOWN:
                self._last = self._last + 1 if self._last + 1 in SHOWN else SHOWN.start
                if self._last not in self._by_port and self._last not in taken:
                    return self._last
        return next((port for port in self._by_port if port not in taken), None)

    def _forget(self, shown: int) -> None:
        client = self._by_port.pop(shown, None)
        if client is not None:
            self._by_client.pop(client, None)
