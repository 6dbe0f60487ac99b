"""The table of conversations, without clock or sockets."""

from hypothesis import given
from hypothesis import strategies as st

from appswitch.relay.flows import IDLE, Flows


def flows(most: int = 8) -> tuple[Flows, list[object]]:
    ended: list[object] = []
    return Flows(ended.append, most=most), ended


def joined(table: Flows, client: str, server: str, number: int, now: float) -> None:
    flow = table.begin(client, now)
    table.lead(flow, client, b"there%d" % number, server)
    table.lead(flow, server, b"back%d" % number, client)


def test_both_ways_are_kept_as_long_as_either_side_speaks() -> None:
    table, ended = flows()
    joined(table, "a", "b", 1, 0.0)
    assert table.find("a", b"there1", IDLE - 1) is not None
    hop = table.find("b", b"back1", 2 * IDLE - 2)
    assert hop is not None
    assert hop.to == "a"
    assert table.find("a", b"there1", 3 * IDLE - 3) is not None
    assert table.find("a", b"there1", 4 * IDLE) is None
    assert table.find("b", b"back1", 4 * IDLE) is None
    assert sorted(ended) == ["a", "b"]  # type: ignore[type-var]
    assert len(table) == 0


def test_others_datagrams_with_the_same_key_go_their_own_way() -> None:
    table, _ = flows()
    joined(table, "a", "b", 1, 0.0)
    assert table.find("c", b"there1", 1.0) is None


def test_whoever_leaves_takes_all_conversations_along() -> None:
    table, _ = flows()
    joined(table, "a", "b", 1, 0.0)
    joined(table, "a", "c", 2, 0.0)
    joined(table, "b", "a", 3, 0.0)
    table.leave("b")
    assert table.find("a", b"there1", 1.0) is None
    assert table.find("a", b"back3", 1.0) is None
    assert table.find("a", b"there2", 1.0) is not None
    assert len(table) == 1


def test_a_port_that_is_closed_sets_its_clients_free() -> None:
    table, _ = flows()
    for port in (80, 81):
        flow = table.begin("client", 0.0)
        table.lead(flow, "client", b"x%d" % port, "server")
        table.lead(flow, "server", b"addresses" + port.to_bytes(2, "big") + b"\x99\x99", "client")
    table.port_closed("server", 80)
    assert table.find("client", b"x80", 1.0) is None
    assert table.find("client", b"x81", 1.0) is not None


def test_a_passing_word_does_not_last_however_often_it_is_asked() -> None:
    table, _ = flows()
    table.lead(table.begin("a", 0.0, 1.0), "a", b"key", "no")
    assert table.find("a", b"key", 0.9) is not None
    assert table.find("a", b"key", 1.1) is None


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 40)), max_size=200))
def test_never_more_than_so_many_and_nothing_is_left_over(steps: list[tuple[str, int]]) -> None:
    table, _ = flows(most=8)
    for now, (client, number) in enumerate(steps):
        if table.find(client, b"there%d" % number, float(now)) is None:
            joined(table, client, "server-of-" + client, number, float(now))
        # The one that was begun just now is there, and with each way there its way back.
        assert table.find(client, b"there%d" % number, float(now)) is not None
        for owner in ("a", "b"):
            there, back = table.hops(owner), table.hops("server-of-" + owner)
            assert len(there) <= 8
            assert {key[5:] for key in there} == {key[4:] for key in back}
    for owner in ("a", "b"):
        table.leave(owner)
        assert not table.hops("server-of-" + owner)
    assert len(table) == 0
