"""Datagrams between hosts: what was sent comes out, and nothing else gets in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appswitch.header import datagram
from appswitch.header.datagram import Datagram, Sender, encode, verify
from appswitch.header.keys import KeyRing
from appswitch.header.refused import Malformed, Refused, Replayed, Stale, Unauthenticated
from appswitch.header.window import Windows

RING = KeyRing([b"k" * 32])
LIFE = b"the life"
GOOD = Datagram(
    *(datagram.DATA, 0x10, LIFE, b"a sender", 1, 7 << 24, bytes(16), b"\xff" * 16, 1000, 53000),
    *((("group", "1"), ("tier", "web")), b"payload"),
)

addresses = st.binary(min_size=16, max_size=16)
ports = st.integers(0, 65535)


@given(
    st.builds(
        GOOD._replace,
        kind=st.integers(0, datagram.DENIED),
        traffic_class=st.integers(0, 255),
        counter=st.integers(1, 2**64 - 1),
        instance=st.integers(0, 2**64 - 1),
        source=addresses,
        destination=addresses,
        source_port=ports,
        port=ports,
        payload=st.binary(max_size=2000),
    )
)
def test_what_was_sent_comes_out(sent: Datagram) -> None:
    assert verify(encode(sent, RING), RING, LIFE, Windows()) == sent


@given(st.data())
def test_one_bit_changed_and_it_is_nobodys(data: st.DataObject) -> None:
    made = bytearray(encode(GOOD, RING))
    bit = data.draw(st.integers(0, 8 * len(made) - 1))
    made[bit // 8] ^= 1 << bit % 8
    with pytest.raises((Unauthenticated, Malformed)):
        verify(bytes(made), RING, LIFE, Windows())


@given(st.integers(0, 400))
def test_cut_anywhere_it_is_nobodys(length: int) -> None:
    made = encode(GOOD, RING)
    with pytest.raises((Unauthenticated, Malformed)):
        verify(made[: min(length, len(made) - 1)], RING, LIFE, Windows())


@given(st.binary(max_size=300))
def test_whatever_comes_it_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(Refused):
        verify(data, RING, LIFE, Windows())


def test_only_once_and_only_in_this_life() -> None:
    windows = Windows()
    made = encode(GOOD, RING)
    verify(made, RING, LIFE, windows)
    with pytest.raises(Replayed):
        verify(made, RING, LIFE, windows)
    with pytest.raises(Stale):
        verify(made, RING, b"another!", Windows())
    with pytest.raises(Unauthenticated):
        verify(made, KeyRing([b"?" * 32]), LIFE, Windows())
    # A key that is being changed: read with any.
    assert verify(made, KeyRing([b"n" * 32, b"k" * 32]), LIFE, Windows()) == GOOD


def test_each_life_has_its_own_numbers() -> None:
    sender = Sender(lambda count: b"r" * count)
    assert [sender.next(b"one"), sender.next(b"one"), sender.next(b"two"), sender.next(b"one")] == [1, 2, 1, 3]
