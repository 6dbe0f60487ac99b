"""Five hosts on bad networks: loss, delay and reordering, cuts, a death. Afterwards all tables agree."""

import contextlib
import itertools
from collections.abc import Callable

import pytest

from appswitch.table.store import Table
from service.acting import Actor
from support.delay import delaying
from support.hosts import PATIENCE, Host, Hosts
from support.program import wait_until

Start = Callable[..., Actor]
_ports = itertools.count(80)


def services(host: Host) -> set[tuple[str | None, int]]:
    """Names and ports in a host's own table."""
    table = Table(str(host.run_dir / "table"), readonly=True)
    try:
        return {(row.name, row.port) for row in table.all_services()}
    finally:
        table.close()


class Scene:
    """Five hosts and a program on each, whose service changes at every step."""

    def __init__(self, lab: Hosts, actor_on: Start) -> None:
        self.lab, self._actor_on = lab, actor_on
        self.actors = {host: actor_on(host, f"web-{host.number}") for host in lab}
        self.port = next(_ports)
        for actor in self.actors.values():
            actor(f"l = listen({self.port})")
        self.agree()

    def change(self) -> None:
        """Every host's service goes, and another comes."""
        self.port = next(_ports)
        for actor in self.actors.values():
            actor(f"l.close(); l = listen({self.port})")

    def agree(self, *gone: Host) -> None:
        """Wait until every table has the live hosts' services as they are now, and nothing else."""
        here = [host for host in self.lab if host not in gone]
        wanted = {(f"web-{host.number}", self.port) for host in here}

        def different() -> list[set[tuple[str | None, int]]]:
            return [found for host in here if (found := services(host)) != wanted]

        wait_until(lambda: not different(), lambda: f"{wanted}, not {different()}", PATIENCE)
        assert len({str(table) for table in self.lab.at_once(Host.table, here)}) == 1

    def all_live(self) -> None:
        self.lab.await_members()


@pytest.fixture
def scene(hosts: Callable[..., Hosts], actor_on: Start) -> Scene:
    lab = hosts(5)
    lab.up("--timings", "local")
    return Scene(lab, actor_on)


def test_tables_agree_after_anything(scene: Scene) -> None:
    one, two, three, four, five = lab = scene.lab

    # A third of all packets is lost at every host.
    for host in lab:
        host.namespace.drop("numgen random mod 100 < 30")
    scene.change()
    scene.agree()
    wait_until(lambda: all(host.namespace.dropped() > 10 for host in lab), lambda: "some losses at each host")
    scene.agree()
    for host in lab:
        host.namespace.pass_all()
    scene.agree()
    scene.all_live()

    # They take from 1 to 60 ms, more than what lies between them.
    with contextlib.ExitStack() as stack:
        delayed = [stack.enter_context(delaying(host.namespace, 0.001, 0.06, host.number)) for host in lab]
        for _ in range(3):
            scene.change()
        scene.agree()
        wait_until(lambda: all(count > 20 for [count] in delayed), lambda: "some delays at each host")
        scene.agree()

    # One hears nothing of two, which hears it: others vouch for both, and tell one what two says.
    one.namespace.drop(f"ip saddr {two.address}")
    start = one.namespace.dropped()
    scene.change()
    scene.agree()
    wait_until(lambda: one.namespace.dropped() > start + 20, lambda: "some rounds of probes")
    scene.agree()
    scene.all_live()
    one.namespace.pass_all()

    # Two halves, each of which goes on.
    lab.split([one, two], [three, four, five])
    for half in ([one, two], [three, four, five]):
        lab.await_members(half)
    scene.change()
    lab.heal()
    scene.agree()
    scene.all_live()

    # A death, and a return.
    five.kill()
    scene.actors.pop(five).close()
    scene.change()
    scene.agree(five)
    wait_until(lambda: five.address in {row["address"] for row in one.members("failed")}, lambda: "its death")
    five.up("--timings", "local")
    scene.actors[five] = scene._actor_on(five, "web-5")
    scene.actors[five](f"l = listen({scene.port})")
    scene.agree()
    scene.all_live()
