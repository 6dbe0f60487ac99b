"""Replicas of all hosts' rows: whatever the network does, a sync makes them equal, and only authors change rows."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from appswitch.cluster import replica, wire
from appswitch.cluster.replica import Effects, Malformed, Replica, first_epoch
from appswitch.gossip.settings import Limits

HOSTS = ("a", "b", "c")
KEYS = st.sampled_from([b"k1", b"k2", b"k3"])
VALUES = st.none() | st.sampled_from([b"1", b"2", b"x" * 2000])
CHANGES = st.dictionaries(KEYS, VALUES, min_size=1, max_size=3)


class Host:
    """A router: its replica, and the table that it keeps by the effects."""

    def __init__(self, name: str, kind: type[Replica], epoch: int, live: set[str]) -> None:
        self.name, self.replica = name, kind(name, epoch)
        self.table: dict[str, dict[bytes, bytes]] = {}
        for other in live:
            self.replica.alive(other)

    def take(self, effects: Effects) -> list[bytes]:
        for host, rows in effects.rows.items():
            assert host != self.name
            table = self.table.setdefault(host, {})
            for key, value in rows.items():
                if value is None:
                    table.pop(key, None)
                else:
                    table[key] = value
        return effects.broadcasts


class Network(RuleBasedStateMachine):
    """Messages may be lost, doubled, late and in any order: what was sent stays to be delivered at any time."""

    kind = Replica

    def __init__(self) -> None:
        super().__init__()
        self.starts = 0
        self.truth: dict[str, dict[bytes, bytes]] = {name: {} for name in HOSTS}
        self.hosts = {name: self.start(name, 0) for name in HOSTS}
        self.sent: list[bytes] = []

    def start(self, name: str, before: int) -> Host:
        self.starts += 1
        # Falling, so that later starts that do not know of earlier ones have smaller epochs: the harder case.
        return Host(name, self.kind, first_epoch(before, 1000 - self.starts), set(HOSTS) - {name})

    @rule(name=st.sampled_from(HOSTS), changes=CHANGES)
    def change(self, name: str, changes: dict[bytes, bytes | None]) -> None:
        for key, value in changes.items():
            if value is None:
                self.truth[name].pop(key, None)
            else:
                self.truth[name][key] = value
        self.sent += self.hosts[name].take(self.hosts[name].replica.change(changes))

    @rule(data=st.data(), name=st.sampled_from(HOSTS))
    def deliver(self, data: st.DataObject, name: str) -> None:
        if self.sent:
            number = data.draw(st.integers(0, len(self.sent) - 1))
            self.sent += self.hosts[name].take(self.hosts[name].replica.message(self.sent[number]))

    @rule(one=st.sampled_from(HOSTS), other=st.sampled_from(HOSTS))
    def sync(self, one: str, other: str) -> None:
        if one == other:
            return
        first, second = self.hosts[one], self.hosts[other]
        asked, answered = first.replica.states(), second.replica.states()
        self.sent += second.take(second.replica.merge(asked))
        self.sent += first.take(first.replica.merge(answered))

    @rule(one=st.sampled_from(HOSTS), other=st.sampled_from(HOSTS))
    def compare(self, one: str, other: str) -> None:
        """As the gossip's exchange does: what differs is told both ways."""
        if one == other:
            return
        first, second = self.hosts[one], self.hosts[other]
        ours, theirs = first.replica.versions(), second.replica.versions()
        differing = {host for host in ours | theirs if ours.get(host) != theirs.get(host)}
        self.sent += first.take(first.replica.told({h: v for h, v in theirs.items() if h in differing}))
        self.sent += second.take(second.replica.told({h: v for h, v in ours.items() if h in differing}))

    @rule(one=st.sampled_from(HOSTS), other=st.sampled_from(HOSTS))
    def fetch(self, one: str, other: str) -> None:
        """What one knows to be missing, from another."""
        if one == other:
            return
        first, second = self.hosts[one], self.hosts[other]
        wanted = {host: first.replica.packed(host) for host in first.replica.behind()}
        part = second.replica.part(wanted)
        self.sent += second.take(second.replica.told(wanted))
        self.sent += first.take(first.replica.merge(part))

    @rule(at=st.sampled_from(HOSTS), other=st.sampled_from(HOSTS), there=st.booleans())
    def membership(self, at: str, other: str, there: bool) -> None:
        host = self.hosts[at]
        if other != at:
            host.take(host.replica.alive(other) if there else host.replica.gone(other))

    @rule(name=st.sampled_from(HOSTS), remembers=st.booleans())
    def restart(self, name: str, remembers: bool) -> None:
        self.hosts[name] = host = self.start(name, self.hosts[name].replica.epoch if remembers else 0)
        self.sent += host.take(host.replica.change(self.truth[name]))

    @invariant()
    def only_authors_change_their_rows(self) -> None:
        for name, host in self.hosts.items():
            assert host.replica.rows(name) == self.truth[name]

    @invariant()
    def tables_follow_the_replicas(self) -> None:
        for name, host in self.hosts.items():
            for other in set(HOSTS) - {name}:
                assert host.table.get(other, {}) == host.replica.rows(other)

    def teardown(self) -> None:
        for host in self.hosts.values():
            for other in HOSTS:
                host.take(host.replica.alive(other))
        for _ in range(3):  # what one finds out may take another to tell
            for one in HOSTS:
                for other in HOSTS:
                    self.compare(one, other)
            for one in HOSTS:
                for other in HOSTS:
                    self.fetch(one, other)
        for host in self.hosts.values():
            assert host.replica.behind() == []
            for name in HOSTS:
                assert host.replica.rows(name) == self.truth[name]


class TestConvergence(Network.TestCase):
    settings = settings(max_examples=400, stateful_step_count=40, deadline=None)


class Careless(Replica):
    """Applies changes as they come: what the numbers are for."""

    def message(self, payload: bytes) -> Effects:
        kind, host, epoch, seq, part = wire.read_message(payload)
        effects = Effects()
        state = self._state(host)
        if host != self._me and kind == wire.CHANGE and (epoch, seq) > state.version:
            self._apply(state, part)
            state.epoch, state.seq = epoch, seq
            if state.alive:
                effects._write(host, dict(part))
        return effects


class Impostor(Replica):
    """Believes what others say of its own rows."""

    def merge(self, states: bytes) -> Effects:
        for host, epoch, seq, rows in wire.read_states(states, replica.HOSTS, replica.ROWS):
            state = self._state(host)
            if host == self._me and (epoch, seq) > state.version and rows is not None:
                state.rows = rows
        return super().merge(states)


@pytest.mark.parametrize("kind", [Careless, Impostor])
def test_without_the_rules_it_does_not_hold(kind: type[Replica]) -> None:
    class Broken(Network):
        pass

    Broken.kind = kind
    tried = settings(
        max_examples=2000, stateful_step_count=30, deadline=None, derandomize=True, phases=[Phase.generate]
    )
    with pytest.raises(AssertionError):
        run_state_machine_as_test(Broken, settings=tried)


def test_a_bomb_is_refused_before_it_goes_off() -> None:
    """20 MiB of msgpack stand for 1.5 GiB of objects."""
    many = 20 << 20
    bombs = [
        b"\xdd" + many.to_bytes(4, "big") + b"\x90" * many,
        b"\x91" * 100_000,
        b"\x91\x94\xa1a\x01\x01" + b"\xdd\xff\xff\xff\xff" + b"\x92\xc4\x01a\xc4\x00",
        b"\x91\x94" + b"\xdd\x00\x40\x00\x00" + b"\xc0" * (4 << 20),
        b"\xdf\xff\xff\xff\xff",
    ]
    ours = Replica("a", 1)
    tracemalloc.start()
    try:
        for bomb in bombs:
            with pytest.raises(replica.Malformed):
                ours.merge(bomb)
            with pytest.raises(replica.Malformed):
                ours.message(bomb[: 1 << 16])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * many, "no more than the octets themselves, once more"
    assert not ours.behind()


def test_what_others_say_of_others_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica, "ROWS", 20)
    monkeypatch.setattr(replica, "BYTES", 2000)
    monkeypatch.setattr(replica, "WAITING_ALL", 5)
    ours = Replica("a", 1)

    def states(host: str, rows: int, size: int) -> bytes:
        return wire.pack([[host, 1, 1, [[b"%d" % row, bytes(size)] for row in range(rows)]]])

    ours.merge(states("b", 15, 1))
    for rows, size in ((6, 1), (1, 2000)):
        with pytest.raises(replica.Malformed, match="more than 20 rows, or 2000 bytes"):
            ours.merge(states("c", rows, size))
    ours.merge(states("c", 5, 1))
    with pytest.raises(replica.Malformed):
        ours.message(wire.pack([1, "d", 1, 1, [[b"k", b"v"]]]))
    # What goes makes room, and what is told anew does not count twice.
    ours.message(wire.pack([1, "c", 1, 2, [[b"0", None], [b"1", None]]]))
    ours.merge(wire.pack([["b", 1, 2, [[b"%d" % row, b""] for row in range(17)]]]))
    ours.merge(wire.pack([["e", 1, 1, []]]))
    for seq in range(5, 50):
        ours.message(wire.pack([1, "e", 1, seq, []]))
    assert ours._waiting == 5
    assert sum(len(state.waiting) for state in ours._states.values()) == 5
    assert ours.message(wire.pack([2, "f", 1, 1])).broadcasts
    with pytest.raises(replica.Malformed, match="more than 2048 bytes"):
        ours.message(wire.pack([1, "e", 1, 60, [[b"k", bytes(2048)]]]))


STATES = st.lists(
    st.tuples(
        st.sampled_from(HOSTS[1:]), st.integers(1, 3), st.integers(0, 3), st.booleans()
    ),
    max_size=8,
)


def made(states: list[tuple[str, int, int, bool]]) -> list[bytes]:
    """Each version of a host has rows of its own, as its author made them."""
    return [
        wire.pack([[host, epoch, seq, None if dead else [[b"k", f"{host}{epoch}{seq}".encode()]]]])
        for host, epoch, seq, dead in states
    ]


def merged(parts: list[bytes]) -> dict[str, object]:
    one = Replica("a", 1)
    for name in HOSTS:
        one.alive(name)
    for part in parts:
        one.merge(part)
    return {name: (one.rows(name), one.version(name), name in one.behind()) for name in HOSTS}


@given(STATES, st.randoms())
def test_merges_commute_and_may_be_repeated(states: list[tuple[str, int, int, bool]], random: object) -> None:
    parts = made(states)
    whole = merged(parts)
    again = [*parts, *parts]
    random.shuffle(again)  # type: ignore[attr-defined]
    assert merged(again) == whole


def test_changes_that_come_too_early_wait_for_those_before_them() -> None:
    a, b = Replica("a", 5), Replica("b", 9)
    b.alive("a")
    b.merge(a.states())
    first, second, third = (a.change({b"k": value}).broadcasts[0] for value in (b"1", b"2", b"3"))
    for early in (third, second):
        effects = b.message(early)
        assert effects.rows == {}
        assert effects.broadcasts == [early]
        assert b.behind() == ["a"]
    assert b.message(first).rows == {"a": {b"k": b"3"}}
    assert b.behind() == []
    assert b.message(second) == Effects()


def test_a_restarted_author_does_not_make_its_rows_blink() -> None:
    a, b = Replica("a", first_epoch(0, 1)), Replica("b", 9)
    b.alive("a")
    a.change({b"k": b"1"})
    b.merge(a.states())
    again = Replica("a", first_epoch(a.epoch, 2))
    for news in again.change({b"k": b"1", b"l": b"2"}).broadcasts:
        assert b.message(news).rows == {}
    assert b.behind() == ["a"]
    assert b.merge(again.states()).rows == {"a": {b"l": b"2"}}


def test_a_start_that_knows_of_none_before_outdoes_it_when_it_hears() -> None:
    old, new, b = Replica("a", first_epoch(7 << 32, 1)), Replica("a", first_epoch(0, 2)), Replica("b", 9)
    b.alive("a")
    old.change({b"old": b"1"})
    b.merge(old.states())
    for news in new.change({b"new": b"1"}).broadcasts:
        b.message(news)
    assert b.behind() == ["a"]  # it doubts: the sync tells the new one
    told = new.merge(b.states()).broadcasts
    b.merge(new.states())
    assert b.rows("a") == new.rows("a") == {b"new": b"1"}
    for news in told:
        assert b.message(news) == Effects()


def test_rows_too_large_for_datagrams_are_announced_and_come_by_sync() -> None:
    a, b = Replica("a", 5), Replica("b", 9)
    b.alive("a")
    b.merge(a.states())
    many = {b"%d" % number: bytes(200) for number in range(500)}
    for changes in ({b"big": bytes(5000)}, many):
        broadcasts = a.change(changes).broadcasts
        assert len(broadcasts) == 1
        assert len(broadcasts[0]) < 100
        assert b.message(broadcasts[0]).broadcasts == broadcasts
        assert b.behind() == ["a"]
        b.merge(a.states())
        assert b.rows("a") == a.rows("a")
    few = a.change(dict.fromkeys(list(many)[:50], b"")).broadcasts
    assert all(len(broadcast) <= replica.DATAGRAM + 200 for broadcast in few)


def test_the_rows_of_a_host_that_is_gone_go_and_come_back_with_it() -> None:
    a, b, c = Replica("a", 5), Replica("b", 9), Replica("c", 1)
    b.alive("a")
    a.change({b"k": b"1"})
    b.merge(a.states())
    assert b.gone("a").rows == {"a": {b"k": None}}
    c.alive("a")
    c.merge(b.states())  # b thinks it dead: c learns how far it had got, and that it should ask
    assert c.rows("a") == {}
    assert c.behind() == ["a"]
    assert b.alive("a").rows == {"a": {b"k": b"1"}}
    b.forget("a")
    assert not b.known("a")
    assert b.version("a") == (0, 0)


JUNK = st.recursive(
    st.none() | st.integers(-5, 2**63) | st.text(max_size=3) | st.binary(max_size=3) | st.booleans(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=20,
)


@given(JUNK | st.tuples(st.sampled_from([1, 2]), st.just("b"), JUNK, JUNK, JUNK).map(list), st.binary(max_size=40))
def test_anything_else_is_malformed_and_changes_nothing(junk: object, raw: bytes) -> None:
    one = Replica("a", 1)
    for data in (raw, wire.pack(junk)):
        for take in (one.message, one.merge):
            try:
                take(data)
            except Malformed:
                pass
    assert one.rows("a") == {}


def test_a_flood_of_hosts_or_early_changes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica, "HOSTS", 10)
    monkeypatch.setattr(replica, "WAITING", 10)
    one, author = Replica("a", 1), Replica("b", 1)
    one.alive("b")
    one.merge(author.states())
    for number in range(30):
        message = author.change({b"k": b"%d" % number}).broadcasts[0]
        if number:
            one.message(message)
    assert len(one._states["b"].waiting) == 10
    one.merge(author.states())
    assert one.rows("b") == author.rows("b")
    for number in range(8):
        one.message(wire.pack([2, f"h{number}", 1, 1]))
    with pytest.raises(Malformed, match="more than 10 hosts"):
        one.message(wire.pack([2, "one too many", 1, 1]))


def test_as_many_hosts_as_the_gossip_has_members() -> None:
    one = Replica("a", 1)
    for number in range(Limits().members - 1):
        one.alive(f"h{number}")
    with pytest.raises(Malformed, match="more than"):
        one.message(wire.pack([2, "one too many", 1, 1]))


def test_a_part_is_what_is_later_and_no_more_than_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, other = Replica("me", 1 << 32), Replica("other", 2 << 32)
    monkeypatch.setattr(replica, "PART", 100)
    for name in ("a", "b", "c"):
        author = Replica(name, 3 << 32)
        author.change({b"k": bytes(60)})
        for one in (ours, other):
            one.alive(name)
        ours.merge(author.states())
    known = ours.packed("c")
    wanted = {"nobody": bytes(16), "c": known, "a": bytes(16), "b": bytes(16)}
    part = ours.part(wanted)
    assert len(part) < 150
    other.merge(part)
    assert other.rows("a") == {b"k": bytes(60)}
    assert other.behind() == ["c", "b"], "c was said to be known, b did not fit"
    other.merge(ours.part({name: other.packed(name) for name in other.behind()}))
    assert other.behind() == ["b"], "whose turn is next"
    other.merge(ours.part({"b": other.packed("b")}))
    assert other.behind() == []


@pytest.mark.parametrize("version", [b"", bytes(15), bytes(17), bytes(8) + b"\1" * 8, b"\xff" * 16])
def test_versions_that_are_none(version: bytes) -> None:
    ours = Replica("me", 1 << 32)
    with pytest.raises(Malformed):
        ours.told({"a": version})
    assert ours.behind() == []


def test_a_first_change_stands_for_all_rows_only_of_a_host_that_is_unknown() -> None:
    ours, again = Replica("me", 1 << 32), Replica("a", 5 << 32)
    ours.alive("a")
    ours.merge(Replica("a", 4 << 32).states())
    [told] = again.change({b"k": b"v"}).broadcasts
    ours.message(told)
    assert ours.rows("a") == {}
    assert ours.behind() == ["a"]
