"""What a worker knows of its cluster: what the supervisor said of this host, and what connecting to others taught."""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Collection

from ..header.identity import Sender
from ..header.keys import KeyRing
from ..model.identity import Tags
from ..model.service import Service
from .options import Node

#: Seconds for which a host that did not answer is tried last.
_SILENT = 10.0
#: Seconds for which no data goes with a SYN to a host, once the network has dropped one that had some.
_PLAIN = 600.0
#: Seconds between two looks at how a non-blocking connect to a host has fared.
_LOOK = 10.0
_KEPT = 4096


class Peer:
    """Another host's address. Times are of the monotonic clock, in seconds."""

    __slots__ = ("_look_at", "_plain_until")

    def __init__(self) -> None:
        self._plain_until = 0.0
        self._look_at = 0.0

    def takes_early_data(self, now: float) -> bool:
        """May data go with the SYN?"""
        return now >= self._plain_until

    def early_data_was_lost(self, now: float) -> None:
        self._plain_until = now + _PLAIN

    def to_be_looked_at(self, now: float) -> bool:
        """Is it time to see how a connect that nobody waits for has fared?"""
        if now < self._look_at:
            return False
        self._look_at = now + _LOOK
        return True


class Hosts:
    """`node` is this host as a member; outside a cluster there are no keys, and no other hosts."""

    def __init__(self) -> None:
        self.node = Node()
        self.ring: KeyRing | None = None
        self._sender = Sender(os.urandom)
        self._peers: OrderedDict[str, Peer] = OrderedDict()
        #: Addresses that did not answer → until when they are tried last.
        self._silent: dict[str, float] = {}

    def join(self, node: Node) -> None:
        """What the supervisor says of this host, now."""
        if (node.host, node.address, node.bind) != (self.node.host, self.node.address, self.node.bind):
            self._peers.clear()  # the network may be another
            self._silent.clear()
        self.node = node
        self.ring = KeyRing(node.keys) if node.host and node.keys else None

    def reaches(self, row: Service) -> bool:
        """Can one connect to its real port with a header?"""
        return self.ring is not None and bool(row.real[0] and row.epoch)

    def header(
        self, row: Service, client: tuple[bytes, int], server: tuple[bytes, int], tags: Tags
    ) -> bytes:
        """The next header to this instance; only for one that `reaches` is true of."""
        assert self.ring is not None
        return self._sender.write(self.ring, row, *client, *server, tags)

    def peer(self, address: str) -> Peer:
        found = self._peers.get(address)
        if found is None:
            if len(self._peers) >= _KEPT:
                self._peers.popitem(last=False)
            found = self._peers[address] = Peer()
        return found

    def was_silent(self, address: str, now: float) -> None:
        """It did not answer in time."""
        self._silent[address] = now + _SILENT

    def has_answered(self, address: str) -> None:
        if self._silent:
            self._silent.pop(address, None)

    def silent(self) -> Collection[str]:
        """The addresses that did not answer lately."""
        if self._silent:
            now = time.monotonic()
            for address in [address for address, until in self._silent.items() if until <= now]:
                del self._silent[address]
        return self._silent
