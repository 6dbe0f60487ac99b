"""Which datagrams of a program to its own addresses leave it, and how clients are shown there."""

import time
from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from appswitch.linux.rules import Rule
from appswitch.model.address import ANY, ANY4, LOOPBACK4, LOOPBACK6, pack
from appswitch.relay import packets
from appswitch.relay.oneself import MOST, SHOWN, Allowance, Place, Retries, Shown, Socket, meant, places, plan

V4, V6 = pack("10.1.2.3"), pack("2001:db8::1")
VIPS = st.sampled_from([V4, V6])
SOCKETS = st.builds(
    Socket,
    st.sampled_from([ANY, ANY4, LOOPBACK4, LOOPBACK6, V4, V6]),
    st.sampled_from([53, 80, 5000, 5001, 61000]),
    st.booleans(),
)


def test_where_sockets_take() -> None:
    assert places(V4, [Socket(ANY4, 1, False)]) == {Place(LOOPBACK4, 1), Place(V4, 1)}
    assert places(V4, [Socket(ANY, 1, True)]) == {Place(LOOPBACK4, 1), Place(V4, 1)}
    assert places(V4, [Socket(ANY, 1, False), Socket(LOOPBACK6, 2, False)]) == set()
    assert places(V4, [Socket(LOOPBACK4, 1, False), Socket(V4, 2, False)]) == {Place(LOOPBACK4, 1), Place(V4, 2)}
    both = [Socket(ANY, 1, True), Socket(ANY, 2, False)]
    assert places(V6, both) == {Place(LOOPBACK4, 1), Place(V6, 1), Place(V6, 2)}
    assert places(V4, [Socket(ANY4, 53, False)]) == set()  # the relay's


@given(VIPS, st.dictionaries(st.integers(0, 5), st.frozensets(SOCKETS, max_size=4), max_size=5))
def test_what_others_have_and_it_has_not_leaves_a_program(
    vip: bytes, sockets: dict[int, frozenset[Socket]]
) -> None:
    taken = {owner: places(vip, found) for owner, found in sockets.items()}
    found = plan(vip, taken)
    assert found.keys() == taken.keys()
    for owner, rules in found.items():
        others = [taken[other] for other in taken if other != owner]
        some = bool(others) and any(taken.values())
        for destination, port in product(meant(vip), [53, 80, 5000, 5001, 61000, 61001, 32768]):
            leaves = any(
                rule.destination == packets.packed(destination) and rule.first <= port <= rule.last for rule in rules
            )
            place = Place(destination, port)
            theirs = any(place in other for other in others) and place not in taken[owner]
            assert leaves == (theirs or (some and port in SHOWN))


def test_too_many_are_cut_off_at_the_same_place() -> None:
    many = places(V4, [Socket(ANY4, port, False) for port in range(1000, 2000)])
    rules = plan(V4, {1: many, 2: frozenset[Place]()})[2]
    assert len(rules) == MOST
    assert Rule(packets.packed(V4), 1000, 1000) in rules
    assert max(rule.first for rule in rules) == SHOWN.start
    assert not any(1100 < rule.first < 2000 for rule in rules)


def test_a_client_keeps_its_port() -> None:
    shown: Shown[str] = Shown()
    assert shown.port("a", 40000, {SHOWN.start}) == SHOWN.start + 1
    assert shown.port("b", 40000, ()) == SHOWN.start + 2
    assert shown.port("a", 40000, ()) == SHOWN.start + 1
    assert shown.client(SHOWN.start + 1) == ("a", 40000)
    # Somebody has bound it.
    assert shown.port("a", 40000, {SHOWN.start + 1}) == SHOWN.start + 3
    assert shown.client(SHOWN.start + 1) is None
    shown.leave("a")
    assert shown.client(SHOWN.start + 3) is None
    assert shown.client(SHOWN.start + 2) == ("b", 40000)
    assert Shown[str]().port("a", 40000, SHOWN) == 40000


def test_ports_that_were_unused_for_longest_are_given_again() -> None:
    shown: Shown[int] = Shown()
    first = [shown.port(0, port, ()) for port in range(len(SHOWN))]
    assert sorted(first) == list(SHOWN)
    shown.port(0, 0, ())  # in use again
    assert shown.port(1, 0, ()) == first[1]
    assert shown.client(first[1]) == (1, 0)
    assert shown.client(first[0]) == (0, 0)
    assert shown.port(0, 1, {first[2]}) == first[3]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1024, 1060)), max_size=60))
def test_no_two_clients_are_shown_alike(clients: list[tuple[int, int]]) -> None:
    shown: Shown[int] = Shown()
    ports = {client: shown.port(*client, ()) for client in clients}
    assert len(set(ports.values())) == len(ports)
    assert all(shown.client(port) == client for client, port in ports.items())


def test_who_costs_much_must_wait() -> None:
    allowance = Allowance(0.2, 0.05, 100.0)
    for _ in range(20):
        assert allowance.is_left(100.0)
        allowance.take(0.0101)
    assert not allowance.is_left(100.0)
    assert allowance.is_left(101.0)
    allowance.take(1.0)
    assert not allowance.is_left(115.0)
    assert allowance.is_left(125.0)


def test_what_fails_is_tried_again_ever_later_and_what_lies_far_back_is_forgiven() -> None:
    retries, pauses = Retries(), Retries.PAUSES
    for pause in pauses:
        assert retries.failed(100.0) == 100.0 + pause
    assert retries.failed(100.0) is None
    assert retries.failed(100.0 + Retries.FORGIVEN) is None
    later = 100.0 + 2 * Retries.FORGIVEN + 1
    assert retries.failed(later) == later + pauses[0]


def test_programs_with_very_many_ports_cost_little() -> None:
    taken = {n: places(V4, [Socket(ANY4, 1000 + n * 600 + port, False) for port in range(600)]) for n in range(100)}
    began = time.thread_time()
    found = plan(V4, taken)
    assert time.thread_time() - began < 5  # some 0.05; over a minute if each is compared with all
    assert {len(rules) for rules in found.values()} == {MOST}
    lowest = {rule.first for rule in found[99]} - {SHOWN.start}
    assert lowest == set(range(1000, 1000 + len(lowest)))
