"""Networks below: IPv6 alone, several interfaces; and one name on hosts of different owners."""

from collections.abc import Callable
from dataclasses import replace

from service.acting import Actor
from support.hosts import PATIENCE, Hosts
from support.modes import MODES, Person
from support.program import wait_until

Start = Callable[..., Actor]


def test_hosts_that_have_ipv6_alone(hosts: Callable[..., Hosts], actor_on: Start) -> None:
    lab = hosts(3, family=6)
    lab.up()
    for host in lab:
        actor_on(host, f"web-{host.number}")(f"greet(listen(80), 'host {host.number}')")
    for host in lab:
        client = actor_on(host)
        for other in lab:
            host.wait_service(f"web-{other.number}", 80)
            assert client(f"hear('web-{other.number}', 80)") == f"host {other.number}"
    assert {row["address"] for row in lab[0].members()} == {host.address for host in lab}
    # Programs may be of the other family than the network between their hosts, both ways.
    server, client = actor_on(lab[0], "six", ip="fd99::1"), actor_on(lab[1], ip="fd99::2")
    server("greet(listen(80, '::'), 'six')")
    lab[1].wait_service("six", 80)
    assert client("hear('fd99::1', 80)") == "six"


def test_ipv6_programs_over_ipv4(pair: Hosts, actor_on: Start) -> None:
    one, two = pair
    server, client = actor_on(two, ip="fd99::3"), actor_on(one, ip="fd99::4")
    server("l = listen(80, '::')")
    one.wait_service("fd99::3", 80)
    client("s = call('fd99::3', 80)")
    server("c, _ = take(l)")
    own, peer = client("story(s)")
    assert server("story(c)") == [peer, own] == [["fd99::3", 80], own]
    assert own[0] == "fd99::4"


def test_hosts_with_several_interfaces(hosts: Callable[..., Hosts], actor_on: Start) -> None:
    one, two = lab = hosts(2, networks=2)
    one.up("--node-interface", "eth1")
    two.up("--join", one.token(), "--node-interface", "eth1")
    lab.await_members()
    assert {row["address"] for row in two.members()} == {host.addresses[1] for host in lab}
    server, client = actor_on(two, "web"), actor_on(one)
    server("greet(listen(80), 'other way')")
    [row] = one.wait_service("web", 80)
    assert row["address"].startswith(f"{two.addresses[1]}:")
    # Nothing of it needs the first network.
    for host in lab:
        host.cut()
    assert client("hear('web', 80)") == "other way"


def test_a_name_of_two_owners_on_two_hosts(hosts: Callable[..., Hosts], actor_on: Start) -> None:
    mine, theirs = Person(64123, 64123), Person(64124, 64124)
    one, two, three = lab = hosts(3, mode=replace(MODES[2], program_owner=mine))
    lab.up()
    server = actor_on(one, "bank", user=mine)
    server("greet(listen(80), 'the first')")
    for host in lab:
        host.wait_service("bank", 80)
    # It is known, so another owner is refused, on whatever host, and told why.
    refused = two.run(["true"], name="bank", user=theirs)
    assert refused.wait() == 125
    assert len(refused.errors().splitlines()) == 1
    assert "bank" in refused.errors()
    # The same owner may have it there, too.
    assert two.check(["true"], name="bank", user=mine).returncode == 0
    server.close()
    lab.await_same_tables(lambda rows: not rows)

    # Claimed on both sides of a partition: when it heals all hosts agree on one.
    lab.split([one], [two, three])
    first, second = actor_on(one, "vault", user=mine), actor_on(two, "vault", user=theirs)
    first("greet(listen(80), 'one')")
    second("greet(listen(80), 'two')")
    three.wait_service("vault", 80)
    lab.heal()
    clients = {host.number: actor_on(host, user=mine) for host in lab}

    def agreed() -> str | None:
        answers = {client("outcome('vault', 80)") for client in clients.values()}
        return answers.pop() if len(answers) == 1 else None

    for host in lab:
        wait_until(lambda host=host: len(host.members("alive")) == 3, lambda: "the cluster to heal", PATIENCE)  # type: ignore[misc]
    lab.await_same_tables(lambda rows: len(rows) == 2)
    assert wait_until(agreed, lambda: "one answer on all hosts", PATIENCE) in ("one", "two")
