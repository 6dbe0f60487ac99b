"""The members, and what alive, suspect and dead messages make of them (SWIM, section 4; memberlist's rules).

News about a member are ordered by the incarnation that only the member itself raises. One rule differs from
memberlist: a higher incarnation may also bring another address, because hosts' addresses change.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

from . import wire
from .effect import Changed
from .health import Health
from .member import Event, Record, State, pack_address
from .outbox import Outbox
from .refused import Refused
from .settings import Address, NodeSettings
from .suspicion import Suspicion
from .wire import Alive, Dead, Known, PushPull, Suspect


class Roster:
    """Everybody, this member included."""

    def __init__(
        self,
        settings: NodeSettings,
        advertise: Address,
        outbox: Outbox,
        health: Health,
        rng: random.Random,
        count: Callable[[str, int], None],
        now: float,
    ) -> None:
        self._settings = settings
        self._timings = settings.timings
        self._outbox = outbox
        self._health = health
        self._rng = rng
        self._count = count
        versions = bytes([1, 5, 2, *settings.versions])
        raw = pack_address(advertise[0])
        self.local = Record(settings.name, raw, *advertise, settings.meta, versions, 1, State.ALIVE, now)
        self.records: dict[str, Record] = {settings.name: self.local}
        #: The others in the order in which they are probed.
        self.order: list[Record] = []
        self.suspicions: dict[str, Suspicion] = {}
        self.leaving = False
        #: News were queued that should leave at once.
        self.urgent = False
        self._live = 1
        self._refuted_address = -1e9

    def due(self) -> float:
        """When the next suspicion runs out."""
        return min((suspicion.deadline for suspicion in self.suspicions.values()), default=float("inf"))

    def tick(self, now: float) -> None:
        """Declare dead the suspects whose time is over."""
        for name in [name for name, suspicion in self.suspicions.items() if suspicion.deadline <= now]:
            record = self.records[name]
            self.dead(Dead(record.incarnation, name, self.local.name), now)

    def pick(self, most: int, wanted: Callable[[Record], bool]) -> list[Record]:
        """At most so many others at random; few tries for each, so that it costs the same in any cluster."""
        if most <= 0:
            return []
        if len(self.order) <= 3 * most:
            found = [record for record in self.order if wanted(record)]
            return self._rng.sample(found, min(most, len(found)))
        chosen: dict[str, Record] = {}
        for _ in range(3 * len(self.order) if len(self.order) < 64 else 8 * most):
            record = self._rng.choice(self.order)
            if record.name not in chosen and wanted(record):
                chosen[record.name] = record
                if len(chosen) == most:
                    break
        return list(chosen.values())

    def others(self) -> Iterable[Record]:
        """Those that live as far as we know, without this member."""
        return (record for record in self.order if record.reachable)

    def alive(self, message: Alive, now: float, *, urgent: bool = False) -> None:
        """Someone lives, is new, moved, or changed its meta."""
        if message.node == self.local.name:
            self._alive_self(message, now)
            return
        record = self.records.get(message.node)
        address = message.address
        if record is not None and message.incarnation <= record.incarnation:
            moved = record.to != (address, message.port)
            if not moved:
                return
            if not self._may_reclaim(record, now):
                if record.reachable and message.incarnation == record.incarnation:
                    self._count("gossip_conflict", 1)
                return
        if record is None:
            record = self._new(message, address, now)
            if record is None:
                return
        event = None
        if not record.reachable:
            event = Event.JOINED
            self._alter_live(1)
        elif (record.to, record.meta) != ((address, message.port), message.meta):
            event = Event.UPDATED
        self.suspicions.pop(message.node, None)
        record.incarnation = message.incarnation
        record.raw_address, record.address, record.port = message.raw_address, address, message.port
        record.meta, record.versions = message.meta, message.versions
        self._become(record, State.ALIVE, now)
        self._spread(message.node, wire.encode(message), urgent)
        if event is not None:
            self._outbox.effects.append(Changed(record.snapshot(), event))

    def suspect(self, message: Suspect, now: float) -> None:
        """Someone had no answer from this one."""
        record = self.records.get(message.node)
        if record is None or message.incarnation < record.incarnation:
            return
        suspicion = self.suspicions.get(message.node)
        again = suspicion is not None and message.incarnation > record.incarnation  # it refuted what we know of
        if suspicion is not None and not again:
            if suspicion.confirm(message.source):
                self._spread(message.node, wire.encode(message))
            return
        if record.state != State.ALIVE and not again:
            return
        if record is self.local:
            self._refute(message.incarnation)
            return
        self._spread(message.node, wire.encode(message))
        record.incarnation = message.incarnation
        self._become(record, State.SUSPECT, now)
        self.suspicions[message.node] = Suspicion(message.source, self._live, self._timings, now)

    def dead(self, message: Dead, now: float) -> None:
        """This one is dead, or has left if it says so itself."""
        record = self.records.get(message.node)
        if record is None or message.incarnation < record.incarnation:
            return
        if record is self.local:
            if not self.leaving:
                self._refute(message.incarnation)
            return
        self.suspicions.pop(message.node, None)
        left = message.node == message.source
        if not record.reachable:
            if left and record.state == State.DEAD:  # its farewell came late: it will not be back
                record.incarnation = message.incarnation
                self._become(record, State.LEFT, now)
                self._spread(message.node, wire.encode(message))
            return
        self._spread(message.node, wire.encode(message))
        record.incarnation = message.incarnation
        self._become(record, State.LEFT if left else State.DEAD, now)
        self._alter_live(-1)
        self._outbox.effects.append(Changed(record.snapshot(), Event.LEFT if left else Event.FAILED))

    def merge(self, members: Iterable[Known], now: float, *, urgent: bool = False) -> None:
        """A peer's view of everybody. Its dead are suspects here: they may have come back since."""
        for known in members:
            message = known.alive
            if known.state == State.ALIVE:
                self.alive(message, now, urgent=urgent)
            elif known.state == State.LEFT:
                self.dead(Dead(message.incarnation, message.node, message.node), now)
            else:
                self.suspect(Suspect(message.incarnation, message.node, self.local.name), now)

    def push_pull(self, user: bytes, join: bool) -> PushPull:
        """Our view of everybody."""
        return PushPull(self._view(self.records.values()), user, join)

    def known(self, names: Iterable[str]) -> tuple[Known, ...]:
        """Our view of those of these whom we know."""
        return self._view(record for name in names if (record := self.records.get(name)) is not None)

    def _view(self, records: Iterable[Record]) -> tuple[Known, ...]:
        return tuple(Known(self.describe(record), record.state) for record in records)

    def check(self, members: Iterable[Known]) -> None:
        """Every living member must speak what we speak, and we what it speaks (memberlist's rule). Refused."""
        ours = self.local.versions
        for known in members:
            theirs = known.alive.versions
            if known.state <= State.SUSPECT and not (_speaks(ours, theirs) and _speaks(theirs, ours)):
                text = f"{known.alive.node} speaks versions {list(theirs)} of the protocol, this one {list(ours)}"
                raise Refused("incompatible", text)

    def leave(self, now: float) -> None:
        """Tell everybody that we go."""
        self.leaving = True
        if self.local.state != State.LEFT:
            self._become(self.local, State.LEFT, now)
            farewell = Dead(self.local.incarnation, self.local.name, self.local.name)
            self._spread(self.local.name, wire.encode(farewell), urgent=True)

    def change_self(self, advertise: Address, meta: bytes) -> None:
        """Tell everybody our new address or meta."""
        local = self.local
        local.raw_address, local.address, local.port = pack_address(advertise[0]), *advertise
        local.meta = meta
        self._announce(local.incarnation + 1)

    def forget_old(self, now: float) -> None:
        """Drop those that are gone for long, and begin a new round in another order."""
        keep = []
        for record in self.order:
            if record.reachable or now - record.since <= self._timings.forget_dead:
                keep.append(record)
            else:
                del self.records[record.name]
        self._rng.shuffle(keep)
        self.order = keep

    @staticmethod
    def describe(record: Record) -> Alive:
        return Alive(
            record.incarnation, record.name, record.raw_address, record.port, record.meta, record.versions
        )

    @property
    def live(self) -> int:
        """How many live, with us."""
        return self._live

    def _alive_self(self, message: Alive, now: float) -> None:
        local = self.local
        if self.leaving or message.incarnation < local.incarnation:
            return
        elsewhere = local.to != (message.address, message.port)
        if message.incarnation == local.incarnation:
            if not elsewhere and (message.meta, message.versions) == (local.meta, local.versions):
                return
        elif elsewhere:
            # Once after a restart or a move it is our own past; if it comes back someone else lives under our name.
            # Then the two of us contend for it, and slowly.
            if now - self._refuted_address < self._timings.probe_interval:
                self._count("gossip_conflict", 1)
                return
            self._refuted_address = now
        self._refute(message.incarnation)

    def _refute(self, accused: int) -> None:
        self._count("gossip_refuted", 1)
        self._health.change(1)
        self._announce(max(self.local.incarnation, accused) + 1)

    def _announce(self, incarnation: int) -> None:
        self.local.incarnation = incarnation
        self._spread(self.local.name, wire.encode(self.describe(self.local)), urgent=True)

    def _spread(self, name: str, message: bytes, urgent: bool = False) -> None:
        dropped = self._outbox.news.add(message, "member " + name)
        if dropped:
            self._count("gossip_full", dropped)
        self.urgent = self.urgent or urgent

    def _new(self, message: Alive, address: str, now: float) -> Record | None:
        if len(self.records) >= self._settings.limits.members and not self._make_room():
            self._count("gossip_full", 1)
            return None
        record = Record(
            message.node, message.raw_address, address, message.port, b"", message.versions, 0, State.DEAD, now
        )
        self.records[message.node] = record
        self.order.append(record)
        place = self._rng.randrange(len(self.order))
        self.order[place], self.order[-1] = self.order[-1], self.order[place]
        return record

    def _make_room(self) -> bool:
        gone = min(
            (record for record in self.order if not record.reachable), key=lambda record: record.since, default=None
        )
        if gone is None:
            return False
        self.order.remove(gone)
        del self.records[gone.name]
        return True

    def _may_reclaim(self, record: Record, now: float) -> bool:
        if record.state == State.LEFT:
            return True
        wait = self._timings.reclaim_dead
        return record.state == State.DEAD and wait > 0 and now - record.since > wait

    def _become(self, record: Record, state: State, now: float) -> None:
        if record.state != state:
            record.state = state
            record.since = now

    def _alter_live(self, by: int) -> None:
        self._live += by
        self._outbox.members = self._live


def _speaks(one: bytes, other: bytes) -> bool:
    """Whether `one` understands what `other` speaks: protocol and delegate, each (lowest, highest, current)."""
    return one[0] <= other[2] <= one[1] and one[3] <= other[5] <= one[4]
