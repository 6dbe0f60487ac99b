"""User messages through simulated clusters: how fast, how surely, at what cost."""

from dataclasses import replace

import pytest

from appswitch.gossip.settings import LAN

from .simulator import Host, World


def passing_on(world: World, host: Host) -> None:
    """Let it do what the delegate does: pass on what it sees for the first time."""
    seen: set[bytes] = set()

    def heard(payload: bytes) -> None:
        if payload not in seen:
            seen.add(payload)
            world.do(host, host.core.broadcast(payload, world.now, relay=True))

    host.on_message = heard


def first_heard(host: Host) -> dict[bytes, float]:
    times: dict[bytes, float] = {}
    for when, payload in host.messages:
        times.setdefault(payload, when)
    return times


def latencies(world: World, hosts: list[Host], changes: int, spacing: float) -> list[float]:
    """Seconds until each change was known to each of the others, sorted; each leaves from another member."""
    told: dict[bytes, float] = {}
    for host in hosts:
        passing_on(world, host)
    for number in range(changes):
        payload = b"change %d" % number
        told[payload] = world.now
        host = hosts[number % len(hosts)]
        world.do(host, host.core.broadcast(payload, world.now))
        world.run(spacing)
    world.run(5)
    found = []
    for number, host in enumerate(hosts):
        heard = first_heard(host)
        for change, (payload, when) in enumerate(told.items()):
            if change % len(hosts) != number:
                found.append(heard[payload] - when)  # KeyError: it never came
    return sorted(found)


@pytest.mark.parametrize(("size", "loss", "limit"), [(5, 0.0, 0.02), (5, 0.05, 0.1), (8, 0.2, 0.3), (50, 0.05, 0.5)])
def test_news_leave_at_once(size: int, loss: float, limit: float) -> None:
    """At the 99th percentile, with 0.2 to 2 ms from member to member."""
    world = World(20, loss=loss)
    found = latencies(world, world.cluster(size), 100, 0.02)
    assert found[len(found) * 99 // 100] < limit


def test_a_burst_of_changes_shares_datagrams() -> None:
    world = World(21)
    hosts = world.cluster(5)
    world.run(10)
    before = sum(host.sent for host in hosts)
    found = latencies(world, hosts[:1] + hosts[1:], 100, 0.0)
    assert found[-1] < 0.1
    # 100 changes, 20 at each, once to each of four others, would be 400 datagrams before anything is passed on.
    assert sum(host.sent for host in hosts) - before < 400


def test_without_bursts_news_wait_for_the_tick() -> None:
    """Control."""
    world = World(20, timings=replace(LAN, burst_nodes=0, gossip_nodes=3))
    hosts = world.cluster(5)
    world.run(5)
    world.do(hosts[0], hosts[0].core.broadcast(b"change", world.now))
    begun = world.now
    world.until(lambda: any(host.messages for host in hosts[1:]), "the change", 5)
    assert world.now - begun > LAN.gossip_interval * 0.9


def test_thousands_of_changes_at_once_arrive_and_the_queue_empties() -> None:
    world = World(22)
    hosts = world.cluster(5)
    world.run(5)
    for number in range(3000):
        world.do(hosts[0], hosts[0].core.broadcast(b"%0100d" % number, world.now))
    world.until(lambda: all(len(set(host.messages)) >= 3000 for host in hosts[1:]), "all of it", 5)
    world.until(lambda: not len(hosts[0].core._outbox.news), "the queue to empty", 300)


def test_news_replace_older_news_about_the_same() -> None:
    world = World(23)
    hosts = world.cluster(3)
    world.run(5)
    world.part(hosts[:1], hosts[1:])
    for number in range(50):
        world.do(hosts[0], hosts[0].core.broadcast(b"load %d" % number, world.now, about="load"))
    world.run(0.1)
    world.part()
    world.until(lambda: all(host.messages for host in hosts[1:]), "the news", 5)
    assert {payload for host in hosts[1:] for _, payload in host.messages} == {b"load 49"}


def test_alone_nothing_is_kept() -> None:
    world = World(24)
    host = world.add("alone")
    for number in range(100):
        world.do(host, host.core.broadcast(b"change %d" % number, world.now))
    world.run(1)
    assert len(host.core._outbox.news) == 0


def test_user_state_goes_both_ways_before_it_is_merged() -> None:
    """What a member is told comes from the other, not from itself by way of the other."""
    world = World(25)
    a, b = world.add("a"), world.add("b")
    a.state, b.state = b"rows of a", b"rows of b"
    world.join(a, b)
    world.run(1)
    assert (a.merged, b.merged) == ([b"rows of b"], [b"rows of a"])


def test_whole_states_are_exchanged_now_and_then() -> None:
    world = World(26)
    hosts = world.cluster(4, meta=b"")  # none says that it can compare
    hosts[0].state = b"rows"
    world.run(200)
    assert all(b"rows" in host.merged for host in hosts[1:])


def test_an_idle_cluster_is_quiet() -> None:
    """SWIM: a ping and its answer a second and member, whatever the size, and a push/pull now and then."""
    world = World(27)
    hosts = world.cluster(20, keys=(bytes(32),))
    world.run(30)
    before = [(host.sent, host.sent_octets) for host in hosts]
    world.run(300)
    for host, (sent, octets) in zip(hosts, before, strict=True):
        assert (host.sent - sent) / 300 < 3
        assert (host.sent_octets - octets) / 300 < 500
