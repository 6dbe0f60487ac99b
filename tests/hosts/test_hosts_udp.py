"""UDP between programs of different hosts: relay to relay, whatever strangers send there."""

import os
import signal
import socket
from collections.abc import Callable

import pytest

from appswitch.cluster import token as tokens
from appswitch.cluster.keys import HEADER, derive
from appswitch.header import datagram
from appswitch.header.datagram import Datagram
from appswitch.header.keys import KeyRing
from appswitch.model.address import pack
from appswitch.model.service import UDP, Service
from appswitch.table.store import Table
from service.acting import Actor
from support.hosts import Host, Hosts
from support.program import wait_until

Start = Callable[..., Actor]


def row_of(host: Host, vip: str, port: int) -> Service | None:
    """As that host has it in its table, of whatever host."""
    table = Table(f"{host.run_dir}/table", readonly=True)
    try:
        rows = table.lookup(pack(vip), port, UDP)[0]
    finally:
        table.close()
    return rows[0] if rows else None


@pytest.mark.parametrize(
    ("server_ip", "client_ip"),
    [
        ("10.40.1.1", "10.40.1.2"),
        ("2001:db8:40::1", "2001:db8:40::2"),
        ("10.40.1.1", None),
        ("2001:db8:40::1", "10.40.1.2"),
    ],
    ids=["v4", "v6", "nameless", "v4-to-v6"],
)
def test_both_see_virtual_addresses(pair: Hosts, udp_on: Start, server_ip: str, client_ip: str | None) -> None:
    here, there = pair
    server = udp_on(there, ip=server_ip)
    server(f"s = udp(4000, '{'::' if ':' in server_ip else '0.0.0.0'}'); echo(s, lambda d: b'%d' % len(d))")
    here.wait_service(server_ip, 4000)
    client = udp_on(here, **({} if client_ip is None else {"ip": client_ip}))
    client(f"c = udp(host='{server_ip}'); c.connect(('{server_ip}', 4000))")
    for size in (0, 1, 1400, 9000, 65000):
        assert client(f"comes_back(c, bytes({size}), b'{size}')"), size
    asker = udp_on(here, ip=client_ip) if client_ip is not None else client
    asker(f"u = udp(host='{server_ip}'); d, peer = answer_of(u, b'who', ('{server_ip}', 4000))")
    assert asker("[d.decode(), *peer[:2]]") == ["3", server_ip, 4000]


#: Tags as long as they may be together.
LONGEST_TAGS = [f"{letter}={letter * 253}" for letter in "abcd"]


@pytest.mark.parametrize(
    ("server_ip", "client_ip", "tags", "sizes"),
    [
        ("10.40.3.1", "10.40.3.2", (), (65384, 65385, 65507)),
        ("10.40.3.3", "10.40.3.4", LONGEST_TAGS, (64360, 64361, 65507)),
        ("2001:db8:40:3::1", "2001:db8:40:3::2", (), (65384, 65385, 65487, 65488, 65527)),
    ],
    ids=["v4", "longest-tags", "v6"],
)
def test_the_longest_arrive(
    pair: Hosts, udp_on: Start, server_ip: str, client_ip: str, tags: list[str], sizes: tuple[int, ...]
) -> None:
    """Also those that go in two parts, and by IPv6 those that the program's kernel has cut up."""
    here, there = pair
    server = udp_on(there, ip=server_ip, tags=tags)
    server(f"s = udp(4000, '{'::' if ':' in server_ip else '0.0.0.0'}'); echo(s)")
    here.wait_service(server_ip, 4000)
    client = udp_on(here, ip=client_ip, tags=tags)
    client(f"c = udp(host='{server_ip}'); c.connect(('{server_ip}', 4000))")
    for size in sizes:
        client(f"data = os.urandom({size}).hex()[:{size}]")
        assert client("comes_back(c, data.encode())"), size


def test_the_longest_arrive_by_veth_pairs(hosts: Callable[..., Hosts], udp_on: Start) -> None:
    """These take no packet that is longer than their MTU."""
    lab = hosts(2, env={"APPSWITCH_WITHOUT": "tun"})
    lab.up()
    test_the_longest_arrive(lab, udp_on, "2001:db8:40:4::1", "2001:db8:40:4::2", [], (65487, 65488, 65527))


@pytest.mark.parametrize(("server_ip", "client_ip"), [("10.40.2.1", "10.40.2.2"), ("2001:db8:40:2::1", "10.40.2.2")])
def test_a_batch_is_cut_on_its_way(pair: Hosts, udp_on: Start, server_ip: str, client_ip: str) -> None:
    """UDP_SEGMENT (udp(7)): a datagram to another host is one, also for a socket that would take a batch whole."""
    here, there = pair
    server = udp_on(there, ip=server_ip)
    server(f"s = udp(4000, '{'::' if ':' in server_ip else '0.0.0.0'}'); s.setsockopt(IPPROTO_UDP, 104, 1)")
    here.wait_service(server_ip, 4000)
    client = udp_on(here, ip=client_ip)
    client(f"c = udp(host='{server_ip}'); c.setsockopt(IPPROTO_UDP, 103, 1000)")
    client(f"c.sendto(b'A' * 1000 + b'B' * 1000 + b'C' * 5, ('{server_ip}', 4000))")
    assert server("[s.recvfrom(70000)[0].decode() for _ in range(3)]") == ["A" * 1000, "B" * 1000, "C" * 5]


def test_errors_and_policy_cross_hosts(pair: Hosts, udp_on: Start) -> None:
    here, there = pair
    server = udp_on(there, "far-guarded", tags=["group=1"])
    server("s = udp(4000)")
    here.wait_service("far-guarded", 4000)
    friend, stranger = udp_on(here, "far-friend", tags=["group=1"]), udp_on(here, "far-stranger")
    vip = friend("gethostbyname('far-guarded')")
    friend(f"c = udp(); c.connect(('{vip}', 4000)); c.send(b'?')")
    assert server("s.recvfrom(10)[0].decode()") == "?"
    assert friend(f"ask('{vip}', 4001)") == "ECONNREFUSED"
    assert stranger(f"ask('{vip}', 4000)") == "EHOSTUNREACH"
    assert "far-stranger" in {row["client"] for row in here.cli("denials", "-o", "json")}
    # A conversation is set free by the socket's end; what is sent meanwhile is refused, if it does not find another.
    server("s.close()")
    wait_until(lambda: not here.services("far-guarded"), lambda: "the end of the row")
    assert friend("outcome_of(lambda: talk(c, b'?'))") == "ECONNREFUSED"
    server("s = udp(4000); echo(s)")
    here.wait_service("far-guarded", 4000)
    assert friend("talk(c, b'again')") == "again"


def test_a_host_s_own_instances_come_first_and_others_stand_in(pair: Hosts, udp_on: Start) -> None:
    here, there = pair
    far, near = udp_on(there, "far-many"), udp_on(here, "far-many")
    far("s = udp(4000); echo(s, lambda d: b'far')")
    near("s = udp(4000); echo(s, lambda d: b'near')")
    here.wait_service("far-many", 4000, 2)
    client = udp_on(here, "far-chooser")
    client("c = udp(); c.connect(('far-many', 4000))")
    assert client("[talk(c, b'?') for _ in range(3)]") == ["near"] * 3
    near.close()
    # Answers of the near one may still be under way.
    wait_until(lambda: client("outcome_of(lambda: talk(c, b'?'))") == "far", lambda: "the other's answer")


def test_twins_on_two_hosts_may_use_one_port(pair: Hosts, udp_on: Start) -> None:
    here, there = pair
    udp_on(there, "far-hub")("s = udp(4000); echo(s)")
    here.wait_service("far-hub", 4000)
    twins = [udp_on(here, "far-twin"), udp_on(here, "far-twin"), udp_on(there, "far-twin")]
    for number, twin in enumerate(twins):
        twin("c = udp(5000); c.connect(('far-hub', 4000))")
        assert twin(f"talk(c, b'{number}')") == str(number)
    for number, twin in enumerate(twins):
        assert twin(f"talk(c, b'{number}{number}')") in (str(number), f"{number}{number}")


@pytest.mark.parametrize("side", [0, 1], ids=["client's", "server's"])
def test_a_relay_that_dies_is_no_end(pair: Hosts, udp_on: Start, side: int) -> None:
    here, there = pair
    name = f"far-survivor-{side}"
    udp_on(there, name)("s = udp(4000); echo(s)")
    here.wait_service(name, 4000)
    client = udp_on(here, f"{name}-client")
    client(f"c = udp(); c.connect(('{name}', 4000))")
    assert client("talk(c, b'?')") == "?"
    os.kill(pair[side].role("relay"), signal.SIGKILL)
    wait_until(lambda: client("outcome_of(lambda: talk(c, b'!', 1))") in ("?", "!"), lambda: "an answer")


def test_what_no_host_of_the_cluster_sent_is_dropped_and_counted(pair: Hosts, udp_on: Start) -> None:
    here, there = pair
    server = udp_on(there, ip="10.40.9.9", tags=["group=1"])
    server("heard = []; s = udp(4000)")
    here.wait_service("10.40.9.9", 4000)
    row = row_of(here, "10.40.9.9", 4000)
    assert row is not None
    assert row.remote
    ring = KeyRing([derive(tokens.decode(pair[0].token()).secret, HEADER)])

    def made(counter: int, ring: KeyRing = ring, **changes: object) -> bytes:
        good = Datagram(
            *(datagram.DATA, 0, row.epoch, b"attacker", counter, row.instance, pack("10.40.9.1"), pack("10.40.9.9")),
            *(40000, 4000, (("group", "1"),), b"payload"),
        )
        return datagram.encode(good._replace(**changes), ring)  # type: ignore[arg-type]

    def counted(name: str) -> int:
        return there.counters().get(name, 0)

    sock = here.namespace.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    with sock:
        sock.settimeout(60)
        good = made(1)
        sock.sendto(good, row.real)
        assert server("[s.recvfrom(100)[0].decode()]") == ["payload"]
        flipped = bytearray(made(2))
        flipped[-1] ^= 1
        tries = {
            "udp_replayed": good,
            "udp_forged": bytes(flipped),
            "udp_malformed": good[:40],
            "udp_stale": made(3, to=b"earlier!"),
        }
        for name, data in tries.items():
            before = counted(name)
            sock.sendto(data, row.real)
            wait_until(lambda: counted(name) == before + 1, lambda: f"{name} to be counted")  # noqa: B023
        other = counted("udp_forged")
        sock.sendto(made(4, KeyRing([b"?" * 32])), row.real)
        wait_until(lambda: counted("udp_forged") == other + 1, lambda: "another key")
        alone = counted("udp_incomplete")
        sock.sendto(made(5, kind=datagram.DATA | datagram.FIRST), row.real)
        wait_until(lambda: counted("udp_incomplete") == alone + 1, lambda: "a part without the other to be given up")
        # Authentic, but policy is asked here, too; and not for a program of this host.
        for changes, kind in (
            ({"tags": ()}, datagram.DENIED),
            ({"instance": 999 << 24}, datagram.NOBODY),
            ({"port": 4001}, datagram.NOBODY),
            ({"destination": pack("127.0.0.1")}, datagram.NOBODY),
            ({"source": pack("127.0.0.1")}, datagram.NOBODY),
            ({"destination": pack("10.40.9.8")}, datagram.NOBODY),
        ):
            sock.sendto(made(10 + len(str(changes)), source_port=41000 + len(str(changes)), **changes), row.real)
            answer = sock.recv(1000)
            assert answer[:2] == bytes([datagram.VERSION, kind]), changes
        assert "service has group 1, client has none" in {r["rule"] for r in there.cli("denials", "-o", "json")}
        server("s.setblocking(False)")
        assert server.errno("s.recv(10)") == "EAGAIN"
