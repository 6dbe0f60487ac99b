"""The relay with real programs in real namespaces, over each kind of device."""

import os
import select
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dnslib
import pytest

from support import needs
from support.program import DEADLINE

V4, V6 = socket.AF_INET, socket.AF_INET6
Until = Callable[[Callable[[], Any]], None]


def query(name: str, qtype: str = "A") -> bytes:
    return bytes(dnslib.DNSRecord.question(name, qtype).pack())


def exchange(sock: socket.socket, address: str, name: str, qtype: str = "A") -> dnslib.DNSRecord:
    """Ask by a socket that takes an answer from that address alone."""
    with sock:
        sock.connect((address, 53))
        message = query(name, qtype)
        sock.send(message)
        answer = dnslib.DNSRecord.parse(sock.recv(65535))
    assert answer.header.id == int.from_bytes(message[:2], "big")
    return answer


def data(answer: dnslib.DNSRecord) -> list[str]:
    return [str(record.rdata) for record in answer.rr]


RESOLVERS = [
    (V4, "100.64.0.53"),
    (V4, "192.0.2.1"),
    (V4, "127.0.0.1"),
    (V4, "127.0.0.53"),
    (V6, "2001:db8::53"),
    (V6, "::1"),
]


@pytest.mark.parametrize(("family", "address"), RESOLVERS)
def test_whatever_resolver_is_asked(web: Any, family: int, address: str) -> None:
    assert data(exchange(web.socket(family), address, "WEB")) == ["100.64.1.2"]
    assert data(exchange(web.socket(family), address, "web.appswitch", "AAAA")) == ["fd00::2"]
    assert exchange(web.socket(family), address, "no.appswitch").header.rcode == dnslib.RCODE.NXDOMAIN
    assert data(exchange(web.socket(family), address, "www.test")) == ["192.0.2.1"]


def test_an_unconnected_socket_sees_whom_it_asked(web: Any) -> None:
    with web.socket() as sock:
        for address in ("192.0.2.1", "192.0.2.2"):
            sock.sendto(query("db"), (address, 53))
            answer, sender = sock.recvfrom(65535)
            assert data(dnslib.DNSRecord.parse(answer)) == ["100.64.1.3"]
            assert sender == (address, 53)


def test_glibc(web: Any) -> None:
    look = "import socket; print(sorted({x[4][0] for x in socket.getaddrinfo(%r, 80)}))"
    assert web.python(look % "web") == "['100.64.1.2', 'fd00::2']"
    assert web.python(look % "db.appswitch") == "['100.64.1.3']"
    assert web.python(look % "www.test") == "['192.0.2.1']"
    reverse = "import socket; print(socket.getnameinfo((%r, 80), socket.NI_NUMERICSERV)[0])"
    assert web.python(reverse % "100.64.1.3") == "db.appswitch"
    assert web.python(reverse % "fd00::2") == "web.appswitch"
    for missing in ("no.appswitch", "no.example"):
        code = (
            "import socket\n"
            f"try: socket.getaddrinfo({missing!r}, 80)\n"
            "except socket.gaierror as error: print(error.errno == socket.EAI_NONAME)"
        )
        assert web.python(code) == "True"


def dig(web: Any, *arguments: str) -> str:
    done = web.run(needs.need("dig"), "+tries=1", "+time=60", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


@pytest.mark.parametrize("server", ["100.64.0.53", "192.0.2.77", "2001:db8::77"])
def test_dig(web: Any, server: str) -> None:
    assert dig(web, f"@{server}", "+short", "web", "A") == "100.64.1.2\n"
    assert dig(web, f"@{server}", "+short", "web.appswitch", "AAAA") == "fd00::2\n"
    assert dig(web, f"@{server}", "+short", "-x", "100.64.1.3") == "db.appswitch.\n"
    whole = dig(web, f"@{server}", "WeB.appswitch", "MX")
    assert "status: NOERROR" in whole
    assert "ANSWER: 0, AUTHORITY: 1" in whole
    assert "WeB.appswitch." in whole
    assert "EDNS: version: 0" in whole
    assert "WARNING" not in whole
    for name in ("no.appswitch", "no.example"):
        assert "status: NXDOMAIN" in dig(web, f"@{server}", name)
    assert len(dig(web, f"@{server}", "+short", "+notcp", "web", "ANY").split()) == 2
    cut = dig(web, f"@{server}", "+ignore", "many")
    assert "flags: qr aa tc rd ra" in cut


def test_services_by_dig(web: Any) -> None:
    found = dig(web, "@192.0.2.77", "_http._tcp.web", "SRV")
    assert "0 0 80 web.appswitch." in found
    assert "100.64.1.2" in found.partition("ADDITIONAL SECTION")[2]
    assert dig(web, "@192.0.2.77", "+short", "_80._tcp.db.appswitch", "SRV") == "0 0 80 db.appswitch.\n"
    assert "status: NXDOMAIN" in dig(web, "@192.0.2.77", "_81._tcp.db.appswitch", "SRV")


def test_one_port_and_id_in_two_programs_at_once(web: Any, relay: Any, any_inhabitant: Callable[..., Any]) -> None:
    other = any_inhabitant(f"twin-of-{web.name}", ["100.64.1.2"])
    relay.attach(other)
    socks = [program.socket() for program in (web, other)]
    for sock, name in zip(socks, ("one.test", "two.example"), strict=True):
        sock.bind(("", 4444))
        sock.sendto(b"\0\7" + query(name)[2:], ("192.0.2.1", 53))
    answers = [dnslib.DNSRecord.parse(sock.recv(65535)) for sock in socks]
    assert [str(answer.q.qname) for answer in answers] == ["one.test.", "two.example."]
    assert [answer.header.rcode for answer in answers] == [dnslib.RCODE.NOERROR, dnslib.RCODE.NXDOMAIN]
    assert {answer.header.id for answer in answers} == {7}
    for sock in socks:
        sock.setblocking(False)
        with sock, pytest.raises(BlockingIOError):
            sock.recv(65535)  # nothing more came


def test_the_hosts_resolver_file_is_followed(web: Any, relay: Any) -> None:
    seen = relay.run_dir / "resolv.conf"
    assert seen.read_text().split("\n")[:2] == ["nameserver 100.64.0.53", "search appswitch example.com"]
    inode = seen.stat().st_ino
    relay.host_file.write_text("nameserver 192.0.2.9\nsearch a.example b.example\noptions ndots:2\n")
    exchange(web.socket(), "192.0.2.1", "www.test")
    assert seen.read_text().split("\n")[1:3] == ["search appswitch a.example b.example", "options ndots:2"]
    assert seen.stat().st_ino == inode
    relay.host_file.write_text("search example.com\n")
    exchange(web.socket(), "192.0.2.1", "www.test")  # and the relay has seen that


def test_the_upstreams_nxdomain_comes_back_as_it_is(web: Any, upstream: Any) -> None:
    answer = exchange(web.socket(), "192.0.2.1", "no.example")
    assert answer.header.rcode == dnslib.RCODE.NXDOMAIN
    assert answer.header.aa == 0
    assert str(answer.auth[0].rdata.mname) == "a.root."
    assert "no.example" in upstream.asked
    assert not [name for name in upstream.asked if "appswitch" in name or name in ("web", "localhost")]


@pytest.mark.parametrize(("family", "address"), [(V4, "192.0.2.1"), (V6, "2001:db8::1"), (V4, "100.64.1.3")])
def test_other_datagrams_are_refused_at_once(web: Any, relay: Any, family: int, address: str, until: Until) -> None:
    refused = relay.count("datagrams_refused")
    for _ in range(3):
        with web.socket(family) as sock:
            sock.connect((address, 123))
            sock.send(b"time?")
            with pytest.raises(ConnectionRefusedError):
                sock.recv(100)
    until(lambda: relay.count("datagrams_refused") == refused + 3)
    source = web.addresses[family == V6]
    to = f"[{address}]:123" if family == V6 else f"{address}:123"
    line = f"datagram from {web.name} ({source}) to {to} refused: such are not carried"
    assert sum(line in logged for logged in relay.log()) == 1


@pytest.mark.parametrize(("family", "address"), [(V4, "192.0.2.1"), (V6, "2001:db8::1")])
def test_native_tcp_is_refused_at_once(web: Any, family: int, address: str) -> None:
    for port in (53, 80):
        with web.socket(family, socket.SOCK_STREAM) as sock, pytest.raises(ConnectionRefusedError):
            sock.connect((address, port))


def test_ping_is_refused_at_once(web: Any) -> None:
    with web.socket(V4, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
        sock.sendto(bytes([8, 0, 0xF7, 0xFF, 0, 0, 0, 0]), ("192.0.2.1", 0))
        assert sock.recv(1000)[20:22] == b"\3\1"


def test_a_program_without_an_address_of_the_family(new_inhabitant: Callable[..., Any], relay: Any, kind: str) -> None:
    for address, family, other in (("fd00::3", V4, "192.0.2.1"), ("100.64.1.3", V6, "2001:db8::1")):
        one = new_inhabitant(f"one{family}-{kind}", [address])
        relay.attach(one)
        assert data(exchange(one.socket(family), other, "web")) == ["100.64.1.2"]
        with one.socket(family) as sock:
            sock.connect((other, 123))
            sock.send(b"x")
            with pytest.raises(ConnectionRefusedError):
                sock.recv(100)


def test_a_forged_source_gets_nothing(web: Any, relay: Any) -> None:
    before = relay.count("spoofed")
    message = query("web")
    udp = struct.pack("!HHHH", 4000, 53, 8 + len(message), 0) + message
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, socket.IPPROTO_UDP, 0)
    for source, count in (("100.64.1.3", 1), ("100.64.1.2", 1)):  # another's, then its own
        packet = header + socket.inet_aton(source) + socket.inet_aton("192.0.2.1") + udp
        with web.socket(V4, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
            sock.sendto(packet, ("192.0.2.1", 0))
        exchange(web.socket(), "192.0.2.1", "web")  # comes after it
        assert relay.count("spoofed") == before + count


def read_message(sock: socket.socket) -> bytes:
    def exactly(size: int) -> bytes:
        got = b""
        while len(got) < size:
            part = sock.recv(size - len(got))
            assert part
            got += part
        return got

    return exactly(int.from_bytes(exactly(2), "big"))


def test_streams(relay: Any) -> None:
    with relay.stream("web") as stream:
        for name, count in (("web", 1), ("many", 100), ("large.test", 100)):
            message = query(name)
            stream.sendall(struct.pack("!H", len(message)) + message)
            answer = dnslib.DNSRecord.parse(read_message(stream))
            assert (answer.header.tc, len(answer.rr)) == (0, count)
            assert answer.header.id == int.from_bytes(message[:2], "big")
        stream.sendall(struct.pack("!H", 5) + b"scrap")  # dropped
        stream.sendall(struct.pack("!H", 20) + query("web")[:20])
        assert dnslib.DNSRecord.parse(read_message(stream)).header.rcode == dnslib.RCODE.FORMERR


def test_a_broken_table_is_answered_with_servfail(web: Any, relay: Any) -> None:
    assert exchange(web.socket(), "192.0.2.1", "broken").header.rcode == dnslib.RCODE.SERVFAIL
    assert relay.count("faults") >= 1
    assert data(exchange(web.socket(), "192.0.2.1", "web")) == ["100.64.1.2"]


def test_useless_messages_from_the_supervisor(web: Any, relay: Any, until: Until) -> None:
    # The program's own descriptors must be there before they are counted.
    assert data(exchange(web.socket(), "192.0.2.1", "web")) == ["100.64.1.2"]
    logged = len(relay.log())
    with open("/dev/null") as null, socket.socket(V4, socket.SOCK_DGRAM) as udp:
        useless: list[tuple[Any, list[int]]] = [
            (b"{", []),
            ([], []),
            ({"op": "attach"}, []),
            ({"op": "attach", "id": "x", "kind": "tun", "vips": []}, []),
            ({"op": "attach", "id": "x", "kind": "wire", "vips": []}, [null.fileno()]),
            ({"op": "attach", "id": "x", "kind": "tun", "vips": ["nonsense"]}, [null.fileno()]),
            ({"op": "attach", "id": "x", "kind": "tun", "vips": []}, [null.fileno()]),
            ({"op": "attach", "id": "x", "kind": "tun", "vips": []}, [udp.fileno(), null.fileno()]),
            ({"op": "fly", "id": "x"}, [udp.fileno()]),
        ]
        before = len(os.listdir(f"/proc/{relay.process.pid}/fd"))
        for message, fds in useless:
            relay.send(message, fds)
        relay.send({"op": "detach", "id": "nobody"})
    until(lambda: len(relay.log()) >= logged + len(useless))
    until(lambda: len(os.listdir(f"/proc/{relay.process.pid}/fd")) <= before)
    assert data(exchange(web.socket(), "192.0.2.1", "web")) == ["100.64.1.2"]


def assert_idle(relay: Any, until: Until) -> None:
    """No timer, no busy loop: the process does not run at all."""


    def counts() -> tuple[str, str]:
        return relay.status("voluntary_ctxt_switches"), relay.status("nonvoluntary_ctxt_switches")

    def sleeps() -> bool:
        before = counts()
        time.sleep(0.5)
        return counts() == before

    until(sleeps)  # what came last may be on its way


def test_an_idle_relay_sleeps(web: Any, relay: Any, until: Until) -> None:
    with relay.stream("web") as stream:
        stream.sendall(struct.pack("!H", len(query("web"))) + query("web"))
        read_message(stream)
        exchange(web.socket(), "192.0.2.1", "www.test")
    exchange(web.socket(), "192.0.2.1", "web")  # the stream's end has been seen by now
    assert_idle(relay, until)


def test_a_device_that_vanishes(
    new_inhabitant: Callable[..., Any], relay: Any, web: Any, kind: str, until: Until
) -> None:
    short_lived = new_inhabitant(f"short-lived-{kind}", ["100.64.1.9"])
    relay.attach(short_lived)
    assert data(exchange(short_lived.socket(), "192.0.2.1", "web")) == ["100.64.1.2"]
    short_lived.remove_device()
    assert data(exchange(short_lived.socket(), "127.0.0.1", "web")) == ["100.64.1.2"]
    assert_idle(relay, until)
    before = len(os.listdir(f"/proc/{relay.process.pid}/fd"))
    relay.send({"op": "detach", "id": short_lived.name})
    until(lambda: len(os.listdir(f"/proc/{relay.process.pid}/fd")) < before)
    assert data(exchange(web.socket(), "192.0.2.1", "web")) == ["100.64.1.2"]


def test_no_resolver_answers(new_relay: Callable[..., Any], any_inhabitant: Callable[..., Any], until: Until) -> None:
    with socket.socket(V4, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        relay = new_relay([f"127.0.0.1:{silent.getsockname()[1]}"])
        program = any_inhabitant("alone", ["100.64.1.7"])
        relay.attach(program)
        with program.socket() as first, program.socket() as second:
            begin = time.monotonic()
            first.connect(("192.0.2.1", 53))
            first.send(query("www.test"))
            # What the relay knows itself is not held up.
            assert data(exchange(second, "192.0.2.1", "web")) == ["100.64.1.2"]
            held_up = bool(select.select([first], [], [], 0)[0])
            assert not held_up or time.monotonic() - begin > 1.9
            answer = dnslib.DNSRecord.parse(first.recv(65535))
        assert answer.header.rcode == dnslib.RCODE.SERVFAIL
        assert time.monotonic() - begin > 1.9
        assert relay.count("dns_failed") == 1

        def refused_at_once() -> bool:
            begin = time.monotonic()
            answer = exchange(program.socket(), "192.0.2.1", "www.test")
            assert answer.header.rcode == dnslib.RCODE.SERVFAIL
            return time.monotonic() - begin < 1.9  # sooner than a server that is silent

        silent.connect(("127.0.0.1", 9))  # closed to everybody, and nobody else can have the port
        until(refused_at_once)
        assert_idle(relay, until)


def test_a_successor_takes_over(
    new_relay: Callable[..., Any], new_inhabitant: Callable[..., Any], kind: str, upstream: Any
) -> None:
    program = new_inhabitant(f"steady-{kind}", ["100.64.1.8"])
    first = new_relay([upstream.address])
    first.attach(program)
    assert data(exchange(program.socket(), "192.0.2.1", "web")) == ["100.64.1.2"]
    path = Path(first.run_dir / "dns.sock")
    assert path.stat().st_mode & 0o777 == 0o600
    first.control.shutdown(socket.SHUT_RDWR)
    assert first.process.wait(DEADLINE) == 0
    assert not path.exists()
    with program.socket() as sock:
        sock.sendto(query("web"), ("192.0.2.1", 53))  # waits in the device
        second = new_relay([upstream.address])
        second.attach(program)
        assert data(dnslib.DNSRecord.parse(sock.recv(65535))) == ["100.64.1.2"]
