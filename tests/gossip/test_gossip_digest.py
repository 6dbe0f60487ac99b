"""Trees of digests: exactly what differs is found, by few octets, whatever the other says."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appswitch.gossip import exchange
from appswitch.gossip.digest import DEPTH, LEAF, NODES, SALT, Comparison, Item, Node, Tree
from appswitch.gossip.exchange import Compare, Compared
from appswitch.gossip.refused import Refused

from .messages import names, refusal

NONCE = bytes(range(SALT))
keys = st.tuples(st.integers(0, 1), names)
versions = st.binary(max_size=4)
sets = st.dictionaries(keys, versions, max_size=60)

Known = dict[tuple[int, str], bytes]


def tree(known: Known) -> Tree:
    return Tree(NONCE, [Item(realm, name, version) for (realm, name), version in known.items()])


def compared(ours: Known, theirs: Known) -> tuple[Comparison, int, int]:
    """The comparison when it has ended, the questions asked, and the octets of all that was said."""
    comparison, other, questions, octets = Comparison(tree(ours)), tree(theirs), 0, 0
    while not comparison.vast and (question := comparison.question()):
        asked = exchange.encode(Compare(NONCE, tuple(question)))
        heard = exchange.decode(asked, 1 << 15, 0)
        assert isinstance(heard, Compare)
        answer = exchange.encode(Compared(tuple(other.answer(*node) for node in heard.nodes)))
        said = exchange.decode(answer, 1 << 15, 0)
        assert isinstance(said, Compared)
        comparison.answered(said.nodes)
        questions, octets = questions + 1, octets + len(asked) + len(answer)
    return comparison, questions, octets


def differences(ours: Known, theirs: Known) -> dict[tuple[int, str], tuple[bytes | None, bytes | None]]:
    return {key: (ours.get(key), theirs.get(key)) for key in ours | theirs if ours.get(key) != theirs.get(key)}


def many(count: int) -> Known:
    return {(number % 2, f"host{number // 2}"): b"%012d" % number for number in range(count)}


@given(sets, sets, st.dictionaries(keys, versions | st.none(), max_size=5))
def test_exactly_what_differs_is_found(
    ours: Known, others: Known, changes: dict[tuple[int, str], bytes | None]
) -> None:
    nearly = {key: version for key, version in (ours | changes).items() if version is not None}
    for theirs in (others, nearly, {}, ours):
        comparison, _, _ = compared(ours, theirs)
        assert comparison.differing == differences(ours, theirs)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1 << 30), st.integers(1, 8))
def test_few_differences_among_many_cost_few_octets(seed: int, count: int) -> None:
    ours, rng = many(10_000), random.Random(seed)
    theirs = dict(ours)
    for key in rng.sample(list(ours), count):
        if rng.random() < 0.5:
            theirs[key] = b"later"
        else:
            del theirs[key]
    theirs |= {(0, f"new{number}"): b"" for number in range(rng.randrange(count))}
    comparison, questions, octets = compared(ours, theirs)
    assert comparison.differing == differences(ours, theirs)
    assert questions <= 5
    assert octets < 300 + 1500 * len(comparison.differing), "all of it would be 300 kB"


@pytest.mark.parametrize("count", [0, 10, 10_000])
def test_no_difference_costs_one_short_question(count: int) -> None:
    comparison, questions, octets = compared(many(count), many(count))
    assert comparison.differing == {}
    assert questions == 1
    assert octets < 40


def test_when_most_differs_no_more_is_asked() -> None:
    theirs = dict.fromkeys(many(20000), b"other")
    comparison, questions, octets = compared(many(20_000), theirs)
    assert comparison.vast
    assert questions == 3
    assert octets < 50_000


def test_a_digest_is_of_no_use_with_another_salt() -> None:
    items = [Item(0, "a", b"1")]
    assert Tree(bytes(SALT), items).digest("") != Tree(NONCE, items).digest("")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((0, "ab", b"c"), (0, "a", b"bc")),
        ((0, "a", b""), (1, "a", b"")),
        ((0, "a", b"\0"), (0, "a", b"\0\0")),
    ],
)
def test_different_items_have_different_digests(one: tuple[int, str, bytes], other: tuple[int, str, bytes]) -> None:
    assert Tree(NONCE, [Item(*one)]).digest("") != Tree(NONCE, [Item(*other)]).digest("")


def test_places_that_clash_are_told_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody may choose many names of one place: the tree ends all the same."""
    monkeypatch.setattr("appswitch.gossip.digest._place", lambda realm, name: "abcdef01")
    ours, theirs = many(3 * LEAF), many(3 * LEAF) | {(0, "host3"): b"other"}
    comparison, questions, _ = compared(ours, theirs)
    assert comparison.differing == differences(ours, theirs)
    assert questions == DEPTH + 1


nodes: st.SearchStrategy[Node] = st.one_of(
    st.none(),
    st.lists(st.binary(min_size=8, max_size=8), min_size=16, max_size=16).map(tuple),
    st.lists(st.builds(Item, st.integers(0, 1), names, versions), max_size=3).map(tuple),
)


@settings(max_examples=200, deadline=None)
@given(sets, st.data())
def test_whatever_is_answered_the_questions_end(ours: Known, data: st.DataObject) -> None:
    comparison = Comparison(tree(ours))
    for _ in range(DEPTH + 2):
        if comparison.vast or not (question := comparison.question()):
            return
        answers = data.draw(st.lists(nodes, min_size=0, max_size=3))
        answers = [answers[number % len(answers)] if answers else None for number in range(len(question))]
        if data.draw(st.integers(0, 9)) == 0:
            answers.append(None)
        if refusal(comparison.answered, answers) == "malformed":
            return
        assert len(comparison.differing) <= len(ours) + 3 * NODES * (DEPTH + 1)
    raise AssertionError("it goes on")


def test_an_item_stands_once_and_in_its_place() -> None:
    ours = many(100)
    item = Item(0, "x", b"")
    for lie in ([item, item], [Item(0, "host1", b""), Item(0, "host1", b"1")]):
        with pytest.raises(Refused):
            Comparison(tree(ours)).answered([tuple(lie)])
    comparison = Comparison(tree(ours))
    comparison.answered([tuple(bytes(8) for _ in range(16))])
    asked = comparison.question()
    assert len(asked) == 16
    with pytest.raises(Refused):
        comparison.answered([(item,)] * 16)
