"""UDP over loopback between the programs of one virtual IP: one port space, as if all were on one host of their own."""

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator

import pytest

from appswitch.linux import features
from appswitch.linux.pidfd import copy_descriptor
from appswitch.relay.oneself import SHOWN
from service.acting import Actor
from service.loads import roles, status
from service.test_service_udp import HELP
from service.test_service_udp_batches import BATCHES, KINDS
from support import modes
from support.program import wait_until
from support.switch import Switch

Start = Callable[..., Actor]

MORE = """
def server(port, host="0.0.0.0", word="!"):
    s = udp(port, host)
    echo(s, lambda data: data + word.encode())
    return s
"""


def equip(started: Actor) -> Actor:
    started("import struct\n" + HELP + MORE + BATCHES)
    return started


@pytest.fixture
def udp_actor(actor: Start) -> Start:
    """Starts actors that know the functions above."""
    return lambda name=None, **keywords: equip(actor(name, **keywords))


def rules(actor: Actor) -> list[str]:
    """What has been set in its namespace."""
    inside = ["nsenter", "-t", str(actor.pid), "-n", "-U", "--preserve-credentials", "ip"]
    if os.geteuid() == 0:
        inside.remove("-U")
        inside.remove("--preserve-credentials")
    lines: list[str] = []
    for family in ("-4", "-6"):
        done = subprocess.run([*inside, family, "rule"], capture_output=True, text=True, check=True)
        lines += done.stdout.splitlines()
    return [line for line in lines if line.startswith(("50:", "100:"))]


@pytest.mark.parametrize("ip", ["10.41.1.1", "2001:db8:41::1"], ids=["v4", "v6"])
def test_loopback_and_the_virtual_ip_reach_the_others(udp_actor: Start, ip: str) -> None:
    server, client = udp_actor(ip=ip), udp_actor(ip=ip)
    server("kept = server(4100), server(4106, '::'), server(4101, '127.0.0.1')")
    reached = [("127.0.0.1", 4100), ("localhost", 4100), ("127.0.0.1", 4101), ("127.0.0.1", 4106), (ip, 4106)]
    for host, port in reached if ":" in ip else [*reached, (ip, 4100)]:
        assert client(f"ask('{host}', {port})") == "?!"
        assert server(f"ask('{host}', {port})") == "?!"
    for host, port in (("127.0.0.1", 4102), (ip, 4101), ("::1", 4106)):  # ::1 leads nowhere else
        assert client(f"ask('{host}', {port})") == "ECONNREFUSED"
    # Not connected, and bound beforehand: what answers is what was asked.
    for own in ("", "'127.0.0.1'"):
        client(f"u = udp({'0, ' * bool(own)}{own}); u.sendto(b'x', ('127.0.0.1', 4100)); data, who = u.recvfrom(100)")
        assert client("[data.decode(), *who]") == ["x!", "127.0.0.1", 4100]
    # All lengths, and one that goes on for long.
    client("c = udp(); c.connect(('127.0.0.1', 4100)); named = udp(4107); named.connect(('127.0.0.1', 4100))")
    for size in (0, 1400, 60000):
        assert client(f"len(talk(c, bytes({size})))") == size + 1
    for sock in ("c", "named"):
        assert client(f"[i for i in range(50) if talk({sock}, b'%d' % i) != f'{{i}}!']") == []


def test_clients_are_shown_as_over_loopback(udp_actor: Start) -> None:
    one, two = udp_actor(ip="10.41.2.1"), udp_actor(ip="10.41.2.1")
    # Ports that were named are the same for all, whoever begins; and of sockets that were connected before.
    two("c = udp(4201); c.connect(('127.0.0.1', 4200))")
    one("s = udp(4200)")
    two("c.send(b'hello')")
    assert one("data, peer = s.recvfrom(100)") is None
    assert one("[data.decode(), *peer]") == ["hello", "127.0.0.1", 4201]
    one("s.sendto(b'answer', peer)")
    assert two("c.recv(100).decode()") == "answer"
    # One that the kernel chose may be anybody's here: it is shown with another, which leads back to it, for all.
    two("u = udp(); u.sendto(b'?', ('10.41.2.1', 4200))")
    assert one("data, peer = s.recvfrom(100)") is None
    assert one("peer[0]") == "10.41.2.1"
    assert one("peer[1]") in SHOWN
    one("s.sendto(b'from here', peer); t = udp(); t.sendto(b'from there', peer)")
    two("heard = dict(u.recvfrom(100)[::-1] for _ in range(2))")
    assert two("heard['10.41.2.1', 4200].decode()") == "from here"
    two("other = next(who for who in heard if who[1] != 4200)")
    assert two("[heard[other].decode(), other[0]]") == ["from there", "10.41.2.1"]
    two("u.sendto(b'and back', other)")
    assert one("t.recv(100).decode()") == "and back"
    # Who binds such a port is reached by all, itself too.
    one(f"high = server({SHOWN.stop - 1})")
    assert [each(f"ask('127.0.0.1', {SHOWN.stop - 1})") for each in (one, two)] == ["?!", "?!"]


def test_its_own_come_first(udp_actor: Start) -> None:
    one, two, three = (udp_actor(ip="10.41.3.1") for _ in range(3))
    one("s = server(4300, word=' one')")
    two("s = server(4300, word=' two')")
    assert [actor("ask('127.0.0.1', 4300)") for actor in (one, two)] == ["? one", "? two"]
    assert sorted(three("ask('127.0.0.1', 4300)") for _ in range(4)) == ["? one"] * 2 + ["? two"] * 2
    # One that binds the port itself finds its own at once, and the others' a moment after it has given that up.
    for _ in range(5):
        three("s = udp(4300); c = udp(); c.sendto(b'own', ('127.0.0.1', 4300))")
        assert three("s.recv(100).decode()") == "own"
        three("s.close()")
        wait_until(lambda: three("ask('127.0.0.1', 4300)") in ("? one", "? two"), lambda: "the others")


def test_a_port_is_reached_as_soon_as_it_is_bound(udp_actor: Start) -> None:
    server, client = udp_actor(ip="10.41.4.1"), udp_actor(ip="10.41.4.1")
    for port in range(4400, 4425):
        server(f"s = udp({port})")
        client(f"c = udp(); c.connect(('127.0.0.1', {port})); c.send(b'{port}')")
        assert server("s.recv(100).decode()") == str(port)
        server("s.close()")
        assert client(f"ask('127.0.0.1', {port})") == "ECONNREFUSED"
    server("a = udp(4450)")
    assert server.errno("udp(4450)") == "EADDRINUSE"
    assert server.errno("udp(4451, '10.41.4.2')") == "EADDRNOTAVAIL"
    # What failed has no consequences.
    client("s = server(4451)")
    wait_until(lambda: server("ask('127.0.0.1', 4451)") == "?!", lambda: "the port that could not be bound")


def test_policy_is_asked(udp_actor: Start) -> None:
    server = udp_actor(ip="10.41.5.1", tags=["group=a"])
    server("s = server(4500)")
    friend, stranger = udp_actor(ip="10.41.5.1", tags=["group=a"]), udp_actor(ip="10.41.5.1", tags=["group=b"])
    assert friend("ask('127.0.0.1', 4500)") == "?!"
    assert stranger("ask('127.0.0.1', 4500)") == "EHOSTUNREACH"
    assert udp_actor(ip="10.41.5.2")("ask('127.0.0.1', 4500)") == "ECONNREFUSED"


def test_one_that_is_alone_has_no_rules(udp_actor: Start) -> None:
    alone = udp_actor(ip="10.41.6.1")
    alone("s = server(4600)")
    assert alone("ask('127.0.0.1', 4600)") == "?!"
    assert rules(alone) == []
    other = udp_actor(ip="10.41.6.1")
    assert other("ask('127.0.0.1', 4600)") == "?!"
    assert "dport 4600" in "".join(rules(other))
    assert "dport 4600" not in "".join(rules(alone))
    other.close()
    wait_until(lambda: rules(alone) == [], lambda: f"the rules to go: {rules(alone)}")
    # Nor have several without ports.
    assert rules(udp_actor(ip="10.41.6.2")) == rules(udp_actor(ip="10.41.6.2")) == []


@pytest.mark.parametrize(("sending", "taking"), [("tun-vnet", "packet-vnet"), ("packet", "tun")])
def test_batches(actor: Start, sending: str, taking: str) -> None:
    server, client = (
        equip(actor(ip="10.41.7.1", env={features.ENVIRONMENT: KINDS[kind].without})) for kind in (taking, sending)
    )
    server("s = udp(4700)")
    client("c = udp(); c.connect(('127.0.0.1', 4700)); c.setsockopt(IPPROTO_UDP, SEGMENT, 1000)")
    client("c.send(batch(9, 1000, 500))")
    found = server("heard(s, 9500)")
    assert sum(length for length, *_ in found) == 9500
    assert (found[0][1], found[-1][2]) == ("A", "z")


def test_deaths_of_the_switch_s(switch: Switch, own_actor: Start) -> None:
    server, client = (equip(own_actor(ip="10.41.8.1")) for _ in range(2))
    server("s = server(4800)")
    for restarts, role in enumerate(("relay", "worker-0", "supervisor"), 1):
        assert client("ask('127.0.0.1', 4800)") == "?!"
        server("gone = udp(4801)")
        assert "dport 4801" in "".join(rules(client))
        pid = next(process["pid"] for process in status(switch)["processes"] if process["role"] == role)
        os.kill(pid, signal.SIGSTOP)
        server("gone.close()")  # a relay that has stopped does not hear of it
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: status(switch)["restarts"] == restarts, lambda: f"another {role}")  # noqa: B023
        wait_until(lambda: client("ask('127.0.0.1', 4800)") == "?!", lambda: "the rules to be set again")
        wait_until(lambda: "dport 4801" not in "".join(rules(client)), lambda: "the rule to go")
    server("t = server(4802)")
    assert client("ask('127.0.0.1', 4802)") == "?!"
    client.close()
    wait_until(lambda: rules(server) == [], lambda: f"the rules to go: {rules(server)}")


def test_a_bind_that_signals_interrupt_ends_without_the_relay(switch: Switch, own_actor: Start) -> None:
    server, _ = (equip(own_actor(ip="10.41.9.1")) for _ in range(2))
    pid = next(process["pid"] for process in status(switch)["processes"] if process["role"] == "relay")
    server("import signal; signal.signal(signal.SIGALRM, lambda *_: None); signal.siginterrupt(signal.SIGALRM, False)")
    os.kill(pid, signal.SIGSTOP)
    try:
        server("signal.setitimer(signal.ITIMER_REAL, 0.2, 0.2); s = udp(4900); signal.setitimer(signal.ITIMER_REAL, 0)")
    finally:
        os.kill(pid, signal.SIGCONT)
    assert server("s.getsockname()[1]") == 4900


def route_sockets(pid: int) -> Iterator[socket.socket]:
    """Copies of a process's sockets by which rules are set."""
    pidfd = os.pidfd_open(pid)
    for name in os.listdir(f"/proc/{pid}/fd"):
        if os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:"):
            copy = socket.socket(fileno=copy_descriptor(pidfd, int(name)))
            if copy.family == socket.AF_NETLINK and copy.proto == socket.NETLINK_ROUTE:
                yield copy
            else:
                copy.close()
    os.close(pidfd)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may have other processes' descriptors")
@pytest.mark.parametrize("mode", modes.possible()[:1], ids=str)
def test_rules_that_could_not_be_set_are_tried_again(switch: Switch, own_actor: Start) -> None:
    server, client = (equip(own_actor(ip="10.41.11.1")) for _ in range(2))
    copies = list(route_sockets(roles(switch)["relay"]))
    assert len(copies) == 2
    room = copies[0].getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2
    for copy in copies:
        copy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)  # the kernel's answers find no room
    server("s = server(5100)")
    assert client("ask('127.0.0.1', 5100)") == "ECONNREFUSED"  # and is not led astray
    for copy in copies:
        copy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
        copy.close()
    wait_until(lambda: client("ask('127.0.0.1', 5100)") == "?!", lambda: f"the rules: {rules(client)}")


@pytest.mark.parametrize("mode", modes.possible()[:1], ids=str)
def test_a_program_begins_though_the_relay_hangs(switch: Switch, own_actor: Start) -> None:
    first = equip(own_actor(ip="10.41.10.1"))
    pid = roles(switch)["relay"]
    os.kill(pid, signal.SIGSTOP)
    try:
        second = equip(own_actor(ip="10.41.10.1"))
        second("s, t = server(5000), server(40000)")
    finally:
        os.kill(pid, signal.SIGCONT)
    for port in (5000, 40000):
        wait_until(lambda: first(f"ask('127.0.0.1', {port})") == "?!", lambda: "what was bound meanwhile")  # noqa: B023
    assert f"the relay (process {pid}) has not taken program" in (switch.run_dir / "switch.log").read_text()
