"""The PROXY protocol's wire: round trips, the specification's own bytes, and whatever else may come."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from appswitch.header import proxy2
from appswitch.header.refused import Malformed, Missing, Refused, Truncated
from appswitch.model.address import MAPPED, is_v4, pack

PORT = st.integers(0, 65535)
V4 = st.binary(min_size=4, max_size=4).map(lambda tail: MAPPED + tail)
V6 = st.binary(min_size=16, max_size=16)
PAIRS = st.tuples(V4, V4) | st.tuples(V6, V6) | st.tuples(V4, V6)
FIELDS = st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=200)), max_size=5)


def encoded(pair, ports, fields):
    return proxy2.encode(pair[0], ports[0], pair[1], ports[1], b"".join(proxy2.field(*one) for one in fields))


@given(PAIRS, st.tuples(PORT, PORT), FIELDS, st.binary(max_size=50))
def test_what_is_written_is_read_and_the_rest_is_the_stream_s(pair, ports, fields, after):
    data = encoded(pair, ports, fields)
    assert proxy2.size(data + after) == len(data)
    assert proxy2.decode(data + after) == (pair[0], ports[0], pair[1], ports[1], fields)
    assert data[13] == (0x11 if is_v4(pair[0]) and is_v4(pair[1]) else 0x21)


@given(PAIRS, st.tuples(PORT, PORT), FIELDS, st.data())
def test_every_beginning_asks_for_more(pair, ports, fields, data):
    whole = encoded(pair, ports, fields)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(Truncated) as refused:
        proxy2.decode(whole[:cut])
    assert cut < refused.value.needs <= len(whole)
    assert refused.value.needs == (16 if cut < 16 else len(whole))


@given(st.binary(max_size=100) | st.binary(max_size=300).map(lambda tail: proxy2.SIGNATURE + b"\x21\x11" + tail))
@example(b"GET / HTTP/1.1\r\n")
@example(b"\r\n\r\n")
@example(proxy2.SIGNATURE)
def test_garbage_is_refused_and_nothing_else(data):
    try:
        proxy2.decode(data)
    except Refused:
        pass


@pytest.mark.parametrize("data", [b"G", b"GET / HTTP/1.1\r\n\r\n", b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\n", bytes(16)])
def test_other_protocols_are_told_at_their_first_byte(data):
    for length in range(1, len(data) + 1):
        with pytest.raises(Missing):
            proxy2.size(data[:length])


def test_bytes_of_the_specification():
    # A header of proxy-protocol.txt, 2.2, written by hand: TCP over IPv4, with a NOOP field.
    data = bytes.fromhex("0d0a0d0a000d0a515549540a" + "21" + "11" + "0010" + "7f000001" + "0a000002" + "1f90" + "0050")
    data += bytes.fromhex("040001") + b"\0"
    assert proxy2.decode(data) == (pack("127.0.0.1"), 8080, pack("10.0.0.2"), 80, [(4, b"\0")])


@pytest.mark.parametrize(
    ("at", "byte"),
    [(12, 0x20), (12, 0x11), (12, 0x22), (13, 0x00), (13, 0x12), (13, 0x22), (13, 0x31)],
    ids=["LOCAL", "version 1", "a command to come", "UNSPEC", "UDP4", "UDP6", "UNIX"],
)
def test_other_kinds_of_header_are_malformed(at, byte):
    data = bytearray(proxy2.encode(pack("1.2.3.4"), 1, pack("1.2.3.5"), 2, b""))
    data[at] = byte
    with pytest.raises(Malformed):
        proxy2.decode(bytes(data))


@pytest.mark.parametrize("family", [0x11, 0x21])
@pytest.mark.parametrize("tail", [b"", bytes(11), bytes(14)])
def test_a_length_that_does_not_fit_its_content_is_malformed(family, tail):
    data = proxy2.FIXED.pack(proxy2.SIGNATURE, 0x21, family, len(tail)) + tail
    with pytest.raises(Malformed):
        proxy2.decode(data + bytes(100))


def test_a_field_ends_within_the_header():
    data = proxy2.encode(pack("1.2.3.4"), 1, pack("1.2.3.5"), 2, b"\x04\0\x05abcd")
    with pytest.raises(Malformed):
        proxy2.decode(data + b"e")


def test_no_header_makes_the_reader_hold_much():
    most = proxy2.LARGEST - 16
    with pytest.raises(Truncated):
        proxy2.size(proxy2.SIGNATURE + b"\x21\x11\0")
    assert proxy2.size(proxy2.SIGNATURE + b"\x21\x11" + most.to_bytes(2, "big")) == proxy2.LARGEST
    with pytest.raises(Malformed):
        proxy2.size(proxy2.SIGNATURE + b"\x21\x11" + (most + 1).to_bytes(2, "big"))
    with pytest.raises(ValueError, match="more than 2048"):
        proxy2.encode(pack("1.2.3.4"), 1, pack("1.2.3.5"), 2, proxy2.field(0xE0, bytes(2020)))
