"""DNS on a host whose resolv.conf is the test's: search domains, other resolvers, a change while programs run."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import dnslib
import dnslib.server
import pytest

from service.acting import SOURCES, Actor, start_actor
from support import modes
from support.hosts import Host
from support.modes import Person
from support.needs import need
from support.program import Program, wait_until

VIP, DOTTED = "10.20.50.1", "10.20.50.2"
STUB, SIX = "127.0.0.53", "::1"  # where systemd-resolved listens, and an address of the other family
RECORDS = {
    STUB: {"intra.corp.test.": "192.0.2.10", "web.corp.test.": "192.0.2.66", "a.b.corp.test.": "192.0.2.67"},
    SIX: {"intra.other.test.": "192.0.2.20"},
}


class Resolver(dnslib.server.BaseResolver):  # type: ignore[misc]
    """Knows A records, denies the rest, remembers what it was asked."""

    def __init__(self, records: Mapping[str, str]) -> None:
        self.records, self.asked = records, set[str]()

    def resolve(self, request: dnslib.DNSRecord, handler: object) -> dnslib.DNSRecord:
        name = str(request.q.qname).lower()
        self.asked.add(name)
        reply = request.reply()
        if name not in self.records:
            reply.header.rcode = dnslib.RCODE.NXDOMAIN
        elif request.q.qtype == dnslib.QTYPE.A:
            reply.add_answer(dnslib.RR(name, rdata=dnslib.A(self.records[name]), ttl=60))
        return reply


class HostWithFile(Host):
    """Everything that is started on it sees `file` as the host's /etc/resolv.conf."""

    def start(
        self, argv: Sequence[str], label: str, person: Person, env: Mapping[str, str] | None = None, **popen: Any
    ) -> Program:
        script = f"mount --bind {self.base}/resolv.conf /etc/resolv.conf && exec \"$@\""
        return super().start([need("unshare"), "--mount", "sh", "-c", script, "sh", *argv], label, person, env, **popen)

    def say(self, *lines: str) -> None:
        """Write the file."""
        (self.base / "resolv.conf").write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture
def host(appswitch_command: Callable[[Person], Path]) -> Iterator[HostWithFile]:
    if modes.MYSELF.uid != 0:
        pytest.skip("a host with a resolv.conf of its own needs root")
    made = HostWithFile(1, modes.MODES[0], appswitch_command)
    yield made
    made.close()


@pytest.fixture
def resolvers(host: HostWithFile) -> Iterator[dict[str, Resolver]]:
    """By their addresses on the host, port 53."""
    quiet = dnslib.server.DNSLogger("-request,-reply,-truncated,-error")
    known = {address: Resolver(records) for address, records in RECORDS.items()}
    servers = [
        host.namespace.call(lambda r=resolver, a=address: dnslib.server.DNSServer(r, a, 53, logger=quiet))
        for address, resolver in known.items()
    ]
    for server in servers:
        server.start_thread()
    yield known
    for server in servers:
        server.stop()
        server.server.server_close()


def addresses(actor: Actor, name: str) -> list[str]:
    """What glibc finds."""
    code = f"sorted({{a[4][0] for a in getaddrinfo('{name}', 80, AF_INET, SOCK_STREAM)}})"
    actor(f"try: found = {code}\nexcept gaierror as error: found = [error.errno == EAI_NONAME]")
    found: list[str] = actor("found")
    return found


def test_search_domains_and_a_change_of_the_hosts_resolvers(
    host: HostWithFile,
    resolvers: dict[str, Resolver],
    actor_file: Path,
    python: str,
    go_program: Callable[[Path], Path],
) -> None:
    host.say(f"nameserver {STUB}", "search corp.test", "options ndots:2 timeout:30 attempts:1")
    host.up()
    served = [start_actor(host, actor_file.parent, python, n, ip=ip) for n, ip in (("web", VIP), ("a.b", DOTTED))]
    asker = start_actor(host, actor_file.parent, python)

    assert [actor("1") for actor in served] == [1, 1]  # they have their names
    file = asker("open('/etc/resolv.conf').read().splitlines()")
    assert file[1:] == ["search appswitch corp.test", "options ndots:2 timeout:30 attempts:1"], file
    # A name of ours is ours before any domain of the host's is tried, also a dotted one that ndots would search for.
    assert (addresses(asker, "web"), resolvers[STUB].asked) == ([VIP], set())
    assert (addresses(asker, "a.b"), resolvers[STUB].asked) == ([DOTTED], set())
    # With a domain of the host's it is not ours.
    assert addresses(asker, "web.corp.test") == ["192.0.2.66"]
    assert addresses(asker, "intra") == ["192.0.2.10"]
    assert addresses(asker, "nobody") == [True]
    look = go_program(SOURCES / "lookup.go")
    found = {name: host.check([look, "host", name], status=0).stdout.split() for name in ("web", "a.b", "intra")}
    assert found == {"web": [VIP], "a.b": [DOTTED], "intra": ["192.0.2.10"]}
    assert not resolvers[SIX].asked

    host.say(f"nameserver {SIX}", "search other.test")
    # The C library reads its file before it asks, so it may take it one question to learn of the other domain.
    wait_until(lambda: addresses(asker, "intra") == ["192.0.2.20"], lambda: "the other domain and its resolver")
    resolvers[STUB].asked.clear()
    assert addresses(asker, "web.corp.test") == [True]  # nor is anything left of what the first resolver said
    # (What it was asked before may have been asked twice, and come late.)
    assert not [name for name in resolvers[STUB].asked if name.startswith("web.")]
    assert addresses(asker, "web") == [VIP]

    host.say("nameserver 127.9.9.9")  # nobody is there
    wait_until(lambda: addresses(asker, "intra.other.test") == [False], lambda: "an error that is no denial")
    assert addresses(asker, "web") == [VIP]
    for actor in (*served, asker):
        actor.close()
