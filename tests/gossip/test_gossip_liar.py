"""A member that lies about others: who lives says so, lies are counted, memory is bounded, and it is over with them."""

import random

import pytest

from appswitch.gossip import wire
from appswitch.gossip.digest import Tree
from appswitch.gossip.envelope import Envelope, make_compound
from appswitch.gossip.member import Event
from appswitch.gossip.seal import KeyRing
from appswitch.gossip.settings import Limits
from appswitch.gossip.wire import Message

from .simulator import PORT, Host, World
from .tables import Tables, equal, tables

KEY = bytes(range(32))
VERSIONS = bytes([1, 5, 2, 1, 1, 1])


def lies(rng: random.Random, victim: Host, liar: str) -> list[Message]:
    """About a member as it is now, and about members that nobody has ever met."""
    name, incarnation = victim.name, victim.core.local.incarnation
    stranger = f"nobody-{rng.randrange(30)}"
    return [
        wire.Suspect(incarnation, name, liar),
        wire.Suspect(incarnation + rng.randrange(5), name, stranger),
        wire.Dead(incarnation, name, liar),
        wire.Dead(incarnation, name, name),  # "it has left"
        wire.Alive(1, stranger, elsewhere(rng), PORT, bytes(512), VERSIONS),
        wire.Alive(1, stranger, elsewhere(rng), PORT, b"another", VERSIONS),
    ]


def elsewhere(rng: random.Random) -> bytes:
    return bytes([10, 9, 9, rng.randrange(1, 255)])


def told(rng: random.Random, said: list[Message]) -> bytes:
    """Some of it, sealed with the cluster's key."""
    chosen = [wire.encode(lie) for lie in rng.sample(said, 3)]
    return Envelope("", KeyRing([KEY]), 60000).wrap(make_compound(chosen))


@pytest.mark.parametrize("seed", range(3))
def test_a_liar_is_outlived(seed: int) -> None:
    world, rng = World(100 + seed), random.Random(seed)
    limits = Limits(members=40)
    hosts = world.cluster(5, keys=(KEY,), limits=limits)
    world.run(5)
    for _ in range(200):
        said = lies(rng, rng.choice(hosts), "liar")
        for host in rng.sample(hosts, 2):
            world.do(host, host.core.receive(told(rng, said), ("10.6.6.6", PORT), world.now))
        world.run(0.1)
        for host in hosts:
            assert host.core.local.reachable
            assert len(host.core.members()) <= limits.members
    assert sum(host.counts["gossip_refuted"] for host in hosts) > 10
    # It has ended. Whom nobody has ever met dies in everybody's eyes; those that live are alive, where they are.
    names = {host.name for host in hosts}
    world.until(lambda: all(host.alive() == names for host in hosts), "the truth", 1200, 1.0)
    for host in hosts:
        for other in hosts:
            seen = host.core.member(other.name)
            assert seen is not None
            assert (seen.address, seen.meta) == (other.core.local.address, other.core.local.meta)
    seen_before = [len(host.events) for host in hosts]
    world.run(60)
    for host, before in zip(hosts, seen_before, strict=True):
        assert not [name for _, name, event in host.events[before:] if event == Event.FAILED and name in names]


@pytest.mark.parametrize("lie", ["equal", "different"])
def test_a_liar_about_digests_hides_nothing_and_costs_little(lie: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that one has missed are found by comparing with the others; the liar's differences end the talk."""
    world = World(40)
    hosts = world.cluster(5, delegate=Tables)
    liar, author, missing = hosts[0], hosts[1], hosts[4]
    truth = Tree.answer
    answers: list[str] = []

    def answer(tree: Tree, prefix: str, digest: bytes) -> object:
        if tree is not lying:
            return truth(tree, prefix, digest)
        answers.append(prefix)
        return None if lie == "equal" else tuple(bytes([number]) * 8 for number in range(16))

    lying: Tree | None = None
    make = liar.core.streams._exchanger._tree

    def made(salt: bytes) -> Tree:
        nonlocal lying
        lying = make(salt)
        return lying

    liar.core.streams._exchanger._tree = made  # type: ignore[method-assign]
    monkeypatch.setattr(Tree, "answer", answer)
    world.run(5)
    world.network.no_datagrams = lambda source, to: source == author.address
    tables(author).change({b"k": b"v"})
    for host in hosts:
        host.core._outbox.news.clear()
    world.network.no_datagrams = None
    before = [host.stream_octets for host in hosts]
    world.until(lambda: equal(hosts) and len(answers) > 3, "rows and lies", 600)
    assert tables(missing).replica.rows(author.name) == {b"k": b"v"}
    spent = [host.stream_octets - old for host, old in zip(hosts, before, strict=True)]
    assert max(spent) < 100_000
    world.run(60)
    assert world.agree(hosts)
