"""Probes, one step at a time: who is asked, when, and what becomes of the answers."""

import random
from collections import Counter
from dataclasses import replace

import pytest

from appswitch.gossip import envelope, wire
from appswitch.gossip.core import Core
from appswitch.gossip.effect import Datagram, Effect, Stream
from appswitch.gossip.member import State
from appswitch.gossip.settings import LAN, LOCAL, NodeSettings, Timings
from appswitch.gossip.wire import Ack, Alive, Dead, IndirectPing, Message, Nack, Ping, Suspect

from .simulator import PORT, World

NEW, OLD = bytes([1, 5, 2, 1, 1, 1]), bytes([1, 2, 2, 1, 1, 1])


class Alone:
    """One member whose peers are this test."""

    def __init__(self, peers: int, timings: Timings = LAN, versions: bytes = NEW) -> None:
        self.counts: Counter[str] = Counter()
        made = NodeSettings(name="me", bind=("10.0.0.1", PORT), timings=replace(timings, push_pull_interval=1e9))

        def count(name: str, n: int) -> None:
            self.counts[name] += n

        self.core = Core(
            made, made.bind, rng=random.Random(1), count=count, local_state=lambda join: b"", now=0.0
        )
        self.now = 0.0
        self.streams: list[Stream] = []
        self.said: list[tuple[float, str, Message]] = []
        for number in range(peers):
            alive = Alive(1, f"p{number}", bytes([10, 0, 1, number]), PORT, b"", versions)
            self.hear(alive, 0)
        self.core._outbox.news.clear()
        self.said.clear()

    def hear(self, message: Message, peer: int) -> None:
        self._take(self.core.receive(wire.encode(message), (f"10.0.1.{peer}", PORT), self.now))

    def run(self, until: float) -> None:
        while self.core.due() <= until:
            self.now = max(self.now, self.core.due())
            self._take(self.core.tick(self.now))
        self.now = until

    def _take(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Datagram):
                datagram = effect.data
                for part in envelope.Envelope("", None, 1400).unwrap(datagram):
                    self.said.append((self.now, effect.to[0], wire.decode(part)))
            elif isinstance(effect, Stream):
                self.streams.append(effect)

    def of(self, kind: type) -> list[tuple[float, str, Message]]:
        return [said for said in self.said if isinstance(said[2], kind)]

    def begin(self) -> tuple[float, Ping]:
        """Run until it asks somebody."""
        while not self.of(Ping):
            self.run(self.core.due())
        when, _, ping = self.of(Ping)[0]
        assert isinstance(ping, Ping)
        return when, ping


def test_the_steps_of_a_probe_that_has_no_answer() -> None:
    """A ping, repeated; helpers and TCP after `probe_timeout`; the end after `probe_interval`; then a suspect."""
    alone = Alone(5)
    began, ping = alone.begin()
    alone.run(began + LAN.probe_interval - 0.001)
    asked = alone.of(IndirectPing)
    assert len({to for _, to, _ in asked}) == LAN.indirect_probes == 3
    assert [when for when, _, _ in asked[:3]] == pytest.approx([began + LAN.probe_timeout] * 3)
    target = alone.core.member(ping.node)
    assert target is not None
    assert target.address not in {to for _, to, _ in asked}
    assert all(message.nack and message.seq == ping.seq for _, _, message in asked)  # type: ignore[union-attr]
    assert [stream.to[0] for stream in alone.streams] == [target.address]
    pings = [when - began for when, to, _ in alone.of(Ping) if to == target.address]
    assert pings[:10] == pytest.approx([number * LAN.probe_repeat for number in range(10)])
    assert pings[-1] <= 2 * LAN.probe_timeout
    assert alone.core.member(ping.node).state == State.ALIVE  # type: ignore[union-attr]
    alone.run(began + LAN.probe_interval)
    assert alone.core.member(ping.node).state == State.SUSPECT  # type: ignore[union-attr]
    assert alone.core.health == 3, "three helpers did not say that they had no answer"


def test_an_answer_ends_it_and_a_late_one_too() -> None:
    for wait in (0.01, LAN.probe_timeout + 0.1, LAN.probe_interval - 0.01):
        alone = Alone(5)
        alone.core._health.change(1)
        began, ping = alone.begin()
        alone.run(began + wait)
        alone.hear(Ack(ping.seq), 0)
        assert alone.core.health == 0
        alone.run(began + LAN.probe_interval - 0.001)
        assert len({message.seq for _, _, message in alone.of(Ping)}) == 1, "the next waits for the next period"  # type: ignore[union-attr]
        alone.run(began + LAN.probe_interval + 0.001)
        assert len({message.seq for _, _, message in alone.of(Ping)}) == 2  # type: ignore[union-attr]
        assert all(member.state == State.ALIVE for member in alone.core.members())


def test_when_all_helpers_hear_nothing_it_ends() -> None:
    alone = Alone(5)
    began, ping = alone.begin()
    alone.run(began + 0.45)
    for helper in range(3):
        for _ in range(2):  # the network doubles it: it is one helper's word all the same
            assert alone.core.member(ping.node).state == State.ALIVE  # type: ignore[union-attr]
            alone.hear(Nack(ping.seq), helper)
            if helper == 2:
                break
    assert alone.core.member(ping.node).state == State.SUSPECT  # type: ignore[union-attr]
    assert alone.core.health == 0, "those who were asked have answered: it is not our fault"
    assert [message for _, _, message in alone.of(Suspect)] == [Suspect(1, ping.node, "me")] * 3


def test_helpers_that_say_nothing_are_asked_again() -> None:
    """The request may have been lost, or the answer."""
    alone = Alone(5)
    began, ping = alone.begin()
    alone.run(began + LAN.probe_timeout)
    helpers = {to: int(to.rpartition(".")[2]) for _, to, _ in alone.of(IndirectPing)}
    spoken = min(helpers)
    alone.hear(Nack(ping.seq), helpers[spoken])
    alone.run(began + LAN.probe_interval - 0.001)
    asked = Counter(to for _, to, message in alone.of(IndirectPing) if message == alone.of(IndirectPing)[0][2])
    most = 2 * LAN.probe_timeout / LAN.probe_repeat
    assert asked.pop(spoken) == 1
    assert list(asked.values()) == pytest.approx([most, most], abs=1.1)


def test_asked_again_a_helper_pings_on_and_repeats_its_answer() -> None:
    alone = Alone(5)
    ask = IndirectPing(77, "10.0.1.1", PORT, "p1", True)
    alone.hear(ask, 0)
    alone.run(0.1)
    alone.hear(ask, 0)
    alone.run(0.19)
    assert len({message.seq for _, to, message in alone.of(Ping) if to == "10.0.1.1"}) == 1  # type: ignore[union-attr]
    assert not alone.of(Nack)
    alone.run(0.2)
    for count in (1, 2, 3):
        assert [(to, message) for _, to, message in alone.of(Nack)] == [("10.0.1.0", Nack(77))] * count
        alone.hear(ask, 0)
    alone.hear(ask, 2)  # another's with the same number
    assert len({message.seq for _, to, message in alone.of(Ping) if to == "10.0.1.1"}) == 2  # type: ignore[union-attr]


def test_one_that_doubts_itself_waits_to_the_end() -> None:
    alone = Alone(5)
    alone.core._health.change(2)
    began, ping = alone.begin()
    alone.run(began + 0.45)
    for helper in range(3):
        alone.hear(Nack(ping.seq), helper)
    alone.run(began + 3 * LAN.probe_interval - 0.01)
    assert alone.core.member(ping.node).state == State.ALIVE  # type: ignore[union-attr]
    alone.run(began + 3 * LAN.probe_interval)
    assert alone.core.member(ping.node).state == State.SUSPECT  # type: ignore[union-attr]
    assert alone.core.health == 2


def test_old_peers_are_asked_neither_by_tcp_nor_for_nacks() -> None:
    alone = Alone(5, versions=OLD)
    began, ping = alone.begin()
    alone.run(began + LAN.probe_interval)
    assert alone.streams == []
    assert not any(message.nack for _, _, message in alone.of(IndirectPing))  # type: ignore[union-attr]
    assert alone.core.member(ping.node).state == State.SUSPECT  # type: ignore[union-attr]
    assert alone.core.health == 1


def test_a_helper_that_is_late_still_gives_those_whom_it_asks_their_time() -> None:
    """It stood still from the ping on, for longer than the probe was to last."""
    alone = Alone(5)
    began, ping = alone.begin()
    alone.now = began + 4.0
    alone._take(alone.core.tick(alone.now))
    assert len(alone.of(IndirectPing)) == 3
    alone.run(alone.now + 0.7)
    assert alone.core.member(ping.node).state == State.ALIVE  # type: ignore[union-attr]
    alone.run(alone.now + 0.1)
    assert alone.core.member(ping.node).state == State.SUSPECT  # type: ignore[union-attr]


@pytest.mark.parametrize("timings", [LAN, LOCAL])
def test_a_probe_for_another(timings: Timings) -> None:
    """Pings are repeated; no answer after 80 % of the time-out is told; a late one is passed on all the same."""
    alone = Alone(2, timings)
    alone.hear(IndirectPing(77, "10.0.1.1", PORT, "p1", True), 0)
    (_, to, ping) = alone.of(Ping)[0]
    assert to == "10.0.1.1"
    assert isinstance(ping, Ping)
    begun = alone.now
    alone.run(begun + 0.8 * timings.probe_timeout + 1e-6)
    assert [(to, message) for _, to, message in alone.of(Nack)] == [("10.0.1.0", Nack(77))]
    assert 2 * timings.probe_timeout < timings.probe_interval or timings.probe_timeout * 1.8 < timings.probe_interval
    alone.hear(Ack(ping.seq), 1)
    assert [(to, message) for _, to, message in alone.of(Ack)] == [("10.0.1.0", Ack(77))]
    alone.hear(Ack(ping.seq), 1)
    assert len(alone.of(Ack)) == 1


def test_a_death_makes_nobody_think_itself_slow() -> None:
    """The helpers' word comes before the probe is over; with a longer time-out it does not."""

    def scores(timings: Timings) -> int:
        world = World(3, timings)
        hosts = world.cluster(10)
        world.stop("n4")
        world.run(8)
        return max(host.core.health for host in hosts if host.up)

    assert scores(LAN) == 0
    assert scores(replace(LAN, probe_timeout=0.6)) > 0


def test_newcomers_come_anywhere_in_the_round() -> None:
    places = set()
    for seed in range(40):
        world = World(seed)
        host = world.add("me")
        roster = host.core._roster
        for number in range(8):
            roster.alive(Alive(1, f"p{number}", bytes([10, 0, 1, number]), PORT, b"", NEW), world.now)
        places.add([record.name for record in roster.order].index("p7"))
    assert places == set(range(8))


def test_each_round_is_in_another_order_and_skips_nobody() -> None:
    alone = Alone(6)
    order: list[str] = []
    while len(order) < 24:
        began, ping = alone.begin()
        order.append(ping.node)
        alone.hear(Ack(ping.seq), 0)
        alone.said.clear()
        alone.run(began + LAN.probe_interval)
    rounds = [order[start : start + 6] for start in range(0, 24, 6)]
    assert all(sorted(one) == sorted(rounds[0]) for one in rounds)
    assert len({tuple(one) for one in rounds}) > 1


# Those who are gone


def test_the_dead_still_hear_news_for_a_while() -> None:
    alone = Alone(1)
    alone.hear(Dead(1, "p0", "p1"), 0)
    alone._take(alone.core.broadcast(b"news", alone.now))
    alone.run(alone.now + 1)
    assert "10.0.1.0" in {to for _, to, _ in alone.said}
    alone.run(alone.now + LAN.gossip_to_the_dead)
    alone.said.clear()
    alone._take(alone.core.broadcast(b"more", alone.now))
    alone.run(alone.now + 1)
    assert alone.said == []


@pytest.mark.parametrize(
    ("state", "wait", "reclaim", "taken"),
    [
        (State.LEFT, 0.0, 0.0, True),
        (State.DEAD, 1000.0, 0.0, False),
        (State.DEAD, 20.0, 30.0, False),
        (State.DEAD, 40.0, 30.0, True),
        (State.ALIVE, 40.0, 30.0, False),
    ],
)
def test_who_may_take_a_name_for_another_address(state: State, wait: float, reclaim: float, taken: bool) -> None:
    alone = Alone(1, replace(LAN, reclaim_dead=reclaim, probe_interval=1e6, forget_dead=1e9))
    if state != State.ALIVE:
        alone.hear(Dead(1, "p0", "p0" if state == State.LEFT else "p1"), 0)
    alone.now += wait
    alone.hear(Alive(1, "p0", bytes([10, 0, 9, 9]), PORT, b"", NEW), 0)
    member = alone.core.member("p0")
    assert member is not None
    assert (member.address == "10.0.9.9") == taken


@pytest.mark.parametrize(("members", "scale"), [(10, 1), (40, 2), (100, 3)])
def test_whole_states_are_exchanged_as_often_as_the_scale_says(members: int, scale: int) -> None:
    alone = Alone(members - 1)
    alone.core._timings = replace(LAN, push_pull_interval=30.0, reconnect_interval=1e9)
    alone.core._next_push_pull = alone.now
    alone.core._prober._next = 1e9
    begun = alone.now
    alone.run(begun + 30.0 * scale * 4 - 1)
    assert len(alone.streams) == 4


def test_one_suspected_anew_after_it_refuted_has_its_time_anew() -> None:
    alone = Alone(5)
    alone.core._prober._next = 1e9
    alone.hear(Suspect(1, "p0", "p1"), 1)
    first = alone.core._roster.due()
    alone.run(alone.now + 3.0)
    alone.hear(Suspect(2, "p0", "p1"), 1)  # its refutation was lost
    assert alone.core._roster.due() == pytest.approx(first + 3.0)
    alone.hear(Alive(2, "p0", bytes([10, 0, 1, 0]), PORT, b"", NEW), 0)
    assert alone.core.member("p0").state == State.SUSPECT  # type: ignore[union-attr]
    alone.hear(Alive(3, "p0", bytes([10, 0, 1, 0]), PORT, b"", NEW), 0)
    assert alone.core.member("p0").state == State.ALIVE  # type: ignore[union-attr]


def test_news_leave_at_once_after_a_silence_and_then_on_the_tick() -> None:
    alone = Alone(8)
    alone.core._prober._next = 1e9
    alone.run(alone.now + 10)
    alone.said.clear()
    for number in range(3):
        alone.hear(Suspect(1, f"p{number}", "p7"), 7)
    sent = {message.node: when for when, _, message in reversed(alone.of(Suspect))}  # type: ignore[union-attr]
    assert sent == {"p0": alone.now}
    begun = alone.now
    alone.run(begun + LAN.gossip_interval)
    sent = {message.node: when for when, _, message in reversed(alone.of(Suspect))}  # type: ignore[union-attr]
    assert sent == {"p0": begun, "p1": begun + LAN.gossip_interval, "p2": begun + LAN.gossip_interval}


def test_each_is_told_as_often_as_the_limit_says() -> None:
    """In a large cluster, where datagrams go to members of whom each is told something else."""
    alone = Alone(40)
    alone.core._prober._next = 1e9
    alone.run(alone.now + 10)
    alone.said.clear()
    alone.hear(Suspect(1, "p0", "p7"), 7)
    alone.run(alone.now + 3.9)
    assert len(alone.of(Suspect)) == 4 * 2
