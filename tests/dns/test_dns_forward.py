"""The upstream client, in a real loop against real sockets on 127.0.0.1."""

import select
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import dnslib
import pytest

from appswitch.dns.forward import Forwarder
from appswitch.dns.resolv_conf import Followed, parse
from appswitch.relay.loop import Loop
from support.ports import udp_and_tcp

PATIENCE = 4.5  # seconds by the bench's clock within which there is an answer: nearly the 5 of resolv.conf(5)
QUIET = 0.25  # real seconds without any event after which nothing but time is waited for


class Counts(Counter[str]):
    def add(self, name: str, n: int = 1) -> None:
        self[name] += n


class Upstream:
    """A server on 127.0.0.1 that answers by hand: `answer` maps a query to the messages to send back."""

    def __init__(
        self, loop: Loop, answer: Callable[[dnslib.DNSRecord], list[bytes]], host: str = "127.0.0.1"
    ) -> None:
        self.asked: list[dnslib.DNSRecord] = []
        self.clients: list[tuple[str, int]] = []
        self._loop, self._answer = loop, answer
        self.udp, self.tcp = udp_and_tcp(host)
        self.tcp_reply: list[bytes] = []
        self.open: list[socket.socket] = [self.udp, self.tcp]
        self.address = f"{f'[{host}]' if ':' in host else host}:{self.udp.getsockname()[1]}"
        loop.watch(self.udp.fileno(), select.EPOLLIN, self._on_datagram)

    def serve_tcp(self, pieces: Callable[[bytes], list[bytes]]) -> None:
        """Also serve TCP on the same port: `pieces` maps a query to what is written, piece by piece."""
        self.tcp.listen()
        self._loop.watch(self.tcp.fileno(), select.EPOLLIN, lambda _: self._on_connection(pieces))

    def _on_datagram(self, _events: int) -> None:
        data, client = self.udp.recvfrom(65535)
        query = dnslib.DNSRecord.parse(data)
        self.asked.append(query)
        self.clients.append(client)
        for message in self._answer(query):
            self.udp.sendto(message, client)

    def _on_connection(self, pieces: Callable[[bytes], list[bytes]]) -> None:
        sock, _ = self.tcp.accept()
        self.open.append(sock)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        left: list[bytes] = []

        def go(_events: int) -> None:
            if not left:
                left.extend(pieces(sock.recv(65535)[2:]))
                self._loop.change(sock.fileno(), select.EPOLLOUT)
            else:
                sock.send(left.pop(0))
                if not left:
                    self._loop.forget(sock.fileno())
                    sock.close()

        self._loop.watch(sock.fileno(), select.EPOLLIN, go)


class Bench:
    """A loop, a forwarder, its upstreams and the answers that it gave; its clock goes on when nothing else does."""

    def __init__(self) -> None:
        self.now = 0.0
        self.loop, self.stats = Loop(), Counts()
        self.upstreams: list[Upstream] = []
        self.answers: list[bytes] = []
        self.forwarder: Forwarder

    def upstream(self, answer: Callable[[dnslib.DNSRecord], list[bytes]], host: str = "127.0.0.1") -> Upstream:
        self.upstreams.append(Upstream(self.loop, answer, host))
        return self.upstreams[-1]

    def start(
        self, *more: str, limit: int = 512, share: int = 128, options: str = "", resolv_conf: str | None = None
    ) -> None:
        servers = [upstream.address for upstream in self.upstreams] + list(more)
        fixed = parse(options)
        self.forwarder = Forwarder(
            self.loop,
            self.stats,
            servers if resolv_conf is None else None,
            host=(lambda: fixed) if resolv_conf is None else Followed(resolv_conf).now,
            limit=limit,
            share=share,
            clock=lambda: self.now,
        )

    def ask(self, query: bytes, *, over_tcp: bool = False, owner: str = "web") -> None:
        self.forwarder.submit(query, owner, over_tcp, self.answers.append)

    def until_answers(self, count: int = 1) -> list[dnslib.DNSRecord]:
        while len(self.answers) < count:
            if select.select([self.loop._epoll], [], [], QUIET)[0]:
                self.loop.turn(0)
            else:
                rest = self.forwarder.timeout()
                assert rest is not None, "nothing is in flight, and nothing comes"
                self.now += rest
                self.forwarder.expire()
        return [dnslib.DNSRecord.parse(answer) for answer in self.answers]


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.forwarder.close()
    for upstream in made.upstreams:
        for sock in upstream.open:
            sock.close()
    made.loop.close()


def query(name: str = "Example.com", ident: int = 4711) -> bytes:
    record = dnslib.DNSRecord.question(name)
    record.header.id = ident
    return bytes(record.pack())


def good(record: dnslib.DNSRecord) -> list[bytes]:
    reply = record.reply()
    reply.add_answer(dnslib.RR(record.q.qname, ttl=7, rdata=dnslib.A("192.0.2.80")))
    return [bytes(reply.pack())]


def coded(rcode: int) -> Callable[[dnslib.DNSRecord], list[bytes]]:
    def answer(record: dnslib.DNSRecord) -> list[bytes]:
        reply = record.reply()
        reply.header.rcode = rcode
        return [bytes(reply.pack())]

    return answer


def silent(_record: dnslib.DNSRecord) -> list[bytes]:
    return []


@pytest.fixture
def closed_port() -> Iterator[str]:
    """One that is refused to everybody: its socket is connected elsewhere, and nobody else can have it meanwhile."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.connect(("127.0.0.1", 9))
        yield f"127.0.0.1:{sock.getsockname()[1]}"


def test_the_answer_comes_back_under_the_clients_id(bench: Bench) -> None:
    upstream = bench.upstream(good)
    bench.start()
    assert bench.forwarder.timeout() is None
    for number in range(20):
        bench.ask(query(f"n{number}.example.com", ident=number))
    assert 0 < (bench.forwarder.timeout() or 0) <= PATIENCE
    answers = bench.until_answers(20)
    assert {answer.header.id for answer in answers} == set(range(20))
    assert all(str(answer.rr[0].rdata) == "192.0.2.80" for answer in answers)
    assert bench.forwarder.timeout() is None
    assert len(bench.forwarder) == 0
    # Neither the ids nor the ports that a forger would have to guess are the clients' or in sequence.
    ids = [record.header.id for record in upstream.asked]
    assert len(set(ids)) > 10
    assert any(abs(a - b) > 100 for a, b in pairwise(ids))
    assert len({port for _, port in upstream.clients}) > 10
    assert bench.stats == {"dns_forwarded": 20}


@pytest.mark.parametrize("rcode", [dnslib.RCODE.NXDOMAIN, dnslib.RCODE.SERVFAIL, dnslib.RCODE.REFUSED])
def test_the_only_servers_word_is_passed_on(bench: Bench, rcode: int) -> None:
    bench.upstream(coded(rcode))
    bench.start()
    bench.ask(query())
    (answer,) = bench.until_answers()
    assert answer.header.rcode == rcode
    assert bench.stats["dns_failed"] == 0


def test_nxdomain_is_an_answer_and_no_reason_to_ask_another(bench: Bench) -> None:
    bench.upstream(coded(dnslib.RCODE.NXDOMAIN))
    other = bench.upstream(good)
    bench.start()
    bench.ask(query())
    assert bench.until_answers()[0].header.rcode == dnslib.RCODE.NXDOMAIN
    assert not other.asked


@pytest.mark.parametrize("rcode", [dnslib.RCODE.SERVFAIL, dnslib.RCODE.REFUSED, dnslib.RCODE.NOTIMP])
def test_a_server_that_cannot_tell_is_followed_by_the_next(bench: Bench, rcode: int) -> None:
    bench.upstream(coded(rcode))
    bench.upstream(good)
    bench.start()
    bench.ask(query())
    assert str(bench.until_answers()[0].rr[0].rdata) == "192.0.2.80"


def test_when_no_server_can_tell_the_first_ones_word_counts(bench: Bench) -> None:
    bench.upstream(coded(dnslib.RCODE.REFUSED))
    bench.upstream(silent)
    bench.start()
    bench.ask(query())
    assert bench.until_answers()[0].header.rcode == dnslib.RCODE.REFUSED


def test_a_silent_server_is_followed_by_the_next_and_then_asked_last(bench: Bench) -> None:
    first, second = bench.upstream(silent), bench.upstream(good)
    bench.start()
    bench.ask(query())
    bench.until_answers(1)
    bench.ask(query("other.example.com"))
    begin = bench.now
    bench.until_answers(2)
    assert bench.now == begin
    assert (len(first.asked), len(second.asked)) == (1, 2)


def test_a_closed_port_costs_no_time(bench: Bench, closed_port: str) -> None:
    bench.start(closed_port)
    bench.ask(query())
    (answer,) = bench.until_answers()
    assert bench.now == 0
    assert answer.header.rcode == dnslib.RCODE.SERVFAIL
    assert str(answer.q.qname) == "Example.com."
    assert answer.header.id == 4711


def test_servfail_when_all_are_silent(bench: Bench) -> None:
    bench.upstream(silent)
    bench.upstream(silent)
    bench.start()
    bench.ask(query())
    assert bench.until_answers()[0].header.rcode == dnslib.RCODE.SERVFAIL
    assert bench.now == pytest.approx(PATIENCE)
    assert bench.stats == {"dns_forwarded": 1, "dns_failed": 1}
    assert [len(upstream.asked) for upstream in bench.upstreams] == [2, 2]
    assert bench.forwarder.timeout() is None


def test_forged_answers_are_ignored(bench: Bench) -> None:
    other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    other.bind(("127.0.0.1", 0))

    def answer(record: dnslib.DNSRecord) -> list[bytes]:
        (right,) = good(record)
        forged = right.replace(bytes([192, 0, 2, 80]), bytes([192, 0, 2, 66]))
        other.sendto(forged, upstream.clients[-1])  # right in all, but from a stranger
        wrong_id = struct.pack("!H", record.header.id ^ 1) + forged[2:]
        wrong_name = forged.replace(b"Example", b"Exemple")
        not_a_response = forged[:2] + b"\x01" + forged[3:]
        return [wrong_id, wrong_name, not_a_response, b"", b"x", right]

    upstream = bench.upstream(answer)
    bench.start()
    bench.ask(query())
    assert str(bench.until_answers()[0].rr[0].rdata) == "192.0.2.80"
    other.close()


def cut(record: dnslib.DNSRecord) -> list[bytes]:
    reply = record.reply()
    reply.header.tc = 1
    return [bytes(reply.pack())]


def large(data: bytes) -> list[bytes]:
    record = dnslib.DNSRecord.parse(data)
    reply = record.reply()
    for number in range(2000):
        rdata = dnslib.A((192, 0, number >> 8, number & 255))
        reply.add_answer(dnslib.RR(record.q.qname, ttl=7, rdata=rdata))
    message = bytes(reply.pack())
    whole = struct.pack("!H", len(message)) + message
    return [whole[:1], whole[1:9], whole[9:20000], whole[20000:]]


def test_a_cut_answer_is_fetched_whole_for_a_client_on_tcp(bench: Bench) -> None:
    bench.upstream(cut).serve_tcp(large)
    bench.start()
    bench.ask(query(), over_tcp=True)
    (answer,) = bench.until_answers()
    assert (answer.header.tc, len(answer.rr), answer.header.id) == (0, 2000, 4711)


def test_a_cut_answer_is_passed_on_to_a_client_on_udp(bench: Bench) -> None:
    bench.upstream(cut)
    bench.start()
    bench.ask(query())
    assert bench.until_answers()[0].header.tc == 1


@pytest.mark.parametrize(
    "pieces",
    [
        lambda data: [b"\0"],
        lambda data: [struct.pack("!H", 40) + data[:20]],
        lambda data: [struct.pack("!H", len(data)) + data],
    ],
)
def test_a_bad_tcp_answer_is_followed_by_the_next_server(bench: Bench, pieces: Callable[[bytes], list[bytes]]) -> None:
    bench.upstream(cut).serve_tcp(pieces)
    bench.upstream(good)
    bench.start()
    bench.ask(query(), over_tcp=True)
    assert len(bench.until_answers()[0].rr) == 1


def test_a_server_without_tcp_is_followed_by_the_next(bench: Bench) -> None:
    bench.upstream(cut)
    bench.start()
    bench.ask(query(), over_tcp=True)
    assert bench.until_answers()[0].header.rcode == dnslib.RCODE.SERVFAIL


def test_the_number_in_flight_is_bounded(bench: Bench) -> None:
    bench.upstream(silent)
    bench.start(limit=8, share=5)
    for number in range(7):
        bench.ask(query(f"n{number}.test", ident=number))
    assert [answer.header.id for answer in bench.until_answers(2)] == [5, 6]  # over one program's share
    for number in range(7, 12):
        bench.ask(query(f"n{number}.test", ident=number), owner="db")
    assert [answer.header.id for answer in bench.until_answers(4)] == [5, 6, 10, 11]  # over the whole
    answers = bench.until_answers(12)
    assert all(answer.header.rcode == dnslib.RCODE.SERVFAIL for answer in answers)
    assert bench.stats["dns_failed"] == 12
    bench.ask(query(ident=12))  # room again
    assert len(bench.forwarder) == 1


def test_resolv_conf_is_followed_as_it_changes(bench: Bench, tmp_path: Path) -> None:
    # Port 53 is the only one that the file can name; nobody listens there on these loopback addresses.
    conf = tmp_path / "resolv.conf"
    conf.write_text("nameserver 127.9.9.9\n")
    bench.start(resolv_conf=str(conf))
    upstream = bench.upstream(good)
    bench.ask(query())
    assert bench.until_answers()[0].header.rcode == dnslib.RCODE.SERVFAIL
    assert bench.now == 0
    assert not upstream.asked
    assert [address for _, address in bench.forwarder._asked.servers] == [("127.9.9.9", 53)]
    conf.write_text("nameserver 127.9.9.10\nnameserver 127.9.9.11\n")
    bench.ask(query())
    assert bench.until_answers(2)[1].header.rcode == dnslib.RCODE.SERVFAIL
    assert [address for _, address in bench.forwarder._asked.servers] == [("127.9.9.10", 53), ("127.9.9.11", 53)]


def test_other_servers_do_not_answer_for_those_before(bench: Bench, tmp_path: Path) -> None:
    conf = tmp_path / "resolv.conf"
    conf.write_text("nameserver 127.9.9.9\n")
    upstream = bench.upstream(good)
    bench.start()
    bench.forwarder._host = Followed(str(conf)).now
    for number in (1, 2):
        bench.ask(query())
        bench.until_answers(number)
    assert len(upstream.asked) == 1  # the second was kept
    conf.write_text("nameserver 127.9.9.10\n")
    bench.ask(query())
    bench.until_answers(3)
    assert len(upstream.asked) == 2


def test_an_upstream_over_ipv6(bench: Bench) -> None:
    bench.upstream(cut, "::1").serve_tcp(large)
    bench.start()
    bench.ask(query(), over_tcp=True)
    assert len(bench.until_answers()[0].rr) == 2000


def test_a_slow_server_delays_nobody_and_is_heard_in_the_end(bench: Bench) -> None:
    slow = bench.upstream(silent)
    bench.start()
    bench.ask(query("slow.test", ident=1))
    while not slow.asked:
        bench.loop.turn(0.1)
    slow._answer = good
    bench.ask(query("fast.test", ident=2))
    assert bench.until_answers()[0].header.id == 2
    assert bench.now == 0
    bench.now = 4.4
    bench.forwarder.expire()  # it is asked again; the first question still stands
    slow.udp.sendto(good(slow.asked[0])[0], slow.clients[0])
    assert bench.until_answers(2)[1].header.id == 1


def test_use_vc_goes_by_tcp(bench: Bench) -> None:
    upstream = bench.upstream(good)
    upstream.serve_tcp(large)
    bench.start(options="options use-vc")
    bench.ask(query(), over_tcp=True)
    assert len(bench.until_answers()[0].rr) == 2000
    assert not upstream.asked


def test_what_is_asked_for_a_program_that_ends_is_dropped(bench: Bench) -> None:
    bench.upstream(silent)
    bench.start()
    bench.ask(query(), owner="web")
    bench.ask(query(), owner="db")
    bench.forwarder.forget("web")
    assert len(bench.forwarder) == 1
    bench.forwarder.forget("db")
    assert (len(bench.forwarder), bench.forwarder.timeout(), bench.answers) == (0, None, [])
    assert not bench.forwarder._sockets
