"""What goes over TCP: whole states, comparisons, and pings of those who do not answer by UDP."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from . import exchange, stream, wire
from .effect import MergeState, Stream, UserMessage
from .exchanger import Asking, Exchanger
from .member import State
from .outbox import Outbox
from .probes import Prober
from .refused import Refused
from .roster import Roster
from .settings import Address, NodeSettings
from .wire import Ack, Error, Exchange, Message, Ping, PushPull, User


class Streams:
    """Begins them, answers them, and knows what was begun. What follows collects in the outbox."""

    def __init__(
        self,
        settings: NodeSettings,
        roster: Roster,
        outbox: Outbox,
        prober: Prober,
        exchanger: Exchanger | None,
        rng: random.Random,
        count: Callable[[str, int], None],
        local_state: Callable[[bool], bytes],
        for_us: Callable[[str], bool],
    ) -> None:
        """`for_us`: whether a ping for this name is for this member."""
        self._roster, self._outbox, self._prober, self._exchanger = roster, outbox, prober, exchanger
        self._label, self._keys = outbox.envelope.label, outbox.envelope.keys
        self._limits, self._timeout = settings.limits, settings.timings.stream_timeout
        self._rng, self._count, self._local_state, self._for_us = rng, count, local_state, for_us
        #: By id: a ping's sequence number, None for a push/pull, or a conversation.
        self._begun: dict[int, int | Asking | None] = {}
        self._id = 0
        self._served_ping = -1

    def reader(self) -> stream.Reader:
        """For the octets of one connection; what it raises is to be told to `refuse`."""
        return stream.Reader(self._label, self._keys, self._limits.stream, self._limits.members)

    def refuse(self, refused: Refused) -> None:
        """Count what a `reader` raised."""
        self._count("gossip_" + refused.reason, 1)

    def push_pull(self, to: Address, join: bool, now: float) -> Stream:
        """An exchange of whole states with whoever is there."""
        self._count("gossip_whole", 1)
        message = self._roster.push_pull(self._local_state(join), join)
        return self._stream(to, message, None, now + self._timeout)

    def exchange(self, name: str, now: float) -> Stream | None:
        """Have this member know what we know, and us what it knows: by a comparison if it can, or by whole states.

        None for a member that is unknown.
        """
        record = self._roster.records.get(name)
        if record is None:
            return None
        if self._exchanger is None or not exchange.understood(record.meta):
            return self.push_pull(record.to, False, now)
        self._count("gossip_compared", 1)
        return self._ask(self._exchanger.compare(record.to), now)

    def fetch(self, name: str, wanted: Mapping[str, bytes], now: float) -> Stream | None:
        """Have from this member the delegate's state of these, at most 256, if it is later than these versions.

        Whole states are exchanged with one that does not understand it. None for a member that is unknown.
        """
        record = self._roster.records.get(name)
        if record is None:
            return None
        if self._exchanger is None or not exchange.understood(record.meta):
            return self.push_pull(record.to, False, now)
        return self._ask(self._exchanger.fetch(record.to, wanted), now)

    def _ask(self, asking: Asking, now: float) -> Stream:
        if asking.question is None:
            return self.push_pull(asking.to, False, now)
        message = Exchange(exchange.encode(asking.question))
        return self._stream(asking.to, message, asking, now + self._timeout)

    def answer(self, message: Message, now: float, cipher: AESGCM | None = None) -> bytes | None:
        """What to say to a peer that began with this; see `Core.serve`. Refused."""
        answer: Message | None = None
        match message:
            case PushPull():
                self._roster.check(message.members)
                self._count("gossip_whole", 1)
                user = self._local_state(message.join)
                self._roster.merge(message.members, now, urgent=message.join)
                answer = self._roster.push_pull(user, message.join)
                self._merge_state(message)
            case Ping(seq, node):
                if self._for_us(node):
                    self._served_ping = seq
                    answer = Ack(seq)
            case User(payload):
                self._outbox.effects.append(UserMessage(payload))
            case Exchange(said) if self._exchanger is not None:
                answer = Exchange(self._exchanger.answer(said, now))
            case _:
                raise wire.malformed("a message that does not begin an exchange")
        return None if answer is None else self._seal(answer, cipher)

    def done(self, stream_id: int, message: Message | None, now: float) -> None:
        """See `Core.stream_done`. Refused."""
        begun = self._begun.pop(stream_id)
        match message:
            case None:
                if not isinstance(begun, int):
                    self._count("gossip_stream_failed", 1)
            case Ack(answered) if begun == answered:
                self._prober.stream_ack(answered, now)
            case PushPull() if begun is None:
                self._roster.check(message.members)
                self._roster.merge(message.members, now)
                self._merge_state(message)
            case Exchange(said) if isinstance(begun, Asking) and self._exchanger is not None:
                asking = self._exchanger.heard(begun, said, now)
                if asking is not None:
                    self._outbox.effects.append(self._ask(asking, now))
            case Error(text):
                raise Refused("stream_failed", f"it answered: {text}")
            case _:
                raise wire.malformed("an answer to something else")

    def rival(self, message: Message) -> Address | None:
        """Where somebody of our name is said to live, by an answer that was not given to `done` yet."""
        local = self._roster.local
        if isinstance(message, PushPull):
            for known in message.members:
                where = (known.alive.address, known.alive.port)
                if known.alive.node == local.name and known.state <= State.SUSPECT and where != local.to:
                    return where
        return None

    def ask_rival(self, to: Address, deadline: float) -> Stream:
        """A ping for our own name; see `is_rival`."""
        seq = self._rng.getrandbits(32)
        return self._stream(to, Ping(seq, self._roster.local.name), seq, deadline)

    def is_rival(self, asked: Stream, answer: Message) -> bool:
        """Whether this answer to `ask_rival` comes from another than ourselves, whom an old address may also reach."""
        seq = self._begun[asked.id]
        return isinstance(answer, Ack) and answer.seq == seq != self._served_ping

    def ping(self, to: Address, ping: Ping, deadline: float) -> Stream:
        """Ask whether it lives."""
        return self._stream(to, ping, ping.seq, deadline)

    def _stream(self, to: Address, message: Message, begun: int | Asking | None, deadline: float) -> Stream:
        self._id += 1
        self._begun[self._id] = begun
        return Stream(self._id, to, self._seal(message), deadline)

    def _seal(self, message: Message, cipher: AESGCM | None = None) -> bytes:
        return stream.seal(wire.encode(message), self._label, self._keys, cipher)

    def _merge_state(self, message: PushPull) -> None:
        if message.user:
            self._outbox.effects.append(MergeState(message.user, message.join))
