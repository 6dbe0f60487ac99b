"""The service table's traffic in simulated clusters: what the router does between its replica and the gossip."""

from collections.abc import Callable

from appswitch.cluster.replica import Changes, Effects, Replica, Rows, first_epoch
from appswitch.gossip.member import Event, Member, State

from .simulator import PORT, Delegate, Host, World

#: As in the router: seconds until a gap is closed by a sync, the most that grows to, and syncs at a time.
REPAIR, REPAIR_MOST = 0.2, 5.0


class Tables(Delegate):
    """One host's replica, and the table that it keeps by the effects."""

    def __init__(self, world: World, host: Host) -> None:
        self.world, self.host = world, host
        self.replica = Replica(host.name, first_epoch(0, world.rng.getrandbits(32)))
        self.table: dict[str, Rows] | None = {}
        #: Told of each change of another host's rows.
        self.applied: Callable[[str, dict[bytes, bytes | None]], None] = lambda host, changes: None
        self.syncs = 0
        self._unsynced: dict[str, None] = {}
        self._repairing = False
        self._pause = REPAIR

    def change(self, changes: Changes) -> None:
        """This host's own rows change."""
        self._take(self.replica.change(changes), relay=False)

    def announce(self) -> None:
        """As the router does after joining."""
        self._spread([self.replica.head()], relay=False)

    def state(self, join: bool) -> bytes:
        return self.replica.states()

    def message(self, payload: bytes) -> None:
        self._take(self.replica.message(payload), relay=True)
        self._follow()

    def merge(self, state: bytes) -> None:
        self._take(self.replica.merge(state), relay=False)
        self._follow()

    def changed(self, member: Member, event: Event) -> None:
        if event is Event.JOINED:
            self._take(self.replica.alive(member.name), relay=False)
            self._unsynced[member.name] = None
        elif event in (Event.LEFT, Event.FAILED):
            self._take(self.replica.gone(member.name), relay=False)
            self._unsynced.pop(member.name, None)
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
        if not self._repairing and (self._unsynced or self.replica.behind()):
            self._repairing = True
            wait = self._pause * self.world.rng.uniform(0.5, 1.0)
            self.world.at(self.world.now + wait, self._repair)

    def _repair(self) -> None:
        if not self.host.up:
            return
        wanted = dict.fromkeys([*self.replica.behind(), *self._unsynced])
        for name in wanted:
            member = self.host.core.member(name)
            self._unsynced.pop(name, None)
            if member is not None and member.state <= State.SUSPECT:
                self.syncs += 1
                self.world.sync(self.host, (member.address, PORT))
        # The router waits for the answers, then looks again.
        self._pause = min(2 * self._pause, REPAIR_MOST)
        self.world.at(self.world.now + self._pause, self._again)

    def _again(self) -> None:
        self._repairing = False
        if not (self._unsynced or self.replica.behind()):
            self._pause = REPAIR
        self._follow()


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
