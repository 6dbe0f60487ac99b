"""The service table: the same on every host, soon, whatever the network loses."""

import os
import signal
from collections.abc import Callable

import pytest

from service.acting import Actor
from support.hosts import GOSSIP, Hosts
from support.program import wait_until

Start = Callable[..., Actor]


@pytest.fixture
def five(hosts: Callable[..., Hosts]) -> Hosts:
    lab = hosts(5)
    lab.up()
    return lab


def ports(rows: list[dict[str, object]], name: str) -> list[object]:
    return sorted(row["port"] for row in rows if row["name"] == name)  # type: ignore[type-var]


def test_every_host_has_every_row_with_its_tags(five: Hosts, actor_on: Start) -> None:
    actors = []
    for host in five:
        one = actor_on(host, f"at-{host.number}", tags=["group=1", f"home={host.number}"])
        one("listeners = [listen(port) for port in range(1000, 1020)]")
        actors.append(one)
    rows = five.await_same_tables(lambda rows: len(rows) == 100)
    members = {row["address"]: row["name"] for row in five[0].members()}
    for host in five:
        mine = [row for row in rows if row["name"] == f"at-{host.number}"]
        # A host is the author of its rows, which tell its own address.
        assert {row["host"] for row in mine} == {members[host.address]}
        assert {row["address"].rpartition(":")[0] for row in mine} == {host.address}
        assert {tuple(row["tags"]) for row in mine} == {("group=1", f"home={host.number}")}
        assert ports(mine, f"at-{host.number}") == list(range(1000, 1020))

    # A listener that is closed, a program that ends and one that is killed: their rows go everywhere.
    actors[0]("listeners.pop(0).close()")
    five.await_same_tables(lambda rows: ports(rows, "at-1") == list(range(1001, 1020)))
    actors[1].close()
    os.kill(actors[2].pid, signal.SIGKILL)
    rows = five.await_same_tables(lambda rows: len(rows) == 59)
    assert {row["name"] for row in rows} == {"at-1", "at-4", "at-5"}
    for host in five:
        assert sorted(host.cli("services", "-o", "json"), key=str)  # the command itself shows other hosts' rows


def test_changes_of_which_every_packet_was_lost_are_repaired(five: Hosts, actor_on: Start) -> None:
    deaf = five[4]
    server = actor_on(five[0], "web")
    server("kept = listen(80); closed = listen(81)")
    five.await_same_tables(lambda rows: ports(rows, "web") == [80, 81])
    deaf.namespace.drop(*GOSSIP)
    server("closed.close(); new = listen(82)")
    for host in list(five)[:4]:
        wait_until(lambda host=host: ports(host.table(), "web") == [80, 82], lambda: "the change")  # type: ignore[misc]
    wait_until(lambda: deaf.namespace.dropped() > 0, lambda: "something of it to be lost")
    # As it was; or none, if that took so long that the deaf one takes all others for dead.
    assert ports(deaf.table(), "web") in ([80, 81], [])
    deaf.namespace.pass_all()
    five.await_same_tables(lambda rows: ports(rows, "web") == [80, 82])


def test_a_network_that_loses_a_third_of_all_packets(five: Hosts, actor_on: Start) -> None:
    servers = [actor_on(host, f"at-{host.number}") for host in five]
    for host in five:
        host.namespace.drop("numgen random mod 100 < 30")
    for server in servers:
        server("listeners = [listen(port) for port in range(1000, 1020)]")
    for server in servers:
        server("for one in listeners[:10]: one.close()")
    rows = five.await_same_tables(lambda rows: len(rows) == 50)
    assert {row["port"] for row in rows} == set(range(1010, 1020))
    assert sum(host.namespace.dropped() for host in five) > 0
    assert all(row["state"] != "left" for row in five[0].members())


def test_a_router_that_is_killed_comes_back_with_everything(hosts: Callable[..., Hosts], actor_on: Start) -> None:
    one, two = lab = hosts(2)
    lab.up()
    server, other = actor_on(one, "web"), actor_on(two, "db")
    server("l = listen(80)")
    other("l = listen(5432)")
    before = lab.await_same_tables(lambda rows: len(rows) == 2)
    router = one.role("router")
    os.kill(router, signal.SIGKILL)
    # While it is away things change, on both hosts.
    server("more = listen(81)")
    other("more = listen(5433); l.close()")
    wait_until(lambda: one.role("router") not in (0, router), lambda: "another router")
    after = lab.await_same_tables(lambda rows: sorted(row["port"] for row in rows) == [80, 81, 5433])
    assert [row for row in after if row["port"] == 80] == [row for row in before if row["port"] == 80]
    assert one.counters() is not None
    lab.await_members()
