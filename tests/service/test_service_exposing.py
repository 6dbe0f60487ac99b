"""`run --expose`: a service is reached at a port of the host, on the accepted socket itself (paper, section 4)."""

import errno
import os
import select
import signal
import socket
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from service.acting import Actor, start_actor
from service.test_service_recovery import kill, status
from support import modes
from support.needs import need
from support.ports import quiet_ports
from support.program import DEADLINE, wait_until
from support.switch import Switch

Start = Callable[..., Actor]

user_modes = pytest.mark.parametrize("mode", [m for m in modes.possible() if m.name != "root"], ids=str)
one_mode = pytest.mark.parametrize("mode", modes.possible()[-1:], ids=str)


@pytest.fixture
def port() -> int:
    """A port of the host that is free, and that the kernel gives nobody by itself."""
    return next(found for found in quiet_ports() if bind("0.0.0.0", found) is None and bind("::", found) is None)


def bind(address: str, port: int) -> str | None:
    """The error that somebody else's server meets there; None: it can have the port."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as sock:
        if ":" in address:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((address, port))
            sock.listen()
        except OSError as error:
            return errno.errorcode[error.errno or 0]
    return None


def come(port: int, host: str = "127.0.0.1") -> socket.socket:
    """A client of the host's, connected."""
    return socket.create_connection((host, port), timeout=DEADLINE)


def hear(port: int, host: str = "127.0.0.1") -> str:
    """What a client of the host hears until the end, or the error that it meets."""
    try:
        with come(port, host) as client:
            return b"".join(iter(lambda: client.recv(4096), b"")).decode()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))


def listening(port: int) -> list[str]:
    """Where ss(8) of the host sees that somebody listens at a port."""
    command = [need("ss"), "-Hltn", f"sport = :{port}"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return sorted(line.split()[3] for line in lines)


def published(switch: Switch, who: str) -> list[list[str]]:
    return [row["published"] for row in switch.services(who)]


def until_shut(port: int) -> None:
    """A close() is found out within a second or so: it gives no event."""
    wait_until(lambda: not listening(port), lambda: f"the end of port {port}")


def until_free(port: int) -> None:
    """The switch hears of a program's end by an event, in a moment."""
    wait_until(lambda: bind("0.0.0.0", port) is None, lambda: f"port {port} to be free")


def test_the_accepted_socket_itself_comes_to_the_program(shared: Switch, actor: Start, port: int) -> None:
    before = shared.cli("status", "-o", "json")["counters"]
    server = actor("shop", tags=["group=1"], options=["--expose", f"{port}:80"])
    assert server("1") == 1
    # Nothing answers before the service listens, and yet nobody else gets the port.
    assert (listening(port), hear(port), bind("0.0.0.0", port)) == ([], "ECONNREFUSED", "EADDRINUSE")
    server("l = listen(80); l.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)")
    assert listening(port) == [f"0.0.0.0:{port}"]
    assert published(shared, "shop") == [[f"0.0.0.0:{port}"]]
    [row] = shared.services("shop")
    with come(port) as client:
        # Its real address is seen, by accept() and getpeername(); its own is the virtual one.
        mine = list(client.getsockname())
        assert server("(got := take(l))[1]") == mine
        assert server("story(got[0])") == [[row["vip"], 80], mine]
        assert server("got[0].getsockopt(SOL_SOCKET, SO_LINGER, 8).hex()") == bytes(8).hex()
        assert server("got[0].family == AF_INET and got[0].getsockopt(IPPROTO_TCP, TCP_NODELAY) == 1")
        # No proxy: the program has the host's own TCP socket, whose other end is the client's.
        inode = server("os.fstat(got[0].fileno()).st_ino")
        ends = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        [[local, remote, uid]] = [[end[1], end[2], end[7]] for end in ends if end[9] == str(inode)]
        assert [int(text.split(":")[1], 16) for text in (local, remote)] == [port, mine[1]]
        assert int(uid) == shared.mode.program_owner.uid
        [connection] = [
            row for row in shared.cli("ps", "--connections", "-o", "json") if row["peer"].endswith(f":{mine[1]}")
        ]
        assert (connection["transport"], connection["side"]) == ("ingress", "server")
        client.sendall(b"ping")
        assert server("got[0].sendall(got[0].recv(4) + b'pong')") is None
        assert client.recv(8) == b"pingpong"
        # What the program may not do with a host's socket is as ever.
        assert server.errno("got[0].setsockopt(SOL_SOCKET, 25, b'eth0')") == "EPERM"
        # An established connection outlives the listener; the port is shut, and still nobody else's.
        server("l.close()")
        until_shut(port)
        client.sendall(b"more")
        assert server("got[0].recv(4).decode()") == "more"
    assert (hear(port), bind("0.0.0.0", port)) == ("ECONNREFUSED", "EADDRINUSE")
    server("greet(listen(80), 'again')")
    assert hear(port) == "again"
    after = shared.cli("status", "-o", "json")["counters"]
    assert after["exposed"] - before["exposed"] == 2
    server.close()
    until_free(port)


def test_a_server_that_polls_sleeps_until_one_comes(shared: Switch, actor: Start, port: int) -> None:
    server = actor("poller", options=["--expose", f"127.0.0.1:{port}:80"])
    server("l = listen(80); l.setblocking(False)")
    server.begin("events(l, select.POLLIN)")
    assert server.still_busy(0.1)
    with come(port) as client:
        server.end()
        assert server("l.accept()[1]") == list(client.getsockname())


def test_only_what_was_published_is_open(shared: Switch, actor: Start, port: int) -> None:
    """Another port of the same program, another address of the host, and the service's real port stay shut."""
    server, client = actor("half", options=["--expose", f"127.0.0.1:{port}:80"]), actor()
    server("greet(listen(80), 'open'); greet(listen(81), 'inner')")
    assert hear(port) == "open"
    assert hear(port, "127.0.0.2") == "ECONNREFUSED"
    rows = {row["port"]: row for row in shared.services("half")}
    assert rows[81]["published"] == []
    before = shared.cli("status", "-o", "json")["strangers"]
    for row in rows.values():
        assert hear(int(row["address"].rsplit(":")[1])) in ("", "ECONNRESET")
    wait_until(lambda: shared.cli("status", "-o", "json")["strangers"] == before + 2, lambda: "two strangers")
    # Inside nothing changed, for tags and for others.
    assert (client("hear('half', 80)"), client("hear('half', 81)")) == ("open", "inner")


def test_families(shared: Switch, actor: Start, port: int) -> None:
    """A port is open for the families that its listener takes; what is bound to loopback is not published."""
    server = actor("six", options=["--expose", str(port)])
    server(f"lo = listen({port}, '127.0.0.1')")
    assert (listening(port), published(shared, "six")) == ([], [[]])
    server(f"lo.close(); l = listen({port}, '::', only6=1)")
    assert listening(port) == [f"[::]:{port}"]
    with come(port, "::1") as client:
        assert server("(got := take(l))[1][:2]") == list(client.getsockname()[:2])
        own, peer = server("story(got[0])")
        assert own[0].startswith("fd")
        assert (own[1], peer) == (port, list(client.getsockname()[:2]))
    assert hear(port) == "ECONNREFUSED"
    server(f"l.close(); l = listen({port}, '::', only6=0)")
    wait_until(lambda: len(listening(port)) == 2, lambda: "both families")
    [row] = shared.services("six")
    assert row["published"] == [f"0.0.0.0:{port}", f"[::]:{port}"]
    with come(port) as client:
        mapped = "::ffff:127.0.0.1", client.getsockname()[1]
        assert server("(got := take(l))[1][:2]") == list(mapped)
        assert server("story(got[0])") == [["::ffff:" + row["vip"], port], list(mapped)]
        assert server("got[0].getsockopt(SOL_SOCKET, SO_DOMAIN) == AF_INET6")
    server(f"l.close(); l = listen({port}, {row['vip']!r})")
    wait_until(lambda: listening(port) == [f"0.0.0.0:{port}"], lambda: "IPv4 alone")
    with come(port) as client:
        assert server("take(l)[0].getsockname()") == [row["vip"], port]


def test_instances_share_a_port(shared: Switch, actor: Start, port: int) -> None:
    """Balanced as the service is; one that goes is passed over; the last takes the port with it."""
    servers = [actor("pair", options=["--expose", f"{port}:80"]) for _ in range(2)]
    aside = actor("pair")
    for number, server in enumerate(servers):
        server(f"stop = greet_by_poll(listen(80), '{number}')")
    aside("greet(listen(80), 'not published')")
    assert Counter(hear(port) for _ in range(8)) == {"0": 4, "1": 4}
    # Closed, and nobody has heard of it yet: the client is not told.
    servers[0]("stop()")
    assert [hear(port) for _ in range(3)] == ["1"] * 3
    assert sorted(published(shared, "pair")) == [[], [f"0.0.0.0:{port}"]]
    servers[1].close()
    until_shut(port)
    assert (hear(port), bind("0.0.0.0", port)) == ("ECONNREFUSED", "EADDRINUSE")
    servers[0].close()
    until_free(port)


def test_a_full_queue_is_the_kernel_s_to_fill(shared: Switch, actor: Start, port: int) -> None:
    server = actor("slow", options=["--expose", f"{port}:80"])
    server("l = listen(80, backlog=0)")
    clients = [come(port) for _ in range(20)]
    for number, client in enumerate(clients):
        client.sendall(bytes([number]))
    assert server("[take(l)[0].recv(1)[0] for _ in range(20)]") == list(range(20))
    # Those that have not been accepted when the listener goes are reset, as natively.
    others = [come(port) for _ in range(5)]
    assert server("events(l, select.POLLIN)") == select.POLLIN
    server("l.close()")
    until_shut(port)
    for client in others:
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    for client in (*clients, *others):
        client.close()


def refused(switch: Switch, *options: str, name: str | None = "other") -> str:
    """The sentence of a `run` that comes to nothing."""
    done = switch.check(["true"], name=name, options=options, status=125)
    assert done.stderr.startswith("appswitch: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


@one_mode
def test_what_cannot_be_had_is_said_at_the_start(switch: Switch, own_actor: Start, port: int) -> None:
    def wanted(text: str) -> tuple[str, str]:
        return "--expose", text

    assert "--name" in refused(switch, *wanted(f"{port}:80"), name=None)
    assert "8080:x" in refused(switch, *wanted("8080:x"))
    assert "ip address" in refused(switch, *wanted(f"192.0.2.1:{port}:80"))
    assert "twice" in refused(switch, *wanted(f"{port}:80"), *wanted(f"{port}:81"))
    with socket.socket() as rival:
        rival.bind(("127.0.0.1", port))
        rival.listen()
        assert f"sport = :{port}" in refused(switch, *wanted(f"{port}:80"))
    server = own_actor("first", options=["--expose", f"{port}:80"])
    assert server("1") == 1
    for address in ("", "127.0.0.1:"):
        assert "port 80 of first" in refused(switch, *wanted(f"{address}{port}:80"))
    assert "port 80 of first" in refused(switch, *wanted(f"{port}:81"), name="first")
    # Nothing of all this has kept a port.
    server.close()
    until_free(port)
    # One that follows the first at once gets it, under whatever name.
    for name in ("second", "third"):
        switch.check(["true"], name=name, options=wanted(f"{port}:80"), status=0)


@user_modes
def test_low_ports_are_roots(switch: Switch) -> None:
    with open("/proc/sys/net/ipv4/ip_unprivileged_port_start", encoding="ascii") as file:
        first = int(file.read())
    if first > 80:
        assert "8080:80" in refused(switch, "--expose", "80")
    if first > 443:
        assert "8443:443" in refused(switch, "--expose", "443")


@one_mode
@pytest.mark.parametrize("role", ["worker-0", "supervisor"])
def test_a_death_loses_no_waiting_client(switch: Switch, own_actor: Start, port: int, role: str) -> None:
    server = own_actor("shop", options=["--expose", f"{port}:80"])
    server("l = listen(80)")
    with come(port) as standing:
        server("old = take(l)[0]")
        # Those that come while there is no worker wait in the kernel's queue; their port is never shut.
        worker = status(switch)[0]["worker-0"]
        os.kill(worker, signal.SIGSTOP)
        waiting = [come(port) for _ in range(3)]
        kill(switch, role)
        for client in waiting:
            assert server("take(l)[1]") == list(client.getsockname())
            client.close()
        standing.sendall(b"still")
        assert server("old.recv(5).decode()") == "still"
        assert server("old.getpeername()") == list(standing.getsockname())
    server("stop = greet_by_poll(l, 'new')")
    assert (hear(port), published(switch, "shop")) == ("new", [[f"0.0.0.0:{port}"]])
    # One that closes while there is no worker is shut by the next.
    os.kill(status(switch)[0]["worker-0"], signal.SIGSTOP)
    server("stop()")
    assert listening(port)
    kill(switch, role)
    until_shut(port)
    # So is one that closes long after its program's last call, when nothing else tells the worker to look.
    server("l = listen(80)")
    server("time.sleep(1.5); l.close()")
    until_shut(port)


@one_mode
def test_instances_of_several_workers_share_a_port(
    new_switch: Callable[..., Switch], actor_file: Path, python: str, port: int
) -> None:
    switch = new_switch()
    switch.up("--workers", "2")
    options = ["--expose", f"{port}:80"]
    servers = [start_actor(switch, actor_file.parent, python, "pair", options=options) for _ in range(2)]
    for number, server in enumerate(servers):
        server(f"stop = greet_by_poll(listen(80), '{number}')")
    heard = Counter(hear(port) for _ in range(40))
    assert set(heard) == {"0", "1"}
    assert sum(heard.values()) == 40
    kill(switch, "worker-0", "worker-1")
    assert {hear(port) for _ in range(40)} == {"0", "1"}
    for one, other in ((0, 1), (1, 0)):
        servers[one]("stop()")
        assert {hear(port) for _ in range(6)} == {str(other)}
        wait_until(lambda: len(published(switch, "pair")) == 1, lambda: "one row")
        assert {hear(port) for _ in range(6)} == {str(other)}
        servers[one](f"stop = greet_by_poll(listen(80), '{one}')")
        assert {hear(port) for _ in range(12)} == {"0", "1"}
    for server in servers:
        server("stop()")
    until_shut(port)
    assert hear(port) == "ECONNREFUSED"
    for server in servers:
        server.close()
