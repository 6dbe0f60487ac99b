"""A cluster in one thread: a virtual clock, one heap of events, and a network that does what networks do.

Everything random comes from one seed, nothing from a clock or from hashes: a run can be repeated exactly, and its
digest shows that it was (`World(…, traced=True).digest()`).

Not simulated: the kernel's queues apart from a paused member's receive buffer, bandwidth, TCP's windows. A lost segment
costs a stream its time-out for retransmission (1 s for the handshake, then 0.2 s, doubled each time), as on Linux.
"""

import hashlib
import heapq
import random
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from appswitch.gossip import exchange, tags
from appswitch.gossip.core import Core
from appswitch.gossip.effect import Changed, Datagram, Effect, MergeState, Stream, Told, UserMessage
from appswitch.gossip.member import Event, Member, State
from appswitch.gossip.refused import Refused
from appswitch.gossip.settings import LAN, Address, NodeSettings, Timings
from appswitch.gossip.wire import Message

PORT = 7946
META = tags.pack(exchange.TAG)
IP_UDP, IP_TCP = 28, 40  # octets of headers
_BUFFER = 1 << 20  # octets that wait for a paused member, as its socket holds them
_TURN = 64  # datagrams that the shell reads before it looks at its timers
_SYN_TIMEOUT, _TCP_TIMEOUT = 1.0, 0.2
_NEVER = float("inf")


@dataclass
class Network:
    """How datagrams fare. Streams lose nothing, but take longer where datagrams get lost."""

    loss: float = 0.0
    delay: tuple[float, float] = (0.0002, 0.002)
    #: The share of datagrams that come twice, and of those that are late by up to `late_by`: others overtake them.
    doubled: float = 0.0
    late: float = 0.0
    late_by: float = 0.05
    #: (from address, to address) → whether nothing passes.
    cut: Callable[[str, str], bool] | None = None
    #: Datagrams alone do not pass.
    no_datagrams: Callable[[str, str], bool] | None = None


class Delegate:
    """What a member's gossip is for: here nothing."""

    def message(self, payload: bytes) -> None:
        """Somebody's broadcast came."""

    def state(self, join: bool) -> bytes:
        return b""

    def merge(self, state: bytes) -> None:
        """Somebody's state came."""

    def versions(self) -> Mapping[str, bytes]:
        return {}

    def part(self, wanted: Mapping[str, bytes]) -> bytes:
        return b""

    def told(self, versions: Mapping[str, bytes]) -> None:
        """Somebody has these."""

    def changed(self, member: Member, event: Event) -> None:
        """A member came or went."""


@dataclass(slots=True)
class Host:
    """One member and what it was told. Its clock shows `offset + rate * now`."""

    settings: NodeSettings
    address: str
    number: int
    counts: Counter[str]
    delegate: Delegate
    core: Core = field(init=False)
    up: bool = True
    state: bytes = b""
    offset: float = 0.0
    rate: float = 1.0
    wake: float = _NEVER
    slow: float = 0.0  # seconds by which everything that comes in is late
    resumes: float = 0.0  # it does nothing until then
    inbox: deque[tuple[bytes, Address]] = field(default_factory=deque)
    inbox_octets: int = 0
    messages: list[tuple[float, bytes]] = field(default_factory=list)
    merged: list[bytes] = field(default_factory=list)
    events: list[tuple[float, str, Event]] = field(default_factory=list)
    sent: int = 0
    sent_octets: int = 0  # with all headers, in datagrams and streams
    stream_octets: int = 0  # of these in streams
    on_message: Callable[[bytes], None] | None = None

    @property
    def name(self) -> str:
        return self.settings.name

    def states(self) -> dict[str, State]:
        return {member.name: member.state for member in self.core.members()}

    def alive(self) -> set[str]:
        return {name for name, state in self.states().items() if state == State.ALIVE}


class World:
    """The clock, the network and everybody."""

    def __init__(self, seed: int = 1, timings: Timings = LAN, *, traced: bool = False, **network: object) -> None:
        self.seed = seed
        self.now = 1000.0
        self.network = replace(Network(), **network)  # type: ignore[arg-type]
        self.timings = timings
        self.rng = random.Random(seed)
        self.hosts: dict[str, Host] = {}
        #: Told of each change that any member sees, without being kept: (host, member, event).
        self.witness: Callable[[Host, Member, Event], None] | None = None
        self.keep_events = True
        self._by_address: dict[Address, Host] = {}
        self._events: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._number = 0
        self._trace = hashlib.blake2b(digest_size=16) if traced else None

    def digest(self) -> str:
        """Of everything that has happened."""
        assert self._trace is not None, "this world is not traced"
        return self._trace.hexdigest()

    def add(
        self,
        name: str,
        address: str | None = None,
        *,
        delegate: Callable[["World", Host], Delegate] | None = None,
        offset: float = 0.0,
        rate: float = 1.0,
        **settings: object,
    ) -> Host:
        """A new member, or one that restarts under its old name."""
        known = self.hosts.get(name)
        number = known.number if known else len(self.hosts) + 1
        if address is None:
            address = known.address if known else f"10.0.{number >> 8}.{number & 255}"
        made = NodeSettings(name=name, bind=(address, PORT), meta=META, timings=self.timings)
        made = replace(made, **settings)  # type: ignore[arg-type]
        counts: Counter[str] = Counter()

        def count(counter: str, n: int) -> None:
            counts[counter] += n

        host = Host(made, address, number, counts, Delegate(), offset=offset, rate=rate)
        if delegate is not None:
            host.delegate = delegate(self, host)
        host.core = Core(
            made,
            (address, PORT),
            rng=random.Random(self.rng.random()),
            count=count,
            local_state=lambda join: host.delegate.state(join) or host.state,
            ledger=host.delegate,
            now=self.clock(host),
        )
        if known:
            self.stop(name)
        self.hosts[name] = host
        self._by_address[address, PORT] = host
        self._watch(host)
        return host

    def cluster(self, size: int, **settings: object) -> list[Host]:
        """So many members that have joined the first one and know each other."""
        hosts = [self.add(f"n{number}", **settings) for number in range(size)]  # type: ignore[arg-type]
        for host in hosts[1:]:
            self.join(host, hosts[0])
            self.run(0.01)
        self.until(lambda: self.agree(hosts), f"{size} members to know each other")
        return hosts

    def join(self, host: Host, seed: Host) -> None:
        self.sync(host, (seed.address, PORT), join=True)

    def sync(self, host: Host, to: Address, *, join: bool = False) -> None:
        """Have it exchange whole states with that one."""
        self.do(host, [host.core.streams.push_pull(to, join, self.clock(host))])

    def exchange(self, host: Host, name: str, wanted: Mapping[str, bytes] | None = None) -> None:
        """Have it compare what it knows with that one, or fetch what is wanted."""
        now = self.clock(host)
        stream = host.core.streams.fetch(name, wanted, now) if wanted else host.core.streams.exchange(name, now)
        self.do(host, [] if stream is None else [stream])

    def stop(self, name: str) -> None:
        """It dies without a word."""
        host = self.hosts[name]
        host.up = False
        if self._by_address.get((host.address, PORT)) is host:
            del self._by_address[host.address, PORT]

    def move(self, host: Host, address: str) -> None:
        """Its address changes."""
        del self._by_address[host.address, PORT]
        host.address = address
        self._by_address[address, PORT] = host
        self.do(host, host.core.set_address((address, PORT), self.clock(host)))

    def pause(self, host: Host, seconds: float) -> None:
        """It stands still for so long; what comes in waits, as much as a socket's buffer holds."""
        host.resumes = self.now + seconds
        self._at(host.resumes, self._resume, host)

    def part(self, *sides: Iterable[Host]) -> None:
        """Nothing passes between the sides; no sides: everything does."""
        side_of = {host.address: side for side, hosts in enumerate(sides) for host in hosts}
        self.network.cut = (lambda source, to: side_of.get(source) != side_of.get(to)) if sides else None

    def agree(self, hosts: Iterable[Host]) -> bool:
        """Whether all of these hold exactly those for alive who are up."""
        up = {name for name, host in self.hosts.items() if host.up}
        return all(host.alive() == up for host in hosts if host.up)

    # Time

    def clock(self, host: Host) -> float:
        """What this member's clock shows."""
        return host.offset + host.rate * self.now

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        events, pop = self._events, heapq.heappop
        while events and events[0][0] <= end:
            when, _, work, arguments = pop(events)
            if when > self.now:
                self.now = when
            work(*arguments)
        self.now = end

    def until(self, look: Callable[[], bool], what: str, limit: float = 300.0, step: float = 0.005) -> float:
        """Run until it is true, to `step` seconds; how long that took."""
        begun = self.now
        while not look():
            assert self.now - begun < limit, f"seed {self.seed}: after {limit:g} virtual seconds waiting for {what}"
            self.run(step)
        return self.now - begun

    def at(self, when: float, work: Callable[[], None]) -> None:
        self._at(when, work)

    def _at(self, when: float, work: Callable[..., None], *arguments: object) -> None:
        self._number += 1
        heapq.heappush(self._events, (when, self._number, work, arguments))

    def _watch(self, host: Host) -> None:
        due = host.core.due()
        if due < host.wake:
            host.wake = due
            self._at(max(self.now, (due - host.offset) / host.rate), self._tick, host, due)

    def _tick(self, host: Host, due: float) -> None:
        if host.up and host.wake == due and self.now >= host.resumes:
            host.wake = _NEVER
            self._note("tick", host, 0)
            self.do(host, host.core.tick(max(due, self.clock(host))))

    def _resume(self, host: Host) -> None:
        """What waited is read, the timers are seen to in between: as the shell does it."""
        if self.now < host.resumes:
            return
        while host.up:
            for _ in range(min(_TURN, len(host.inbox))):
                data, source = host.inbox.popleft()
                self._receive(host, data, source)
            host.wake = _NEVER
            self.do(host, host.core.tick(self.clock(host)))
            if not host.inbox:
                break
        host.inbox_octets = 0

    def _note(self, what: str, host: Host, size: int) -> None:
        if self._trace is not None:
            self._trace.update(f"{self.now!r} {what} {host.number} {size}\n".encode())

    # The network

    def do(self, host: Host, effects: list[Effect]) -> None:
        """Carry out what a member wants."""
        for effect in effects:
            if type(effect) is Datagram:
                self._datagram(host, effect.data, effect.to)
                continue
            match effect:
                case Stream():
                    self._stream(host, effect)
                case UserMessage(payload):
                    if self.keep_events:
                        host.messages.append((self.now, payload))
                    host.delegate.message(payload)
                    if host.on_message is not None:
                        host.on_message(payload)
                case Changed(member, event):
                    if self.keep_events:
                        host.events.append((self.now, member.name, event))
                    if self.witness is not None:
                        self.witness(host, member, event)
                    self._note(event.value, host, self.hosts[member.name].number if member.name in self.hosts else 0)
                    host.delegate.changed(member, event)
                case Told(versions):
                    host.delegate.told(versions)
                case MergeState(state, _):
                    if self.keep_events:
                        host.merged.append(state)
                    host.delegate.merge(state)
        self._watch(host)

    def _delay(self) -> float:
        least, most = self.network.delay
        return least + (most - least) * self.rng.random()

    def _datagram(self, sender: Host, data: bytes, to: Address) -> None:
        sender.sent += 1
        sender.sent_octets += len(data) + IP_UDP
        network, chance = self.network, self.rng.random
        if network.loss and chance() < network.loss:
            return
        if network.no_datagrams is not None and network.no_datagrams(sender.address, to[0]):
            return
        when = self.now + self._delay()
        if network.late and chance() < network.late:
            when += network.late_by * chance()
        source = (sender.address, PORT)
        self._at(when, self._arrive, data, source, to)
        if network.doubled and chance() < network.doubled:
            self._at(when + self._delay(), self._arrive, data, source, to)

    def _arrive(self, data: bytes, source: Address, to: Address) -> None:
        host = self._by_address.get(to)
        if host is None or (self.network.cut is not None and self.network.cut(source[0], to[0])):
            return
        if host.slow:
            self._at(self.now + host.slow, self._take_in, host, data, source)
        else:
            self._take_in(host, data, source)

    def _take_in(self, host: Host, data: bytes, source: Address) -> None:
        if self.now >= host.resumes:
            self._receive(host, data, source)
        elif host.inbox_octets + len(data) <= _BUFFER:
            host.inbox.append((data, source))
            host.inbox_octets += len(data)

    def _receive(self, host: Host, data: bytes, source: Address) -> None:
        if host.up:
            self._note("datagram", host, len(data))
            self.do(host, host.core.receive(data, source, self.clock(host)))

    # Streams

    def _passes(self, one: str, other: str) -> bool:
        cut = self.network.cut
        return cut is None or not (cut(one, other) or cut(other, one))

    def _retransmissions(self, timeout: float, passes: float) -> float:
        """Seconds lost until a segment, or an exchange of two, has come through."""
        lost = 0.0
        while self.rng.random() >= passes and lost < 60.0:
            lost += timeout
            timeout *= 2
        return lost

    def _stream(self, asker: Host, stream: Stream) -> None:
        passes = 1.0 - self.network.loss
        took = 3 * self._delay()
        if passes < 1.0:
            took += self._retransmissions(_SYN_TIMEOUT, passes * passes) + self._retransmissions(_TCP_TIMEOUT, passes)
        deadline = max(self.now, (stream.deadline - asker.offset) / asker.rate)
        if self.now + took >= deadline:
            self._at(deadline, self._done, asker, stream.id, None)
        else:
            self._at(self.now + took, self._asked, asker, stream, deadline, self.now)

    def _asked(self, asker: Host, stream: Stream, deadline: float, sent: float) -> None:
        host = self._by_address.get(stream.to)
        if not self._passes(asker.address, stream.to[0]):
            self._at(deadline, self._done, asker, stream.id, None)
            return
        if host is None:
            # A host that is gone says nothing: this is no process that was killed, for which its host would answer.
            self._at(deadline, self._done, asker, stream.id, None)
            return
        wait = max(sent + host.slow, host.resumes)
        if self.now < wait:
            if wait < deadline:
                self._at(wait, self._asked, asker, stream, deadline, sent)
            else:
                self._at(deadline, self._done, asker, stream.id, None)
            return
        self._pay(asker, stream.data)
        self._note("stream", host, len(stream.data))
        answer: bytes | None = None
        try:
            message = host.core.streams.reader().feed(stream.data)
            assert message is not None
            answer, effects = host.core.serve(message, self.clock(host))
            self.do(host, effects)
        except Refused as refused:
            host.core.streams.refuse(refused)
        took = self._delay() + asker.slow
        if answer is None:
            self._at(self.now + took, self._done, asker, stream.id, None)
            return
        self._pay(host, answer)
        if self.network.loss:
            took += self._retransmissions(_TCP_TIMEOUT, 1.0 - self.network.loss)
        if self.now + took >= deadline:
            self._at(deadline, self._done, asker, stream.id, None)
        else:
            self._at(self.now + took, self._answered, asker, stream.id, answer)

    def _answered(self, asker: Host, stream_id: int, answer: bytes) -> None:
        if asker.up:
            message = asker.core.streams.reader().feed(answer)
            assert message is not None
            self._done(asker, stream_id, message)

    def _done(self, asker: Host, stream_id: int, message: Message | None) -> None:
        if self.now < asker.resumes:
            self._at(asker.resumes, self._done, asker, stream_id, message)
        elif asker.up:
            self._note("answer" if message else "failure", asker, 0)
            self.do(asker, asker.core.stream_done(stream_id, message, self.clock(asker)))

    @staticmethod
    def _pay(host: Host, data: bytes) -> None:
        """Octets of a stream: with its segments' headers, and those of opening and closing."""
        octets = len(data) + IP_TCP * (4 + len(data) // 1400)
        host.sent_octets += octets
        host.stream_octets += octets
