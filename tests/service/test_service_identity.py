"""Who a program is, as itself, its peers and the C library are told (one story, paper section 4)."""

import ipaddress
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appswitch.model.address import unpack
from appswitch.model.identity import DEFAULT_RANGE, derived_vip
from service.acting import Actor, start_actor
from support.needs import need
from support.switch import Switch

Start = Callable[..., Actor]


def derived(name: str, text: str = DEFAULT_RANGE, attempt: int = 0) -> str:
    return unpack(derived_vip(name, ipaddress.IPv4Network(text), attempt))


def tell_the_same(server: Actor, client: Actor) -> tuple[list[Any], list[Any]]:
    """(the server's address, the client's) as both sides tell them, by accept(), getsockname() and getpeername()."""
    (server_address, client_address), accepted = server("story(c)"), server("where[:2]")
    assert client("story(s)") == [client_address, server_address]
    assert accepted == client_address
    return server_address, client_address


@pytest.mark.parametrize(
    ("name", "ip", "vip"),
    [
        (None, "10.20.30.40", "10.20.30.40"),
        (None, "2001:db8::7", "2001:db8::7"),
        ("alpha", None, derived("alpha")),
        ("beta", "10.20.30.41", "10.20.30.41"),
        ("gamma.example", "2001:db8::8", "2001:db8::8"),
    ],
    ids=["ip4", "ip6", "name", "both4", "both6"],
)
def test_both_sides_tell_one_story(shared: Switch, actor: Start, name: str | None, ip: str | None, vip: str) -> None:
    server, client = actor(name, ip=ip), actor(ip="2001:db8::c" if ":" in vip else "10.20.30.99")
    server(f"l = listen(80, '{'::' if ':' in vip else '0.0.0.0'}')")
    [row] = shared.services(vip, 80)
    assert (row["name"], row["vip"]) == (name, vip)
    client(f"s = call('{name or vip}', 80)")
    server("c, where = take(l)")
    server_address, client_address = tell_the_same(server, client)
    assert server_address == [vip, 80]
    assert client_address[0] == ("2001:db8::c" if ":" in vip else "10.20.30.99")
    for side, sock in ((server, "c"), (client, "s")):
        told = side(f"story({sock})")
        assert side(f"in_child(lambda: story({sock}))") == told
        assert side(f"story({sock}.dup())") == told
        assert side(f"after_exec({sock})") == told
        # The other process shares the connection, not a copy of it.
        side(f"in_child(lambda: {sock}.send(b'hello'))")
    assert server("c.recv(5).decode()") == client("s.recv(5).decode()") == "hello"


def test_interfaces_show_the_virtual_address_and_nothing_of_the_host(actor: Start) -> None:
    for keywords, vip in (({"ip": "10.20.30.50"}, "10.20.30.50"), ({"ip": "2001:db8::50"}, "2001:db8::50")):
        program = actor(**keywords)
        told = program("getifaddrs()")
        on_loopback = {address for interface, address in told if interface == "lo"}
        assert on_loopback == {"127.0.0.1", "::1", vip}
        # What is on the device towards the switch is no address that anybody could be reached by.
        assert all(ipaddress.ip_address(address).is_link_local for interface, address in told if interface != "lo")


def test_every_tool_shows_the_same_interfaces(shared: Switch) -> None:
    found = json.loads(shared.check([need("ip"), "-j", "addr"], ip="10.20.30.51", status=0).stdout)
    by_netlink = {(link["ifname"], info["local"]) for link in found for info in link["addr_info"]}
    assert ("lo", "10.20.30.51") in by_netlink
    assert {name for name, _ in by_netlink} == {"lo", "as0"}
    text = shared.check([need("busybox"), "ip", "addr"], ip="10.20.30.51", status=0).stdout
    assert "inet 10.20.30.51/32" in text
    by_ioctl = shared.check([need("busybox"), "ifconfig", "-a"], ip="10.20.30.51", status=0).stdout
    interfaces = {line.split()[0] for line in by_ioctl.splitlines() if line and not line[0].isspace()}
    assert {name.rstrip(":") for name in interfaces} <= {"lo", "lo:", "as0"}


def test_without_name_and_address_a_program_serves_only_itself(shared: Switch, actor: Start) -> None:
    alone, other = actor(), actor("delta")
    vip = alone("[a for i, a in getifaddrs() if i == 'lo' and a.startswith('169.254.')]")
    assert len(vip) == 1
    for bound in ("0.0.0.0", vip[0]):
        alone(f"l = listen(8000, '{bound}')")
        for address in ("127.0.0.1", vip[0]) if bound == "0.0.0.0" else (vip[0],):
            alone(f"s = call('{address}', 8000); c, where = take(l)")
            tell_the_same(alone, alone)
        assert other(f"outcome('{vip[0]}', 8000)") in ("ECONNREFUSED", "EHOSTUNREACH")
        # Nothing has come meanwhile.
        assert alone("events(l, select.POLLIN, 0)") == 0
        alone("l.close()")
    # As a client it is somebody: the server is told that address.
    other("l = listen(80)")
    alone("s = call('delta', 80)")
    other("c, where = take(l)")
    assert tell_the_same(other, alone)[1][0] == vip[0]


def test_a_dual_stack_server_sees_mapped_addresses(actor: Start) -> None:
    server, client = actor("dual", ip="10.20.30.60"), actor(ip="10.20.30.61")
    server("l = listen(80, '::', only6=0)")
    client("s = call('10.20.30.60', 80)")
    server("c, where = take(l)")
    assert server("where[0]") == "::ffff:10.20.30.61"
    assert server("c.getsockname()[:2]") == ["::ffff:10.20.30.60", 80]
    assert client("s.getpeername()") == ["10.20.30.60", 80]
    client("s = call('::ffff:10.20.30.60', 80, AF_INET6)")
    server("c, where = take(l)")
    assert tell_the_same(server, client) == (
        ["::ffff:10.20.30.60", 80],
        ["::ffff:10.20.30.61", client("s.getsockname()[1]")],
    )


def test_a_v6_only_server_is_not_reached_by_v4(actor: Start) -> None:
    server, client = actor("six", ip="10.20.30.62"), actor(ip="10.20.30.63")
    server("l = listen(80, '::', only6=1)")
    assert client("outcome('10.20.30.62', 80)") == "ECONNREFUSED"
    assert client("outcome('::ffff:10.20.30.62', 80, AF_INET6)") == "ECONNREFUSED"
    # Its port is free for IPv4, as natively.
    server("greet(listen(80), 'four')")
    assert client("hear('10.20.30.62', 80)") == "four"


def test_peers_of_the_other_family_tell_one_story(actor: Start) -> None:
    four, six = actor("four", ip="10.20.30.64"), actor("sixth", ip="2001:db8::64")
    six("l = listen(80, '::')")
    four("s = call('sixth', 80)")
    six("c, where = take(l)")
    server, (client, _) = tell_the_same(six, four)
    assert server == ["2001:db8::64", 80]
    # What a server sees is an address that it can call back, and no business of the host's.
    four("l6 = listen(8080, '::'); greet(l6, 'called back')")
    assert six(f"hear('{client}', 8080)") == "called back"
    assert six(f"outcome('{client}', 8081)") == "ECONNREFUSED"
    unknown = ipaddress.ip_address(client) - 4711
    assert six(f"outcome('{unknown}', 80)") == "EHOSTUNREACH"
    four("l = listen(80)")
    six("s = call('four', 80)")
    four("c, where = take(l)")
    assert tell_the_same(four, six)[0] == ["10.20.30.64", 80]


def test_port_0_gives_ports_that_no_other_program_of_the_address_has(actor: Start) -> None:
    # So many that they would meet, were they drawn blindly from the same 28,232 (in 29 of 30 runs).
    count = 80
    programs = [actor("epsilon") for _ in range(6)]
    drawn: list[int] = []
    for program in programs:
        program(f"ls = [listen(0, '::' if n % 2 else '0.0.0.0') for n in range({count})]")
        drawn += program("[l.getsockname()[1] for l in ls]")
    assert len(set(drawn)) == len(drawn)
    assert min(drawn) >= 1024
    client = actor()
    programs[1]("greet(ls[7], 'seven')")
    assert client(f"hear('epsilon', {programs[1]('ls[7].getsockname()[1]')})") == "seven"


def test_listen_without_bind_gives_a_port(actor: Start) -> None:
    server, client = actor("zeta"), actor()
    server("l = socket(); l.listen(); greet(l, 'unbound')")
    host, port = server("l.getsockname()")
    assert host == "0.0.0.0"
    assert client(f"hear('zeta', {port})") == "unbound"


def test_two_identities_serve_the_same_port(actor: Start) -> None:
    for name in ("eta", "theta"):
        actor(name)(f"greet(listen(80), '{name}')")
    client = actor()
    for name in ("eta", "theta", "eta"):
        assert client(f"hear('{name}', 80)") == name


def test_one_program_serves_several_ports(shared: Switch, actor: Start) -> None:
    server, client = actor("iota"), actor()
    ports = (80, 443, 8080, 49999)
    for port in ports:
        server(f"greet(listen({port}), 'port {port}')")
    assert {row["port"] for row in shared.services("iota")} == set(ports)
    for port in ports:
        assert client(f"hear('iota', {port})") == f"port {port}"
    assert client("outcome('iota', 81)") == "ECONNREFUSED"


def test_a_client_may_choose_its_port(actor: Start) -> None:
    server, client = actor("kappa"), actor(ip="10.20.30.70")
    server("l = listen(80)")
    for bound in ("0.0.0.0", "10.20.30.70"):
        client(f"s = call('kappa', 80, bind=('{bound}', 1023))")
        server("c, where = take(l)")
        assert tell_the_same(server, client)[1] == ["10.20.30.70", 1023]
        client("s.close()")
    assert client.errno("call('kappa', 80, bind=('10.9.9.9', 0))") == "EADDRNOTAVAIL"


RANGE = "100.64.0.0/22"


def colliding_names() -> tuple[str, str]:
    """Two names that hash to one address of the small range."""
    seen: dict[str, str] = {}
    for number in itertools.count():
        name = f"name{number}"
        vip = derived(name, RANGE)
        if vip in seen:
            return seen[vip], name
        seen[vip] = name
    raise AssertionError


@pytest.fixture
def two_switches(new_switch: Callable[..., Switch]) -> list[Switch]:
    """Two that know nothing of each other, as on two hosts."""
    switches = [new_switch(), new_switch()]
    for switch in switches:
        switch.up("--range", RANGE)
    return switches


def test_names_mean_the_same_address_everywhere_also_when_they_collide(
    two_switches: list[Switch], actor_file: Path, python: str
) -> None:
    first, second = colliding_names()
    for switch in two_switches:
        # The second again, while the first lives on: the same address again.
        for name in (first, second, second):
            program = start_actor(switch, actor_file.parent, python, name)
            program(f"greet(listen(80), '{name}')")
        vips = {row["name"]: row["vip"] for row in switch.services(port=80)}
        assert vips == {first: derived(first, RANGE), second: derived(second, RANGE, 1)}
        client = start_actor(switch, actor_file.parent, python)
        for name in (first, second):
            assert client(f"hear('{name}', 80)") == name
            assert client(f"hear('{vips[name]}', 80)") == name


def test_an_ephemeral_port_is_not_given_again_soon(actor: Start) -> None:
    one = actor("client")
    one("import socket")
    one("def bound():\n  s = socket.socket(); s.bind(('', 0)); port = s.getsockname()[1]; s.close(); return port")
    # By chance alone some eleven of 800 would be given twice.
    ports = one("[bound() for _ in range(800)]")
    assert len(set(ports)) == 800
