"""Asking the others whether they live: one probe after another, and probes for others (SWIM 4.3, Lifeguard IV).

A probe goes on for `probe_interval` (longer while this member is slow): a ping, repeated now and then; after
`probe_timeout` others are asked to ping, again while they say nothing, and a ping goes by TCP; an answer on any of
these ways ends it well. Silence makes a suspect, and so does the word of all who were asked that they hear nothing
either, unless this member has reason to doubt its own ears.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from . import wire
from .health import Health
from .member import Record, State
from .outbox import Outbox
from .roster import Roster
from .settings import Address, NodeSettings
from .wire import Ack, IndirectPing, Nack, Ping, Suspect

_FOREVER = float("inf")
#: Share of `probe_timeout` after which one that was asked says that it has no answer: in time to be heard (Lifeguard).
_NACK = 0.8


@dataclass(slots=True)
class _Probe:
    target: Record
    incarnation: int
    seq: int
    started: float
    again: float  # when to repeat the ping
    deadline: float
    asked: bool = False
    helpers: int = 0
    expected_nacks: int = 0
    nacks: set[Address] = field(default_factory=set)  # whose came
    unheard: dict[Address, tuple[bytes, bytes]] = field(default_factory=dict)  # those who said nothing: what was asked
    ask_again: float = _FOREVER


@dataclass(slots=True)
class _Relay:
    """A probe for another member."""

    ping: bytes
    to: Address
    again: float
    asker: Address
    seq: int  # the asker's
    nack: bool
    deadline: float  # to say that there is no answer; then, to pass on one that is late


class Prober:
    """Who is asked, and what becomes of it."""

    def __init__(
        self,
        settings: NodeSettings,
        roster: Roster,
        outbox: Outbox,
        health: Health,
        rng: random.Random,
        count: Callable[[str, int], None],
        stream_ping: Callable[[Address, Ping, float], None],
        now: float,
    ) -> None:
        self._timings = settings.timings
        self._most_relays = settings.limits.relays
        self._roster = roster
        self._outbox = outbox
        self._health = health
        self._count = count
        self._stream_ping = stream_ping
        self._seq = rng.getrandbits(32)
        self._next = now + rng.uniform(0, self._timings.probe_interval)
        self._place = 0
        self._probe: _Probe | None = None
        # Both in the order of their deadlines.
        self._relays: dict[int, _Relay] = {}
        self._late_relays: dict[int, _Relay] = {}

    def due(self) -> float:
        """When something has to be done."""
        relay = min((min(relay.again, relay.deadline) for relay in self._relays.values()), default=_FOREVER)
        probe = self._probe
        if probe is None:
            return min(self._next, relay)
        return min(
            probe.again,
            probe.ask_again,
            probe.deadline if probe.asked else probe.started + self._timings.probe_timeout,
            relay,
        )

    def tick(self, now: float) -> None:
        """Do what is due."""
        while _earliest(self._relays) <= now:
            seq = next(iter(self._relays))
            relay = self._late_relays[seq] = self._relays.pop(seq)
            relay.deadline = now + self._timings.probe_interval
            if relay.nack:
                self._outbox.post(wire.encode(Nack(relay.seq)), relay.asker)
        for relay in self._relays.values():
            if now >= relay.again:
                relay.again = now + self._timings.probe_repeat
                self._outbox.post_together([relay.ping], relay.to)
        probe = self._probe
        if probe is not None:
            timeout = self._timings.probe_timeout
            if now >= probe.again:
                self._repeat(probe, now)
            if not probe.asked and now >= probe.started + timeout:
                # However late this member is, those whom it asks have their time.
                probe.deadline += max(0.0, now - probe.started - timeout)
                self._ask_others(probe, now)
            if now >= probe.ask_again:
                self._ask_again(probe, now)
            if now >= probe.deadline:
                self._failed(probe, now)
        if self._probe is None and now >= self._next:
            self._begin(now)

    def ack(self, seq: int, now: float) -> None:
        """An answer came."""
        relay = self._relays.pop(seq, None) or self._late_relays.pop(seq, None)
        if relay is not None:
            self._outbox.post(wire.encode(Ack(relay.seq)), relay.asker)
        elif self._probe is not None and self._probe.seq == seq:
            self._health.change(-1)
            self._end(self._probe, now)

    def stream_ack(self, seq: int, now: float) -> None:
        """An answer came by TCP."""
        if self._probe is not None and self._probe.seq == seq:
            self._count("gossip_udp_lost", 1)
            self.ack(seq, now)

    def nack(self, seq: int, source: Address, now: float) -> None:
        """Someone whom we asked had no answer either, but told us so."""
        probe = self._probe
        if probe is not None and probe.seq == seq:
            probe.nacks.add(source)
            probe.unheard.pop(source, None)
            if len(probe.nacks) == probe.helpers and not self._health.score:
                self._failed(probe, now)  # what else could come?

    def relay(self, message: IndirectPing, asker: Address, now: float) -> None:
        """Probe for another member. Asked again it says again what it had to say, which was lost."""
        while _earliest(self._late_relays) <= now:
            del self._late_relays[next(iter(self._late_relays))]
        if any((known.asker, known.seq) == (asker, message.seq) for known in self._relays.values()):
            return
        if any((known.asker, known.seq) == (asker, message.seq) for known in self._late_relays.values()):
            if message.nack:
                self._outbox.post_together([wire.encode(Nack(message.seq))], asker)
            return
        if len(self._relays) + len(self._late_relays) >= self._most_relays:
            self._count("gossip_busy", 1)
            return
        seq = self._new_seq()
        ping, to = wire.encode(Ping(seq, message.node)), (message.target, message.port)
        again, deadline = now + self._timings.probe_repeat, now + _NACK * self._timings.probe_timeout
        self._relays[seq] = _Relay(ping, to, again, asker, message.seq, message.nack, deadline)
        self._outbox.post(ping, to)

    def _new_seq(self) -> int:
        self._seq = (self._seq + 1) & 0xFFFFFFFF
        return self._seq

    def _begin(self, now: float) -> None:
        self._next = now + self._timings.probe_interval
        target = self._choose(now)
        if target is None:
            return
        interval = self._health.scale(self._timings.probe_interval)
        again = now + self._timings.probe_repeat
        probe = self._probe = _Probe(target, target.incarnation, self._new_seq(), now, again, now + interval)
        ping = wire.encode(Ping(probe.seq, target.name))
        if self._tells(target):
            doubt = wire.encode(Suspect(target.incarnation, target.name, self._roster.local.name))
            self._outbox.post_together([ping, doubt], target.to, target.versions)
        else:
            self._outbox.post(ping, target.to, target.versions)

    def _repeat(self, probe: _Probe, now: float) -> None:
        target = probe.target
        self._outbox.post_together([wire.encode(Ping(probe.seq, target.name))], target.to, target.versions)
        probe.again = now + self._timings.probe_repeat
        if probe.again > probe.started + 2 * self._timings.probe_timeout:
            probe.again = _FOREVER

    def _tells(self, target: Record) -> bool:
        """Whether it is told, with the ping, that it is suspected ("buddy", Lifeguard IV.C)."""
        return target.state == State.SUSPECT

    def _choose(self, now: float) -> Record | None:
        """The next in a round over all, in random order: bounds the time until any death is noticed."""
        for _ in range(2):
            order = self._roster.order
            while self._place < len(order):
                record = order[self._place]
                self._place += 1
                if record.reachable:
                    return record
            self._roster.forget_old(now)
            self._place = 0
        return None

    def _ask_others(self, probe: _Probe, now: float) -> None:
        probe.asked = True
        target = probe.target
        helpers = self._roster.pick(
            self._timings.indirect_probes, lambda record: record.state == State.ALIVE and record.name != target.name
        )
        probe.helpers = len(helpers)
        for helper in helpers:
            nack = helper.versions[1] >= 4
            probe.expected_nacks += nack
            ask = IndirectPing(probe.seq, target.address, target.port, target.name, nack)
            self._outbox.post(wire.encode(ask), helper.to, helper.versions)
            if nack:
                probe.unheard[helper.to] = wire.encode(ask), helper.versions
        probe.ask_again = now + self._timings.probe_repeat
        if target.versions[1] >= 3:
            self._stream_ping(target.to, Ping(probe.seq, target.name), probe.deadline)

    def _ask_again(self, probe: _Probe, now: float) -> None:
        """Their word counts for more than the end of the time: it is not to be lost with one datagram."""
        for helper, (ask, versions) in probe.unheard.items():
            self._outbox.post_together([ask], helper, versions)
        probe.ask_again = now + self._timings.probe_repeat
        if not probe.unheard or probe.ask_again > probe.started + 3 * self._timings.probe_timeout:
            probe.ask_again = _FOREVER

    def _failed(self, probe: _Probe, now: float) -> None:
        self._count("gossip_probe_failed", 1)
        # Helpers that sent no nack either hint that it is we who hear nothing.
        self._health.change(max(0, probe.expected_nacks - len(probe.nacks)) if probe.expected_nacks else 1)
        self._end(probe, now)
        self._roster.suspect(Suspect(probe.incarnation, probe.target.name, self._roster.local.name), now)

    def _end(self, probe: _Probe, now: float) -> None:
        self._probe = None
        self._next = max(now, probe.started + self._timings.probe_interval)


def _earliest(relays: dict[int, _Relay]) -> float:
    return next(iter(relays.values())).deadline if relays else _FOREVER
