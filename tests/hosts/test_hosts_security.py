"""Who comes to a service's real port without a good header does not get in, one way after the other."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from appswitch.cluster import token as tokens
from appswitch.cluster.keys import HEADER, derive
from appswitch.header.identity import Header, encode
from appswitch.header.keys import KeyRing
from appswitch.model.address import pack
from appswitch.model.identity import Tags
from appswitch.model.service import Service
from appswitch.table.store import Table
from service.acting import Actor
from support.hosts import Host, Hosts
from support.program import DEADLINE, wait_until

Start = Callable[..., Actor]


@dataclass
class Target:
    """A service on the second host, and the means of a member that went bad to write what it likes to its port."""

    one: Host
    two: Host
    server: Actor
    client: Actor
    ring: KeyRing

    def row(self) -> Service:
        """As the second host itself has it."""
        table = Table(f"{self.two.run_dir}/table", readonly=True)
        try:
            [row] = table.lookup(pack("10.9.9.9"), 80)[0]
        finally:
            table.close()
        return row

    def header(self, counter: int = 1, sender: bytes = b"attacker", tags: Tags = (), **changes: object) -> bytes:
        """A good one, or with changes; authentic all the same."""
        row = self.row()
        good = Header(pack("10.9.9.1"), 40000, pack("10.9.9.9"), 80, tags, row.instance, row.epoch, sender, counter)
        return encode(good._replace(**changes), self.ring)  # type: ignore[arg-type]

    def connect(self, data: bytes = b"") -> socket.socket:
        """A native connection of the first host's to the real port, with some data sent."""
        sock = self.one.namespace.call(lambda: socket.create_connection(self.row().real, timeout=DEADLINE))
        sock.sendall(data)
        return sock

    def outcome(self, data: bytes, end: bool = False) -> str:
        """What becomes of such a connection: `closed`, or the server's greeting."""
        with self.connect(data) as sock:
            if end:
                sock.shutdown(socket.SHUT_WR)
            try:
                return sock.recv(100).decode() or "closed"
            except ConnectionResetError:
                return "closed"

    def counted(self, name: str) -> int:
        return self.two.counters().get(name, 0)


@pytest.fixture(scope="module")
def ring(pair: Hosts) -> KeyRing:
    return KeyRing([derive(tokens.decode(pair[0].token()).secret, HEADER)])


@pytest.fixture
def target(pair: Hosts, ring: KeyRing, actor_on: Start) -> Iterator[Target]:
    one, two = pair
    server, client = actor_on(two, ip="10.9.9.9", tags=["group=1"]), actor_on(one, tags=["group=1"])
    server("accepted = []; l = listen(80)")
    one.wait_service("10.9.9.9", 80)
    yield Target(one, two, server, client, ring)
    # Nobody got in but those who should have; everybody who should does.
    client("s = call('10.9.9.9', 80)")
    server("c, _ = take(l)")
    assert server("story(c)") == client("story(s)[::-1]")
    assert server("events(l, select.POLLIN, 0)") == 0


GOOD: Tags = (("group", "1"),)


def test_an_authentic_header_gets_in(target: Target) -> None:
    with target.connect(target.header(tags=GOOD) + b"hello"):
        target.server("c, where = take(l)")
        assert target.server("list(where)") == ["10.9.9.1", 40000]
        assert target.server("c.recv(100).decode()") == "hello"


@pytest.mark.parametrize(
    ("name", "counter"),
    [
        ("nothing", "header_missing"),
        ("other bytes", "header_missing"),
        ("truncated", "header_missing"),
        ("forged", "header_forged"),
        ("another key", "header_forged"),
        ("changed", "header_forged"),
        ("replayed", "header_replayed"),
        ("stale", "header_stale"),
        ("another instance", "header_misdirected"),
        ("another port", "header_misdirected"),
        ("proxy protocol alone", "header_malformed"),
        ("denied", "denied"),
    ],
)
def test_a_bad_header_does_not(target: Target, name: str, counter: str) -> None:
    good = target.header(tags=GOOD)
    changed = bytearray(good)
    changed[20] ^= 1  # of the source address
    data = {
        "nothing": b"",
        "other bytes": b"GET / HTTP/1.1\r\nHost: 10.9.9.9\r\n\r\n",
        "truncated": good[:-1],
        "forged": good[:-16] + os.urandom(16),
        "another key": encode(_read(good, target), KeyRing([os.urandom(32)])),
        "changed": bytes(changed),
        "replayed": target.header(counter=7, sender=b"replayed", tags=GOOD),
        "stale": target.header(epoch=os.urandom(8), tags=GOOD),
        "another instance": target.header(instance=target.row().instance + 1, tags=GOOD),
        "another port": target.header(server_port=81, tags=GOOD),
        "proxy protocol alone": bytes.fromhex("0d0a0d0a000d0a515549540a2111000c0a0909010a0909099c400050"),
        "denied": target.header(tags=(("group", "2"),), sender=b"denied--"),
    }[name]
    if name == "replayed":
        target.connect(data).close()
        target.server("take(l)[0].close()")
    before = target.counted(counter)
    assert target.outcome(data, end=name in ("nothing", "truncated")) == "closed"
    wait_until(lambda: target.counted(counter) == before + 1, lambda: f"{counter} in {target.two.counters()}")
    if name == "denied":
        last = target.two.cli("denials", "-o", "json")[-1]
        assert (last["port"], last["destination"]) == (80, "10.9.9.9")


def _read(good: bytes, target: Target) -> Header:
    row = target.row()
    return Header(pack("10.9.9.1"), 40000, pack("10.9.9.9"), 80, GOOD, row.instance, row.epoch, b"otherkey", 1)


def test_a_header_of_an_earlier_life_of_the_listener(target: Target) -> None:
    old = target.header(tags=GOOD)
    target.server("l.close(); l = listen(80)")
    before = target.counted("header_misdirected") + target.counted("header_stale")
    target.one.wait_service("10.9.9.9", 80)
    assert target.outcome(old) == "closed"
    def counted() -> int:
        return target.counted("header_misdirected") + target.counted("header_stale")

    wait_until(lambda: counted() == before + 1, lambda: f"one more than {before}: {counted()}")


def test_who_stalls_in_a_header_delays_nobody(target: Target) -> None:
    part = target.header(tags=GOOD)[:30]
    stalled = [target.connect(part if number % 2 else b"") for number in range(300)]
    try:
        began = time.monotonic()
        for _ in range(20):
            target.client("s = call('10.9.9.9', 80)")
            target.server("c, _ = take(l); c.sendall(b'x')")
            assert target.client("s.recv(1).decode()") == "x"
        assert time.monotonic() - began < DEADLINE
        # They are given up, the oldest first, or when their time is over.
        wait_until(lambda: target.counted("header_timeout") >= 300, lambda: "all to be given up", 60)
    finally:
        for sock in stalled:
            sock.close()


def test_a_header_that_comes_byte_by_byte(target: Target) -> None:
    data = target.header(tags=GOOD, sender=b"dribbler") + b"rest"
    with target.connect() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in data:
            sock.sendall(bytes([byte]))
        target.server("c, _ = take(l)")
        assert target.server("c.recv(4, MSG_WAITALL).decode()") == "rest"


def test_strangers_of_all_hosts_are_kept_out(target: Target) -> None:
    """Native programs, on the service's own host and on another one."""
    before = target.counted("header_missing")
    for host in (target.one, target.two):
        with host.namespace.call(lambda: socket.create_connection(target.row().real, timeout=DEADLINE)) as sock:
            sock.sendall(b"hello" * 10)
            try:
                assert sock.recv(1) == b""
            except ConnectionResetError:
                pass
    wait_until(lambda: target.counted("header_missing") == before + 2, lambda: str(target.two.counters()))
