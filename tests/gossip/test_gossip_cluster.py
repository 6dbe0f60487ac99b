"""Whole clusters in virtual time: who knows whom, who is declared dead, and when."""

from dataclasses import replace

import pytest

from appswitch.gossip import wire
from appswitch.gossip.member import Event, State
from appswitch.gossip.settings import LAN

from .simulator import PORT, Host, World


def failed(hosts: list[Host]) -> list[tuple[float, str]]:
    return [(when, name) for host in hosts for when, name, event in host.events if event == Event.FAILED]


@pytest.mark.parametrize("size", [3, 10, 50])
def test_members_join_through_one_and_all_know_all(size: int) -> None:
    world = World(size)
    hosts = world.cluster(size)
    wanted = sorted(host.settings.name for host in hosts)
    for host in hosts:
        joined = sorted(name for _, name, event in host.events if event == Event.JOINED)
        assert sorted([*joined, host.settings.name]) == wanted
        assert {event for _, _, event in host.events} == {Event.JOINED}


def test_all_may_join_at_once_and_through_whomever() -> None:
    world = World(3, loss=0.1)
    hosts = [world.add(f"n{number}") for number in range(20)]
    for number, host in enumerate(hosts[1:]):
        world.join(host, hosts[number // 2])
    world.until(lambda: world.agree(hosts), "all to know all")


@pytest.mark.parametrize(("size", "limit"), [(2, 8.0), (3, 10.0), (10, 20.0), (50, 20.0)])
def test_a_death_is_noticed_by_all(size: int, limit: float) -> None:
    """Until the first probe a round over all at worst, then the suspicion; short, since the others confirm it."""
    world = World(4)
    hosts = world.cluster(size)
    world.run(3)
    world.stop("n1")
    rest = [host for host in hosts if host.up]
    world.until(lambda: all(host.states()["n1"] == State.DEAD for host in rest), "n1 to be dead for all", limit)
    assert {name for _, name in failed(rest)} == {"n1"}
    assert len(failed(rest)) == size - 1
    world.run(30)
    assert all(host.events[-1][1] == "n1" for host in rest)


def test_many_die_at_once() -> None:
    world = World(6)
    hosts = world.cluster(20)
    for number in range(0, 16, 2):
        world.stop(f"n{number}")
    rest = [host for host in hosts if host.up]
    dead = {f"n{number}" for number in range(0, 16, 2)}
    world.until(lambda: len(failed(rest)) == len(rest) * len(dead), "the dead to be noticed", 120)
    assert {name for _, name in failed(rest)} == dead
    assert world.agree(rest)


@pytest.mark.parametrize("loss", [0.0, 0.05, 0.2])
def test_nobody_is_taken_for_dead_because_datagrams_are_lost(loss: float) -> None:
    world = World(7, loss=loss)
    hosts = world.cluster(10)
    world.run(300)
    assert failed(hosts) == []
    if not loss:
        assert all(host.counts["gossip_probe_failed"] == 0 for host in hosts)


def test_without_help_loss_makes_suspects() -> None:
    """Control: what the test above shows is the work of indirect and TCP probes, and then of refutation."""
    alone = replace(LAN, indirect_probes=0, probe_repeat=1e9)
    world = World(7, timings=alone, loss=0.2)
    hosts = [world.add(f"n{number}") for number in range(10)]
    for host in hosts:
        host.core._roster.local.versions = bytes([1, 2, 2, 1, 1, 1])  # too old to be asked by TCP
        world.join(host, hosts[0])
    world.run(300)
    assert sum(host.counts["gossip_probe_failed"] for host in hosts) > 100
    assert sum(host.counts["gossip_refuted"] for host in hosts) > 10


def test_two_that_cannot_reach_each_other_hear_through_others() -> None:
    world = World(8)
    hosts = world.cluster(5)
    pair = {hosts[0].address, hosts[1].address}
    world.network.cut = lambda source, to: {source, to} == pair
    world.run(200)
    assert all(host.counts["gossip_probe_failed"] == 0 for host in hosts)


def test_two_that_cannot_reach_each_other_suspect_each_other_when_nobody_helps() -> None:
    """Control of the test above; the others' refutations still keep them alive."""
    world = World(8, timings=replace(LAN, indirect_probes=0))
    hosts = world.cluster(5)
    pair = {hosts[0].address, hosts[1].address}
    world.network.cut = lambda source, to: {source, to} == pair
    world.run(200)
    assert all(host.counts["gossip_probe_failed"] > 5 for host in hosts[:2])
    assert failed(hosts) == []


def test_a_member_that_only_tcp_reaches_stays() -> None:
    world = World(9)
    hosts = world.cluster(4)
    world.network.no_datagrams = lambda source, to: hosts[3].address in (source, to)
    world.run(200)
    assert failed(hosts) == []
    assert sum(host.counts["gossip_udp_lost"] for host in hosts) > 50


def test_a_slow_member_blames_itself() -> None:
    """Lifeguard: one that is always late raises its own time-outs instead of calling all others dead."""

    def accusations(most: int) -> int:
        world = World(10, timings=replace(LAN, awareness_max=most))
        hosts = world.cluster(8)
        # Its answers come after the ordinary end of a probe, and before the longest.
        hosts[0].slow = 1.5
        world.run(200)
        assert failed(hosts[1:]) == []
        return hosts[0].counts["gossip_probe_failed"]

    assert accusations(8) * 2 < accusations(1)


def test_one_that_leaves_has_left() -> None:
    world = World(11)
    hosts = world.cluster(10)
    leaver = hosts[4]
    world.do(leaver, leaver.core.leave(world.now))
    world.until(lambda: leaver.core.told, "the farewell to be said", 3)
    world.stop("n4")
    rest = [host for host in hosts if host.up]
    world.until(lambda: all(host.states()["n4"] == State.LEFT for host in rest), "all to know", 2)
    world.run(60)
    assert failed(rest) == []
    assert all(host.states()["n4"] == State.LEFT for host in rest)
    assert all((name, event) != ("n4", Event.FAILED) for host in rest for _, name, event in host.events)


@pytest.mark.parametrize("wait", [0.5, 60.0])
@pytest.mark.parametrize("address", [None, "10.9.9.9"])
def test_a_member_restarts_under_its_name(wait: float, address: str | None) -> None:
    """Whether its death was noticed or not, at the same address or at another."""
    world = World(12)
    hosts = world.cluster(5)
    world.stop("n3")
    world.run(wait)
    again = world.add("n3", address)
    rest = [host for host in hosts if host.up]
    world.join(again, hosts[0])
    world.until(lambda: world.agree([*rest, again]), "it to be back", 5)
    world.run(60)
    assert world.agree([*rest, again])
    if wait > 1 or address:
        assert again.core.local.incarnation == 2
    for host in rest:
        assert host.core.member("n3") == again.core.local


def test_an_address_changes_while_everything_runs() -> None:
    world = World(13)
    hosts = world.cluster(6)
    world.run(10)
    world.move(hosts[2], "10.9.9.9")
    others = [host for host in hosts if host is not hosts[2]]
    moved = hosts[2].core.local
    took = world.until(lambda: all(host.core.member("n2") == moved for host in others), "the new address", 1)
    assert took < 0.1
    world.run(60)
    assert failed(hosts) == []
    assert all(("n2", Event.UPDATED) in [(name, event) for _, name, event in host.events] for host in others)


def test_new_meta_is_known_to_all() -> None:
    world = World(14)
    hosts = world.cluster(12)
    world.do(hosts[0], hosts[0].core.set_meta(b"role=db", world.now))
    world.until(lambda: all(host.core.member("n0") == hosts[0].core.local for host in hosts), "the new meta", 3)
    with pytest.raises(ValueError):
        hosts[0].core.set_meta(bytes(513), world.now)


@pytest.mark.parametrize(("left", "right"), [(2, 3), (1, 4), (10, 10)])
def test_a_partition_heals(left: int, right: int) -> None:
    world = World(15)
    hosts = world.cluster(left + right)
    world.part(hosts[:left], hosts[left:])
    names = {host.settings.name for host in hosts[:left]}
    world.until(
        lambda: (
            all(host.alive() == names for host in hosts[:left])
            and all(not host.alive() & names for host in hosts[left:])
        ),
        "each side to be alone",
        300,
    )
    world.run(600)
    world.part()
    world.until(lambda: world.agree(hosts), "both sides to be one again", 60)


def test_without_trying_the_failed_again_a_partition_does_not_heal() -> None:
    """Control of the test above."""
    world = World(15, timings=replace(LAN, reconnect_interval=1e9))
    hosts = world.cluster(5)
    world.part(hosts[:2], hosts[2:])
    world.run(600)
    world.part()
    world.run(600)
    assert not world.agree(hosts)


def test_one_wrongly_accused_says_that_it_lives() -> None:
    world = World(16)
    hosts = world.cluster(5)
    accuse(world, hosts)
    world.run(60)
    assert failed(hosts) == []
    assert all(host.core.member("n4") == hosts[4].core.local for host in hosts)
    assert hosts[4].core.local.incarnation == 2


def test_one_that_cannot_refute_is_dead() -> None:
    """Control of the test above."""
    world = World(16)
    hosts = world.cluster(5)
    hosts[4].core._roster._refute = lambda accused: None  # type: ignore[method-assign]
    accuse(world, hosts)
    world.run(60)
    assert {name for _, name in failed(hosts)} == {"n4"}


def accuse(world: World, hosts: list[Host]) -> None:
    """n1 says that it had no answer from n4."""
    message = wire.encode(wire.Suspect(1, "n4", "n1"))
    world.do(hosts[0], hosts[0].core.receive(message, (hosts[1].address, PORT), world.now))
    assert hosts[0].states()["n4"] == State.SUSPECT


def test_two_of_one_name_do_not_shout_each_other_down() -> None:
    """Each claims the name for its address; that is counted, and costs little."""
    world = World(17)
    hosts = world.cluster(4)
    double = world.add("n9")
    world.join(double, hosts[0])
    world.run(1)
    world.hosts["other n9"] = world.hosts.pop("n9")
    other = world.add("n9", "10.9.9.9")
    world.join(other, hosts[0])
    world.run(5)
    before = sum(host.sent for host in [*hosts, double, other])
    world.run(60)
    everybody = [*hosts, double, other]
    assert sum(host.counts["gossip_conflict"] for host in everybody) > 0
    assert (sum(host.sent for host in everybody) - before) / 60 / len(everybody) < 20  # datagrams a second and member


def test_equal_seeds_make_equal_runs() -> None:
    def trace(seed: int) -> list[object]:
        world = World(seed, loss=0.1)
        hosts = world.cluster(8)
        world.stop("n5")
        world.run(60)
        return [(host.events, host.sent, host.sent_octets) for host in hosts]

    assert trace(18) == trace(18)
    assert trace(18) != trace(19)


def test_a_farewell_that_comes_late_still_counts() -> None:
    """One host lost it and declared the member dead: it learns better at the next exchange of states."""
    world = World(19)
    hosts = world.cluster(3)
    world.part(hosts[:1], hosts[1:])
    world.do(hosts[2], hosts[2].core.leave(world.now))
    world.run(1)
    world.stop("n2")
    world.until(lambda: hosts[0].states()["n2"] == State.DEAD, "n2 to be dead for n0")
    world.part()
    world.until(lambda: hosts[0].states()["n2"] == State.LEFT, "n0 to know that it left", 120)
    assert [event for _, name, event in hosts[0].events if name == "n2"] == [Event.JOINED, Event.FAILED]
