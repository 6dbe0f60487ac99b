"""Parts fail: a router that stands still, a network in two halves. What works goes on, and all is right again."""

import os
import signal
from collections.abc import Callable

from service.acting import Actor
from support.hosts import GOSSIP, PATIENCE, Hosts
from support.program import wait_until

Start = Callable[..., Actor]


def test_a_host_without_its_router(hosts: Callable[..., Hosts], actor_on: Start) -> None:
    one, two = lab = hosts(2)
    lab.up()
    remote = actor_on(two, "remote")
    remote("greet(listen(80), 'from afar')")
    one.wait_service("remote", 80)
    # It stands still, and nobody is there in its place.
    router = one.role("router")
    os.kill(router, signal.SIGSTOP)
    try:
        local, client = actor_on(one, "local"), actor_on(one)
        local("greet(listen(80), 'at home')")
        assert client("hear('local', 80)") == "at home"
        assert client("hear('remote', 80)") == "from afar"
        remote("greet(listen(81), 'news')")
        assert len(one.services("local")) == 1
        assert not one.services("remote", 81)
    finally:
        os.kill(router, signal.SIGCONT)
    lab.await_same_tables(lambda rows: len(rows) == 3)
    lab.await_members()
    assert client("hear('remote', 81)") == "news"
    assert actor_on(two)("hear('local', 80)") == "at home"


def test_a_partition_heals(hosts: Callable[..., Hosts], actor_on: Start) -> None:
    one, two, three = lab = hosts(3)
    lab.up()
    servers = [actor_on(host, f"web-{host.number}") for host in lab]
    for server in servers:
        server("kept = listen(80); closed = listen(81); greet(kept, 'kept')")
    lab.await_same_tables(lambda rows: len(rows) == 6)
    lab.split([one], [two, three])
    # Who is thought dead has no rows; both sides change theirs.
    for host, known in ((one, {"web-1"}), (two, {"web-2", "web-3"}), (three, {"web-2", "web-3"})):
        wait_until(
            lambda host=host, known=known: {row["name"] for row in host.services()} == known,  # type: ignore[misc]
            lambda host=host: f"the other side's death: {host.members()}",  # type: ignore[misc]
            PATIENCE,
        )
    for server in servers:
        server("closed.close(); new = listen(82)")
    assert actor_on(three)("hear('web-2', 80)") == "kept"
    lab.heal()
    rows = lab.await_same_tables(lambda rows: len(rows) == 6)
    assert {(row["name"], row["port"]) for row in rows} == {(f"web-{n}", port) for n in (1, 2, 3) for port in (80, 82)}
    lab.await_members()
    assert actor_on(one)("[hear(f'web-{n}', 80) for n in (1, 2, 3)]") == ["kept"] * 3


def test_established_connections_live_through_it_all(hosts: Callable[..., Hosts], actor_on: Start) -> None:
    one, two = lab = hosts(2)
    lab.up()
    server, client = actor_on(two, "web"), actor_on(one)
    server("l = listen(80)")
    one.wait_service("web", 80)
    client("s = call('web', 80)")
    server("c, _ = take(l)")
    told = client("story(s)"), server("story(c)")

    def works() -> None:
        client("s.sendall(b'ping')")
        assert server("c.recv(4).decode()") == "ping"
        server("c.sendall(b'pong')")
        assert client("s.recv(4).decode()") == "pong"

    works()
    for role in ("router", "worker-0"):
        for host in lab:
            pid = host.role(role)
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda host=host, role=role, pid=pid: host.role(role) not in (0, pid), lambda: "another")  # type: ignore[misc]
    works()
    assert (client("story(s)"), server("story(c)")) == told
    # Only the gossip is cut: each thinks the other dead, and the rows go.
    lab.await_members()
    for host in lab:
        host.namespace.drop(*GOSSIP)
    wait_until(lambda: not one.services("web"), lambda: "the row to go", PATIENCE)
    works()
    # The whole network, for a while.
    one.cut()
    client("s.sendall(b'late')")
    one.mend()
    lab.heal()
    assert server("c.recv(4).decode()") == "late"
    lab.await_members()
    one.wait_service("web", 80)
    works()
    # The switch of the other host, and then one's own.
    two.kill()
    works()
    one.kill()
    works()
