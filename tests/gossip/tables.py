"""The service table's traffic in simulated clusters: what the router does between its replica and the gossip."""

import math
import random
from collections.abc import Callable, Mapping

from appswitch.cluster.repair import Repair
from appswitch.cluster.replica import Changes, Effects, Replica, Rows, first_epoch
from appswitch.gossip.member import Event, Member

from .simulator import Delegate, Host, World


class Tables(Delegate):
    """One host's replica, and the table that it keeps by the effects."""

    def __init__(self, world: World, host: Host) -> None:
        self.world, self.host = world, host
        self.replica = Replica(host.name, first_epoch(0, world.rng.getrandbits(32)))
        self.table: dict[str, Rows] | None = {}
        #: Told of each change of another host's rows.
        self.applied: Callable[[str, dict[bytes, bytes | None]], None] = lambda host, changes: None
        self.asked = 0
        self._repair = Repair(self.replica, random.Random(world.rng.random()), self._others)
        self._wake = math.inf
        self._first: list[bytes] = []  # what was told to nobody
        self._epoch = self.replica.epoch

    def change(self, changes: Changes) -> None:
        """This host's own rows change."""
        effects = self.replica.change(changes)
        if not self._others():
            self._first += effects.broadcasts
            self._epoch = self.replica.epoch
        self._take(effects, relay=False)

    def announce(self) -> None:
        """As the router does after joining."""
        first = self._first if self._epoch == self.replica.epoch else []
        self._spread([*first, self.replica.head()], relay=False)

    def state(self, join: bool) -> bytes:
        return self.replica.states()

    def message(self, payload: bytes) -> None:
        self._take(self.replica.message(payload), relay=True)
        self._follow()

    def merge(self, state: bytes) -> None:
        self._take(self.replica.merge(state), relay=False)
        self._follow()

    def versions(self) -> Mapping[str, bytes]:
        return self.replica.versions()

    def part(self, wanted: Mapping[str, bytes]) -> bytes:
        return self.replica.part(wanted)

    def told(self, versions: Mapping[str, bytes]) -> None:
        self._take(self.replica.told(versions), relay=False)
        self._follow()

    def changed(self, member: Member, event: Event) -> None:
        if event is Event.JOINED:
            self._take(self.replica.alive(member.name), relay=False)
            self._repair.joined(member.name, self.world.now)
        elif event in (Event.LEFT, Event.FAILED):
            self._take(self.replica.gone(member.name), relay=False)
            self._repair.gone(member.name)
        self._follow()

    def _take(self, effects: Effects, relay: bool) -> None:
        for host, changes in effects.rows.items():
            if self.table is not None:
                rows = self.table.setdefault(host, {})
                for key, value in changes.items():
                    if value is None:
                        rows.pop(key, None)
                    else:
                        rows[key] = value
            self.applied(host, changes)
        self._spread(effects.broadcasts, relay)

    def _spread(self, payloads: list[bytes], relay: bool) -> None:
        world, host = self.world, self.host
        for payload in payloads:
            world.do(host, host.core.broadcast(payload, world.clock(host), relay=relay))

    def _follow(self) -> None:
        self._repair.look(self.world.now)
        self._arm()

    def _arm(self) -> None:
        due = self._repair.due()
        if due < self._wake:
            self._wake = due
            self.world.at(due, lambda: self._tick(due))

    def _tick(self, due: float) -> None:
        if not self.host.up or self._wake != due:
            return
        self._wake = math.inf
        for ask in self._repair.tick(self.world.now):
            self.asked += 1
            self.world.exchange(self.host, ask.whom, ask.wanted)
        self._arm()

    def _others(self) -> list[str]:
        """Those that live, without this host."""
        return [record.name for record in self.host.core._roster.others()]


def tables(host: Host) -> Tables:
    """A host's delegate, if it was added with one."""
    found = host.delegate
    assert isinstance(found, Tables)
    return found


def equal(hosts: list[Host]) -> bool:
    """Whether all of these hold the rows of each other as their authors do, and no rows of anybody else."""
    wanted = {host.name: rows for host in hosts if (rows := tables(host).replica.rows(host.name))}
    return all(
        {name: rows for name, rows in (tables(host).table or {}).items() if rows} | _own(host, wanted) == wanted
        for host in hosts
    )


def _own(host: Host, wanted: dict[str, Rows]) -> dict[str, Rows]:
    return {host.name: wanted[host.name]} if host.name in wanted else {}
