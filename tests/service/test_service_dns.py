"""DNS as programs ask for it: names of the table from the table, everything else from the host's resolvers."""

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import dnslib
import dnslib.server
import pytest

from service.acting import SOURCES, Actor, start_actor
from support import modes
from support.modes import Mode, Person
from support.needs import need
from support.switch import Switch

WEB, SIX = "10.20.50.1", "2001:db8::50"
RECORDS = {
    ("host.test.", "A"): ["192.0.2.80"],
    ("host.test.", "AAAA"): ["2001:db8:1::80"],
    ("many.test.", "A"): [f"192.0.2.{n}" for n in range(1, 101)],
    ("80.2.0.192.in-addr.arpa.", "PTR"): ["host.test"],
    ("host.test.", "TXT"): ["told by the host's resolver"],
}
_DATA = {"A": dnslib.A, "AAAA": dnslib.AAAA, "PTR": dnslib.PTR, "TXT": dnslib.TXT}


class HostResolver(dnslib.server.BaseResolver):  # type: ignore[misc]
    """What stands for the host's resolver: knows RECORDS, denies the rest, remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def resolve(self, request: dnslib.DNSRecord, handler: object) -> dnslib.DNSRecord:
        name, kind = str(request.q.qname).lower(), dnslib.QTYPE[request.q.qtype]
        self.asked.append((name, kind))
        reply = request.reply()
        for text in RECORDS.get((name, kind), ()):
            reply.add_answer(dnslib.RR(name, request.q.qtype, ttl=60, rdata=_DATA[kind](text)))
        if not any(known == name for known, _ in RECORDS):
            reply.header.rcode = dnslib.RCODE.NXDOMAIN
        return reply


def on_one_port(known: HostResolver) -> list[dnslib.server.DNSServer]:
    """Servers for UDP and TCP, at a port that is free for both."""
    quiet = dnslib.server.DNSLogger("-request,-reply,-truncated,-error")
    while True:
        udp = dnslib.server.DNSServer(known, "127.0.0.1", 0, tcp=False, logger=quiet)
        try:
            port = udp.server.server_address[1]
            return [udp, dnslib.server.DNSServer(known, "127.0.0.1", port, tcp=True, logger=quiet)]
        except OSError as error:
            udp.server.server_close()
            if error.errno != errno.EADDRINUSE:
                raise


@pytest.fixture(scope="module")
def resolver() -> Iterator[tuple[HostResolver, int]]:
    """The resolver and its port on 127.0.0.1, over UDP and TCP."""
    known = HostResolver()
    servers = on_one_port(known)
    port = servers[0].server.server_address[1]
    for server in servers:
        server.start_thread()
    yield known, port
    for server in servers:
        server.stop()
        server.server.server_close()


@pytest.fixture(scope="module", params=modes.possible(), ids=str)
def own_mode(request: pytest.FixtureRequest) -> Mode:
    chosen: Mode = request.param
    return chosen


@pytest.fixture(scope="module")
def named(
    own_mode: Mode,
    appswitch_command: Callable[[Person], Path],
    resolver: tuple[HostResolver, int],
    actor_file: Path,
    python: str,
) -> Iterator[Switch]:
    """A switch that asks the test's resolver, with services `web` (IPv4), `six` (IPv6) and `a.b` in it."""
    switch = Switch(own_mode, appswitch_command)
    switch.up("--resolver", f"127.0.0.1:{resolver[1]}")
    programs = {
        name: start_actor(switch, actor_file.parent, python, name, ip=ip)
        for name, ip in (("web", WEB), ("six", SIX), ("a.b", "10.20.50.2"))
    }
    for name, program in programs.items():
        program(f"greet(listen(80, '::'), '{name}')")
    programs["web"]("listen(8080, '127.0.0.1')")
    yield switch
    switch.close()


@pytest.fixture(scope="module")
def asker(named: Switch, actor_file: Path, python: str) -> Actor:
    return start_actor(named, actor_file.parent, python, "asker")


@pytest.fixture
def asked(resolver: tuple[HostResolver, int]) -> list[tuple[str, str]]:
    """What the host's resolver is asked in this test."""
    resolver[0].asked.clear()
    return resolver[0].asked


OURS = [
    (["web", "A"], ("NOERROR", [f"A {WEB}"])),
    (["WEB.AppSwitch", "A"], ("NOERROR", [f"A {WEB}"])),
    (["a.b", "A"], ("NOERROR", ["A 10.20.50.2"])),
    (["six", "AAAA"], ("NOERROR", [f"AAAA {SIX}"])),
    (["six.appswitch", "A"], ("NOERROR", [])),
    (["web", "AAAA"], ("NOERROR", [])),
    (["web", "MX"], ("NOERROR", [])),
    (["-x", WEB], ("NOERROR", ["PTR web.appswitch."])),
    (["-x", SIX], ("NOERROR", ["PTR six.appswitch."])),
    (["nobody.appswitch", "A"], ("NXDOMAIN", [])),
    (["-x", "100.64.1.1"], ("NXDOMAIN", [])),
    (["_80._tcp.web", "SRV"], ("NOERROR", ["SRV 0 0 80 web.appswitch."])),
    (["_HTTP._tcp.six.appswitch", "SRV"], ("NOERROR", ["SRV 0 0 80 six.appswitch."])),
    (["_8080._tcp.web", "SRV"], ("NXDOMAIN", [])),  # bound to loopback: nobody else's
    (["_81._tcp.web.appswitch", "SRV"], ("NXDOMAIN", [])),
    (["_tcp.web", "ANY"], ("NOERROR", [])),
    (["b.appswitch", "A"], ("NOERROR", [])),
    (["appswitch", "NS"], ("NOERROR", ["NS appswitch."])),
]
THEIRS = [
    (["host.test", "A"], ("NOERROR", ["A 192.0.2.80"])),
    (["host.test", "AAAA"], ("NOERROR", ["AAAA 2001:db8:1::80"])),
    (["host.test", "TXT"], ("NOERROR", ['TXT "told by the host\'s resolver"'])),
    (["host.test", "MX"], ("NOERROR", [])),
    (["-x", "192.0.2.80"], ("NOERROR", ["PTR host.test."])),
    (["nobody.test", "A"], ("NXDOMAIN", [])),
    (["nobody", "A"], ("NXDOMAIN", [])),
    (["many.test", "A"], ("NOERROR", [f"A 192.0.2.{n}" for n in range(1, 101)])),
]


def questions(cases: list[tuple[list[str], tuple[str, list[str]]]]) -> list[str]:
    return [word for words, _ in cases for word in (*words, "+nocookie")]


@pytest.mark.parametrize("way", [[], ["+tcp"]], ids=["udp", "tcp"])
@pytest.mark.parametrize(
    "server", [None, "8.8.8.8", "127.0.0.1", "2001:4860:4860::8888", "::1"], ids=lambda server: server or "configured"
)
def test_dig_gets_every_answer_from_every_address(
    named: Switch, asked: list[tuple[str, str]], server: str | None, way: list[str]
) -> None:
    cases = [*OURS, *THEIRS]
    at = [f"@{server}"] if server else []
    # All questions of one dig, with what comes back told apart by its header.
    command = [need("dig"), *way, *at, "+tries=1", "+time=60", "+nostats", "+noquestion"]
    text = named.check([*command, *questions(cases)], status=0).stdout
    replies = text.split("Got answer:")[1:]
    found = []
    for reply in replies:
        answers = reply.partition("ANSWER SECTION:")[2].partition("\n\n")[0]
        rows = [line.split(None, 4) for line in answers.splitlines() if line]
        status = reply.partition("status: ")[2].partition(",")[0]
        found.append((status, [f"{row[3]} {row[4]}" for row in rows]))
    for (words, wanted), got in zip(cases, found, strict=True):
        assert (got[0], sorted(got[1])) == (wanted[0], sorted(wanted[1])), words
    # What the table knows is nobody else's business.
    assert {name for name, _ in asked} <= {name for name, _ in RECORDS} | {"nobody.test.", "nobody."}


def test_glibc_finds_names_and_addresses(named: Switch, asker: Actor, asked: list[tuple[str, str]]) -> None:
    def addresses(name: str, family: str = "AF_UNSPEC") -> list[str]:
        found: list[str] = asker(f"sorted({{a[4][0] for a in getaddrinfo('{name}', 80, {family}, SOCK_STREAM)}})")
        return found

    assert addresses("web") == addresses("web.appswitch") == [WEB]
    assert addresses("six") == [SIX]
    assert addresses("host.test") == ["192.0.2.80", "2001:db8:1::80"]
    assert addresses("localhost", "AF_INET") == ["127.0.0.1"]
    assert asker(f"gethostbyaddr('{WEB}')[0]") == "web.appswitch"
    assert asker(f"gethostbyaddr('{SIX}')[0]") == "six.appswitch"
    for name in ("nobody.appswitch", "nobody.test"):
        asker(f"try: getaddrinfo('{name}', 80); code = 0\nexcept gaierror as error: code = error.errno")
        assert asker("code == EAI_NONAME"), name
    assert asker("hear('web', 80)") == "web"
    assert not {name for name, _ in asked} & {"web.", "six.", "web.appswitch.", "six.appswitch."}


def test_busybox_finds_names(named: Switch, asked: list[tuple[str, str]]) -> None:
    def look(*words: str) -> str:
        return named.check([need("busybox"), "nslookup", *words]).stdout

    assert f"Address: {WEB}" in look("web.appswitch")
    assert f"Address: {SIX}" in look("six.appswitch")
    assert f"Address: {WEB}" in look("web.appswitch", "8.8.8.8")
    assert "Address: 192.0.2.80" in look("host.test")
    assert "NXDOMAIN" in look("nobody.test")
    fetched = named.check([need("busybox"), "ping", "-c", "1", "-W", "1", "web"])
    assert f"PING web ({WEB})" in fetched.stdout
    assert "web." not in {name for name, _ in asked}


def test_go_finds_names(
    named: Switch, go_program: Callable[[Path], Path], asked: list[tuple[str, str]]
) -> None:
    lookup = go_program(SOURCES / "lookup.go")

    def look(*words: str) -> list[str]:
        return named.check([lookup, *words], status=0).stdout.split("\n")[:-1]

    assert look("host", "web") == [WEB]
    assert look("host", "six.appswitch") == [SIX]
    assert look("addr", WEB) == ["web.appswitch."]
    assert look("host", "host.test") == ["192.0.2.80", "2001:db8:1::80"]
    assert look("host", "nobody.test") == ["not found"]
    assert "web." not in {name for name, _ in asked}


def test_the_program_s_resolver_file_is_its_own_and_the_host_s_untouched(asker: Actor) -> None:
    assert "nameserver 100.64.0.53" in asker("open('/etc/resolv.conf').read()").splitlines()
    assert "100.64.0.53" not in Path("/etc/resolv.conf").read_text()


@pytest.mark.parametrize(
    ("target", "error"), [(WEB, "ECONNREFUSED"), (SIX, "ECONNREFUSED"), ("100.64.0.53", "EHOSTUNREACH")]
)
def test_a_datagram_that_is_for_nobody_is_refused_at_once(named: Switch, asker: Actor, target: str, error: str) -> None:
    asker(f"u = socket(family_of('{target}'), SOCK_DGRAM); u.connect(('{target}', 5353)); u.settimeout(TIMEOUT)")
    before = named.cli("status", "-o", "json")["counters"]["refused"]
    asker("u.send(b'x')")
    assert asker.errno("u.recv(1)") == error
    assert named.cli("status", "-o", "json")["counters"]["refused"] == before + 1


def test_datagrams_inside_a_program_are_its_own(asker: Actor) -> None:
    asker("a = socket(AF_INET, SOCK_DGRAM); a.bind(('127.0.0.1', 5000)); a.settimeout(TIMEOUT)")
    asker("socket(AF_INET, SOCK_DGRAM).sendto(b'self', ('127.0.0.1', 5000))")
    assert asker("a.recv(4).decode()") == "self"
