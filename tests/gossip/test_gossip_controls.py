"""What each mechanism is for: a promise that holds with it, and does not without it."""

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from appswitch.gossip.member import Event, Record
from appswitch.gossip.settings import LAN, Timings
from appswitch.gossip.wire import Suspect

from .formed import formed
from .simulator import Host, World
from .tables import Tables, equal, tables


def no_tcp(host: Host) -> None:
    host.core._prober._stream_ping = lambda to, ping, deadline: None


def no_refutation(host: Host) -> None:
    host.core._roster._refute = lambda accused: None  # type: ignore[method-assign]


def no_buddy(host: Host) -> None:
    host.core._prober._tells = lambda target: False  # type: ignore[method-assign]


def no_rounds(host: Host) -> None:
    """Whom to probe is drawn anew each time."""
    roster, rng = host.core._roster, random.Random(host.number)

    def choose(now: float) -> Record | None:
        return rng.choice(list(roster.others()))

    host.core._prober._choose = choose  # type: ignore[method-assign]


def no_change(host: Host) -> None:
    pass


def standing(size: int, timings: Timings, without: Callable[[Host], None], **network: object) -> World:
    world = World(5, timings, **network)
    for host in formed(world, size):
        without(host)
    return world


def false_verdicts(world: World) -> int:
    return sum(
        event is Event.FAILED and world.hosts[name].up
        for host in world.hosts.values()
        for _, name, event in host.events
    )


def suspected(world: World) -> int:
    return sum(host.counts["gossip_probe_failed"] for host in world.hosts.values())


def a_pair_apart_is_not_suspected(timings: Timings, without: Callable[[Host], None]) -> bool:
    """No way leads from one to the other, but both are reached by the rest."""
    world = standing(5, timings, without)
    pair = {world.hosts["n0"].address, world.hosts["n1"].address}
    world.network.cut = lambda source, to: {source, to} == pair
    world.run(60)
    return suspected(world) == 0


def a_member_without_datagrams_is_not_suspected(timings: Timings, without: Callable[[Host], None]) -> bool:
    world = standing(4, timings, without)
    lame = world.hosts["n3"].address
    world.network.no_datagrams = lambda source, to: lame in (source, to)
    world.run(60)
    return suspected(world) == 0


def lost_datagrams_make_no_suspects(timings: Timings, without: Callable[[Host], None]) -> bool:
    world = standing(12, timings, without, loss=0.3)
    world.run(30)
    return suspected(world) <= 2


def a_pause_is_no_death(timings: Timings, without: Callable[[Host], None]) -> bool:
    world = standing(8, timings, without)
    world.run(1)
    world.pause(world.hosts["n3"], 2.5)
    world.run(60)
    return suspected(world) > 0 and false_verdicts(world) == 0


def slow_members_call_nobody_dead(timings: Timings, without: Callable[[Host], None]) -> bool:
    """They hear everything late, by up to 16 s."""
    world = standing(20, timings, without)
    late = [world.hosts[f"n{number}"] for number in range(2)]
    names = {host.name for host in late}

    def lag() -> None:
        for host in late:
            host.slow = world.rng.uniform(0, 16)
        world.at(world.now + 5, lag)

    lag()
    world.run(60)
    false = sum(
        event is Event.FAILED and name not in names
        for host in world.hosts.values()
        for _, name, event in host.events
    )
    return false == 0


def a_slow_member_accuses_few(timings: Timings, without: Callable[[Host], None]) -> bool:
    world = standing(8, timings, without)
    world.hosts["n0"].slow = 1.5
    world.run(120)
    return world.hosts["n0"].counts["gossip_probe_failed"] < 30


def who_is_suspected_hears_of_it_from_whoever_asks(timings: Timings, without: Callable[[Host], None]) -> bool:
    """All news are lost but those that come with a ping. One member suspects another: does that one refute it?"""
    world = standing(3, timings, without)
    accuser, accused = world.hosts["n0"], world.hosts["n1"]
    for host in world.hosts.values():
        host.core._outbox.news.take = lambda *_, **__: []  # type: ignore[method-assign]
    accuser.core._roster.suspect(Suspect(1, "n1", "n0"), world.clock(accuser))
    world.run(3.9)
    return accused.counts["gossip_refuted"] > 0


def rows_that_got_lost_are_repaired(timings: Timings, without: Callable[[Host], None]) -> bool:
    """Every datagram of a change is lost, and nothing follows that would show the gap."""
    world = World(6, timings)
    hosts = world.cluster(4, delegate=Tables)
    for host in hosts:
        without(host)
    world.run(5)
    author = hosts[2].address
    world.network.no_datagrams = lambda source, to: source == author
    tables(hosts[2]).change({b"k": b"v"})
    for host in hosts:
        host.core._outbox.news.clear()
    world.network.no_datagrams = None
    world.run(90)
    return equal(hosts)


def news_reach_all_in_a_second(timings: Timings, without: Callable[[Host], None]) -> bool:
    """A third of the datagrams are lost; whole states come too late to help."""
    for seed in range(3):
        world = World(seed, replace(timings, push_pull_interval=1e9), loss=0.3)
        hosts = formed(world, 60, lambda number: {b"s": b"v"})
        for host in hosts:
            without(host)
        tables(hosts[0]).change({b"s": b"new"})
        world.run(1.0)
        if any(tables(host).replica.rows("n0") != {b"s": b"new"} for host in hosts):
            return False
    return True


def everybody_is_asked_in_every_two_rounds(timings: Timings, without: Callable[[Host], None]) -> bool:
    """SWIM 4.3: at most 2N - 1 periods lie between two probes of one member by another."""
    size = 6
    world = standing(size, timings, without)
    asked: dict[tuple[str, str], float] = {}
    longest = 0.0
    for host in world.hosts.values():
        begin, prober = host.core._prober._begin, host.core._prober

        def noting(now: float, host: Host = host, begin: Callable[[float], None] = begin) -> None:
            nonlocal longest
            begin(now)
            probe = host.core._prober._probe
            if probe is not None:
                pair = host.name, probe.target.name
                longest = max(longest, now - asked.get(pair, now))
                asked[pair] = now

        prober._begin = noting  # type: ignore[method-assign]
    world.run(150)
    others = size - 1
    return longest <= (2 * others - 1) * timings.probe_interval + 0.01


CONTROLS = [
    (a_pair_apart_is_not_suspected, {"indirect_probes": 0}, no_change),
    (a_member_without_datagrams_is_not_suspected, {}, no_tcp),
    (lost_datagrams_make_no_suspects, {"probe_repeat": 1e9}, no_change),
    (a_pause_is_no_death, {"suspicion_mult": 0}, no_change),
    (a_pause_is_no_death, {}, no_refutation),
    (slow_members_call_nobody_dead, {"awareness_max": 1, "suspicion_max_mult": 1}, no_buddy),
    (a_slow_member_accuses_few, {"awareness_max": 1}, no_change),
    (who_is_suspected_hears_of_it_from_whoever_asks, {}, no_buddy),
    (rows_that_got_lost_are_repaired, {"push_pull_interval": 1e9}, no_change),
    (news_reach_all_in_a_second, {"retransmit_mult": 0}, no_change),
    (everybody_is_asked_in_every_two_rounds, {}, no_rounds),
]


@pytest.mark.parametrize(("promise", "knobs", "without"), CONTROLS)
def test_each_mechanism_is_needed(
    promise: Callable[[Timings, Callable[[Host], None]], bool],
    knobs: dict[str, object],
    without: Callable[[Host], None],
) -> None:
    assert promise(LAN, no_change)
    assert not promise(replace(LAN, **knobs), without), "it holds without the mechanism, too: this shows nothing"
