"""The cluster's keys: changed anywhere, told in any order, alike on all hosts in the end."""

import base64
import json

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appswitch.cluster import rows
from appswitch.cluster.ring import MOST, REMOVED, KeyRefused, Ring, name_of, parse

OLD, NEW = bytes(32), bytes(range(32))
SECRETS = [bytes([number]) * (16, 24, 32)[number % 3] for number in range(2 * MOST)]


def changed(ring: Ring, action: str, secret: bytes) -> Ring:
    """After the change; the same when it is refused."""
    try:
        return ring.add(secret) if action == "add" else getattr(ring, action)(name_of(secret))
    except KeyRefused:
        return ring


CHANGES = st.tuples(st.sampled_from(["add", "use", "remove"]), st.sampled_from(SECRETS))
RINGS = st.lists(CHANGES, max_size=30).map(lambda changes: _after(Ring.founded(SECRETS[0]), changes))


def _after(ring: Ring, changes: list[tuple[str, bytes]]) -> Ring:
    for action, secret in changes:
        ring = changed(ring, action, secret)
    return ring


def test_a_key_is_added_used_and_the_old_one_removed() -> None:
    ring = Ring.founded(OLD)
    assert ring.secrets == [OLD]
    ring = ring.add(NEW)
    assert ring.secrets == [OLD, NEW]
    assert ring.add(NEW) == ring
    ring = ring.use(name_of(NEW))
    assert ring.secrets == [NEW, OLD]
    assert ring.secret == NEW
    ring = ring.remove(name_of(OLD))
    assert ring.secrets == [NEW]
    assert not ring.has(name_of(OLD))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda ring: ring.use("0" * 12), "no key '0{12}'"),
        (lambda ring: ring.remove("../"), "no key '../'"),
        (lambda ring: ring.remove(ring.primary), "the one that seals"),
        (lambda ring: _after(ring, [("add", secret) for secret in SECRETS]).add(NEW), f"there are {MOST} keys"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(change, words) -> None:
    with pytest.raises(KeyRefused, match=words):
        change(Ring.founded(OLD))


def test_who_was_away_does_not_bring_a_removed_key_back() -> None:
    before = Ring.founded(OLD).add(NEW)
    after = before.use(name_of(NEW)).remove(name_of(OLD))
    assert before.merge(after) == after.merge(before) == after
    # Nor does it with a key of its own, which everybody takes up.
    theirs = before.add(SECRETS[3])
    assert after.merge(theirs).secrets == [NEW, SECRETS[3]]


def test_a_key_chosen_here_and_removed_there_is_kept() -> None:
    both = Ring.founded(OLD).add(NEW)
    here, there = both.use(name_of(NEW)), both.remove(name_of(NEW))
    for merged in (here.merge(there), there.merge(here)):
        assert merged.secrets == [NEW, OLD]


@given(RINGS, RINGS)
def test_merging_is_commutative_and_idempotent_and_never_without_a_primary(one: Ring, other: Ring) -> None:
    merged = one.merge(other)
    assert merged == other.merge(one)
    assert merged.merge(one) == merged == merged.merge(other) == merged.merge(merged)
    assert merged.secret == merged.secrets[0]
    assert len(merged.names) <= MOST
    assert len(merged.known) <= MOST + REMOVED


@given(
    st.lists(
        st.tuples(st.integers(0, 3), CHANGES) | st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60
    )
)
def test_hosts_that_change_and_tell_in_any_order_agree(events) -> None:
    hosts = [Ring.founded(SECRETS[0])] * 4
    for host, event in events:
        hosts[host] = hosts[host].merge(hosts[event]) if isinstance(event, int) else changed(hosts[host], *event)
        assert hosts[host].secret
    for _ in range(4):
        for host in range(4):
            for other in range(4):
                hosts[host] = hosts[host].merge(hosts[other])
    assert hosts == [hosts[0]] * 4


@given(RINGS)
def test_there_and_back(ring: Ring) -> None:
    assert Ring.of(json.loads(json.dumps(ring.document()))) == ring
    assert rows.ring(rows.ring_value(ring)) == ring


def test_no_secret_shows_by_accident() -> None:
    ring = Ring.founded(NEW)
    assert NEW.hex() not in repr(ring)
    assert repr(NEW) not in repr(ring)
    assert ring.primary not in NEW.hex()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=12) | st.binary(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["keys", "primary", "x"]), inner),
    max_leaves=12,
)


@given(JSON)
def test_what_is_no_ring_is_refused(document) -> None:
    with pytest.raises(ValueError):
        Ring.of(document)
    try:
        packed = msgpack.packb(document)
    except OverflowError:
        return
    with pytest.raises(rows.Malformed):
        rows.ring(packed)


@pytest.mark.parametrize(
    "change",
    [
        {"keys": []},
        {"primary": ["0" * 12, 0]},
        {"primary": [name_of(OLD), -1]},
        {"primary": [name_of(OLD), 1 << 62]},
        {"keys": [[name_of(OLD), 0, NEW.hex()]]},
        {"keys": [[name_of(OLD), 0, None]]},
        {"keys": [[name_of(OLD), True, OLD.hex()]]},
        {"keys": [[name_of(OLD), 0, OLD.hex()]] * (MOST + REMOVED + 1)},
        {"keys": [[name_of(OLD), 0, OLD.hex()], [name_of(b"short"), 0, b"short".hex()]]},
    ],
)
def test_a_ring_that_is_not_right_is_refused(change) -> None:
    with pytest.raises(ValueError):
        Ring.of(Ring.founded(OLD).document() | change)


@pytest.mark.parametrize("size", [16, 24, 32])
def test_keys_of_each_size_in_base64(size: int) -> None:
    assert parse(base64.b64encode(bytes(size)).decode() + "\n") == bytes(size)


@pytest.mark.parametrize("text", ["", "secret", "AAAA", base64.b64encode(bytes(31)).decode(), "ä" * 44])
def test_other_keys_are_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(KeyRefused, match="a key is 16, 24 or 32 bytes in base64") as refused:
        parse(text)
    assert "\n" not in str(refused.value)
    assert not text or text not in str(refused.value)
