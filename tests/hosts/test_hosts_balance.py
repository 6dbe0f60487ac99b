"""One distributed application over hosts: one port space, loopback in common, load balancing (paper, section 4)."""

from collections.abc import Callable, Iterator

import pytest

from service.acting import Actor
from support.hosts import Host, Hosts

Start = Callable[..., Actor]


def test_loopback_reaches_the_other_hosts_listeners(trio: Hosts, actor_on: Start) -> None:
    one, two, three = trio
    database, cache, web, outsider = (
        actor_on(host, name) for host, name in ((one, "shop"), (two, "shop"), (three, "shop"), (three, "other"))
    )
    database("l = listen(5432, '127.0.0.1'); six = listen(5433, '::1')")
    cache("l = listen(6379)")
    for port in (5432, 5433, 6379):
        three.wait_service("shop", port)
    for server, listener, target, port in (
        (database, "l", "127.0.0.1", 5432),
        (database, "six", "::1", 5433),
        (cache, "l", "127.0.0.1", 6379),
        (cache, "l", "localhost", 6379),
    ):
        web(f"s = call('{target}', {port})")
        server(f"c, where = take({listener})")
        # Both sides see what they would see on one host.
        own, peer = web("story(s)")
        assert server("story(c)") == [peer, own]
        assert {own[0], peer[0]} <= {"127.0.0.1", "::1"}
        assert peer[1] == port
    assert {row["name"] for row in three.services("shop", 5432)} == {"shop"}
    # Nobody else's loopback is this one, and what is bound to it is not for others.
    for target in ("127.0.0.1", "::1", "shop"):
        assert outsider(f"outcome('{target}', 5432)") == "ECONNREFUSED"
    assert outsider("outcome('127.0.0.1', 6379)") == "ECONNREFUSED"


def heard(client: Actor, name: str, times: int) -> str:
    return "".join(client(f"[hear('{name}', 80) for _ in range({times})]"))


def pool(trio: Hosts, actor_on: Start, name: str, hosts: list[Host], *options: str) -> list[Actor]:
    """Programs that serve port 80 of one name, each saying its host's number; known everywhere."""
    actors = []
    for host in hosts:
        actors.append(actor_on(host, name, options=options))
        actors[-1](f"l = listen(80); close = greet_by_poll(l, '{host.number}')")
    for host in trio:
        host.wait_service(name, 80, len(hosts))
    return actors


def test_instances_of_one_host_come_first(trio: Hosts, actor_on: Start) -> None:
    one, two, three = trio
    actors = pool(trio, actor_on, "near", [one, two])
    assert heard(actor_on(one), "near", 6) == "111111"
    assert heard(actor_on(two), "near", 6) == "222222"
    # A host without one takes them in turn.
    assert sorted(heard(actor_on(three), "near", 6)) == list("111222")
    # And the others' serve when there is none here any more.
    actors[0]("close()")
    assert heard(actor_on(one), "near", 3) == "222"


def test_balance_may_spread_over_all_hosts(trio: Hosts, actor_on: Start) -> None:
    pool(trio, actor_on, "wide", list(trio), "--balance", "spread")
    for host in trio:
        assert sorted(heard(actor_on(host), "wide", 9)) == list("111222333")


@pytest.fixture
def trouble(trio: Hosts) -> Iterator[Callable[[Host, int, str], None]]:
    """Makes a host treat what comes to one of its real ports in a bad way; ends with the test."""
    changed: list[Host] = []

    def make(host: Host, port: int, verdict: str) -> None:
        changed.append(host)
        host.namespace.drop(f"tcp dport {port}", verdict=verdict)

    yield make
    for host in changed:
        host.namespace.pass_all()


@pytest.mark.parametrize("verdict", ["reject with tcp reset", "drop"])
def test_an_instance_that_cannot_be_reached_is_passed_over(
    trio: Hosts, actor_on: Start, trouble: Callable[[Host, int, str], None], verdict: str
) -> None:
    one, two, three = trio
    name = "team-" + str(len(verdict))
    pool(trio, actor_on, name, [one, two])
    bad = [row for row in three.services(name, 80) if row["address"].startswith(f"{two.address}:")]
    trouble(two, int(bad[0]["address"].rpartition(":")[2]), verdict)
    blocking, polling = actor_on(three), actor_on(three)
    assert heard(blocking, name, 4) == "1111"
    # Who does not wait in connect() asks for its outcome, as connect(2) has it, and is told of the next one's.
    [vip] = {row["vip"] for row in three.services(name)}
    for _ in range(3):
        polling(f"s, code = begin_call('{vip}', 80)")
        assert polling("events(s, select.POLLOUT)")
        assert polling("(pending_error(s), events(s, select.POLLOUT) and None)") == [None, None]
        polling("s.setblocking(True); s.settimeout(TIMEOUT)")
        assert polling("read_all(s)") == "1"
    assert two.namespace.dropped() > 0
    # A host that was silent comes last for a while, but for its having answered: the next test finds all alike.
    two.namespace.pass_all()
    pool(trio, actor_on, f"{name}-again", [two])
    assert heard(actor_on(three), f"{name}-again", 1) == "2"


def test_all_instances_out_of_reach(trio: Hosts, actor_on: Start, trouble: Callable[[Host, int, str], None]) -> None:
    one, two, three = trio
    pool(trio, actor_on, "gone", [one, two])
    for host in (one, two):
        [row] = [row for row in three.services("gone", 80) if row["address"].startswith(f"{host.address}:")]
        trouble(host, int(row["address"].rpartition(":")[2]), "reject with tcp reset")
    assert actor_on(three)("outcome('gone', 80)") == "ECONNREFUSED"
