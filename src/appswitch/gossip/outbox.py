"""What goes out: messages wrapped into datagrams, and the news that ride along with them."""

from __future__ import annotations

from .broadcasts import Broadcasts, transmit_limit
from .effect import Datagram, Effect
from .envelope import COMPOUND_HEADER, COMPOUND_PART, MOST_PARTS, Envelope, make_compound
from .settings import Address, NodeSettings

#: Datagrams that one burst sends to each member: what follows waits for the next, lest receivers' buffers overflow.
_BURST_PACKETS = 16


class Outbox:
    """Collects effects until somebody takes them."""

    def __init__(self, envelope: Envelope, settings: NodeSettings) -> None:
        self.envelope = envelope
        self.news = Broadcasts(settings.limits.queue, settings.limits.queue_octets)
        self.effects: list[Effect] = []
        #: Members that live, for the number of times that news are sent.
        self.members = 1
        #: News wait for a burst: they leave with it to all, not with something else to one.
        self.burst_waits = False
        self._mult = settings.timings.retransmit_mult

    @property
    def room(self) -> int:
        """Octets that the largest single message may have."""
        return self.envelope.room - COMPOUND_HEADER - COMPOUND_PART

    def take(self) -> list[Effect]:
        """What has collected, in order."""
        effects, self.effects = self.effects, []
        return effects

    def post(self, message: bytes, to: Address, versions: bytes = b"") -> None:
        """Send one message, with as many news as fit beside it. `versions`: the receiver's, if known."""
        messages = [message]
        if len(self.news) and not self.burst_waits:
            room = self.room - len(message)
            messages += self.news.take(room, COMPOUND_PART, self._limit, MOST_PARTS - 1)
        self.post_together(messages, to, versions)

    def post_together(self, messages: list[bytes], to: Address, versions: bytes = b"") -> None:
        """Send these messages in one datagram."""
        crc = len(versions) > 1 and versions[1] >= 5
        self.effects.append(Datagram(self.envelope.wrap(make_compound(messages), crc=crc), to))

    def gossip(self, to: Address, versions: bytes) -> None:
        """Send one datagram of news, if there are any."""
        messages = self.news.take(self._news_room, COMPOUND_PART, self._limit, MOST_PARTS)
        if messages:
            self.post_together(messages, to, versions)

    def burst(self, targets: list[Address]) -> bool:
        """Send the news that were never sent to all of these; whether more are left for another burst."""
        for _ in range(_BURST_PACKETS):
            messages = self.news.take(self._news_room, COMPOUND_PART, self._limit, MOST_PARTS, fresh=True)
            if not messages:
                return False
            for to in targets:
                self.post_together(messages, to)
        return self.news.has_fresh

    @property
    def _news_room(self) -> int:
        return self.envelope.room - COMPOUND_HEADER

    @property
    def _limit(self) -> int:
        return transmit_limit(self._mult, self.members)
