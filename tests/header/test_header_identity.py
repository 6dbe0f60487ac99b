"""Headers: who gets in with one, and who does not. Every bit counts."""

import dataclasses
import hashlib
import hmac
import os
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appswitch.header import identity, proxy2
from appswitch.header.identity import Header, Sender, encode, verify
from appswitch.header.keys import KeyRing
from appswitch.header.refused import Malformed, Misdirected, Refused, Replayed, Stale, Truncated, Unauthenticated
from appswitch.header.window import SIZE, Windows
from appswitch.model.address import MAPPED, pack
from appswitch.model.identity import TAGS_MOST, Refusal, check_tags
from appswitch.model.service import Service

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
RING = KeyRing([KEY])
CLIENT = pack("100.64.7.7")
TAGS = (("env", "prod"), ("group", "1"))

BYTES8 = st.binary(min_size=8, max_size=8)
ADDRESS = st.binary(min_size=4, max_size=4).map(lambda tail: MAPPED + tail)
TAG = st.tuples(
    st.text("abcXYZ019_.-", min_size=1, max_size=10),
    st.text(st.characters(blacklist_categories=("Cs", "Z", "C"), blacklist_characters=",="), min_size=1, max_size=10),
)
HEADERS = st.builds(
    Header,
    client=ADDRESS,
    client_port=st.integers(0, 65535),
    server=ADDRESS.filter(lambda address: address[12] not in (0, 127)),
    server_port=st.integers(0, 65535),
    tags=st.lists(TAG, max_size=5).map(tuple),
    instance=st.integers(0, 2**64 - 1),
    epoch=BYTES8,
    sender=BYTES8,
    counter=st.integers(1, 2**64 - 1),
)


def row(**changes):
    made = Service(
        vip=pack("100.64.1.1"),
        port=80,
        instance=5 << 24 | 9,
        program=5,
        name="web",
        tags=(),
        bound=pack("0.0.0.0"),
        dual=False,
        listener="",
        real=("192.0.2.1", 40000),
        balance="round-robin",
        transport="auto",
        since=1.0,
        uid=0,
        cookie=0,
        epoch=b"e" * 8,
    )
    return dataclasses.replace(made, **changes)


def row_for(header):
    return row(vip=header.server, port=header.server_port, instance=header.instance, epoch=header.epoch)


def written(service=None, ring=RING, client=CLIENT, server=None, port=80, tags=TAGS):
    service = service or row()
    return Sender(os.urandom).write(ring, service, client, 4321, server or service.vip, port, tags)


@given(HEADERS)
def test_what_is_written_is_read(header):
    assert verify(encode(header, RING), RING, row_for(header), Windows()) == header


def test_every_single_changed_bit_is_refused():
    data, service = written(), row()
    verify(data, RING, service, Windows())
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        # as a stream has it: more bytes follow
        with pytest.raises((Malformed, Unauthenticated, Truncated)):
            verify(bytes(changed) + bytes(200), RING, service, Windows())


@given(HEADERS, st.data())
def test_changes_are_refused(header, data):
    good = encode(header, RING)
    bad = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        bad[data.draw(st.integers(0, len(bad) - 1))] = data.draw(st.integers(0, 255))
    if bad != good:
        with pytest.raises(Refused):
            verify(bytes(bad), RING, row_for(header), Windows())


@given(HEADERS)
def test_every_truncation_asks_for_more(header):
    data, windows = encode(header, RING), Windows()
    for length in range(len(data)):
        with pytest.raises(Truncated):
            verify(data[:length], RING, row_for(header), windows)
    verify(data, RING, row_for(header), windows)


FIELDS = st.lists(
    st.tuples(st.sampled_from([0xE0, 0xE1, 0xE2, 0x03, 0x04]), st.sampled_from([0, 8, 16, 35, 36, 37]).map(bytes)),
    max_size=5,
).map(lambda fields: b"".join(proxy2.field(*one) for one in fields))


@given(st.binary(max_size=200) | FIELDS.map(lambda fields: proxy2.encode(CLIENT, 1, pack("100.64.1.1"), 80, fields)))
def test_garbage_is_refused_and_nothing_else(data):
    with pytest.raises(Refused):
        verify(data, RING, row(), Windows())


def signed(*fields, last=0xE2):
    """A header of somebody with a key who composes it otherwise."""
    body = b"".join(proxy2.field(*one) for one in fields) + proxy2.field(last, bytes(16))
    data = proxy2.encode(CLIENT, 1, pack("100.64.1.1"), 80, body)[:-16]
    return data + RING.first.mac(data)


PROOF = identity._PROOF_VALUE.pack(row().instance, row().epoch, b"s" * 8, 1, RING.first.id)


def test_fields_of_others_are_ignored():
    data = signed((0x03, bytes(4)), (0xE0, PROOF), (0x02, b"host"), (0xE1, b"group=1"), (0xEF, b""))
    assert verify(data, RING, row(), Windows()).tags == (("group", "1"),)


@pytest.mark.parametrize(
    "data",
    [
        signed((0xE1, b"")),
        signed((0xE0, PROOF)),
        signed((0xE0, PROOF), (0xE0, PROOF), (0xE1, b"")),
        signed((0xE0, PROOF), (0xE1, b""), (0xE1, b"")),
        signed((0xE0, PROOF[:-1]), (0xE1, b"")),
        signed((0xE0, PROOF), (0xE1, b""), last=0xE3),
        signed((0xE0, PROOF), (0xE1, b"group")),
        signed((0xE0, PROOF), (0xE1, b"=1")),
        signed((0xE0, PROOF), (0xE1, b"group=1,")),
        signed((0xE0, PROOF), (0xE1, b"\xff=1")),
        signed((0xE0, PROOF), (0xE1, b"a=" + b"x" * TAGS_MOST)),
        proxy2.encode(CLIENT, 1, pack("100.64.1.1"), 80, b""),
    ],
)
def test_what_is_composed_otherwise_is_malformed(data):
    with pytest.raises(Malformed):
        verify(data, RING, row(), Windows())


# keys -----------------------------------------------------------------------------------------------------


def test_any_key_of_the_ring_is_read_and_the_first_is_written_with():
    both = KeyRing([OTHER_KEY, KEY])
    verify(written(), both, row(), Windows())
    verify(written(ring=both), KeyRing([OTHER_KEY]), row(), Windows())
    with pytest.raises(Unauthenticated):
        verify(written(ring=both), RING, row(), Windows())


def test_keys_that_share_an_id_are_all_tried():
    ring, other = KeyRing([KEY]), KeyRing([OTHER_KEY]).first
    other.id = ring.first.id
    ring._by_id[other.id].append(other)
    ring.first = other
    verify(written(ring=ring), ring, row(), Windows())


@pytest.mark.parametrize("keys", [[], [b"short"], [KEY, b""]])
def test_a_ring_has_keys_that_are_ones(keys):
    with pytest.raises(ValueError, match="32 bytes"):
        KeyRing(keys)


def test_the_mac_is_hmac_with_sha256():
    derived = hmac.digest(KEY, b"mac\1", hashlib.sha256)
    assert RING.first.mac(b"data") == hmac.digest(derived, b"data", hashlib.sha256)[:16]


# fresh, and for whom ---------------------------------------------------------------------------------------


def test_another_instance_or_destination_is_misdirected():
    service = row()
    for data in (
        written(row(instance=6)),
        written(port=81),
        written(server=pack("100.64.1.2")),
        written(server=pack("fd61:7070:7377:6974:6368::6440:101")),  # this listener has no IPv6
    ):
        with pytest.raises(Misdirected):
            verify(data, RING, service, Windows())


def test_loopback_is_for_programs_of_the_virtual_ip():
    own, loopback = row(bound=pack("127.0.0.1")), pack("127.0.0.1")
    assert verify(written(own, client=loopback, server=loopback), RING, own, Windows()).server == loopback
    verify(written(row(), client=loopback, server=loopback), RING, row(), Windows())
    for service, server in ((own, loopback), (row(), loopback), (own, own.vip)):
        with pytest.raises(Misdirected):
            verify(written(service, client=CLIENT, server=server), RING, service, Windows())


def test_an_earlier_epoch_is_stale():
    with pytest.raises(Stale):
        verify(written(row(epoch=b"E" * 8)), RING, row(), Windows())


def test_the_second_time_is_a_replay():
    data, windows = written(), Windows()
    verify(data, RING, row(), windows)
    for _ in range(2):
        with pytest.raises(Replayed):
            verify(data, RING, row(), windows)


def test_what_is_refused_for_another_reason_is_not_entered():
    service, windows, sender = row(), Windows(), Sender(os.urandom)
    data = sender.write(RING, service, CLIENT, 1, service.vip, 80, TAGS)
    for bad in (data[:-1] + bytes([data[-1] ^ 1]), data[:-1]):
        with pytest.raises(Refused):
            verify(bad, RING, service, windows)
    with pytest.raises(Stale):
        verify(data, RING, row(epoch=b"E" * 8), windows)
    verify(data, RING, service, windows)


def test_headers_that_overtake_each_other_are_all_accepted():
    service, windows, sender = row(), Windows(), Sender(os.urandom)
    sent = [sender.write(RING, service, CLIENT, 1, service.vip, 80, TAGS) for _ in range(SIZE)]
    random.Random(7).shuffle(sent)
    assert {verify(data, RING, service, windows).counter for data in sent} == set(range(1, SIZE + 1))


def test_a_sender_that_forgets_takes_another_name(monkeypatch):
    monkeypatch.setattr(identity, "_INSTANCES_KEPT", 3)
    sender, services = Sender(os.urandom), [row(epoch=bytes([n]) * 8) for n in range(10)]
    windows = [Windows() for _ in services]
    for _ in range(5):
        for service, window in zip(services, windows, strict=True):
            verify(sender.write(RING, service, CLIENT, 1, service.vip, 80, TAGS), RING, service, window)
    assert len(sender._counters) <= 3


# tags -----------------------------------------------------------------------------------------------------


def test_all_tags_that_a_program_may_have_travel():
    texts = [f"k{n}={'v' * 97}" for n in range(10)]
    tags = check_tags(texts)
    assert verify(written(tags=tags), RING, row(), Windows()).tags == tags
    with pytest.raises(Refusal, match="1024 bytes"):
        check_tags([*texts, "more=" + "x" * 30])
    with pytest.raises(ValueError, match="more than 1024"):
        written(tags=(("k", "v" * TAGS_MOST),))
