"""Packets that hold several datagrams, or whose checksum is not filled in: pure, and in a relay of this process."""

import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from appswitch.linux import vnet
from appswitch.linux.vnet import FINISHED, MOST, Unfinished
from appswitch.relay import batches, burst, packets
from appswitch.relay.flows import Change
from appswitch.relay.readdress import readdressed
from relay.test_relay_datagrams import A, B, Bench, datagram
from relay.wire import CLIENT, SERVER

PORTS = (4000, 53)
START = {4: 20, 6: 40}


def packed(text: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


def made(version: int, payload: bytes, *, summed: bool = False) -> bytes:
    packet = packets.udp(
        packed(CLIENT[version]), PORTS[0], packed(SERVER[version]), PORTS[1], payload, summed=summed
    )
    assert packet is not None
    return packet


def words(data: bytes) -> int:
    """The ones' complement sum of its 16-bit words, the slow way."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def pseudo(packet: bytes, start: int) -> bytes:
    addresses = packet[12:20] if start == 20 else packet[8:40]
    return addresses + struct.pack("!HH", 17, len(packet) - start)


@pytest.mark.parametrize("version", [4, 6])
def test_datagrams_are_put_together_and_taken_apart(version: int) -> None:
    start, payloads = START[version], [b"%d" % number * 50 for number in range(7)]
    frames = [b"before" + made(version, payload) for payload in payloads]
    packet = b"".join(batches.joined(frames, 6, 6 + start))
    assert packet[start : start + 8] == struct.pack("!HHHH", *PORTS, 8 + 350, words(pseudo(packet, start)))
    if version == 4:
        assert words(packet[:20]) == 0xFFFF
    left = Unfinished(start, 50)
    found = packets.parse(packet, left)
    assert found is not None
    assert found.payloads == payloads
    apart = list(batches.finished(packet, left))
    whole = [packets.parse(each) for each in apart]
    assert [each.payloads for each in whole if each is not None] == [[payload] for payload in payloads]
    for each in apart:
        if version == 4:
            assert words(each[:20]) == 0xFFFF
            assert each[26:28] == b"\0\0"  # none, which IPv4 allows
        else:
            assert words(pseudo(each, start) + each[start:]) == 0xFFFF


@pytest.mark.parametrize("version", [4, 6])
def test_what_is_left_to_be_done_is_believed_only_if_it_fits(version: int) -> None:
    start, packet = START[version], made(version, bytes(MOST * 4))
    for good in (FINISHED, Unfinished(start), Unfinished(start, 4), Unfinished(start, 60000)):
        assert packets.parse(packet, good) is not None, good
    for bad in (Unfinished(start - 4), Unfinished(start + 1), Unfinished(-14), Unfinished(60000), Unfinished(start, 3)):
        assert packets.parse(packet, bad) is None, bad
    assert packets.parse(made(version, b"")[: start + 7], Unfinished(start)) is None
    # Of what is no UDP it says nothing.
    other = packet[:9] + b"\6" + packet[10:] if version == 4 else packet[:6] + b"\6" + packet[7:]
    found = packets.parse(other, Unfinished(start, 3))
    assert found is not None
    assert found.left == FINISHED


@pytest.mark.parametrize("link", [0, 14])
def test_headers_are_read_as_they_are_written(link: int) -> None:
    for left in (FINISHED, Unfinished(20), Unfinished(40, 1000)):
        assert vnet.unpack(vnet.pack(left, link), link) == left
    # A batch of something else, a checksum of something else, none at all.
    for header in ((1, 1, 28, 1000, 20, 16), (1, 5, 28, 1000, 20, 16), (0, 5, 28, 1000, 20, 6), (2, 0, 0, 0, 0, 0)):
        assert vnet.unpack(struct.pack("=BBHHHH", *header), 0) == FINISHED


def test_a_packet_goes_on_under_other_addresses_with_its_checksum_yet_to_come() -> None:
    packet = packets.parse(made(6, bytes(30)), Unfinished(40, 10))
    assert packet is not None
    changed = readdressed(packet, Change(bytes(15) + b"\7", 7, bytes(15) + b"\x08", 8))
    assert struct.unpack_from("!HHHH", changed, 40) == (7, 8, 38, words(pseudo(changed, 40)))


# --- in a relay ------------------------------------------------------------------------------------------


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


def frame(payload: bytes = b"payload", source_port: int = 1000, left: Unfinished = Unfinished(20)) -> bytes:  # noqa: B008
    """From A to B, as a TUN device with a header gives it."""
    raw = packets.udp(packed(A), source_port, packed(B), 2000, payload, summed=False)
    assert raw is not None
    return vnet.pack(left, 0) + raw


def taken(program: socket.socket) -> list[tuple[list[bytes], int]]:
    """The frames that came: payloads, and the size of a batch's datagrams."""
    program.setblocking(False)
    found = []
    while True:
        try:
            data = program.recv(70000)
        except BlockingIOError:
            return found
        left = vnet.unpack(data, 0)
        packet = packets.parse(data[vnet.SIZE :], left)
        assert packet is not None
        found.append((packet.payloads, left.segment))


def begun(bench: Bench, kinds: tuple[str, str] = ("tun-vnet", "tun-vnet")) -> tuple[socket.socket, socket.socket]:
    """Two programs in a conversation, of which the first has sent in the turn before."""
    one, two = (bench.attach(vip, kind=kind) for vip, kind in zip((A, B), kinds, strict=True))
    one.send(frame(b"first"))
    bench.turn()
    assert b"first" in two.recv(100)
    bench.relay._programs["1"].turn = bench.relay._turns - 1
    return one, two


def test_alike_ones_that_follow_each_other_go_as_one(bench: Bench) -> None:
    one, two = begun(bench)
    marked = bytearray(frame(b"CCCC"))
    marked[vnet.SIZE + 1] = 0x10
    for each in (frame(b"AAAA"), frame(b"BBBB"), bytes(marked), frame(b"DD"), frame(b"EE"), frame(b""), frame(b"FF")):
        one.send(each)
    bench.turn()
    assert taken(two) == [
        ([b"AAAA", b"BBBB"], 4),
        ([b"CCCC"], 0),
        ([b"DD", b"EE"], 2),
        ([b""], 0),
        ([b"FF"], 0),
    ]
    assert bench.stats["datagrams"] == 8


def test_order_is_kept_with_what_must_be_looked_at(bench: Bench) -> None:
    one, two = begun(bench)
    long = b"L" * 3000
    for each in (frame(b"AAAA"), frame(long), frame(b"BBBB"), frame(b"CCCC", left=FINISHED), frame(b"DDDD", 1001)):
        one.send(each)
    bench.turn()
    assert [payloads for payloads, _ in taken(two)] == [[b"AAAA"], [long], [b"BBBB"], [b"CCCC"], [b"DDDD"]]


def test_a_batch_has_no_more_than_fits(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(burst, "_LARGEST", 500)
    one, two = begun(bench)
    for number in range(13):
        one.send(frame(b"%02d" % number * 50))
    bench.turn()
    came = taken(two)
    assert [len(payloads) for payloads, _ in came] == [5, 5, 3]
    assert [payload[:2] for payloads, _ in came for payload in payloads] == [b"%02d" % number for number in range(13)]


@pytest.mark.parametrize("kind", ["tun-vnet", "tun"])
def test_a_batch_goes_whole_or_is_cut_and_takes_its_time(bench: Bench, kind: str) -> None:
    one, two = begun(bench, ("tun-vnet", kind))
    bench.relay._programs["1"].turn = bench.relay._turns - 1
    for _ in range(2):
        one.send(frame(b"x" * MOST * 5, left=Unfinished(20, 5)))
    bench.turn()
    if kind == "tun-vnet":
        assert taken(two) == [([b"xxxxx"] * MOST, 5)] * 2
    else:  # one was as much work as a turn may be
        for _ in range(MOST):
            assert two.recv(100) == datagram(A, 1000, B, 2000, b"xxxxx")[:26] + b"\0\0xxxxx"
        two.setblocking(False)
        with pytest.raises(BlockingIOError):
            two.recv(100)


@pytest.mark.parametrize(
    "header",
    [
        (1, 5, 28, 1, 20, 6),  # more datagrams than any sender's kernel puts together
        (1, 5, 28, 1000, 24, 6),
        (1, 0, 0, 0, 0xFFF0, 6),
    ],
)
def test_a_header_that_does_not_fit_goes_nowhere(bench: Bench, header: tuple[int, ...]) -> None:
    one, two = begun(bench)
    one.send(struct.pack("=BBHHHH", *header) + frame(bytes(MOST + 1))[vnet.SIZE :])
    one.send(frame(b"next"))
    bench.turn()
    bench.turn()
    assert taken(two) == [([b"next"], 0)]


@pytest.mark.parametrize("short", range(0, 40, 3))
def test_frames_that_are_cut_off(bench: Bench, short: int) -> None:
    one, two = begun(bench)
    one.send(frame()[: short + 1])
    one.send(frame(b"next"))
    bench.turn()
    came = two.recv(100)
    if len(came) == short + 1:  # its receiver's kernel drops it
        came = two.recv(100)
    assert came == frame(b"next")


def test_a_program_that_leaves_takes_its_way_along(bench: Bench) -> None:
    begun(bench)
    flows = bench.relay._datagrams
    assert flows is not None
    assert isinstance(flows.burst(bench.relay._programs["1"]), burst.Burst)
    program = bench.relay._programs["1"]
    bench.relay._detach(program)
    assert flows.burst(program) is None
