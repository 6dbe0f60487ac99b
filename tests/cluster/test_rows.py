"""What a host tells the others, and what is believed of it."""

import dataclasses

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appswitch.cluster import rows
from appswitch.model.identity import Claim
from appswitch.model.service import Place, Service

VIP = st.binary(min_size=16, max_size=16)
WORD = st.text("abcxyz019-", min_size=1, max_size=10)
SERVICES = st.builds(
    Service,
    vip=VIP,
    port=st.integers(1, 65535),
    instance=st.integers(0, 2**63 - 1),
    program=st.integers(0, 2**32),
    name=st.none() | WORD,
    tags=st.lists(st.tuples(WORD, WORD), max_size=3).map(tuple),
    bound=VIP,
    dual=st.booleans(),
    listener=WORD,
    real=st.tuples(st.ip_addresses().map(str), st.integers(1, 65535)),
    balance=st.sampled_from(["round-robin", "random"]),
    transport=st.sampled_from(["auto", "tcp"]),
    since=st.floats(0, 2e9),
    uid=st.integers(0, 2**32 - 1),
    cookie=st.integers(1, 2**63),
    epoch=st.binary(min_size=8, max_size=8),
)
CLAIMS = st.lists(
    st.builds(
        Claim,
        name=st.none() | WORD,
        vip=st.just(bytes(16)),
        uid=st.integers(0, 2**32 - 1),
        derived=st.booleans(),
        open=st.booleans(),
        stamp=st.integers(0, 2**62),
        host=st.just("b"),
    ),
    max_size=5,
)


@given(SERVICES)
def test_a_service_arrives_with_all_that_means_something_elsewhere(row):
    key = rows.service_key(row)
    assert rows.is_service(key)
    arrived = rows.service("b", key, rows.service_value(row))
    assert arrived == dataclasses.replace(row, host="b", listener="", cookie=0)
    bare = rows.service_of_key("b", key)
    assert (bare.vip, bare.proto, bare.port, bare.instance, bare.host) == (row.vip, 6, row.port, row.instance, "b")


@given(CLAIMS)
def test_claims_arrive(claims):
    key = rows.claims_key(bytes(16))
    assert rows.vip_of_claims(key) == bytes(16)
    assert rows.claims("b", key, rows.claims_value(claims)) == claims


def test_only_what_others_can_use_is_told():
    row = rows.service_of_key("", b"s" + bytes(27))
    assert not rows.published(row)
    row = dataclasses.replace(row, real=("10.0.0.1", 5), epoch=b"12345678")
    assert rows.published(row)
    assert not rows.published(dataclasses.replace(row, alone=True))
    assert not rows.published(dataclasses.replace(row, epoch=b""))
    assert not rows.published(dataclasses.replace(row, real=("", 0)))


JUNK = st.recursive(
    st.none() | st.integers(-1, 2**64 - 1) | st.floats() | st.text(max_size=3) | st.binary(max_size=17) | st.booleans(),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=8,
)


@given(SERVICES, st.data())
def test_a_field_that_is_not_right_makes_no_row(row, data):
    fields = msgpack.unpackb(rows.service_value(row), raw=False)
    place = data.draw(st.integers(0, len(fields) - 1))
    fields[place] = data.draw(JUNK)
    try:
        found = rows.service("b", rows.service_key(row), msgpack.packb(fields))
    except rows.Malformed:
        return
    assert found.host == "b"
    assert rows.service("b", rows.service_key(row), rows.service_value(found)) == found
    hash(found)


@given(JUNK | st.lists(JUNK, min_size=5, max_size=16), st.binary(max_size=30), st.sampled_from("sci"))
def test_junk_is_malformed(junk, raw, kind):
    for value in (msgpack.packb(junk), raw):
        for key in (kind.encode() + raw, b"s" + bytes(27), b"c" + bytes(16)):
            for read in (rows.service, rows.claims):
                try:
                    read("b", key, value)
                except rows.Malformed:
                    pass
        assert rows.programs(value) >= 0
        rows.relay(value)


def test_later_versions_may_say_more():
    row = rows.service_of_key("b", b"s" + bytes(27))
    row = dataclasses.replace(row, bound=bytes(16), real=("10.0.0.1", 5), epoch=b"12345678", transport="auto")
    fields = msgpack.unpackb(rows.service_value(row), raw=False)
    assert rows.service("b", b"s" + bytes(27), msgpack.packb([*fields, "more"])) == row
    assert rows.programs(rows.info_value(5)) == 5
    assert rows.programs(msgpack.packb({"programs": 5, "more": []})) == 5
    place = Place(("10.0.0.1", 5), b"12345678")
    assert rows.relay(rows.info_value(5, place)) == place
    assert rows.relay(msgpack.packb({"relay": [*place.address, place.life, "more"]})) == place
    for told in (None, [], ["10.0.0.1", 0, place.life], ["here", 5, place.life], ["10.0.0.1", 5, b"short"]):
        assert rows.relay(msgpack.packb({"programs": 5, "relay": told})) is None
    with pytest.raises(rows.Malformed):
        rows.service("b", b"s" + bytes(27), msgpack.packb(fields[:-1]))
