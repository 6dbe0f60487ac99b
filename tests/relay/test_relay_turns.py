"""How the relay shares its time: in this process, over sockets that stand for the programs' devices."""

import array
import json
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import dnslib
import pytest

from appswitch.linux import device
from appswitch.relay import packets
from appswitch.relay.relay import DRAIN, Relay
from relay.wire import CLIENT, SERVER, datagram, ip
from support.program import DEADLINE


class Counts(Counter[str]):
    def add(self, name: str, n: int = 1) -> None:
        self[name] += n


class Names:
    def addresses(self, name: str) -> list[str] | None:
        return [CLIENT[4]] if name == "web" else None

    def names(self, address: str) -> list[str]:
        return []

    def below(self, name: str) -> bool:
        return False

    def serves(self, name: str, protocol: int, port: int) -> bool:
        return False


QUERY = ip(17, datagram(bytes(dnslib.DNSRecord.question("web").pack()), 53), CLIENT[4], SERVER[4])
OTHER = ip(17, datagram(), CLIENT[4], SERVER[4])


def asking(name: str, ident: int, source_port: int = 4000) -> bytes:
    """A program's packet with a query."""
    record = dnslib.DNSRecord.question(name)
    record.header.id = ident
    return ip(17, datagram(bytes(record.pack()), 53, source_port), CLIENT[4], SERVER[4])


def answered(message: bytes, address: str, ttl: int = 0) -> bytes:
    record = dnslib.DNSRecord.parse(message)
    reply = record.reply()
    reply.add_answer(dnslib.RR(record.q.qname, ttl=ttl, rdata=dnslib.A(address)))
    return bytes(reply.pack())


def heard(program: socket.socket) -> list[tuple[int, int, str, list[str]]]:
    """What has come to the program: port, id, question and answers of each message."""
    found = []
    program.setblocking(False)
    while True:
        try:
            packet = packets.parse(program.recv(65535))
        except BlockingIOError:
            return found
        assert packet is not None
        assert packet.datagram is not None
        record = dnslib.DNSRecord.parse(packet.datagram.payload)
        answers = [str(one.rdata) for one in record.rr]
        found.append((packet.datagram.port, record.header.id, str(record.q.qname), answers))


class Bench:
    def __init__(self, directory: Path) -> None:
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.stats = Counts()
        self.upstream = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.upstream.bind(("127.0.0.1", 0))
        self.upstream.settimeout(DEADLINE)
        self.relay = Relay(
            theirs,
            Names(),
            domain="appswitch",
            virtual_range="100.64.0.0/10",
            run_dir=str(directory),
            upstreams=[f"127.0.0.1:{self.upstream.getsockname()[1]}"],
            stats=self.stats,
        )
        self.theirs = theirs

    def tell(self, message: Mapping[str, object], *fds: int) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.control.sendmsg([json.dumps(message).encode()], rights)
        self.turn()

    def attach(self, program: str, expected: Mapping[str, str] = MappingProxyType({})) -> socket.socket:
        """A program whose device is a datagram socket: read(2) and write(2) see the same packets."""
        ours, device_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with device_end:
            message = {"op": "attach", "id": program, "kind": "tun", "vips": [CLIENT[4]], "expected": dict(expected)}
            self.tell(message, device_end.fileno())
        ours.settimeout(DEADLINE)
        return ours

    def answer_upstream(self, address: str) -> None:
        """Answer the question that has come to the host's resolver."""
        message, client = self.upstream.recvfrom(65535)
        self.upstream.sendto(answered(message, address), client)

    def turn(self) -> None:
        self.relay._loop.turn(0)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.relay.close()
    made.upstream.close()
    made.theirs.close()
    made.control.close()


def test_one_turn_serves_everybody_however_much_one_sends(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    flooding, modest = bench.attach("flooding"), bench.attach("modest")
    endless = {program.fd for program in bench.relay._programs.values() if program.id == "flooding"}
    real = device.read_frame
    reads = Counter[int]()

    def read_frame(fd: int) -> bytes:
        reads[fd] += 1
        assert reads[fd] < 10000, "this device is read for ever"
        return OTHER if fd in endless else real(fd)

    monkeypatch.setattr(device, "read_frame", read_frame)
    flooding.send(OTHER)
    modest.send(QUERY)
    bench.turn()
    answer = packets.parse(modest.recv(65535))
    assert answer is not None
    assert answer.datagram is not None
    assert dnslib.DNSRecord.parse(answer.datagram.payload).rr
    assert max(reads.values()) == DRAIN


def test_a_second_attach_replaces_the_first(bench: Bench) -> None:
    first, second = bench.attach("web"), bench.attach("web")
    assert first.recv(100) == b""
    second.send(QUERY)
    bench.turn()
    assert second.recv(65535)
    bench.tell({"op": "detach", "id": "web"})
    assert second.recv(100) == b""


def test_a_program_that_leaves_with_a_query_in_flight(bench: Bench) -> None:
    program = bench.attach("web")
    message = bytes(dnslib.DNSRecord.question("example.com").pack())
    program.send(ip(17, datagram(message, 53), CLIENT[4], SERVER[4]))
    bench.turn()
    asked, relay = bench.upstream.recvfrom(65535)
    bench.tell({"op": "detach", "id": "web"})
    # Whatever has the device's old number by now (this end or that of the bystander) must not get the answer.
    bystander = bench.attach("db")
    bench.upstream.sendto(bytes(dnslib.DNSRecord.parse(asked).reply().pack()), relay)
    bench.turn()
    assert len(bench.relay._forwarder) == 0
    bench.turn()
    assert bench.stats["spoofed"] == 0
    bystander.setblocking(False)
    with pytest.raises(BlockingIOError):
        bystander.recv(65535)


def until(bench: Bench, condition: Callable[[], bool]) -> None:
    while not condition():
        bench.relay._loop.turn(DEADLINE)


def test_one_address_port_and_id_in_two_programs_at_once(bench: Bench) -> None:
    """All that could tell two queries apart is alike; each answer goes to the program that asked for it."""
    one, two = bench.attach("one"), bench.attach("two")
    one.send(asking("one.test", 7))
    two.send(asking("two.test", 7))
    bench.turn()
    asked = dict(bench.upstream.recvfrom(65535) for _ in range(2))
    ids = {int.from_bytes(message[:2], "big") for message in asked}
    assert len(set(asked.values())) == 2  # ports of the relay's
    by_name = {str(dnslib.DNSRecord.parse(message).q.qname): message for message in asked}
    for name, address in (("two.test.", "192.0.2.2"), ("one.test.", "192.0.2.1")):  # in the other order
        bench.upstream.sendto(answered(by_name[name], address), asked[by_name[name]])
    until(bench, lambda: len(bench.relay._forwarder) == 0)
    assert heard(one) == [(4000, 7, "one.test.", ["192.0.2.1"])]
    assert heard(two) == [(4000, 7, "two.test.", ["192.0.2.2"])]
    assert ids != {7}


def test_one_question_of_two_programs_is_answered_to_each_as_it_asked(bench: Bench) -> None:
    one, two = bench.attach("one"), bench.attach("two")
    one.send(asking("same.test", 7, 4001))
    two.send(asking("SAME.test", 8, 4002))
    bench.turn()
    bench.answer_upstream("192.0.2.1")
    until(bench, lambda: len(bench.relay._forwarder) == 0)
    assert heard(one) == [(4001, 7, "same.test.", ["192.0.2.1"])]
    assert heard(two) == [(4002, 8, "SAME.test.", ["192.0.2.1"])]


def test_a_program_that_guesses_ids_answers_nobody(bench: Bench) -> None:
    """It knows all that a client can know, and sends answers under every id to every place where one is waited for."""
    victim, guesser = bench.attach("victim"), bench.attach("guesser")
    victim.send(asking("bank.test", 7))
    bench.turn()
    message, client = bench.upstream.recvfrom(65535)
    forged = answered(message, "192.0.2.66")
    for ident in range(0, 65536, 13):
        reply = ident.to_bytes(2, "big") + forged[2:]
        # To the relay as its upstream, from it to the victim, and to the victim's own address.
        for body, source, target in (
            (datagram(reply, client[1], 53), CLIENT[4], "127.0.0.1"),
            (datagram(reply, 53, 53), CLIENT[4], SERVER[4]),
            (datagram(reply, 4000, 53), SERVER[4], CLIENT[4]),
            (datagram(reply, 4000, 53), CLIENT[4], CLIENT[4]),
        ):
            guesser.send(ip(17, body, source, target))
            bench.turn()
            bench.turn()
    assert len(bench.relay._forwarder) == 1
    assert heard(victim) == []
    bench.upstream.sendto(answered(message, "192.0.2.1"), client)
    until(bench, lambda: len(bench.relay._forwarder) == 0)
    assert heard(victim) == [(4000, 7, "bank.test.", ["192.0.2.1"])]


def test_what_one_program_expects_is_no_answer_for_another(bench: Bench) -> None:
    waiting, other = bench.attach("waiting", {"later": "100.64.9.9"}), bench.attach("other")
    for program in (waiting, other):
        program.send(asking("later.appswitch", 7))
    bench.turn()
    assert heard(waiting) == [(4000, 7, "later.appswitch.", ["100.64.9.9"])]
    assert heard(other) == [(4000, 7, "later.appswitch.", [])]


def test_what_was_kept_gives_way_to_the_table(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    program = bench.attach("program")
    for _ in range(2):
        program.send(asking("soon", 7))
        bench.turn()
    message, client = bench.upstream.recvfrom(65535)
    bench.upstream.sendto(answered(message, "192.0.2.1", ttl=50), client)
    until(bench, lambda: len(bench.relay._forwarder) == 0)
    program.send(asking("soon", 8))
    bench.turn()
    assert [answers for *_, answers in heard(program)] == [["192.0.2.1"]] * 3
    assert bench.stats["dns_cached"] == 1
    monkeypatch.setattr(Names, "addresses", lambda _, name: ["100.64.3.3"] if name == "soon" else None)
    program.send(asking("soon", 9))
    bench.turn()
    assert [answers for *_, answers in heard(program)] == [["100.64.3.3"]]


@pytest.mark.parametrize("raw", [b"", b"\0", bytes(20), b"\x45" + bytes(40), b"\x60" + bytes(40), b"\xff" * 1500])
def test_garbage_from_a_device(bench: Bench, raw: bytes) -> None:
    program = bench.attach("web")
    if raw:
        program.send(raw)
    program.send(QUERY)
    bench.turn()
    assert packets.parse(program.recv(65535)) is not None


def test_the_end_of_the_control_socket_is_the_end(bench: Bench) -> None:
    bench.control.close()
    bench.relay.serve()
