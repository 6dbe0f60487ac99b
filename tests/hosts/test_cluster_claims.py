"""Who holds a name or an address when hosts did not know of each other; a router that dies with rows in its care."""

import ipaddress
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace

from appswitch.model.address import pack, unpack
from appswitch.model.identity import derived_vip
from appswitch.table.store import Table
from hosts.test_cluster_joining import await_members, cluster, members
from service.acting import Actor
from support.hosts import Host, Hosts
from support.modes import MODES, MYSELF, ORDINARY
from support.program import wait_until

Make = Callable[..., Hosts]
Start = Callable[..., Actor]

PATIENCE = 60.0


def apart(one: Host, two: Host) -> None:
    """Until each thinks the other dead."""
    for host in (one, two):
        wait_until(lambda host=host: members(host, "failed"), lambda host=host: f"{members(host)}", PATIENCE)


def heard(client: Actor, name: str) -> object:
    """What a client hears at a name, or the error."""
    return client(f"outcome_of(lambda: hear(gethostbyname({name!r}), 80))")


def test_a_name_that_two_owners_got_on_both_sides_of_a_partition(hosts: Make, actor_on: Start) -> None:
    """Root's switches; an ordinary user's program on one host, another user's on the other."""
    stranger = replace(ORDINARY, uid=ORDINARY.uid + 1)
    one, two = lab = hosts(2, mode=MODES[2])
    cluster(lab)
    lab.split([one], [two])
    apart(one, two)
    # Each was free to be had; one of the hosts already knew more claims, so that its own is the later one.
    for count in range(3):
        actor_on(two, f"earlier-{count}")
    first, second = actor_on(one, "disputed"), actor_on(two, "disputed", user=stranger)
    first("greet(listen(80), 'first')")
    second("greet(listen(80), 'second')")
    mine = actor_on(two, "disputed", user=stranger)
    others = [actor_on(host, user=MYSELF) for host in lab]
    assert [heard(client, "disputed") for client in others] == ["first", "second"]
    lab.heal()
    await_members([one, two])
    for client in others:
        wait_until(
            lambda client=client: heard(client, "disputed") == "first",
            lambda client=client: f"the earlier claim to hold: {heard(client, 'disputed')}",
            PATIENCE,
        )
    # Those of the later claim go on, among themselves; nobody else of their user gets in under it.
    assert heard(mine, "disputed") == "second"
    assert mine("hear('127.0.0.1', 80)") == "second"
    refused = two.check(["true"], name="disputed", user=stranger, status=125)
    assert f"belongs to a running program of user {ORDINARY.uid} on host" in refused.stderr
    said = f"disputed of user {stranger.uid} is held by disputed of user {ORDINARY.uid} on host"
    wait_until(lambda: said in (two.run_dir / "switch.log").read_text(), lambda: said)
    # The holder ends: the other has it then, on every host.
    first.close()
    for client in others:
        wait_until(lambda client=client: heard(client, "disputed") == "second", lambda: "the next to have it", PATIENCE)


def colliding(network: str) -> tuple[str, str]:
    """Two names that hash to one address."""
    seen: dict[bytes, str] = {}
    for number in range(10_000):
        name = f"n{number}"
        other = seen.setdefault(derived_vip(name, ipaddress.IPv4Network(network)), name)
        if other != name:
            return other, name
    raise AssertionError("no collision in so small a range")


def test_two_names_made_into_one_address_are_told_apart_everywhere(hosts: Make, actor_on: Start) -> None:
    network = "10.88.0.0/22"
    one, two, three = lab = hosts(3)
    one.up("--node-interface", "eth0", "--range", network)
    token = str(one.cli("token")).strip()
    for host in (two, three):
        host.up("--join", token, "--range", network)
    await_members([one, two, three])
    first, second = colliding(network)
    actor_on(one, first)("greet(listen(80), 'first')")
    wait_until(lambda: two.services(first), lambda: "the first")
    # It is known: the other takes the next address, which all hosts then know it by.
    actor_on(two, second)("greet(listen(80), 'second')")
    wait_until(lambda: three.services(second), lambda: "the second")
    vips = {row["name"]: row["vip"] for row in three.services()}
    assert vips[first] == unpack(derived_vip(first, ipaddress.IPv4Network(network)))
    assert vips[second] == unpack(derived_vip(second, ipaddress.IPv4Network(network), 1))
    for host in lab:
        client = actor_on(host)
        assert [heard(client, name) for name in (first, second)] == ["first", "second"]


def test_a_router_that_is_killed_makes_no_row_blink_and_cuts_nothing(hosts: Make, actor_on: Start) -> None:
    one, two = lab = hosts(2)
    lab.up()  # with the usual timings: by the fast ones a router that has to wait for its turn is soon thought dead
    server, client = actor_on(one, "web"), actor_on(two)
    server("l = listen(80)")
    two.wait_service("web", 80)
    client("s = call('web', 80)")
    server("c, _ = take(l)")
    vip, missed, over = pack(client("s.getpeername()[0]")), [], threading.Event()
    table = Table(str(two.run_dir / "table"), readonly=True)
    epoch = table.epoch()

    def watch() -> None:
        while not over.wait(0.001):
            if len(table.lookup(vip, 80)[0]) != 1 or table.vip_of("web") != vip:
                missed.append(1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        [router] = [row["pid"] for row in two.cli("status", "-o", "json")["processes"] if row["role"] == "router"]
        os.kill(router, signal.SIGKILL)
        late = actor_on(two, "late")
        late("greet(listen(80), 'meanwhile')")
        wait_until(lambda: one.services("late"), lambda: "what was begun without a router", PATIENCE)
        await_members([one, two])
        assert table.epoch() >> 32 > epoch >> 32
    finally:
        over.set()
        watcher.join()
        table.close()
    assert missed == []
    client("s.sendall(b'still')")
    assert server("c.recv(5).decode()") == "still"
    assert actor_on(one)("hear('late', 80)") == "meanwhile"


def test_a_switch_that_is_told_to_end_leaves_at_once(hosts: Make, actor_on: Start) -> None:
    """SIGTERM, and the LAN's slow timings: it is not taken for dead after a while, it says so."""
    one, two = hosts(2)
    one.up("--node-interface", "eth0")
    two.up("--join", str(one.cli("token")).strip())
    await_members([one, two])
    [supervisor] = [row["pid"] for row in two.cli("status", "-o", "json")["processes"] if row["role"] == "supervisor"]
    pidfd = os.pidfd_open(supervisor)
    signal.pidfd_send_signal(pidfd, signal.SIGTERM)
    os.close(pidfd)
    wait_until(lambda: members(one, "left"), lambda: f"it to leave: {members(one)}")
    wait_until(lambda: not two.run_dir.exists(), lambda: "the switch to end")


def test_real_ports_come_from_the_range_and_addresses_as_advertised(hosts: Make, actor_on: Start) -> None:
    one, two = hosts(2)
    one.up("--node-interface", "eth0", "--port-range", "20100-20101")
    two.up("--join", str(one.cli("token")).strip())
    await_members([one, two])
    server = actor_on(one, "web")
    server("greet(listen(80), 'eighty'); greet(listen(81), 'eighty-one')")
    rows = wait_until(lambda: len(found := two.services("web")) == 2 and found, lambda: f"{two.services()}")
    assert {row["address"] for row in rows} == {f"{one.address}:20100", f"{one.address}:20101"}
    client = actor_on(two)
    assert [client(f"hear('web', {port})") for port in (80, 81)] == ["eighty", "eighty-one"]
