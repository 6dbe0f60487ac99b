"""Messages, datagrams and streams: what is written is read again, and what is not ours is refused."""

import hashlib
import itertools
import struct

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appswitch.gossip import envelope, lzw, stream, wire
from appswitch.gossip.envelope import Envelope, make_compound, split_compound
from appswitch.gossip.refused import COUNTERS, Refused
from appswitch.gossip.seal import KeyRing
from appswitch.gossip.wire import Message

from . import messages

KEYS = KeyRing([bytes(32)])
rings = st.sampled_from([None, KEYS])
labels = st.sampled_from(["", "c1", "x" * 255])
LIMIT = 1 << 20


def read(data: bytes, label: bytes = b"", keys: KeyRing | None = None, cuts: tuple[int, ...] = ()) -> Message | None:
    """What a stream's reader makes of the octets, which come in pieces."""
    reader = stream.Reader(label, keys, LIMIT, 100)
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    for begin, end in itertools.pairwise(places):
        message = reader.feed(data[begin:end])
        if message is not None:
            assert end == len(data)
            return message
    return None


def parts_of(around: Envelope, datagram: bytes) -> list[Message]:
    return [wire.decode(part) for part in around.unwrap(datagram)]


@given(messages.simple)
def test_messages_are_read_as_they_were_written(message: Message) -> None:
    assert wire.decode(wire.encode(message)) == message


@given(st.lists(messages.simple, min_size=1, max_size=20), labels, rings, st.booleans())
def test_datagrams_unwrap_to_what_was_wrapped(said: list[Message], label: str, keys: KeyRing | None, crc: bool) -> None:
    around = Envelope(label, keys, 65000)
    datagram = around.wrap(make_compound([wire.encode(message) for message in said]), crc=crc)
    assert parts_of(around, datagram) == said


@given(messages.streamed, labels, rings, st.lists(st.integers(0, 1 << 16), max_size=5).map(tuple))
def test_streams_are_read_however_they_are_cut(
    message: Message, label: str, keys: KeyRing | None, cuts: tuple[int, ...]
) -> None:
    data = stream.seal(wire.encode(message), label.encode(), keys)
    assert read(data, label.encode(), keys, cuts) == message


@given(messages.streamed, rings, st.integers(1, 1 << 16))
def test_a_stream_that_is_cut_off_is_no_message(message: Message, keys: KeyRing | None, less: int) -> None:
    data = stream.seal(wire.encode(message), b"c1", keys)
    assert read(data[: -(less % len(data)) or -1], b"c1", keys) is None


@given(st.binary(max_size=300))
def test_a_user_message_on_a_stream_has_its_length(payload: bytes) -> None:
    assert read(wire.encode_stream_user(payload)) == wire.User(payload)


@given(messages.push_pulls, rings)
def test_compressed_messages_are_read(message: Message, keys: KeyRing | None) -> None:
    packed = compressed(wire.encode(message))
    assert read(stream.seal(packed, b"", keys), b"", keys) == message


@given(st.lists(messages.simple, min_size=1, max_size=5), rings)
def test_compressed_datagrams_are_read(said: list[Message], keys: KeyRing | None) -> None:
    around = Envelope("", keys, 65000)
    datagram = around.wrap(compressed(make_compound([wire.encode(message) for message in said])), crc=True)
    assert parts_of(around, datagram) == said


def compressed(message: bytes) -> bytes:
    return b"\x09" + bytes(msgpack.packb({"Algo": 0, "Buf": messages.compress(message)}, use_bin_type=False))


@given(st.binary(max_size=20000))
def test_what_was_compressed_expands(data: bytes) -> None:
    assert lzw.expand(messages.compress(data), len(data)) == data


def test_compression_is_that_of_go() -> None:
    """Made by Go 1.19's compress/lzw; the second passes through every width of codes and several clears."""
    text = b"TOBEORNOTTOBEORTOBEORNOT"
    assert lzw.expand(bytes.fromhex("00a93c1152e48914274fa80824687061c183090302"), 100) == text
    data, state = bytearray(), 1
    for _ in range(30000):
        state = (state * 1103515245 + 12345) & 0xFFFFFFFF
        data.append(state >> 16 & 15)
    packed = messages.compress(bytes(data))
    assert len(packed) == 18880
    assert hashlib.sha256(packed).hexdigest() == "b556b1f3b6dd2b7550d01055df47bd1d731196c13a371cbd86b66f354895d94a"
    assert lzw.expand(packed, 30000) == data


def test_a_decompression_bomb_stops_at_the_limit() -> None:
    bomb = messages.compress(bytes(1 << 18))
    assert len(bomb) < 2000
    with pytest.raises(Refused) as refusal:
        lzw.expand(bomb, 1 << 16)
    assert refusal.value.reason == "oversized"
    with pytest.raises(Refused) as refusal:
        Envelope("", None, 1400).unwrap(compressed(bytes(1 << 18)))
    assert refusal.value.reason == "oversized"


@given(st.binary(max_size=200), st.binary(max_size=300))
def test_garbage_does_not_expand_to_more_than_the_limit(start: bytes, data: bytes) -> None:
    for garbage in (data, messages.compress(start)[:-1] + data):
        if messages.refusal(lzw.expand, garbage, 1000) is None:
            assert len(lzw.expand(garbage, 1000)) <= 1000


def test_the_octets_are_memberlists() -> None:
    """By hand: type, then a map of Go's field names, text and octets both of msgpack's old raw type."""
    assert wire.encode(wire.Ping(5, "n1")) == b"\x00\x82\xa5SeqNo\x05\xa4Node\xa2n1"
    assert wire.encode(wire.Dead(7, "a", "b")) == b"\x05\x83\xabIncarnation\x07\xa4Node\xa1a\xa4From\xa1b"
    meta = bytes(40)
    alive = wire.encode(wire.Alive(1, "a", bytes([10, 0, 0, 1]), 7946, meta, bytes([1, 5, 2, 0, 0, 0])))
    assert b"\xa4Meta\xda\x00\x28" + meta in alive, "raw16, not str8 or bin8"
    assert b"\xa4Addr\xa4\x0a\x00\x00\x01\xa4Port\xcd\x1f\x0a" in alive
    assert make_compound([b"\x08ab", b"\x08c"]) == b"\x07\x02\x00\x03\x00\x02\x08ab\x08c"
    assert envelope.add_crc(b"123456789") == b"\x0c" + struct.pack("!I", 0xCBF43926) + b"123456789"
    assert stream.seal(b"x", b"lab", KEYS)[:10] == b"\xf4\x03lab\x0a\x00\x00\x00\x1e"


def test_fields_that_are_missing_are_zero_and_unknown_ones_are_passed_over() -> None:
    body = msgpack.packb({"SeqNo": 3, "SourceNode": b"x", "SourcePort": 1}, use_bin_type=False)
    assert wire.decode(b"\x00" + body) == wire.Ping(3, "")
    assert wire.decode(b"\x01" + msgpack.packb({"Target": bytes([1, 2, 3, 4])}, use_bin_type=False)) == (
        wire.IndirectPing(0, "1.2.3.4", 0, "", False)
    )


def test_mapped_addresses_are_ipv4_and_keep_their_spelling() -> None:
    mapped = bytes(10) + b"\xff\xff\x0a\x00\x00\x01"
    body = {"Incarnation": 1, "Node": "a", "Addr": mapped, "Port": 1}
    alive = wire.decode(b"\x04" + msgpack.packb(body, use_bin_type=False))
    assert isinstance(alive, wire.Alive)
    assert alive.address == "10.0.0.1"
    assert mapped in wire.encode(alive)
    assert alive.versions == wire.OLD_VERSIONS


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x04",
        b"\x04\x80",
        b"\x04\x91\x01",
        b"\x04\xc1",
        b"\x04" + b"\x91" * 5000,
        b"\x04\x81\x80\x01",
        b"\x04\xdf\xff\xff\xff\xff",
        b"\x00\x81\xa5SeqNo\xff",
        b"\x00\x81\xa5SeqNo\xc3",
        b"\x00\x81\xa5SeqNo\xcf\x00\x00\x00\x01\x00\x00\x00\x00",
        b"\x00\x81\xa4Node\xa2\xff\xfe",
        b"\x00\x81\xa4Node\xa3a\x1bc",
        b"\x00\x81\xa4Node\xda\x01\x00" + b"a" * 256,
        b"\x03\x81\xabIncarnation\xce\xff\xff\xff\xff",
        b"\x06\x80",
        b"\x07\x01\x00\x01\x08",
        b"\x0a\x00",
        b"\x0e\x80",
        b"\xf4\x01a",
    ],
)
def test_what_no_message_looks_like_is_malformed(body: bytes) -> None:
    with pytest.raises(Refused) as refusal:
        wire.decode(body)
    assert refusal.value.reason == "malformed"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "wrong_key"),
        (lambda data: data[:20] + bytes([data[20] ^ 1]) + data[21:], "wrong_key"),
        (lambda data: b"\xf4\x02c2" + data[4:], "foreign_cluster"),
        (lambda data: data[4:], "foreign_cluster"),
        (lambda data: data[:3], "foreign_cluster"),
        (lambda data: b"", "foreign_cluster"),
        (lambda data: data[:20], "unsealed"),
        (lambda data: data[:4] + b"\x08plain", "unsealed"),
        (lambda data: data[:4] + b"\x00" + data[5:], "unsealed"),
        (lambda data: data + bytes(70000), "oversized"),
    ],
)
def test_datagrams_are_refused_by_reason(change: "object", reason: str) -> None:
    around = Envelope("c1", KEYS, 1400)
    with pytest.raises(Refused) as refusal:
        around.unwrap(change(around.wrap(b"\x08hello")))  # type: ignore[operator]
    assert refusal.value.reason == reason
    assert "gossip_" + reason in COUNTERS


def test_a_label_is_bound_to_what_is_sealed_under_it() -> None:
    """Else whoever has an old packet of another cluster with the same key could replay it here."""
    sealed = Envelope("c1", KEYS, 1400).wrap(b"\x08hello")
    with pytest.raises(Refused) as refusal:
        Envelope("c2", KEYS, 1400).unwrap(b"\xf4\x02c2" + sealed[4:])
    assert refusal.value.reason == "wrong_key"


def test_layers_do_not_nest() -> None:
    around = Envelope("", None, 1400)
    compound = make_compound([b"\x08a", b"\x08b"])
    for layered in (make_compound([compound, compound]), compressed(compressed(compound))):
        assert messages.refusal(parts_of, around, layered) == "malformed"
    with pytest.raises(Refused):
        read(compressed(compressed(wire.encode(wire.Ack(1)))))


def test_a_wrong_checksum_is_malformed() -> None:
    around = Envelope("", None, 1400)
    with pytest.raises(Refused) as refusal:
        around.unwrap(envelope.add_crc(b"\x08hello")[:-1] + b"0")
    assert refusal.value.reason == "malformed"


@pytest.mark.parametrize(
    ("data", "keys", "reason"),
    [
        (b"\x06", KEYS, "unsealed"),
        (b"\x0a\x7f\xff\xff\xff", KEYS, "oversized"),
        (b"\x0a\x00\x00\x00\x03abc", KEYS, "unsealed"),
        (stream.seal(b"\x02\x80", b"", KeyRing([b"k" * 16])), KEYS, "wrong_key"),
        (stream.seal(b"\x06\x81\xa5Nodes\x01", b"", KEYS), KEYS, "malformed"),
        (stream.seal(b"", b"", KEYS), KEYS, "malformed"),
        (b"\xf4\x01a\x02\x80", None, "foreign_cluster"),
        (b"\x06\x81\xa5Nodes\xcd\x03\xe8", None, "malformed"),
        (b"\x06\x81\xacUserStateLen\xce\x7f\xff\xff\xff", None, "malformed"),
        (b"\x06\x81\xa5Nodes\x01\x80", None, "malformed"),
        (b"\x04\x80", None, "malformed"),
        (b"\x09\x82\xa4Algo\x01\xa3Bufa\x00", None, "malformed"),
        (b"\x02\x81\xa7Payload\xdb\x00\x0f\xff\xff" + bytes(LIMIT + 1000), None, "oversized"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # what is sealed differs from run to run
)
def test_streams_are_refused_by_reason(data: bytes, keys: KeyRing | None, reason: str) -> None:
    with pytest.raises(Refused) as refusal:
        read(data, b"", keys)
    assert refusal.value.reason == reason


@given(st.binary(max_size=400), rings, labels)
def test_garbage_is_refused_or_waited_for_but_never_an_error(data: bytes, keys: KeyRing | None, label: str) -> None:
    around = Envelope(label, keys, 1400)
    for garbage in (data, b"\x07" + data, b"\x09" + data, b"\x0c" + data):
        messages.refusal(parts_of, around, envelope.label_header(label.encode()) + garbage)
        messages.refusal(read, garbage, b"", keys, (1, 7))


@given(messages.simple, st.data())
def test_altered_messages_are_read_or_refused(message: Message, data: st.DataObject) -> None:
    octets = bytearray(wire.encode(message))
    for _ in range(data.draw(st.integers(1, 3))):
        octets[data.draw(st.integers(0, len(octets) - 1))] = data.draw(st.integers(0, 255))
    altered = bytes(octets[: data.draw(st.integers(0, len(octets)))])
    assert messages.refusal(wire.decode, altered) in (None, "malformed")


@given(st.lists(st.binary(min_size=0, max_size=50), min_size=1, max_size=255))
def test_compounds_split_into_their_parts(parts: list[bytes]) -> None:
    compound = make_compound(parts)
    if len(parts) > 1:
        assert split_compound(compound) == parts
        with pytest.raises(Refused):
            split_compound(compound[: len(compound) - len(parts[-1]) - 1])
