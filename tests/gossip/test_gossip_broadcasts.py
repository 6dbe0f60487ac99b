"""The queue of news, the suspicion's deadline and the health score."""

import dataclasses
import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from appswitch.gossip.broadcasts import Broadcasts, transmit_limit
from appswitch.gossip.core import push_pull_scale
from appswitch.gossip.health import Health
from appswitch.gossip.settings import LAN
from appswitch.gossip.suspicion import Suspicion

LIMIT, OVERHEAD = 3, 2
MOST, MOST_OCTETS = 12, 400


class Queue(RuleBasedStateMachine):
    """Against a plain list: nothing is sent too often or after it was replaced; nothing fits that is left behind."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = Broadcasts(MOST, MOST_OCTETS)
        self.model: dict[bytes, tuple[int, str | None]] = {}  # message → times sent, about
        self.number = 0

    @rule(size=st.integers(4, 120), about=st.sampled_from([None, "a", "b"]))
    def add(self, size: int, about: str | None) -> None:
        self.number += 1
        message = b"%04d" % self.number + bytes(size - 4)
        if about is not None:
            self.model = {known: item for known, item in self.model.items() if item[1] != about}
        dropped = self.queue.add(message, about)
        self.model[message] = (0, about)
        for _ in range(dropped):
            # The most often sent; of these the smallest, of these the oldest.
            del self.model[max(self.model, key=lambda known: (self.model[known][0], -len(known), -int(known[:4])))]

    @rule(about=st.sampled_from(["a", "b"]))
    def forget(self, about: str) -> None:
        self.queue.forget(about)
        self.model = {known: item for known, item in self.model.items() if item[1] != about}

    @rule(room=st.integers(0, 300), most=st.integers(1, 5), fresh=st.booleans())
    def take(self, room: int, most: int, fresh: bool) -> None:
        taken = self.queue.take(room, OVERHEAD, LIMIT, most, fresh=fresh)
        assert len(taken) <= most
        left = room - sum(len(message) + OVERHEAD for message in taken)
        assert left >= 0
        assert len(set(taken)) == len(taken)
        sent = [self.model[message][0] for message in taken]
        assert sent == sorted(sent)
        assert not fresh or not any(sent)
        if len(taken) < most:
            for message, (times, _) in self.model.items():
                assert message in taken or (fresh and times) or len(message) + OVERHEAD > left
        for message in taken:
            times, about = self.model.pop(message)
            if times + 1 < LIMIT:
                self.model[message] = (times + 1, about)

    @invariant()
    def the_two_agree(self) -> None:
        assert len(self.queue) == len(self.model) <= MOST
        assert self.queue.octets == sum(map(len, self.model)) <= MOST_OCTETS
        assert self.queue.has_fresh == any(not times for times, _ in self.model.values())
        for about in "ab":
            assert self.queue.holds(about) == any(item[1] == about for item in self.model.values())


TestQueue = Queue.TestCase
TestQueue.settings = settings(max_examples=60, stateful_step_count=40)


def test_each_is_sent_as_often_as_the_limit_says() -> None:
    queue = Broadcasts(100, 10000)
    for number in range(20):
        queue.add(b"%02d" % number)
    sent: Counter[bytes] = Counter()
    while len(queue):
        sent.update(queue.take(11, OVERHEAD, 4, 255))
    assert set(sent.values()) == {4}


@pytest.mark.parametrize(("members", "times"), [(1, 4), (3, 4), (9, 4), (30, 8), (100, 12), (1000, 16), (10000, 20)])
def test_news_are_sent_as_often_as_memberlist_sends_them(members: int, times: int) -> None:
    assert transmit_limit(4, members) == times


@pytest.mark.parametrize(("members", "times"), [(3, 1), (32, 1), (33, 2), (64, 2), (65, 3), (100, 3), (1000, 6)])
def test_whole_states_are_rarer_in_large_clusters(members: int, times: int) -> None:
    assert push_pull_scale(members) == times


@pytest.mark.parametrize(
    ("members", "least", "most"),
    [(3, 4.0, 4.0), (4, 4.0, 24.0), (30, 5.9, 35.5), (100, 8.0, 48.0), (1000, 12.0, 72.0), (10000, 16.0, 96.0)],
)
def test_the_suspicion_lasts_as_long_as_memberlists(members: int, least: float, most: float) -> None:
    suspicion = Suspicion("a", members, LAN, 100.0)
    assert suspicion.deadline == pytest.approx(100 + most, abs=0.1)
    if members >= 4:
        assert not suspicion.confirm("a"), "the accuser does not confirm itself"
        assert suspicion.confirm("b")
        middle = 100 + most - (most - least) * math.log(2) / math.log(3)
        assert suspicion.deadline == pytest.approx(middle, abs=0.1)
        assert not suspicion.confirm("b")
        assert suspicion.confirm("c")
        assert suspicion.deadline == pytest.approx(100 + least, abs=0.1)
    assert not suspicion.confirm("d"), "enough is enough"


@given(st.integers(1, 100000), st.integers(2, 8), st.lists(st.sampled_from("abcdefgh"), max_size=12))
def test_the_suspicion_only_ever_gets_shorter_down_to_its_least(members: int, mult: int, sources: list[str]) -> None:
    timings = dataclasses.replace(LAN, suspicion_mult=mult)
    suspicion = Suspicion("a", members, timings, 0.0)
    least = mult * max(1.0, math.log10(members)) * timings.probe_interval
    for source in sources:
        before = suspicion.deadline
        news = suspicion.confirm(source)
        assert suspicion.deadline <= before
        assert news or suspicion.deadline == before
    assert suspicion.deadline >= least * 0.999


@given(st.lists(st.integers(-3, 3), max_size=30))
def test_the_health_score_stays_in_its_range(changes: list[int]) -> None:
    health = Health(8)
    for change in changes:
        health.change(change)
        assert 0 <= health.score <= 7
        assert health.scale(2.0) == 2.0 * (health.score + 1)
