"""One member's gossip, without I/O, clock or randomness of its own: bytes and the time in, effects out.

Every method that may have effects returns them; they are to be carried out in order. Times are seconds of any clock
that does not go back. Nothing that a peer sends makes a method raise, except `serve`, `stream_done` and a reader of
`streams`, which raise Refused so that the connection can be closed; all of it is counted by reason.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from . import wire
from .effect import Effect, UserMessage
from .envelope import Envelope
from .exchanger import Exchanger, Ledger
from .health import Health
from .member import MAX_META, MAX_NAME, Member, Record, State
from .outbox import Outbox
from .probes import Prober
from .refused import Refused
from .roster import Roster
from .seal import KeyRing
from .settings import Address, NodeSettings
from .streams import Streams
from .wire import Ack, Alive, Dead, IndirectPing, Message, Nack, Ping, Suspect, User

_FOREVER = float("inf")


def push_pull_scale(members: int) -> int:
    """How much rarer members exchange what they know in a large cluster (memberlist: above 32 members)."""
    return 1 if members <= 32 else math.ceil(math.log2(members) - 5) + 1


class Core:
    """See the module. `local_state` is asked for the delegate's state at each push/pull."""

    def __init__(
        self,
        settings: NodeSettings,
        advertise: Address,
        *,
        rng: random.Random,
        count: Callable[[str, int], None],
        local_state: Callable[[bool], bytes],
        ledger: Ledger | None = None,
        now: float,
    ) -> None:
        """`ledger`: what the delegate has, to be compared; without it only whole states are exchanged.

        ValueError for settings that no cluster can have.
        """
        if not 0 < len(settings.name.encode()) <= MAX_NAME:
            raise ValueError(f"a member's name has 1 to {MAX_NAME} octets")
        _check_meta(settings.meta)
        self._timings = settings.timings
        self._limits = settings.limits
        self._keys = KeyRing(settings.keys) if settings.keys else None
        self._rng = rng
        self._count = count
        self._envelope = Envelope(settings.label, self._keys, settings.limits.packet)
        self._outbox = Outbox(self._envelope, settings)
        self._health = Health(settings.timings.awareness_max)
        self._roster = Roster(settings, advertise, self._outbox, self._health, rng, count, now)
        self._prober = Prober(
            settings, self._roster, self._outbox, self._health, rng, count, self._stream_ping, now
        )
        exchanger = None
        if ledger is not None:
            exchanger = Exchanger(self._roster, self._outbox, ledger, rng, settings.limits)
        #: What goes over TCP.
        self.streams = Streams(
            settings, self._roster, self._outbox, self._prober, exchanger, rng, count, local_state, self._for_us
        )
        self._next_gossip = _FOREVER  # while there are no news
        self._last_gossip = -_FOREVER
        self._next_burst = _FOREVER
        self._last_burst = -_FOREVER
        self._wide = False  # the coming burst is not of relayed news alone
        self._next_push_pull = now + rng.uniform(0, self._timings.push_pull_interval)
        self._next_reconnect = now + rng.uniform(0, self._timings.reconnect_interval)

    # What is known

    @property
    def local(self) -> Member:
        """This member."""
        return self._roster.local.snapshot()

    def members(self) -> list[Member]:
        """Everybody, the dead and this member included."""
        return [record.snapshot() for record in self._roster.records.values()]

    def member(self, name: str) -> Member | None:
        """The member of this name."""
        record = self._roster.records.get(name)
        return record.snapshot() if record else None

    @property
    def health(self) -> int:
        """0: this member is well; up to `awareness_max` - 1: it seems to be slow or cut off."""
        return self._health.score

    @property
    def payload_limit(self) -> int:
        """Octets that one user message may have."""
        return self._outbox.room - 1

    @property
    def told(self) -> bool:
        """Whether we leave, and everybody who can be told has been told."""
        return self._roster.leaving and self._told()

    def _told(self) -> bool:
        return not self._outbox.news.holds("member " + self.local.name) or self._roster.live <= 1

    # Time

    def due(self) -> float:
        """When `tick` has something to do."""
        news = self._next_gossip if self._next_burst == _FOREVER else self._next_burst
        if self._roster.leaving:
            return min(news, self._roster.due())
        return min(news, self._roster.due(), self._prober.due(), self._next_push_pull, self._next_reconnect)

    def tick(self, now: float) -> list[Effect]:
        """Do everything that is due."""
        self._roster.tick(now)
        if not self._roster.leaving:
            self._prober.tick(now)
            self._exchange_states(now)
        return self._finish(now)

    # Datagrams

    def receive(self, datagram: bytes, source: Address, now: float) -> list[Effect]:
        """A datagram came in."""
        self._count("gossip_received", 1)
        try:
            messages = self._envelope.unwrap(datagram)
        except Refused as refused:
            self._refused(refused)
            return []
        for message in messages:
            try:
                self._handle(wire.decode(message), source, now)
            except Refused as refused:
                self._refused(refused)
        return self._finish(now)

    def _handle(self, message: Message, source: Address, now: float) -> None:
        match message:
            case Ping(seq, node):
                if self._for_us(node):
                    self._outbox.post(wire.encode(Ack(seq)), source)
            case Ack(seq):
                self._prober.ack(seq, now)
            case User(payload):
                self._outbox.effects.append(UserMessage(payload))
            case Alive():
                self._roster.alive(message, now)
            case Suspect():
                self._roster.suspect(message, now)
            case Dead():
                self._roster.dead(message, now)
            case IndirectPing():
                self._prober.relay(message, source, now)
            case Nack(seq):
                self._prober.nack(seq, source, now)
            case _:
                raise wire.malformed("a message that does not stand in datagrams")

    def _for_us(self, node: str) -> bool:
        if node in ("", self._roster.local.name):
            return True
        self._count("gossip_misdirected", 1)
        return False

    def _refused(self, refused: Refused) -> None:
        self._count("gossip_" + refused.reason, 1)

    # Streams

    def serve(
        self, message: Message, now: float, cipher: AESGCM | None = None
    ) -> tuple[bytes | None, list[Effect]]:
        """A message came in on a connection that a peer opened: the octets to answer, if any. Refused.

        `cipher`: the key that it was sealed with, as the answer is: so a peer that missed a change learns of it.
        """
        try:
            answer = self.streams.answer(message, now, cipher)
        except Refused as refused:
            self._refused(refused)
            raise
        return answer, self._finish(now)

    def stream_done(self, stream_id: int, message: Message | None, now: float) -> list[Effect]:
        """What a `Stream` brought: its answer, or None if it failed. Refused: the answer is not acceptable."""
        try:
            self.streams.done(stream_id, message, now)
        except Refused as refused:
            self._refused(refused)
            raise
        return self._finish(now)

    def _stream_ping(self, to: Address, ping: Ping, deadline: float) -> None:
        self._outbox.effects.append(self.streams.ping(to, ping, deadline))

    # What the delegate wants

    def broadcast(self, payload: bytes, now: float, *, about: str | None = None, relay: bool = False) -> list[Effect]:
        """Tell everybody, beginning at once; `about` replaces earlier news about the same thing that still wait.

        `relay`: others are telling it too, so that few need to hear it from us at once. ValueError when it is larger
        than `payload_limit`.
        """
        self._check_payload(payload)
        dropped = self._outbox.news.add(wire.encode(User(payload)), about and "user " + about)
        if dropped:
            self._count("gossip_full", dropped)
        self._wide = self._wide or not relay
        self._roster.urgent = True
        return self._finish(now, wide=False)

    def send(self, name: str, payload: bytes, now: float) -> list[Effect]:
        """Tell one member, once. ValueError as for `broadcast`; a member that is unknown or gone hears nothing."""
        self._check_payload(payload)
        record = self._roster.records.get(name)
        if record is not None and record.reachable and record is not self._roster.local:
            self._outbox.post(wire.encode(User(payload)), record.to, record.versions)
        return self._finish(now)

    def leave(self, now: float) -> list[Effect]:
        """Tell everybody that we go; see `told`."""
        self._roster.leave(now)
        return self._finish(now)

    def set_address(self, advertise: Address, now: float) -> list[Effect]:
        """Tell everybody where we are now."""
        self._roster.change_self(advertise, self._roster.local.meta)
        return self._finish(now)

    def set_meta(self, meta: bytes, now: float) -> list[Effect]:
        """Tell everybody our new meta. ValueError over 512 octets."""
        _check_meta(meta)
        self._roster.change_self(self._roster.local.to, meta)
        return self._finish(now)

    def set_keys(self, keys: Sequence[bytes]) -> None:
        """See `KeyRing.replace`."""
        assert self._keys is not None, "a member without keys stays so"
        self._keys.replace(keys)

    def _check_payload(self, payload: bytes) -> None:
        if len(payload) > self.payload_limit:
            raise ValueError(f"a user message of {len(payload)} octets: at most {self.payload_limit}")

    # News

    def _finish(self, now: float, *, wide: bool = True) -> list[Effect]:
        """Let news leave that cannot wait, see to a time for the others, and hand out what has collected."""
        if self._roster.urgent:
            self._roster.urgent = False
            self._wide = self._wide or wide
            if self._next_burst == _FOREVER:
                self._next_burst = self._last_burst + self._timings.burst_spacing
        if now >= self._next_burst:
            self._burst(now)
        self._outbox.burst_waits = self._next_burst != _FOREVER
        if len(self._outbox.news) and self._next_gossip == _FOREVER:
            # After a silence at once, unless they leave by a burst.
            last = now if self._outbox.burst_waits else max(self._last_gossip, self._last_burst)
            self._next_gossip = last + self._timings.gossip_interval
        if now >= self._next_gossip and not self._outbox.burst_waits:
            self._last_gossip = now
            self._next_gossip = now + self._timings.gossip_interval
            self._gossip(now)
        if not len(self._outbox.news):
            self._next_gossip = _FOREVER
        return self._outbox.take()

    def _burst(self, now: float) -> None:
        most = self._timings.burst_nodes if self._wide else self._timings.gossip_nodes
        targets = [record.to for record in self._roster.pick(most, lambda record: record.reachable)]
        more = bool(targets) and self._outbox.burst(targets)
        self._last_burst = now
        self._next_burst = now + self._timings.burst_spacing if more else _FOREVER
        self._wide = self._wide and more

    def _gossip(self, now: float) -> None:
        def hears(record: Record) -> bool:
            dead_for = now - record.since
            return record.reachable or (record.state == State.DEAD and dead_for < self._timings.gossip_to_the_dead)

        targets = self._roster.pick(self._timings.gossip_nodes, hears)
        if not targets:
            self._outbox.news.clear()  # whoever comes later has it all by push/pull
        for record in targets:
            self._outbox.gossip(record.to, record.versions)

    def _exchange_states(self, now: float) -> None:
        """With one that lives; and with one that failed, so that a partition heals (Serf's rule)."""
        if now >= self._next_push_pull:
            self._next_push_pull = now + self._timings.push_pull_interval * push_pull_scale(self._roster.live)
            for record in self._roster.pick(1, lambda record: record.state == State.ALIVE):
                if (stream := self.streams.exchange(record.name, now)) is not None:
                    self._outbox.effects.append(stream)
        if now >= self._next_reconnect:
            self._next_reconnect = now + self._timings.reconnect_interval
            # Those that left, too: it may have been somebody else who said so.
            gone = [record for record in self._roster.order if not record.reachable]
            if gone and self._rng.random() <= len(gone) / self._roster.live:
                self._outbox.effects.append(self.streams.push_pull(self._rng.choice(gone).to, False, now))


def _check_meta(meta: bytes) -> None:
    if len(meta) > MAX_META:
        raise ValueError(f"meta of {len(meta)} octets: at most {MAX_META}")


