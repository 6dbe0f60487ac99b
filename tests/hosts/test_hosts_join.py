"""Joining, leaving, listing, dying; and who does not get into a cluster."""

import dataclasses
import os
import socket
import struct
from collections.abc import Callable

import pytest

from appswitch.cluster import token as tokens
from service.acting import Actor
from support.hosts import PATIENCE, Host, Hosts
from support.modes import MODES
from support.program import DEADLINE, wait_until

Start = Callable[..., Actor]
SO_RCVBUFFORCE = 33


def states(host: Host) -> dict[str, str]:
    """State by address."""
    return {row["address"]: row["state"] for row in host.members()}


def test_a_switch_with_programs_joins_and_leaves(hosts: Callable[..., Hosts], actor_on: Start) -> None:
    one, two = lab = hosts(2)
    lab.at_once(lambda host: host.up("--node-interface", "eth0") if host is one else host.up())
    late, home = actor_on(two, "late"), actor_on(two)
    late("greet(listen(80), 'from two')")
    assert home("hear('late', 80)") == "from two"

    two.control("join", one.token(), status=0)
    lab.await_members()
    one.wait_service("late", 80)
    client = actor_on(one)
    assert client("hear('late', 80)") == "from two"

    two.control("leave", status=0)
    wait_until(lambda: states(one)[two.address] == "left", lambda: f"{two!r} to have left", PATIENCE)
    wait_until(lambda: not one.services("late"), lambda: "its rows to go")
    assert client("outcome_of(lambda: hear('100.64.0.0', 80)) != 'from two'")
    assert home("hear('late', 80)") == "from two"
    # And back.
    two.control("join", one.token(), status=0)
    lab.await_members()
    one.wait_service("late", 80)
    assert client("hear('late', 80)") == "from two"


def test_a_host_that_dies_is_noticed_and_may_come_back(hosts: Callable[..., Hosts], actor_on: Start) -> None:
    one, two, three = lab = hosts(3)
    lab.up()
    gone, here = actor_on(three, "gone"), actor_on(two, "here")
    gone("l = listen(80)")
    here("l = listen(80)")
    for host in (one, two):
        host.wait_service("gone", 80)
    three.kill()
    for host in (one, two):
        wait_until(lambda host=host: states(host)[three.address] == "failed", lambda: "its death", PATIENCE)  # type: ignore[misc]
        wait_until(lambda host=host: not host.services("gone"), lambda: "its rows to go")  # type: ignore[misc]
        assert len(host.services("here")) == 1
    gone.close()
    three.up("--join", one.token())
    lab.await_members()
    three.wait_service("here", 80)


def test_an_ordinary_user_s_cluster(hosts: Callable[..., Hosts], actor_on: Start) -> None:
    one, two = lab = hosts(2, mode=MODES[1])
    lab.up()
    server = actor_on(one, "web", tags=["group=1"])
    server("greet(listen(80), 'hello')")
    two.wait_service("web", 80)
    assert actor_on(two, tags=["group=1"])("hear('web', 80)") == "hello"
    assert actor_on(two, tags=["group=2"])("outcome('web', 80)") == "EACCES"


@pytest.mark.parametrize(
    ("change", "counted"),
    [
        ({"secret": bytes(range(32))}, "gossip_wrong_key"),
        ({"label": "another"}, "gossip_foreign_cluster"),
        ({"label": "another", "secret": bytes(range(32))}, "gossip_foreign_cluster"),
    ],
    ids=["wrong key", "foreign cluster", "both"],
)
def test_a_stranger_is_refused_and_counted(
    hosts: Callable[..., Hosts], change: dict[str, object], counted: str
) -> None:
    one, two = hosts(2)
    one.up("--node-interface", "eth0")
    token = tokens.encode(dataclasses.replace(tokens.decode(one.token()), **change))
    refused = two.control("up", "--join", token)
    assert refused.returncode == 1
    assert len(refused.stderr.splitlines()) == 1
    assert one.address in refused.stderr
    wait_until(lambda: one.counters().get(counted, 0) > 0, lambda: f"{counted} in {one.counters()}")
    assert list(states(one)) == [one.address]


def test_what_is_said_among_members_is_sealed(hosts: Callable[..., Hosts], actor_on: Start) -> None:
    one, two = lab = hosts(2)
    # Everything that reaches the first host, as on the wire.
    wire = one.namespace.call(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)))
    wire.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
    lab.up()
    secret = actor_on(two, "geheimnis", tags=["colour=ultramarine"])
    secret("l = listen(80)")
    one.wait_service("geheimnis", 80)
    wire.setblocking(False)
    heard = b""
    while True:
        try:
            heard += wire.recv(65536)
        except BlockingIOError:
            break
    wire.close()
    token = tokens.decode(one.token())
    assert token.label.encode() in heard
    for word in (b"geheimnis", b"ultramarine", token.secret):
        assert word not in heard


def test_hosts_that_know_each_other_compare_and_do_not_tell_all(hosts: Callable[..., Hosts]) -> None:
    lab = hosts(2)
    lab.up()

    def counted(name: str) -> int:
        return sum(host.counters()[name] for host in lab)

    whole, begun = counted("gossip_whole"), counted("gossip_compared")
    assert whole > 0, "one has joined"
    wait_until(lambda: counted("gossip_compared") > begun, lambda: f"comparisons: {counted('gossip_compared')}")
    assert counted("gossip_whole") == whole
    assert counted("gossip_stream_failed") == counted("gossip_malformed") == 0


def test_noise_at_the_gossip_s_port_does_no_harm(hosts: Callable[..., Hosts]) -> None:
    one, two = lab = hosts(2)
    lab.up()
    [(address, port)] = [address for address in tokens.decode(one.token()).addresses if address[0] == one.address]

    def noise() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            for size in (0, 1, 2, 20, 100, 1400, 60000):
                udp.sendto(os.urandom(size), (address, port))
        for data in (b"", b"\xf4", b"\x0a" + struct.pack("!I", 1 << 31), os.urandom(5000)):
            with socket.create_connection((address, port), timeout=DEADLINE) as tcp:
                tcp.sendall(data)

    two.namespace.call(noise)

    def refused() -> int:
        return sum(count for name, count in one.counters().items() if name.startswith("gossip_"))

    wait_until(lambda: refused() >= 5, lambda: f"refusals: {one.counters()}")
    lab.await_members()
