"""What is simulated for docs/scale.md: each scene makes a cluster that stands, lets something happen, and counts."""

from __future__ import annotations

import contextlib
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

from .lab import HERE

sys.path.insert(0, str(HERE.parent / "tests"))

from appswitch.gossip.effect import MergeState
from appswitch.gossip.member import Event, Member
from appswitch.gossip.probes import Prober, _Probe
from appswitch.gossip.settings import LAN, Timings
from gossip.formed import KEYS, LABEL, formed, shortcuts
from gossip.simulator import META, Host, World
from gossip.tables import Tables, tables

Figures = dict[str, Any]

#: Shares of the hosts whose time is told.
SHARES = (0.5, 0.9, 0.99, 0.9999)
VALUE = bytes(120)
"""As long as a service's row."""
_NO_EXCHANGE = replace(LAN, push_pull_interval=1e9)
"""From 1,000 hosts on whole states are not exchanged where they could only make things look better."""
_LARGE = 1000
_WITHOUT_LIFEGUARD = replace(LAN, awareness_max=1, suspicion_max_mult=1)


def timings(size: int) -> Timings:
    return _NO_EXCHANGE if size >= _LARGE else LAN


def share(sorted_times: list[float], hosts: int, part: float) -> float | None:
    """When so large a part of the hosts knew; None: never."""
    place = max(1, round(part * hosts + 0.4999)) - 1
    return sorted_times[place] if place < len(sorted_times) else None


def rows(size: int, loss: float, count: int, seed: int) -> Figures:
    """New rows, one after another, from hosts at random: when the others have them."""
    world = World(seed, timings(size), loss=loss)
    world.keep_events = False
    hosts = formed(world, size, lambda number: {b"s%d" % number: VALUE})
    world.run(1.0)
    told: dict[bytes, list[float]] = {}
    begun: dict[bytes, float] = {}

    def applied(host: str, changes: dict[bytes, bytes | None]) -> None:
        for key in changes:
            if key in begun:
                told[key].append(world.now - begun[key])

    for host in hosts:
        tables(host).applied = applied
    for number in range(count):
        key = b"news%d" % number
        begun[key], told[key] = world.now, []
        tables(world.rng.choice(hosts)).change({key: VALUE})
        end = world.now + 10
        while len(told[key]) < size - 1 and world.now < end:
            world.run(0.05)
    found = [[share(sorted(times), size - 1, part) for part in SHARES] for times in told.values()]
    return {"times": found}


@contextlib.contextmanager
def first_suspicions(world: World, died: dict[str, float], *, silent: bool = False) -> Iterator[dict[str, float]]:
    """When somebody's probe of a dead member failed for the first time, by the member's name.

    `silent`: that is all that is asked for, and nobody is told of it.
    """
    found: dict[str, float] = {}
    failed = Prober._failed

    def noted(self: Prober, probe: _Probe, now: float) -> None:
        if probe.target.name in died:
            found.setdefault(probe.target.name, world.now)
            if silent:
                self._end(probe, now)
                return
        failed(self, probe, now)

    with mock.patch.object(Prober, "_failed", noted):
        yield found


def detection(size: int, loss: float, deaths: int, worlds: int, seed: int) -> Figures:
    """Hosts die at random moments: how long until the first of the others suspects them."""
    took: list[float] = []
    for number in range(worlds):
        world = World(seed + number, timings(size), loss=loss)
        world.keep_events = False
        hosts = formed(world, size)
        world.run(0.5)
        died: dict[str, float] = {}

        def die(name: str, world: World = world, died: dict[str, float] = died) -> None:
            died[name] = world.now
            world.stop(name)

        for host in world.rng.sample(hosts, deaths):
            world.at(world.now + world.rng.random(), partial(die, host.name))
        with first_suspicions(world, died, silent=True) as found:
            world.until(lambda: len(found) == deaths, "all deaths to be suspected", 100, 0.1)
        took += [found[name] - died[name] for name in died]
    return {"took": took}


def everybody(size: int, loss: float, deaths: int, seed: int) -> Figures:
    """A host dies: from the first suspicion to the first verdict, and from there until all know."""
    found: Figures = {"suspicion": [], "spread": [], "whole": [], "false": 0}
    hosts: list[Host] = []
    for number in range(deaths):
        if sum(host.up for host in hosts) < 0.92 * size:  # too many have died here
            world = World(seed + number, timings(size), loss=loss)
            world.keep_events = False
            hosts = formed(world, size)
            world.run(0.5)
        victim = world.rng.choice([host for host in hosts if host.up])
        told: list[float] = []

        def seen(
            host: Host,
            member: Member,
            event: Event,
            victim: Host = victim,
            told: list[float] = told,
            world: World = world,
        ) -> None:
            if event is Event.FAILED:
                if member.name == victim.name:
                    told.append(world.now)
                else:
                    found["false"] += 1

        world.witness = seen
        died = {victim.name: world.now}
        world.stop(victim.name)
        left = sum(host.up for host in hosts)
        with first_suspicions(world, died) as first:
            world.until(lambda: len(told) == left, "all to know", 300, 0.1)  # noqa: B023
        found["suspicion"].append(told[0] - first[victim.name])
        found["spread"].append([share([when - told[0] for when in told], left, part) for part in SHARES])
        found["whole"].append((share(told, left, SHARES[-1]) or 0.0) - died[victim.name])
    return found


def idle(size: int, seconds: float, seed: int, whole: bool = False) -> Figures:
    """Nothing happens: what each host sends, in datagrams and in streams.

    `whole`: whole states are exchanged, as with members that do not understand digests.
    """
    world = World(seed)
    world.keep_events = False
    hosts = formed(world, size, lambda number: {b"s%d" % number: VALUE}, meta=b"" if whole else META)
    world.run(1.0)
    before = sent(hosts)
    world.run(seconds)
    return {name: (now - before[name]) / size / seconds for name, now in sent(hosts).items()}


def sent(hosts: list[Host]) -> dict[str, float]:
    """Octets with all headers, and datagrams."""
    streams = sum(host.stream_octets for host in hosts)
    return {
        "datagrams": sum(host.sent for host in hosts),
        "datagram_octets": sum(host.sent_octets for host in hosts) - streams,
        "stream_octets": streams,
    }


def lossy(size: int, loss: float, seconds: float, seed: int, repeated: bool = True) -> Figures:
    """Datagrams get lost, nobody dies: suspicions and false verdicts."""
    world = World(seed, LAN if repeated else replace(LAN, probe_repeat=1e9), loss=loss)
    world.keep_events = False
    hosts = formed(world, size)
    false: dict[tuple[str, int], None] = {}

    def seen(host: Host, member: Member, event: Event) -> None:
        if event is Event.FAILED:
            false[member.name, member.incarnation] = None

    world.witness = seen
    before = sent(hosts)
    world.run(seconds)
    after = sent(hosts)
    return {
        "hours": size * seconds / 3600,
        "suspected": sum(host.counts["gossip_probe_failed"] for host in hosts),
        "false": len(false),
        "datagram_octets": (after["datagram_octets"] - before["datagram_octets"]) / size / seconds,
    }


def slow(size: int, lag: float, lifeguard: bool, seconds: float, seed: int, paused: bool = False) -> Figures:
    """A tenth of the members hear everything late, by up to `lag` seconds: healthy ones that are declared dead.

    `paused`: they stand still for up to that, again and again, with half a second in between.
    """
    world = World(seed, LAN if lifeguard else _WITHOUT_LIFEGUARD)
    world.keep_events = False
    hosts = formed(world, size)
    if not lifeguard:
        for host in hosts:
            host.core._prober._tells = lambda target: False  # type: ignore[method-assign]
    late = hosts[: size // 10]
    names = {host.name for host in late}
    false: dict[tuple[str, int], None] = {}

    def seen(host: Host, member: Member, event: Event) -> None:
        if event is Event.FAILED and member.name not in names:
            false[member.name, member.incarnation] = None

    def lagging(host: Host) -> None:
        host.slow = world.rng.uniform(0, lag)
        world.at(world.now + lag / 3 * world.rng.uniform(0.5, 1.5), partial(lagging, host))

    def standing(host: Host) -> None:
        still = world.rng.uniform(0, lag)
        world.pause(host, still)
        world.at(world.now + still + world.rng.uniform(0.25, 0.75), partial(standing, host))

    world.witness = seen
    for host in late:
        (standing if paused else lagging)(host)
    world.run(seconds)
    return {"false": len(false), "accused": sum(host.counts["gossip_probe_failed"] for host in late)}


def load(size: int, services: int, changes: float, seconds: float, seed: int) -> Figures:
    """Many services, changes all the time: octets and CPU time of each host."""
    world = World(seed)
    world.keep_events = False
    each = max(1, services // size)
    hosts = formed(world, size, lambda number: {b"s%d.%d" % (number, one): VALUE for one in range(each)})
    one = hosts[0]
    heard: list[tuple[bytes, tuple[str, int]]] = []
    receive = one.core.receive

    def listening(data: bytes, source: tuple[str, int], now: float) -> Any:
        heard.append((data, source))
        return receive(data, source, now)

    number = 0

    def change() -> None:
        nonlocal number
        host = world.rng.choice(hosts)
        tables(host).change({b"s%d.%d" % (host.number - 1, number % each): b"%0120d" % number})
        number += 1
        world.at(world.now + world.rng.expovariate(changes), change)

    change()
    world.run(1.2)  # until as many news begin to go round as cease to
    before, known = sent(hosts), tables(one).replica.states()
    one.core.receive = listening  # type: ignore[method-assign]
    world.run(seconds)
    after = sent(hosts)
    found: Figures = {name: (after[name] - before[name]) / size / seconds for name in after}
    found["cpu"] = processing(heard, known, size) / seconds
    found["exchange"] = exchange(hosts[1])
    return found


def joining(size: int, seed: int) -> Figures:
    """A host joins: when the others have its row, and what went over streams for it."""
    world = World(seed, _NO_EXCHANGE)
    world.keep_events = False
    hosts = formed(world, size, lambda number: {b"s%d" % number: VALUE})
    world.run(1.0)
    before = {host.name: host.stream_octets for host in hosts}
    told: list[float] = []
    begun = world.now

    def applied(host: str, changes: dict[bytes, bytes | None]) -> None:
        if b"news" in changes:
            told.append(world.now - begun)

    for host in hosts:
        tables(host).applied = applied
    new, seed_host = world.add("new", delegate=Tables, label=LABEL, keys=KEYS), hosts[0]
    tables(new).change({b"news": VALUE})
    world.join(new, seed_host)
    world.run(0.02)
    tables(new).announce()
    world.run(10.0)
    others = [host.stream_octets - before[host.name] for host in hosts[1:]]
    return {
        "times": [share(sorted(told), size, part) for part in SHARES],
        "seed": seed_host.stream_octets - before[seed_host.name],
        "new": new.stream_octets,
        "others": sum(others) / len(others),
        "most": max(others),
    }


def processing(heard: list[tuple[bytes, tuple[str, int]]], known: bytes, size: int) -> float:
    """CPU seconds for what one host heard: opened, decoded, applied and passed on by a router, as it is really done."""
    with real():
        world = World(1)
        world.keep_events = False
        host = world.add("listener", delegate=Tables, label=LABEL, keys=KEYS)
        others = [world.add(f"n{number}", label=LABEL, keys=KEYS) for number in range(size)]
        for other in others:
            tables(host).replica.alive(other.name)
        tables(host).replica.merge(known)
        core = host.core
        for other in others[:64]:
            core._roster.alive(core._roster.describe(other.core._roster.local), world.now)
        sealed = [(core._envelope.wrap(data[len(core._envelope._header) + 29 :]), source) for data, source in heard]
        begun = time.process_time()
        for data, source in sealed:
            world._receive(host, data, source)
        return time.process_time() - begun


@contextlib.contextmanager
def real() -> Iterator[None]:
    """Undo the simulator's shortcuts."""
    from appswitch.cluster import wire as replica_wire
    from appswitch.gossip import core, seal, wire

    with (
        mock.patch.object(core, "KeyRing", seal.KeyRing),
        mock.patch.object(wire, "decode", getattr(wire.decode, "__wrapped__", wire.decode)),
        mock.patch.object(
            replica_wire, "read_message", getattr(replica_wire.read_message, "__wrapped__", replica_wire.read_message)
        ),
    ):
        yield


def exchange(host: Host) -> Figures:
    """One exchange of whole states: its octets each way, and the CPU time of taking one in and answering."""
    stream = host.core.streams.push_pull(("10.0.0.1", 1), False, 0.0)
    begun = time.process_time()
    message = host.core.streams.reader().feed(stream.data)
    assert message is not None
    answer, effects = host.core.serve(message, host.core._last_burst)
    assert answer is not None
    for effect in effects:
        if isinstance(effect, MergeState):
            tables(host).replica.merge(effect.state)
    return {"octets": len(answer), "cpu": time.process_time() - begun}


SCENES: dict[str, Callable[..., Figures]] = {
    scene.__name__: scene for scene in (rows, detection, everybody, idle, lossy, slow, load, joining)
}


def play(name: str, arguments: dict[str, Any]) -> Figures:
    """One scene in this process."""
    random.seed(0)
    begun = time.process_time()
    with shortcuts():
        figures = SCENES[name](**arguments)
    return figures | {"seconds": time.process_time() - begun}


def mean(values: list[float]) -> float:
    return statistics.fmean(values)
