"""Programs and hosts move; what others connect to does not."""

from collections.abc import Callable

from service.acting import Actor
from support.hosts import PATIENCE, Host, Hosts
from support.program import wait_until

Start = Callable[..., Actor]


def reaches(client: Actor, name: str, answer: str) -> None:
    """Wait until the client hears this answer, whatever came before."""
    wait_until(
        lambda: client(f"outcome_of(lambda: hear('{name}', 80))") == answer, lambda: f"{answer!r} of {name}", PATIENCE
    )


def test_a_program_stops_here_and_starts_there(trio: Hosts, actor_on: Start) -> None:
    one, two, three = trio
    identity = {"name": "mobile", "tags": ["group=1"]}
    client, stranger = actor_on(three, tags=["group=1"]), actor_on(three, tags=["group=2"])
    before = actor_on(one, **identity)
    before("greet(listen(80), 'on one')")
    [old] = three.wait_service("mobile", 80)
    assert client("hear('mobile', 80)") == "on one"
    before.close()
    after = actor_on(two, **identity)
    after("greet(listen(80), 'on two')")
    reaches(client, "mobile", "on two")
    # That the old one is gone may come to be known later than that there is a new one.
    wait_until(lambda: len(three.services("mobile", 80)) == 1, lambda: "the old row to go", PATIENCE)
    [new] = three.services("mobile", 80)
    assert {key: new[key] for key in ("name", "vip", "tags")} == {key: old[key] for key in ("name", "vip", "tags")}
    assert new["host"] != old["host"]
    # The policy has moved with it.
    assert stranger("outcome('mobile', 80)") == "EACCES"
    # And home, next to its client.
    after.close()
    actor_on(three, **identity)("greet(listen(80), 'on three')")
    reaches(client, "mobile", "on three")
    assert stranger("outcome('mobile', 80)") == "EACCES"


def renumber(host: Host, old: str, new: str) -> None:
    host.namespace.ip(f"addr del {old}/24 dev eth0")
    host.namespace.ip(f"addr add {new}/24 dev eth0")


def moved(host: Host, name: str, number: int) -> None:
    """Wait until a host knows a service at its new address."""
    wait_until(
        lambda: [row for row in host.services(name) if row["address"].startswith(f"10.77.0.{number}:")],
        lambda: f"the new address of {name}: {host.services()}",
        PATIENCE,
    )


def test_a_host_gets_another_address(hosts: Callable[..., Hosts], actor_on: Start) -> None:
    one, two = lab = hosts(2)
    lab.up()
    for moving, other in ((two, one), (one, two)):
        name = f"web-{moving.number}"
        server, caller, client = actor_on(moving, name), actor_on(moving), actor_on(other)
        server(f"greet(listen(80), '{name}')")
        back = actor_on(other, f"back-{moving.number}")
        back("greet(listen(80), 'back')")
        reaches(client, name, name)
        reaches(caller, f"back-{moving.number}", "back")
        renumber(moving, moving.address, f"10.77.0.{moving.number + 20}")
        # Nothing is restarted; new connects work in both directions.
        moved(other, name, moving.number + 20)
        reaches(client, name, name)
        reaches(caller, f"back-{moving.number}", "back")
    wait_until(
        lambda: {row["address"] for row in one.members("alive")} == {"10.77.0.21", "10.77.0.22"},
        lambda: f"new addresses: {one.members()}",
        PATIENCE,
    )
