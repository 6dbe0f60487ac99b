"""Hostile datagrams and hostile members: nothing raises, everything is bounded and counted, the cluster lives on."""

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appswitch.gossip import wire
from appswitch.gossip.core import Core
from appswitch.gossip.effect import Changed, Datagram
from appswitch.gossip.envelope import Envelope, make_compound
from appswitch.gossip.member import Event
from appswitch.gossip.refused import COUNTERS
from appswitch.gossip.settings import LAN, Limits, NodeSettings
from appswitch.gossip.wire import Message

from . import messages
from .simulator import PORT, World

STRANGER = ("10.66.6.6", 666)
KEY = bytes(range(16))


def core(counts: Counter[str], **changes: object) -> Core:
    def count(name: str, n: int) -> None:
        assert name in COUNTERS
        counts[name] += n

    made = replace(NodeSettings(name="n", bind=("10.0.0.1", PORT)), **changes)  # type: ignore[arg-type]
    return Core(made, made.bind, rng=random.Random(1), count=count, local_state=lambda join: b"", now=0.0)


@settings(max_examples=100)
@given(st.lists(st.binary(max_size=200), max_size=10), st.sampled_from([(), (KEY,)]), st.sampled_from(["", "c1"]))
def test_garbage_changes_nothing(garbage: list[bytes], keys: tuple[bytes, ...], label: str) -> None:
    counts: Counter[str] = Counter()
    ours = core(counts, keys=keys, label=label)
    for data in garbage:
        for octets in (data, b"\x07" + data, b"\x09" + data, b"\x0c" + data, b"\xf4\x02c1" + data):
            effects = ours.receive(octets, STRANGER, 1.0)
            if keys:
                assert effects == []
            assert not any(isinstance(effect, Changed) for effect in effects)
    assert [member.name for member in ours.members()] == ["n"]
    if keys:
        assert sum(counts.values()) == 2 * counts["gossip_received"], "each was refused, and for one reason"


@settings(max_examples=100)
@given(
    st.lists(st.lists(messages.simple, min_size=1, max_size=6) | messages.push_pulls, max_size=10),
    st.lists(st.floats(0, 20), min_size=10, max_size=10),
)
def test_a_member_may_say_whatever_it_likes(said: list[list[Message] | wire.PushPull], waits: list[float]) -> None:
    """One that has the key and follows the grammar, and otherwise no rule."""
    counts: Counter[str] = Counter()
    limits = Limits(members=6, queue=10, relays=3)
    ours = core(counts, limits=limits)
    around = Envelope("", None, 65000)
    now = 0.0
    for words, wait in zip(said, waits, strict=False):
        if isinstance(words, wire.PushPull):
            assert messages.refusal(ours.serve, words, now) in (None, "incompatible")
        else:
            ours.receive(around.wrap(make_compound([wire.encode(word) for word in words])), STRANGER, now)
        end = now + wait
        while ours.due() <= end:
            now = max(now, ours.due())
            ours.tick(now)
            assert ours.due() > now, "what was due is done"
        now = end
        assert len(ours.members()) <= 6
        assert len(ours._outbox.news) <= 10
        assert len(ours._prober._relays) <= 3
        assert ours.local.reachable, "nobody but ourselves says that we are gone"


def test_strangers_do_not_disturb_a_cluster() -> None:
    world = World(30)
    hosts = world.cluster(5, keys=(KEY,), label="c1")
    rng = random.Random(5)
    recorded: list[bytes] = []
    original = world._datagram

    def listening(sender: object, data: bytes, to: object) -> None:
        recorded.append(data)
        original(sender, data, to)  # type: ignore[arg-type]

    world._datagram = listening  # type: ignore[method-assign,assignment]
    world.run(30)
    before = [host.states() for host in hosts]
    for _ in range(3000):
        host = rng.choice(hosts)
        data = bytearray(rng.choice(recorded))
        match rng.randrange(3):
            case 0:
                data[rng.randrange(4, len(data))] ^= 1 << rng.randrange(8)
            case 1:
                data = bytearray(rng.randbytes(rng.randrange(1400)))
            case 2:
                del data[rng.randrange(len(data)) :]
        world.do(host, host.core.receive(bytes(data), STRANGER, world.now))
        world.run(0.01)
    assert [host.states() for host in hosts] == before
    assert all(event == Event.JOINED for host in hosts for _, _, event in host.events)
    refused = Counter[str]()
    for host in hosts:
        refused.update(host.counts)
    assert refused["gossip_wrong_key"] > 500
    assert refused["gossip_foreign_cluster"] > 500


def test_old_datagrams_played_again_kill_nobody() -> None:
    """A sealed datagram stays valid. What it says of members is old news by its incarnation, or refuted at once."""
    world = World(31)
    hosts = world.cluster(4, keys=(KEY,))
    recorded: list[bytes] = []
    original = world._datagram

    def listening(sender: object, data: bytes, to: object) -> None:
        recorded.append(data)
        original(sender, data, to)  # type: ignore[arg-type]

    world._datagram = listening  # type: ignore[method-assign,assignment]
    world.stop("n3")
    world.run(60)
    again = world.add("n3", keys=(KEY,))
    everybody = [*hosts[:3], again]
    world.join(again, hosts[0])
    world.run(10)
    seen = [len(host.events) for host in everybody]
    for data in list(recorded):
        for host in everybody:
            world.do(host, host.core.receive(data, STRANGER, world.now))
    world.run(60)
    assert world.agree(everybody)
    for host, old in zip(everybody, seen, strict=True):
        assert not [event for _, _, event in host.events[old:] if event == Event.FAILED]


def test_a_full_roster_forgets_the_longest_dead_first() -> None:
    counts: Counter[str] = Counter()
    ours = core(counts, limits=Limits(members=3))

    def alive(name: str, now: float) -> None:
        message = wire.Alive(1, name, bytes([10, 0, 0, 2]), 1, b"", bytes([1, 5, 2, 1, 1, 1]))
        ours.receive(wire.encode(message), STRANGER, now)

    alive("a", 1.0)
    alive("b", 1.0)
    alive("c", 1.0)
    assert {member.name for member in ours.members()} == {"n", "a", "b"}
    assert counts["gossip_full"] == 1
    ours.receive(wire.encode(wire.Dead(1, "a", "b")), STRANGER, 2.0)
    ours.receive(wire.encode(wire.Dead(1, "b", "a")), STRANGER, 3.0)
    alive("c", 4.0)
    assert {member.name for member in ours.members()} == {"n", "b", "c"}


def test_probes_for_others_are_bounded() -> None:
    counts: Counter[str] = Counter()
    ours = core(counts, limits=Limits(relays=5))
    for seq in range(8):
        ours.receive(wire.encode(wire.IndirectPing(seq, "10.0.0.9", PORT, "x", True)), STRANGER, 0.0)
    assert counts["gossip_busy"] == 3
    effects = ours.tick(LAN.probe_timeout + 0.01)
    nacks = [effect.data for effect in effects if isinstance(effect, Datagram) and effect.to == STRANGER]
    assert nacks == [wire.encode(wire.Nack(seq)) for seq in range(5)]


def test_a_ping_for_another_name_is_not_answered() -> None:
    """After an address changed hands, the new holder must not vouch for the old."""
    counts: Counter[str] = Counter()
    ours = core(counts)
    assert ours.receive(wire.encode(wire.Ping(1, "m")), STRANGER, 0.0) == []
    assert counts["gossip_misdirected"] == 1
    [answer] = ours.receive(wire.encode(wire.Ping(1, "n")), STRANGER, 0.0)
    assert answer == Datagram(wire.encode(wire.Ack(1)), STRANGER)
    octets, _ = ours.serve(wire.Ping(1, "m"), 0.0)
    assert octets is None


def test_a_suspect_is_told_with_the_ping() -> None:
    """Lifeguard's buddy: it hears of the suspicion from whoever reaches it, though the news are long sent."""
    ours = core(Counter())
    alive = wire.Alive(1, "a", bytes([10, 0, 0, 2]), PORT, b"", bytes([1, 5, 2, 1, 1, 1]))
    ours.receive(wire.encode(alive), STRANGER, 0.0)
    ours.receive(wire.encode(wire.Suspect(1, "a", "b")), STRANGER, 0.0)
    ours._outbox.news.clear()
    now = 0.0
    for _ in range(10):
        now = ours.due()
        for effect in ours.tick(now):
            if isinstance(effect, Datagram):
                [ping, doubt] = [wire.decode(part) for part in Envelope("", None, 1400).unwrap(effect.data)]
                assert isinstance(ping, wire.Ping)
                assert doubt == wire.Suspect(1, "a", "n")
                return
    raise AssertionError("it was never pinged")


def test_news_go_to_the_dead_for_a_while() -> None:
    ours = core(Counter())
    alive = wire.Alive(1, "a", bytes([10, 0, 0, 2]), PORT, b"", bytes([1, 5, 2, 1, 1, 1]))
    ours.receive(wire.encode(alive), STRANGER, 0.0)
    ours.receive(wire.encode(wire.Dead(1, "a", "b")), STRANGER, 0.0)
    heard = [effect for effect in ours.tick(0.3) if isinstance(effect, Datagram) and effect.to[0] == "10.0.0.2"]
    assert wire.encode(wire.Dead(1, "a", "b")) in heard[0].data
    later = LAN.gossip_to_the_dead + 1
    ours.tick(later)
    ours.broadcast(b"x", later)
    assert not [
        effect
        for seconds in range(5)
        for effect in ours.tick(later + seconds)
        if isinstance(effect, Datagram) and effect.to[0] == "10.0.0.2"
    ]


def test_the_health_of_a_member_whose_helpers_are_silent_too() -> None:
    """Lifeguard: helpers that neither confirm nor deny hint that it is we who hear nothing."""
    ours = core(Counter())
    for number in range(2, 6):
        alive = wire.Alive(1, f"m{number}", bytes([10, 0, 0, number]), PORT, b"", bytes([1, 5, 2, 1, 1, 1]))
        ours.receive(wire.encode(alive), STRANGER, 0.0)
    scores = []
    for _ in range(2000):
        ours.tick(ours.due())
        scores.append(ours.health)
    assert scores[0] == 0
    assert max(scores) == 7


@pytest.mark.parametrize("name", ["", "x" * 256])
def test_names_that_no_member_can_have(name: str) -> None:
    with pytest.raises(ValueError):
        core(Counter(), name=name)
    with pytest.raises(ValueError):
        core(Counter(), meta=bytes(513))
    with pytest.raises(ValueError):
        core(Counter(), label="x" * 256)
