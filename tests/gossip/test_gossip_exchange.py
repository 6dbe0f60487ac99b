"""Conversations between members: what differs gets told, nothing else, and to nobody who does not understand it."""

import asyncio
import random
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appswitch.gossip import exchange, tags, wire
from appswitch.gossip.core import Core
from appswitch.gossip.digest import DEPTH, NODES, SALT, Item
from appswitch.gossip.effect import Effect, MergeState, Stream, Told
from appswitch.gossip.exchange import FETCH, Compare, Compared, Fetch, Fetched, Said, Swap, Swapped
from appswitch.gossip.member import State
from appswitch.gossip.refused import COUNTERS, Refused
from appswitch.gossip.settings import NodeSettings
from appswitch.gossip.wire import Exchange, Known, PushPull

from . import messages
from .nodes import settings as node_settings
from .nodes import started, until
from .simulator import META, PORT, Host, World
from .tables import Tables, equal, tables

MOST, OCTETS = 1000, 1 << 16
SALTED = bytes(SALT)
versions = st.dictionaries(messages.names, st.binary(max_size=exchange.VERSION), max_size=5)
knowns = st.lists(st.builds(Known, messages.alives, st.sampled_from(State)), max_size=4).map(tuple)
digests = st.binary(min_size=8, max_size=8)
items = st.builds(Item, st.integers(0, 1), messages.names, st.binary(max_size=exchange.VERSION))


def nodes_of(depth: int) -> st.SearchStrategy[tuple[tuple[str, bytes], ...]]:
    prefixes = st.sets(st.text("0123456789abcdef", min_size=depth, max_size=depth), min_size=1, max_size=20)
    return st.tuples(prefixes.map(sorted), digests).map(lambda drawn: tuple((one, drawn[1]) for one in drawn[0]))


said = st.one_of(
    st.builds(Compare, st.binary(min_size=SALT, max_size=SALT), st.integers(0, DEPTH).flatmap(nodes_of)),
    st.builds(
        Compared,
        st.lists(
            st.none() | st.lists(items, max_size=4).map(tuple) | st.lists(digests, min_size=16, max_size=16).map(tuple),
            max_size=5,
        ).map(tuple),
    ),
    st.builds(Swap, knowns, st.lists(messages.names, max_size=5).map(tuple), versions),
    st.builds(Swapped, knowns),
    st.builds(Fetch, versions),
    st.builds(Fetched, st.binary(max_size=1000)),
)


def refusal(data: bytes, most: int = MOST, octets: int = OCTETS) -> str | None:
    return messages.refusal(exchange.decode, data, most, octets)


# The wire


@given(said)
def test_what_is_said_is_understood(one: Said) -> None:
    assert exchange.decode(exchange.encode(one), MOST, OCTETS) == one


@given(said, st.integers(0, 1 << 16), st.binary(min_size=1, max_size=20))
def test_anything_else_is_refused(one: Said, at: int, junk: bytes) -> None:
    whole = exchange.encode(one)
    assert refusal(whole[: at % len(whole)]) == "malformed"
    assert refusal(whole + junk) == "malformed"
    assert refusal(junk) in (None, "malformed")
    place = at % len(whole)
    assert refusal(whole[:place] + junk + whole[place + len(junk) :]) in (None, "malformed")


def packed(*fields: object) -> bytes:
    return bytes(msgpack.packb(fields, use_bin_type=False))


@pytest.mark.parametrize(
    "lie",
    [
        packed(1, SALTED, []),
        packed(1, SALTED[1:], [["", SALTED]]),
        packed(1, SALTED, [["a", SALTED], ["a", SALTED]]),
        packed(1, SALTED, [["b", SALTED], ["a", SALTED]]),
        packed(1, SALTED, [["", SALTED], ["a", SALTED]]),
        packed(1, SALTED, [["g", SALTED]]),
        packed(1, SALTED, [["A", SALTED]]),
        packed(1, SALTED, [["0" * (DEPTH + 1), SALTED]]),
        packed(1, SALTED, [["é", SALTED]]),
        packed(1, SALTED, [[f"{number:04x}", SALTED] for number in range(NODES + 1)]),
        packed(2, [[SALTED] * 15]),
        packed(2, [[SALTED] * 15 + [b""]]),
        packed(2, [None] * (NODES + 1)),
        packed(2, [[[2, "a", b""]]]),
        packed(2, [[[0, "", b""]]]),
        packed(2, [[[0, "a\n", b""]]]),
        packed(2, [[[0, "a", bytes(exchange.VERSION + 1)]]]),
        packed(2, [[[0, "a", b""]] * 900, [[0, "a", b""]] * 900]),
        packed(3, [], ["a"] * (MOST + 1), []),
        packed(3, [["a", bytes(5), 1, b"", 1, 0, b""]], [], []),
        packed(3, [["a", bytes(4), 1, b"", 1, 4, b""]], [], []),
        packed(3, [["a", bytes(4), 1, bytes(513), 1, 0, b""]], [], []),
        packed(5, [[f"h{number}", b""] for number in range(FETCH + 1)]),
        packed(6, bytes(OCTETS + 1)),
        packed(7),
        packed(),
        packed(True, SALTED, [["", SALTED]]),
        b"\xdd\xff\xff\xff\xff",
        b"\x92\x02\xdd\xff\xff\xff\xff",
        b"\x92\x06\xc6\xff\xff\xff\xff",
        b"\x92\x02" + b"\x91" * 10000,
        b"\x80",
        b"",
    ],
)
def test_lies_that_are_refused(lie: bytes) -> None:
    assert refusal(lie) == "malformed"


# Two members


class Rows:
    """A ledger of names and versions; what a part tells of are the names."""

    def __init__(self, held: Mapping[str, bytes]) -> None:
        self.held = dict(held)
        self.heard: dict[str, bytes] = {}

    def versions(self) -> Mapping[str, bytes]:
        return self.held

    def part(self, wanted: Mapping[str, bytes]) -> bytes:
        return packed(*((name, self.held[name]) for name, known in wanted.items() if self.held.get(name, b"") > known))

    def told(self, versions: Mapping[str, bytes]) -> None:
        self.heard |= versions


class Member:
    """One of two, with what it was told."""

    def __init__(self, name: str, number: int, meta: bytes = META, held: Mapping[str, bytes] | None = None) -> None:
        self.counts: Counter[str] = Counter()
        self.rows = Rows(held or {})
        self.said: list[type] = []
        self.octets = 0
        self.merged: list[bytes] = []
        made = NodeSettings(name=name, bind=(f"10.0.0.{number}", PORT), meta=meta)
        self.core = Core(
            made,
            made.bind,
            rng=random.Random(number),
            count=self._count,
            local_state=lambda join: b"whole",
            ledger=self.rows,
            now=0.0,
        )

    def _count(self, name: str, n: int) -> None:
        assert name in COUNTERS
        self.counts[name] += n

    def knows(self, *others: tuple[str, int, State, int], meta: bytes = META) -> None:
        """Members by name, number, state and incarnation."""
        for name, number, state, incarnation in others:
            where = bytes([10, 0, number >> 8, number & 255])
            alive = wire.Alive(incarnation, name, where, PORT, meta, bytes([1, 5, 2, 1, 1, 1]))
            roster = self.core._roster
            roster.alive(alive, 0.0)
            if state == State.SUSPECT:
                roster.suspect(wire.Suspect(incarnation, name, "x"), 0.0)
            elif state != State.ALIVE:
                roster.dead(wire.Dead(incarnation, name, name if state == State.LEFT else "x"), 0.0)
        self.core._outbox.take()

    def reached(self) -> dict[str, tuple[int, State]]:
        return {one.name: (one.incarnation, one.state) for one in self.core.members() if one.reachable}


def carry_out(asker: Member, other: Member, stream: Stream | None) -> list[Effect]:
    """A conversation to its end; the asker's effects other than its questions."""
    effects: list[Effect] = []
    waiting = [stream] if stream is not None else []
    while waiting:
        begun = waiting.pop()
        asker.octets += len(begun.data)
        message = other.core.streams.reader().feed(begun.data)
        assert message is not None
        other.said.append(type(message))
        answer, told = other.core.serve(message, 1.0)
        take(other, told)
        assert answer is not None
        other.octets += len(answer)
        answered = asker.core.streams.reader().feed(answer)
        for effect in asker.core.stream_done(begun.id, answered, 1.0):
            if isinstance(effect, Stream):
                waiting.append(effect)
            else:
                effects.append(effect)
    take(asker, effects)
    return effects


def take(member: Member, effects: list[Effect]) -> None:
    for effect in effects:
        match effect:
            case Told(told):
                member.rows.told(told)
            case MergeState(state, _):
                member.merged.append(state)


def pair(ours: Mapping[str, bytes] | None = None, theirs: Mapping[str, bytes] | None = None) -> tuple[Member, Member]:
    a, b = Member("a", 1, held=ours), Member("b", 2, held=theirs)
    a.knows(("b", 2, State.ALIVE, 1))
    b.knows(("a", 1, State.ALIVE, 1))
    return a, b


views = st.dictionaries(
    st.sampled_from([f"m{number}" for number in range(40)]),
    st.tuples(st.sampled_from(State), st.integers(1, 3)),
)


@settings(deadline=None)
@given(views, views)
def test_members_are_as_after_an_exchange_of_whole_states(
    ours: dict[str, tuple[State, int]], theirs: dict[str, tuple[State, int]]
) -> None:
    found = []
    for whole in (False, True):
        a, b = pair()
        for member, view in ((a, ours), (b, theirs)):
            member.knows(*((name, int(name[1:]) + 3, state, inc) for name, (state, inc) in view.items()))
        streams = a.core.streams
        stream = streams.push_pull(("10.0.0.2", PORT), False, 1.0) if whole else streams.exchange("b", 1.0)
        carry_out(a, b, stream)
        assert whole or PushPull not in b.said
        found.append((a.reached(), b.reached()))
    assert found[0] == found[1]


@given(versions, versions)
def test_each_is_told_the_others_versions_that_differ(ours: dict[str, bytes], theirs: dict[str, bytes]) -> None:
    a, b = pair(ours, theirs)
    carry_out(a, b, a.core.streams.exchange("b", 1.0))
    assert a.rows.heard == {name: version for name, version in theirs.items() if ours.get(name) != version}
    assert b.rows.heard == {name: version for name, version in ours.items() if theirs.get(name) != version}
    assert a.merged == b.merged == [], "and no state"


def test_a_state_is_fetched_if_it_is_later() -> None:
    a, b = pair({}, {"x": b"2", "y": b"2"})
    carry_out(a, b, a.core.streams.fetch("b", {"x": b"1", "y": b"2", "z": b""}, 1.0))
    assert a.merged == [packed(("x", b"2"))]
    assert b.rows.heard == {"x": b"1", "y": b"2", "z": b""}
    assert a.core.streams.fetch("nobody", {"x": b""}, 1.0) is a.core.streams.exchange("nobody", 1.0) is None
    with pytest.raises(ValueError, match="at most 256"):
        a.core.streams.fetch("b", {f"h{number}": b"" for number in range(FETCH + 1)}, 1.0)


def test_two_that_know_the_same_say_so_in_few_octets() -> None:
    a, b = pair()
    many = [(f"h{number}", number, State.ALIVE, 1) for number in range(10, 3000)]
    for member in (a, b):
        member.knows(*many)
    carry_out(a, b, a.core.streams.exchange("b", 1.0))
    assert b.said == [Exchange]
    assert a.octets + b.octets < 80


def test_whole_states_are_exchanged_when_most_differs() -> None:
    a, b = pair()
    b.knows(*((f"h{number}", number, State.ALIVE, 1) for number in range(10, 3000)))
    carry_out(a, b, a.core.streams.exchange("b", 1.0))
    assert a.reached() == b.reached()
    assert b.said.count(PushPull) <= 1
    c = Member("c", 3)
    c.knows(("b", 2, State.ALIVE, 1), *((f"g{number}", number, State.ALIVE, 1) for number in range(10, 3000)))
    carry_out(c, b, c.core.streams.exchange("b", 1.0))
    assert b.said[-1] is PushPull
    assert c.merged == [b"whole"]
    assert len(c.reached()) == len(b.reached()) == 2 * 2990 + 3


@pytest.mark.parametrize(
    "meta",
    [b"", tags.pack({"role": "peer"}), tags.pack({"exchange": "2"}), b"\xff\xff\xff", b"exchange"],
)
def test_whoever_does_not_say_that_it_understands_is_told_whole_states(meta: bytes) -> None:
    a = Member("a", 1)
    a.knows(("b", 2, State.ALIVE, 1), meta=meta)
    for stream in (a.core.streams.exchange("b", 1.0), a.core.streams.fetch("b", {"x": b""}, 1.0)):
        assert stream is not None
        assert isinstance(a.core.streams.reader().feed(stream.data), PushPull)


def test_who_has_no_ledger_neither_compares_nor_answers() -> None:
    """As this host in a Serf cluster, where anybody may be a member."""
    a, b = pair()
    a.core.streams._exchanger = None
    for stream in (a.core.streams.exchange("b", 1.0), a.core.streams.fetch("b", {"x": b""}, 1.0)):
        assert stream is not None
        assert isinstance(a.core.streams.reader().feed(stream.data), PushPull)
    asked = b.core.streams.exchange("a", 1.0)
    assert asked is not None
    question = a.core.streams.reader().feed(asked.data)
    assert isinstance(question, Exchange)
    with pytest.raises(Refused, match="does not begin an exchange"):
        a.core.serve(question, 1.0)
    assert a.counts["gossip_malformed"] == 1


def test_joining_exchanges_whole_states() -> None:
    a, b = pair()
    [joining] = [a.core.streams.push_pull(("10.0.0.2", PORT), True, 1.0)]
    message = a.core.streams.reader().feed(joining.data)
    assert isinstance(message, PushPull)
    assert message.join
    assert b.core.serve(message, 1.0)[0] is not None


# Hostile members


@settings(max_examples=150, deadline=None)
@given(st.lists(said | st.binary(max_size=40), min_size=1, max_size=8), st.booleans())
def test_a_member_may_ask_and_answer_whatever_it_likes(words: list[Said | bytes], fetching: bool) -> None:
    a, _ = pair({"x": b"1"})
    before = a.reached().keys() & {"a", "b"}
    stream = a.core.streams.fetch("b", {"x": b"0"}, 1.0) if fetching else a.core.streams.exchange("b", 1.0)
    waiting = [stream]
    for word in words:
        message = Exchange(word if isinstance(word, bytes) else exchange.encode(word))
        asked = messages.refusal(a.core.serve, message, 1.0)
        assert asked in (None, "malformed", "incompatible")
        if waiting and (begun := waiting.pop()) is not None:
            refused = sum(a.counts.values())
            with suppress(Refused):
                effects = a.core.stream_done(begun.id, message, 1.0)
                waiting += [effect for effect in effects if isinstance(effect, Stream)]
                refused -= 1
            assert sum(a.counts.values()) > refused, "a refusal is counted"
    assert a.reached().keys() >= before, "nobody is gone by that alone"
    assert len(a.core.members()) <= a.core._limits.members
    assert len(a.core.streams._begun) <= 1


def test_a_member_of_other_versions_is_refused() -> None:
    a, b = pair()
    foreign = wire.Alive(1, "c", bytes(4), 1, b"", bytes([1, 5, 2, 9, 9, 9]))
    for word in (Swap((Known(foreign, State.ALIVE),), (), {}),):
        with pytest.raises(Refused, match="speaks versions"):
            a.core.serve(Exchange(exchange.encode(word)), 1.0)
    assert a.counts["gossip_incompatible"] == 1
    assert a.reached().keys() == {"a", "b"}
    assert b.counts == {}


# Clusters


def without_digests(host: Host) -> None:
    for record in host.core._roster.records.values():
        record.meta = b""


def missed_member(digests: bool) -> World:
    """One member has missed that another came; nobody tells of it any more."""
    world = World(11)
    hosts = world.cluster(6, delegate=Tables)
    tables(hosts[1]).change({b"k": b"v"})
    world.run(5)
    forgetful = hosts[4].core._roster
    forgetful.order.remove(forgetful.records.pop("n1"))
    forgetful._alter_live(-1)
    tables(hosts[4]).replica.forget("n1")
    tables(hosts[4]).table = {}
    for host in hosts:
        host.core._outbox.news.clear()
        if not digests:
            without_digests(host)
    return world


def test_a_member_that_was_missed_is_found_with_its_rows() -> None:
    world = missed_member(digests=True)
    hosts = list(world.hosts.values())
    before = sum(host.stream_octets for host in hosts)
    world.until(lambda: world.agree(hosts) and tables(hosts[4]).replica.rows("n1") == {b"k": b"v"}, "all of it")
    spent = sum(host.stream_octets for host in hosts) - before
    assert equal(hosts)
    world = missed_member(digests=False)
    hosts = list(world.hosts.values())
    before = sum(host.stream_octets for host in hosts)
    world.until(lambda: world.agree(hosts) and tables(hosts[4]).replica.rows("n1") == {b"k": b"v"}, "all of it")
    assert 0 < spent < 2 * (sum(host.stream_octets for host in hosts) - before)


def joined_and_healed(meta: bytes) -> tuple[float, float]:
    """Octets a host in streams while 30 hosts come one by one, and while two halves that changed find each other."""
    world = World(12)
    hosts = [world.add(f"n{number}", delegate=Tables, meta=meta) for number in range(30)]

    def spent() -> float:
        return sum(host.stream_octets for host in hosts) / len(hosts)

    for host in hosts:
        tables(host).change({b"k": host.name.encode()})
        if host is not hosts[0]:
            world.join(host, hosts[0])
            world.run(0.02)
            tables(host).announce()
            world.run(0.2)
    world.until(lambda: world.agree(hosts) and equal(hosts), "all to know all")
    joined = spent()
    world.part(hosts[:15], hosts[15:])
    world.run(60)
    for host in hosts:
        tables(host).change({b"k": b"new " + host.name.encode()})
    world.run(5)
    before = spent()
    world.part()
    world.until(lambda: world.agree(hosts) and equal(hosts), "the halves to be one")
    return joined, spent() - before


def test_joining_one_by_one_and_healing_cost_a_fraction_of_whole_states() -> None:
    ours, whole = joined_and_healed(META), joined_and_healed(b"")
    assert ours[0] < 12_000
    assert ours[0] < whole[0] / 4
    assert ours[1] < 12_000
    assert ours[1] < whole[1]


def test_real_members_compare_and_fetch() -> None:
    async def scene() -> None:
        wanted = [replace(node_settings(name), meta=META) for name in ("a", "b")]
        async with started(*wanted) as [a, b]:
            assert await b.join([a.where]) == 1
            whole = len(a.notes.merged)
            a.notes.held = {"x": b"2"}
            b.notes.held = {"x": b"1", "y": b"1"}
            assert await b.sync("a")
            await until(lambda: a.notes.heard and b.notes.heard, "versions", a, b)
            assert b.notes.heard[0] == {"x": b"2"}
            assert a.notes.heard[0] == {"x": b"1", "y": b"1"}
            assert await b.fetch("a", {"x": b"1"})
            assert (b"x", False) in b.notes.merged
            assert not await b.fetch("nobody", {})
            a.notes.held = b.notes.held = {}
            assert len(a.notes.merged) == whole
            for peer in (a, b):
                assert not {"gossip_malformed", "gossip_stream_failed"} & set(peer.notes.counts)

    asyncio.run(asyncio.wait_for(scene(), 60))
