"""How the relay carries datagrams: in this process, over sockets that stand for the programs' devices."""

import array
import itertools
import json
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from appswitch.linux import device
from appswitch.model.address import pack
from appswitch.relay import packets
from appswitch.relay.flows import MOST
from appswitch.relay.relay import DRAIN, FRESH, Relay
from appswitch.table import store
from appswitch.table.store import Table
from support.program import DEADLINE


class Counts(Counter[str]):
    def add(self, name: str, n: int = 1) -> None:
        self[name] += n


class NoNames:
    def addresses(self, name: str) -> list[str] | None:
        return None

    def names(self, address: str) -> list[str]:
        return []

    def below(self, name: str) -> bool:
        return False

    def serves(self, name: str, protocol: int, port: int) -> bool:
        return False


class Bench:
    """A relay with a table; programs that take every datagram, for nobody can be asked."""

    def __init__(self, directory: Path) -> None:
        (directory / "table").mkdir()
        store.make(str(directory / "table"))
        self.table = Table(str(directory / "table"))
        self.control, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.stats = Counts()
        self.relay = Relay(
            self.theirs,
            NoNames(),
            domain="appswitch",
            virtual_range="100.64.0.0/10",
            run_dir=str(directory),
            upstreams=["127.0.0.1:9"],
            stats=self.stats,
            table=self.table,
        )
        self.numbers = itertools.count(1)

    def attach(self, vip: str, **more: object) -> socket.socket:
        ours, device_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        identity = {"name": None, "vip": pack(vip).hex(), "tags": [], "uid": 0, "named": True}
        message = {"op": "attach", "id": str(next(self.numbers)), "kind": "tun", "vips": [vip], "identity": identity}
        with device_end:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [device_end.fileno()]))]
            self.control.sendmsg([json.dumps(message | more).encode()], rights)
            self.turn()
        ours.settimeout(DEADLINE)
        return ours

    def turn(self) -> None:
        self.relay._loop.turn(0)

    def fd(self, number: int) -> int:
        return self.relay._programs[str(number)].fd

    def close(self) -> None:
        self.relay.close()
        self.table.close()
        self.theirs.close()
        self.control.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


A, B, C = "10.0.0.1", "10.0.0.2", "10.0.0.3"


def datagram(source: str, source_port: int, destination: str, port: int, payload: bytes = b"payload") -> bytes:
    made = packets.udp(socket.inet_aton(source), source_port, socket.inet_aton(destination), port, payload)
    assert made is not None
    return made


def test_it_goes_on_as_it_is_and_its_answer_too(bench: Bench) -> None:
    one, two = bench.attach(A), bench.attach(B)
    for payload in (b"", b"first", bytes(65507)):
        one.send(datagram(A, 1000, B, 2000, payload))
        bench.turn()
        assert two.recv(70000) == datagram(A, 1000, B, 2000, payload)
        two.send(datagram(B, 2000, A, 1000, payload))
        bench.turn()
        assert one.recv(70000) == datagram(B, 2000, A, 1000, payload)
    assert bench.stats["conversations"] == 1
    assert bench.stats["datagrams"] == 6


def test_nobody_sends_from_another_s_address(bench: Bench) -> None:
    one, two, three = bench.attach(A), bench.attach(B), bench.attach(C)
    one.send(datagram(A, 1000, B, 2000))
    bench.turn()
    assert two.recv(100)
    # Not even in a conversation that is known.
    three.send(datagram(A, 1000, B, 2000))
    bench.turn()
    assert bench.stats["spoofed"] == 1
    two.setblocking(False)
    with pytest.raises(BlockingIOError):
        two.recv(100)


@pytest.mark.parametrize("fresh", [False, True], ids=["known", "fresh"])
def test_a_flood_has_its_turn_like_others(bench: Bench, fresh: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    flooding, sink, modest = bench.attach(A), bench.attach(B), bench.attach(C)
    sink.close()
    endless, real, reads = bench.fd(1), device.read_frame, Counter[int]()
    ports = itertools.count(10000)

    def read_frame(fd: int) -> bytes:
        reads[fd] += 1
        assert reads[fd] < 10000, "this device is read for ever"
        if fd != endless:
            return real(fd)
        return datagram(A, next(ports) if fresh else 9999, B, 2000)

    monkeypatch.setattr(device, "read_frame", read_frame)
    flooding.send(b"wake")
    modest.send(datagram(C, 1000, A, 2000))
    bench.turn()
    assert flooding.recv(100) == datagram(C, 1000, A, 2000)
    # What begins a conversation counts as several: it takes longer.
    assert reads[endless] == (-(-DRAIN // (1 + FRESH)) if fresh else DRAIN - FRESH)


def test_conversations_are_bounded(bench: Bench) -> None:
    one, two = bench.attach(A), bench.attach(B)
    two.close()
    for port in range(MOST + 100):
        one.send(datagram(A, 1000 + port, B, 2000))
        bench.turn()
    assert bench.relay._datagrams is not None
    assert len(bench.relay._datagrams._flows) <= MOST


def test_no_descriptors_are_left_when_programs_have_gone(bench: Bench) -> None:
    flows = bench.relay._datagrams
    assert flows is not None
    one, two = bench.attach(A), bench.attach(B)
    one.send(datagram(A, 1000, B, 2000))
    bench.turn()
    assert two.recv(100)
    for number in (1, 2):
        bench.control.send(json.dumps({"op": "detach", "id": str(number)}).encode())
        bench.turn()
    assert len(flows._flows) == 0
    assert not flows._flows._hops
    assert one.recv(100) == b""


def test_what_two_programs_have_in_common_is_told_apart_by_a_port(bench: Bench) -> None:
    """Of one address and one port, talking to one service: as behind a translator."""
    twins, server = [bench.attach(A), bench.attach(A)], bench.attach(B)
    shown = []
    for number, twin in enumerate(twins):
        twin.send(datagram(A, 1000, B, 2000, b"%d" % number))
        bench.turn()
        packet = packets.parse(server.recv(100))
        assert packet is not None
        assert packet.datagram is not None
        assert (packet.source, packet.datagram.payload) == (socket.inet_aton(A), b"%d" % number)
        shown.append(packet.datagram.source_port)
    assert shown[0] == 1000 != shown[1]
    for number, (twin, port) in enumerate(zip(twins, shown, strict=True)):
        server.send(datagram(B, 2000, A, port, b"to %d" % number))
        bench.turn()
        assert twin.recv(100) == datagram(B, 2000, A, 1000, b"to %d" % number)


def test_an_error_comes_back_to_whoever_sent(bench: Bench) -> None:
    one, two = bench.attach(A), bench.attach(B)
    sent = datagram(A, 1000, B, 2000)
    one.send(sent)
    bench.turn()
    assert two.recv(100) == sent
    packet = packets.parse(sent)
    assert packet is not None
    error = packets.unreachable(packet, packets.Reason.PORT)
    assert error is not None
    two.send(error)
    bench.turn()
    assert one.recv(100) == error
    # About what was never sent nothing is passed on.
    other = packets.parse(datagram(C, 1000, B, 2000))
    assert other is not None
    two.send(packets.unreachable(other, packets.Reason.PORT) or b"")
    bench.turn()
    one.setblocking(False)
    with pytest.raises(BlockingIOError):
        one.recv(100)
