"""Packets: what is built must be right by the RFCs, and nothing that comes in may raise."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appswitch.relay import packets
from appswitch.relay.packets import ICMP, ICMPV6, TCP, UDP, Packet, parse, refusal, udp_reply
from relay.wire import CLIENT, SERVER, datagram, ip, pack


def words(data: bytes) -> int:
    """The folded ones' complement sum, word by word: 0xFFFF where the checksum in the data is right."""
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def sent(version: int, protocol: int = UDP, body: bytes | None = None, **addresses: str) -> Packet:
    source = addresses.get("source", CLIENT[version])
    destination = addresses.get("destination", SERVER[version])
    packet = parse(ip(protocol, datagram() if body is None else body, source, destination))
    assert packet is not None
    return packet


def checked(raw: bytes | None, protocol: int) -> Packet:
    """A packet that was built: well formed, from server to client, with right checksums."""
    assert raw is not None
    packet = parse(raw)
    assert packet is not None
    assert len(packet.raw) == len(raw)
    assert packet.protocol == protocol
    version = raw[0] >> 4
    assert packets.text(packet.source) == SERVER[version]
    assert packets.text(packet.destination) == CLIENT[version]
    if version == 4:
        assert words(raw[:20]) == 0xFFFF
    pseudo = packet.source + packet.destination + struct.pack("!II", len(packet.transport), protocol)
    assert words((b"" if protocol == ICMP else pseudo) + packet.transport) == 0xFFFF
    return packet


@pytest.mark.parametrize("version", [4, 6])
def test_parse(version: int) -> None:
    packet = sent(version)
    assert packet.datagram == packets.Datagram(4000, 123, b"hello")
    assert packet.port == 123
    assert (packet.partial, packet.first) == (False, True)


def test_parse_ignores_what_follows_the_packet() -> None:
    raw = ip(UDP, datagram(), CLIENT[4], SERVER[4])
    packet = parse(raw + b"padding")
    assert packet is not None
    assert packet.raw == raw


def test_parse_ip_options() -> None:
    raw = ip(UDP, b"\1\1\1\0" + datagram(), CLIENT[4], SERVER[4])
    packet = parse(b"\x46" + raw[1:])
    assert packet is not None
    assert packet.datagram == packets.Datagram(4000, 123, b"hello")


def test_parse_extension_headers() -> None:
    options = bytes([60, 0, 1, 4, 0, 0, 0, 0]) + bytes([44, 1]) + bytes(14) + bytes([UDP, 0, 0, 0, 0, 0, 0, 1])
    packet = sent(6, 0, options + datagram())
    assert packet.datagram == packets.Datagram(4000, 123, b"hello")
    fragment = sent(6, 44, bytes([UDP, 0, 0, 1, 0, 0, 0, 1]) + datagram())
    assert (fragment.partial, fragment.first, fragment.datagram, fragment.port) == (True, True, None, 123)
    later = sent(6, 44, bytes([UDP, 0, 0, 8, 0, 0, 0, 1]) + datagram())
    assert (later.partial, later.first, refusal(later)) == (True, False, None)


def test_parse_fragments() -> None:
    raw = ip(UDP, datagram(), CLIENT[4], SERVER[4])
    first = parse(raw[:6] + b"\x20\0" + raw[8:])
    later = parse(raw[:6] + b"\0\1" + raw[8:])
    assert first is not None
    assert later is not None
    assert (first.partial, first.first, first.datagram) == (True, True, None)
    assert refusal(first) is not None
    assert (later.partial, later.first, later.port, refusal(later)) == (True, False, 0, None)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("payload", [b"", b"x", b"answer", bytes(1000), b"\xff" * 1001])
def test_udp_reply(version: int, payload: bytes) -> None:
    packet = checked(udp_reply(sent(version), payload), UDP)
    assert packet.datagram == packets.Datagram(123, 4000, payload)
    assert packet.transport[6:8] != b"\0\0"  # that would say that there is no checksum


def test_udp_reply_whose_checksum_comes_out_as_zero() -> None:
    body = struct.pack("!HHHH", 123, 4000, 10, 0)
    pseudo = pack(SERVER[4]) + pack(CLIENT[4]) + struct.pack("!HH", UDP, 10)
    filler = 0xFFFF - words(pseudo + body)
    packet = checked(udp_reply(sent(4), struct.pack("!H", filler)), UDP)
    assert packet.transport[6:8] == b"\xff\xff"


def test_udp_reply_that_fits_no_packet() -> None:
    assert udp_reply(sent(4), bytes(65508)) is None
    assert udp_reply(sent(4), bytes(65507)) is not None
    assert udp_reply(sent(6), bytes(65528)) is None
    assert udp_reply(sent(6), bytes(65527)) is not None
    assert udp_reply(sent(4, TCP), b"") is None


@pytest.mark.parametrize("size", [0, 5, 519, 520, 521, 1400, 30000])
def test_port_unreachable_v4(size: int) -> None:
    packet = sent(4, body=datagram(bytes(size)))
    answer = checked(refusal(packet), ICMP)
    assert answer.transport[:2] == b"\3\3"
    assert answer.transport[4:8] == bytes(4)
    assert answer.transport[8:] == packet.raw[:548]
    assert len(answer.raw) <= 576


@pytest.mark.parametrize("size", [0, 5, 1183, 1184, 1185, 30000])
def test_port_unreachable_v6(size: int) -> None:
    packet = sent(6, body=datagram(bytes(size)))
    answer = checked(refusal(packet), ICMPV6)
    assert answer.transport[:2] == b"\1\4"
    assert answer.transport[4:8] == bytes(4)
    assert answer.transport[8:] == packet.raw[:1232]
    assert len(answer.raw) <= 1280


def test_a_broken_udp_header_is_still_refused() -> None:
    assert checked(refusal(sent(4, body=struct.pack("!HHHH", 1, 53, 4, 0))), ICMP).transport[1] == 3


@pytest.mark.parametrize(("version", "kind", "code"), [(4, ICMP, 2), (6, ICMPV6, 3)])
def test_other_protocols(version: int, kind: int, code: int) -> None:
    answer = checked(refusal(sent(version, 132, bytes(12))), kind)  # SCTP
    assert answer.transport[1] == code


def test_echo_requests_are_refused() -> None:
    assert checked(refusal(sent(4, ICMP, b"\x08\0" + bytes(6))), ICMP).transport[:2] == b"\3\1"
    assert checked(refusal(sent(6, ICMPV6, b"\x80\0" + bytes(6))), ICMPV6).transport[:2] == b"\1\3"


@pytest.mark.parametrize("kind", [0, 3, 4, 5, 9, 10, 11, 12, 14])
def test_icmp_that_is_never_answered(kind: int) -> None:
    assert refusal(sent(4, ICMP, bytes([kind]) + bytes(7))) is None


@pytest.mark.parametrize("kind", [1, 2, 3, 4, 129, 130, 131, 132, 133, 134, 135, 136, 137, 143])
def test_icmpv6_that_is_never_answered(kind: int) -> None:
    assert refusal(sent(6, ICMPV6, bytes([kind]) + bytes(7))) is None


@pytest.mark.parametrize("protocol", [UDP, TCP, 132])
@pytest.mark.parametrize(
    ("version", "place", "address"),
    [
        (4, "destination", "224.0.0.251"),
        (4, "destination", "255.255.255.255"),
        (4, "destination", "0.0.0.0"),
        (4, "source", "224.0.0.1"),
        (4, "source", "255.255.255.255"),
        (4, "source", "0.0.0.0"),
        (6, "destination", "ff02::fb"),
        (6, "source", "ff02::1"),
        (6, "source", "::"),
    ],
)
def test_groups_and_nobody_get_no_answer(protocol: int, version: int, place: str, address: str) -> None:
    body = datagram() if protocol == UDP else struct.pack("!HHIIBBHHH", 1, 2, 3, 4, 80, 2, 0, 0, 0)
    assert refusal(sent(version, protocol, body)) is not None
    assert refusal(sent(version, protocol, body, **{place: address})) is None


def segment(flags: int, payload: bytes = b"", *, sequence: int = 1000, ack: int = 0, words: int = 5) -> bytes:
    return struct.pack("!HHIIBBHHH", 4000, 80, sequence, ack, words << 4, flags, 0, 0, 0) + payload


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    ("arriving", "sequence", "ack", "flags"),
    [
        (segment(2), 0, 1001, 0x14),  # SYN
        (segment(2, bytes(4) + b"data", words=6), 0, 1005, 0x14),  # SYN with an option and data
        (segment(2, sequence=0xFFFFFFFF), 0, 0, 0x14),
        (segment(1, b"xy"), 0, 1003, 0x14),  # FIN without ACK
        (segment(16, b"xy", ack=77), 77, 0, 0x04),  # part of a connection that does not exist
    ],
)
def test_tcp_is_reset(version: int, arriving: bytes, sequence: int, ack: int, flags: int) -> None:
    answer = checked(refusal(sent(version, TCP, arriving)), TCP)
    expected = struct.pack("!HHIIBB", 80, 4000, sequence, ack, 0x50, flags)
    assert answer.transport[:14] == expected
    assert len(answer.transport) == 20


@pytest.mark.parametrize(
    "body", [segment(4), segment(20, ack=5), segment(2)[:19], segment(2, words=4), segment(2, words=15)]
)
def test_tcp_that_is_not_reset(body: bytes) -> None:
    assert refusal(sent(4, TCP, body)) is None


def test_fragmented_tcp_is_left_alone() -> None:
    raw = ip(TCP, segment(2), CLIENT[4], SERVER[4])
    packet = parse(raw[:6] + b"\x20\0" + raw[8:])
    assert packet is not None
    assert refusal(packet) is None


def exercise(raw: bytes) -> None:
    packet = parse(raw)
    if packet is None:
        return
    assert packet.at <= len(packet.raw) <= len(raw)
    assert 0 <= packet.port <= 65535
    answer = refusal(packet)
    if answer is not None:
        own_icmp = ICMP if len(packet.source) == 4 else ICMPV6
        assert packet.protocol != own_icmp or packet.raw[packet.at] in (8, 13, 128)
        built = parse(answer)
        assert built is not None
        assert (built.source, built.destination) == (packet.destination, packet.source)
        # An error about an error would go on for ever.
        again = refusal(built)
        assert again is None
    if packet.datagram is not None:
        assert udp_reply(packet, b"x") is not None


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=120))
def test_any_bytes(raw: bytes) -> None:
    exercise(raw)


WHOLE = [
    ip(protocol, body, CLIENT[version], SERVER[version])
    for version in (4, 6)
    for protocol, body in (
        (UDP, datagram()),
        (TCP, segment(2)),
        (ICMP if version == 4 else ICMPV6, b"\x08" + bytes(7)),
        (0, bytes([60, 0, 1, 4, 0, 0, 0, 0, 44, 0, 0, 0, 0, 0, 0, 0, 17, 0, 0, 1, 0, 0, 0, 1]) + datagram()),
    )
]


@settings(max_examples=1000, deadline=None)
@given(
    st.sampled_from(WHOLE),
    st.lists(st.tuples(st.integers(0, 90), st.integers(0, 255)), max_size=4),
    st.integers(0, 100),
    st.binary(max_size=10),
)
def test_damaged_packets(whole: bytes, damage: list[tuple[int, int]], cut: int, tail: bytes) -> None:
    raw = bytearray(whole)
    for place, octet in damage:
        if place < len(raw):
            raw[place] = octet
    exercise(bytes(raw[:cut]) + tail)
    exercise(bytes(raw) + tail)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=64))
def test_the_checksum(data: bytes) -> None:
    assert packets.internet_sum(data) == 0xFFFF - words(data)


@given(
    st.binary(min_size=8, max_size=3000),
    st.integers(0, 2**32 - 1),
    st.sampled_from(("both", "first", "rest", "swapped")),
)
def test_halves_are_fragments_of_which_the_datagram_is_made_again(payload: bytes, number: int, came: str) -> None:
    source, destination = pack(CLIENT[6]), pack(SERVER[6])
    packet = packets.udp(source, 4000, destination, 5000, payload, 0x20)
    assert packet is not None
    first, rest = (parse(half) for half in packets.halves(packet, number))
    assert first is not None
    assert rest is not None
    assert (first.partial, first.first, rest.partial, rest.first) == (True, True, True, False)
    assert packets.fragment(first) == packets.fragment(rest)
    assert packets.key(first) == packets.key(parse(packet) or first)
    assert packets.traffic_class(rest) == 0x20
    whole = packets.Whole()
    order = {"both": (first, rest), "first": (first,), "rest": (rest,), "swapped": (rest, first)}[came]
    assert [whole.add(part) for part in order] == ([None, payload] if came == "both" else [None] * len(order))


@given(st.lists(st.binary(min_size=40, max_size=120)))
def test_fragments_of_any_kind_make_no_more_than_was_sent(bodies: list[bytes]) -> None:
    whole = packets.Whole()
    for body in bodies:
        packet = parse(struct.pack("!IHBB", 6 << 28, len(body), 44, 64) + bytes(32) + b"\x11" + body[1:])
        if packet is not None and packet.partial:
            found = whole.add(packet)
            assert found is None or len(found) <= sum(map(len, bodies))
