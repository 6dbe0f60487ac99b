"""What the members of the cluster tell each other of their rows: the gossip's delegate, around the mirror.

Here the replica's messages meet the gossip, the table and the clock. Everything happens in the router's loop.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import socket
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from ..cluster import replica
from ..cluster.mirror import Mirror
from ..cluster.repair import Repair
from ..gossip import exchange
from ..gossip.member import Event, Member
from ..gossip.node import Node
from ..table import poke

log = logging.getLogger("appswitch.router")

#: Seconds after a poke until everything is compared, for what other pokes may have failed to tell.
_COMPARE = 1.0
_DATAGRAM = 1 << 16


class Replication:
    """`refuse` counts what was not right, `start` begins work in the loop; `changed` is told of members, after the
    replica.
    """

    node: Node

    def __init__(
        self,
        mirror: Mirror,
        others: Callable[[], list[Member]],
        refuse: Callable[[], None],
        start: Callable[[Coroutine[Any, Any, object]], None],
        changed: Callable[[Member, Event], None],
    ) -> None:
        self._mirror, self._others, self._refuse, self._start, self._changed = mirror, others, refuse, start, changed
        self._writing = self._comparing = False
        self._repair = Repair(mirror.replica, random.Random(), lambda: [member.name for member in others()])
        self._repair_timer: asyncio.TimerHandle | None = None
        self._first_news: list[bytes] = []  # what was told to nobody yet
        self._first_epoch = 0

    def begin(self) -> None:
        """Find what this host has to tell."""
        self._first_news, self._first_epoch = self._mirror.compare(), self._mirror.replica.epoch

    def announce(self) -> None:
        """Have everybody know our rows, or ask for those that are missing there."""
        if self._mirror.replica.epoch == self._first_epoch:
            self.spread(self._first_news)  # to those who know nothing of this host it is all they need
        if self._others():
            self._first_news = []
        self.spread(self._mirror.compare() or [self._mirror.replica.head()])

    def disinherit(self) -> None:
        """The rows of hosts that have not been heard of since the start go."""
        self._mirror.disinherit()
        self._write()

    # the table -------------------------------------------------------------------------------------------

    def on_poke(self, pokes: socket.socket) -> None:
        """What was changed is told at once; in a moment everything is compared, for a poke may have been lost."""
        found: list[bytes] = []
        try:
            while len(found) < poke.KEYS:
                found += poke.read(pokes.recv(_DATAGRAM))
        except BlockingIOError:
            pass
        except ValueError:
            self._refuse()
        self.spread(self._mirror.changed(dict.fromkeys(found)))
        if not self._comparing:
            self._comparing = True
            asyncio.get_running_loop().call_later(_COMPARE, self._compare)

    def _compare(self) -> None:
        self._comparing = False
        self.spread(self._mirror.compare())

    def _write(self) -> None:
        if not self._writing:
            self._writing = True
            self._start(self._write_all())

    async def _write_all(self) -> None:
        try:
            while self._mirror.write():
                await asyncio.sleep(0)
        finally:
            self._writing = False

    # the gossip's delegate -------------------------------------------------------------------------------

    def user_message(self, payload: bytes) -> None:
        try:
            self.spread(self._mirror.message(payload), relay=True)
        except replica.Malformed as error:
            self._malformed(error)
        self._follow()

    def local_state(self, join: bool) -> bytes:
        return self._mirror.replica.states()

    def merge_state(self, state: bytes, join: bool) -> None:
        try:
            self.spread(self._mirror.merge(state))
        except replica.Malformed as error:
            self._malformed(error)
        self._follow()

    def versions(self) -> Mapping[str, bytes]:
        return self._mirror.replica.versions()

    def part(self, wanted: Mapping[str, bytes]) -> bytes:
        return self._mirror.replica.part(wanted)

    def told(self, versions: Mapping[str, bytes]) -> None:
        try:
            self.spread(self._mirror.told(versions))
        except replica.Malformed as error:
            self._malformed(error)
        self._follow()

    def member_changed(self, member: Member, event: Event) -> None:
        log.info("member %s (%s) %s", member.name, member.address, event.value)
        if event is Event.JOINED:
            self._mirror.alive(member.name)
            if exchange.understood(member.meta):  # else it has no rows
                self._repair.joined(member.name, asyncio.get_running_loop().time())
        elif event in (Event.LEFT, Event.FAILED):
            self._mirror.gone(member.name)
            self._repair.gone(member.name)
        self._follow()
        self._changed(member, event)

    def _malformed(self, error: Exception) -> None:
        self._refuse()
        log.warning("what a member told is refused: %s", error)

    def spread(self, broadcasts: list[bytes], *, relay: bool = False) -> None:
        """Have all members know this."""
        for payload in broadcasts:
            try:
                self.node.broadcast(payload, relay=relay)
            except ValueError as error:
                self._malformed(error)

    def _follow(self) -> None:
        """After whatever came in: write it, and see to what is missing."""
        self._write()
        self._repair.look(asyncio.get_running_loop().time())
        self._arm_repair()

    def _arm_repair(self) -> None:
        due, timer = self._repair.due(), self._repair_timer
        if due == math.inf or (timer is not None and timer.when() <= due):
            return
        if timer is not None:
            timer.cancel()
        self._repair_timer = asyncio.get_running_loop().call_at(due, self._on_repair)

    def _on_repair(self) -> None:
        self._repair_timer = None
        for ask in self._repair.tick(asyncio.get_running_loop().time()):
            self._start(self.node.fetch(ask.whom, ask.wanted) if ask.wanted else self.node.sync(ask.whom))
        self._arm_repair()
