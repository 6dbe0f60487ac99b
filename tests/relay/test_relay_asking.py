"""Asking other hosts who takes a datagram: without sockets, devices or a clock."""

import json
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from appswitch.header import datagram
from appswitch.header.datagram import Datagram
from appswitch.linux import device
from appswitch.model.address import pack
from appswitch.model.service import Place
from appswitch.relay import asking, packets
from appswitch.relay.asking import PATIENCE, Asking
from appswitch.relay.packets import Packet, Reason
from appswitch.relay.program import Program

SERVER, CLIENT = "10.0.0.2", "10.0.0.1"
PLACES = {name: Place((f"192.0.2.{number}", 5), name.encode() * 8) for number, name in enumerate("bcd")}


class Cluster:
    """Stands for the socket between hosts, and for the table."""

    def __init__(self) -> None:
        self.place: Place | None = Place(("192.0.2.9", 5), b"a" * 8)
        self.sent: list[tuple[bytes, bytes]] = []
        self.hosts = ["", "b", "c", "d", "unknown"]
        self.outcome: list[object] = []
        self.stats: Counter[str] = Counter()
        self.asking = Asking(self, self, self, self.found, self.nobody)  # type: ignore[arg-type]

    def send(self, away: Any, payload: bytes) -> bool:
        assert (away.kind, away.source, away.destination) == (datagram.ASK, pack(CLIENT), pack(SERVER))
        self.sent.append((away.life, payload))
        return True

    def claims(self, vip: bytes) -> list[Any]:
        assert vip == pack(SERVER)
        return [SimpleNamespace(host=host) for host in self.hosts * 2]

    def relay(self, host: str) -> Place | None:
        return PLACES.get(host)

    def add(self, name: str, n: int = 1) -> None:
        self.stats[name] += n

    def found(self, question: Any, host: str, place: Place, instance: int, now: float) -> None:
        self.outcome.append((host, place, instance, len(question.packets)))

    def nobody(self, question: Any, reason: Reason, now: float) -> None:
        self.outcome.append((reason, len(question.packets)))

    def ask(self, program: Program, port: int = 1000, now: float = 0.0) -> bool:
        packet, key = sent(port)
        return self.asking.begin(
            program, packet, key, pack(SERVER), pack(CLIENT), pack(SERVER), (port, 2000), now
        )

    def tell(self, host: str, number: int, verdict: int, instance: int = 0) -> None:
        payload = struct.pack("!QB", number, verdict)
        said = Datagram(
            *(datagram.TELL, 0, b"a" * 8, PLACES[host].life, 1, instance, pack(SERVER), pack(CLIENT), 2000, 1000),
            *((), payload),
        )
        self.asking.told(said, 0.0)


def sent(port: int, payload: bytes = b"payload") -> tuple[Packet, bytes]:
    raw = packets.udp(socket.inet_aton(CLIENT), port, socket.inet_aton(SERVER), 2000, payload)
    packet = packets.parse(raw or b"")
    assert packet is not None
    key = packets.key(packet)
    assert key is not None
    return packet, key


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def program() -> Iterator[Program]:
    identity = {"name": None, "vip": pack(CLIENT).hex(), "tags": [], "uid": 0, "named": True}
    message = {"id": "1", "kind": device.TUN, "vips": [CLIENT], "identity": identity}
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Program(json.loads(json.dumps(message)), [ours.fileno()])


def test_every_host_of_the_address_is_asked_once_and_the_first_that_has_a_taker_gets_all(
    cluster: Cluster, program: Program
) -> None:
    assert cluster.ask(program)
    assert [life for life, _ in cluster.sent] == [PLACES[host].life for host in "bcd"]
    packet, key = sent(1000)
    assert [cluster.asking.holds(program, key, packet) for _ in range(3)] == [True] * 3
    cluster.tell("b", 1, datagram.NOBODY)
    cluster.tell("c", 1, datagram.DATA, 7)
    cluster.tell("d", 1, datagram.DATA, 8)
    assert cluster.outcome == [("c", PLACES["c"], 7, 4)]
    assert not cluster.asking.holds(program, key, packet)
    assert cluster.asking.timeout(0.0) is None


@pytest.mark.parametrize(("verdict", "reason"), [(datagram.NOBODY, Reason.PORT), (datagram.DENIED, Reason.POLICY)])
def test_nobody_is_there_when_all_have_said_so(
    cluster: Cluster, program: Program, verdict: int, reason: Reason
) -> None:
    cluster.ask(program)
    for host, said in (("b", verdict), ("c", datagram.NOBODY), ("b", datagram.DATA), ("b", verdict)):
        cluster.tell(host, 1, said)
    assert cluster.outcome == []
    cluster.tell("d", 1, datagram.NOBODY)
    assert cluster.outcome == [(reason, 1)]


def test_what_nobody_asked_changes_nothing(cluster: Cluster, program: Program) -> None:
    cluster.ask(program)
    cluster.tell("b", 2, datagram.DATA)
    for payload in (b"", bytes(8), bytes(10)):
        said = Datagram(datagram.TELL, 0, b"", PLACES["b"].life, 1, 1, bytes(16), bytes(16), 0, 0, (), payload)
        cluster.asking.told(said, 0.0)
    assert cluster.outcome == []
    cluster.tell("b", 1, datagram.DATA, 9)
    assert cluster.outcome == [("b", PLACES["b"], 9, 1)]


def test_an_answer_that_does_not_come_leaves_nothing_behind(cluster: Cluster, program: Program) -> None:
    cluster.ask(program)
    cluster.ask(program, 1001, now=0.5)
    cluster.tell("b", 1, datagram.NOBODY)
    assert cluster.asking.timeout(0.25) == PATIENCE - 0.25
    cluster.asking.expire(PATIENCE)
    assert cluster.stats["udp_unanswered"] == 1
    assert cluster.asking.timeout(PATIENCE) == 0.5
    cluster.tell("c", 1, datagram.DATA, 7)
    cluster.asking.leave(program)
    cluster.tell("c", 2, datagram.DATA, 7)
    assert cluster.outcome == []
    assert cluster.asking.timeout(PATIENCE) is None
    assert cluster.ask(program)


def test_what_waits_is_bounded(cluster: Cluster, program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "_OPEN", 2)
    monkeypatch.setattr(asking, "_HELD", 3)
    monkeypatch.setattr(asking, "_HELD_BYTES", 2000)
    monkeypatch.setattr(asking, "_HOSTS", 2)
    assert [cluster.ask(program, port) for port in (1000, 1001, 1002)] == [True, True, False]
    assert len(cluster.sent) == 4
    for payload in (bytes(10), bytes(10), bytes(10)):
        assert cluster.asking.holds(program, sent(1000)[1], sent(1000, payload)[0])
    for payload in (bytes(1500), bytes(1500), bytes(10)):
        assert cluster.asking.holds(program, sent(1001)[1], sent(1001, payload)[0])
    cluster.tell("b", 1, datagram.DATA)
    cluster.tell("b", 2, datagram.DATA)
    assert [found[-1] for found in cluster.outcome] == [3, 3]  # type: ignore[index]


def test_nobody_is_asked_where_there_is_none(cluster: Cluster, program: Program) -> None:
    cluster.hosts = ["", "unknown"]
    assert not cluster.ask(program)
    cluster.hosts, cluster.place = ["b"], None
    assert not cluster.ask(program)
    assert cluster.sent == []
