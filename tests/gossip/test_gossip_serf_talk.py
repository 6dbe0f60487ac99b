"""What a member says in Serf's words, and makes of what it hears."""

import base64
import contextlib
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appswitch.gossip import serf
from appswitch.gossip.refused import COUNTERS, Refused
from appswitch.gossip.serf import (
    ACK,
    JOIN,
    KEY_REQUEST,
    LEAVE,
    NO_BROADCAST,
    PUSH_PULL,
    QUERY,
    RELAY,
    RESPONSE,
    USER_EVENT,
    Respond,
    Spread,
    Talk,
    pack,
)

OLD, NEW = bytes(16), bytes(range(16))
ASKER = ("10.0.0.9", 7946)
HERE = {"Addr": bytes([10, 0, 0, 9]), "Port": 7946}


def talk(*keys: bytes) -> Talk:
    return Talk("host", {"role": "appswitch"}, keys)


def fields(payload: bytes) -> dict[str, Any]:
    found: dict[str, Any] = msgpack.unpackb(payload[1:], raw=False, unicode_errors="surrogateescape")
    return found


def query(name: str = "q", **others: Any) -> bytes:
    given = {"LTime": 3, "ID": 7, **HERE, "Filters": [], "Flags": ACK, "Name": name, "Payload": b""}
    return pack(QUERY, **(given | others))


def answers(found: list[serf.Action]) -> list[dict[str, Any]]:
    assert all(one.to == ASKER for one in found if isinstance(one, Respond))
    return [fields(one.payload) for one in found if isinstance(one, Respond)]


def test_it_joins_and_leaves_later_than_all_that_it_knows() -> None:
    one = talk()
    first = fields(one.join().payload)
    assert first == {"LTime": 1, "Node": "host"}
    assert one.merge(pack(PUSH_PULL, LTime=40, StatusLTimes={"x": 3}, LeftMembers=["x"], Events=None)) == []
    one.hear(pack(JOIN, LTime=50, Node="other"), 0.0)
    assert fields(one.join().payload)["LTime"] == 51
    state = fields(one.state())
    assert state["StatusLTimes"] == {"host": 51}
    assert state["LTime"] == 52
    gone = one.leave()
    assert gone.payload[0] == LEAVE
    assert fields(gone.payload) == {"LTime": 52, "Node": "host", "Prune": False}


def test_it_denies_that_it_left_until_it_does() -> None:
    one = talk()
    said = pack(LEAVE, LTime=9, Node="host")
    [passed_on, denial] = one.hear(said, 0.0)
    assert passed_on == Spread(said, relay=True)
    assert isinstance(denial, Spread)
    assert (denial.payload[0], fields(denial.payload)["LTime"]) == (JOIN, 10)
    [denial] = one.merge(pack(PUSH_PULL, LTime=20, LeftMembers=["other", "host"]))
    assert isinstance(denial, Spread)
    assert fields(denial.payload)["LTime"] == 20
    one.leave()
    assert one.merge(pack(PUSH_PULL, LTime=30, LeftMembers=["host"])) == []


def test_news_are_passed_on_once_and_other_things_never() -> None:
    one = talk()
    event = pack(USER_EVENT, LTime=5, Name="deploy", Payload=b"x", CC=False)
    assert one.hear(event, 0.0) == [Spread(event, relay=True)]
    assert one.hear(event, 59.0) == []
    assert one.hear(event, 61.0) == [Spread(event, relay=True)], "forgotten"
    assert fields(one.state())["EventLTime"] == 6
    assert one.hear(pack(RESPONSE, LTime=1, ID=1), 0.0) == []
    assert one.hear(b"", 0.0) == []
    assert one.hear(b"\x94of ours", 0.0) == []


def test_more_than_it_can_remember_is_not_passed_on() -> None:
    one = talk()
    for number in range(4096):
        assert one.hear(pack(USER_EVENT, LTime=number, Name="flood"), 0.0)
    with pytest.raises(Refused) as refused:
        one.hear(pack(USER_EVENT, LTime=5000, Name="flood"), 0.0)
    assert refused.value.reason == "full"
    assert one.hear(pack(USER_EVENT, LTime=1, Name="later"), 61.0)


def test_queries_are_acknowledged_if_they_want_it_and_mean_it() -> None:
    one = talk()
    [passed_on, _] = found = one.hear(query(), 0.0)
    assert passed_on == Spread(query(), relay=True)
    assert answers(found) == [{"LTime": 3, "ID": 7, "From": "host", "Flags": ACK, "Payload": ""}]
    assert one.hear(query(Flags=0), 0.0) == [Spread(query(Flags=0), relay=True)]
    assert len(one.hear(query(Flags=ACK | NO_BROADCAST), 0.0)) == 1


def node_filter(*names: str) -> bytes:
    return b"\x00" + bytes(msgpack.packb(names, use_bin_type=False))


def tag_filter(tag: str, pattern: str) -> bytes:
    return b"\x01" + bytes(msgpack.packb({"Tag": tag, "Expr": pattern}, use_bin_type=False))


@pytest.mark.parametrize(
    ("which", "meant"),
    [
        ([node_filter("other", "host")], True),
        ([node_filter("other")], False),
        ([tag_filter("role", "appswitch")], True),
        ([tag_filter("role", "^app")], True),
        ([tag_filter("role", "^switch")], False),
        ([tag_filter("role", "switch$")], True),
        ([tag_filter("role", "(a+)+$")], False),  # one that may never end
        ([tag_filter("none", "x")], False),
        ([tag_filter("role", "app"), node_filter("other")], False),
        ([b""], False),
        ([b"\x02"], False),
        ([b"\x01\x01"], False),
        (["text"], False),
        ([5], False),
    ],
)
def test_filters(which: list[object], meant: bool) -> None:
    assert bool(answers(talk().hear(query(Filters=which), 0.0))) == meant


def change(one: Talk, what: str, key: bytes) -> dict[str, Any]:
    asked = query(f"_serf_{what}-key{'s' * (what == 'list')}", Flags=0, Payload=pack(KEY_REQUEST, Key=key))
    found = one.hear(asked, 0.0)
    [answer] = [fields(one.payload) for one in found if isinstance(one, Respond)]
    payload = answer["Payload"].encode(errors="surrogateescape")
    assert payload[0] == serf.KEY_RESPONSE
    rekeyed = [one.keys for one in found if isinstance(one, serf.Rekey)]
    told = fields(payload)
    assert told["Keys"] == [base64.b64encode(key).decode() for key in one.keys]
    return {"ok": told["Result"], "rekeyed": rekeyed, "message": told["Message"]}


def test_keys_are_changed_as_serf_does() -> None:
    one = talk(OLD)
    assert change(one, "install", NEW) == {"ok": True, "rekeyed": [(OLD, NEW)], "message": ""}
    assert change(one, "use", NEW) == {"ok": True, "rekeyed": [(NEW, OLD)], "message": ""}
    assert not change(one, "remove", NEW)["ok"]
    assert change(one, "remove", OLD) == {"ok": True, "rekeyed": [(NEW,)], "message": ""}
    assert change(one, "list", b"") == {"ok": True, "rekeyed": [], "message": ""}
    assert not change(one, "use", OLD)["ok"]
    assert not change(one, "install", b"short")["ok"]
    for number in range(1, 8):
        assert change(one, "install", bytes([number] * 16))["ok"]
    assert change(one, "install", bytes(32))["message"] == "too many keys"
    assert "encryption not enabled" in change(talk(), "install", NEW)["message"]


def test_answers_are_handed_on_and_nothing_else() -> None:
    one, answer = talk(OLD), pack(RESPONSE, LTime=1, ID=2)
    head = pack(RELAY, DestAddr={"IP": HERE["Addr"], "Port": 7946, "Zone": ""})
    assert one.hear(head + answer, 0.0) == [Respond(ASKER, answer)]
    assert talk().hear(head + answer, 0.0) == [], "for strangers neither"
    for wrong in (head, head + pack(LEAVE, LTime=1, Node="x"), bytes([RELAY]), pack(RELAY) + answer):
        with pytest.raises(Refused):
            one.hear(wrong, 0.0)


@pytest.mark.parametrize(
    "state",
    [
        b"",
        b"\x05",
        bytes([PUSH_PULL]),
        pack(PUSH_PULL, LTime="x"),
        pack(PUSH_PULL, LTime=1 << 63),
        pack(PUSH_PULL, LeftMembers=[["nested"]]),
        bytes([PUSH_PULL, 0x81]) + b"\x91" * 100_000,
        bytes([PUSH_PULL, 0x81]) + msgpack.packb("Events") + b"\x91" * 100_000,
        bytes([PUSH_PULL, 0x81]) + msgpack.packb("LeftMembers"),
    ],
)
def test_states_that_are_none(state: bytes) -> None:
    with pytest.raises(Refused) as refused:
        talk().merge(state)
    assert "gossip_" + refused.value.reason in COUNTERS


@given(st.binary() | st.builds(lambda kind, rest: bytes([kind]) + rest, st.integers(0, 10), st.binary()))
def test_whatever_comes_is_read_or_refused(data: bytes) -> None:
    one = talk(OLD)
    for read in (one.merge, lambda data: one.hear(data, 0.0)):
        with contextlib.suppress(Refused):
            read(data)
