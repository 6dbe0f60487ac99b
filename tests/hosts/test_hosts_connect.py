"""connect() from one host to another: what both programs see."""

import select
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hosts.by_hand import carry, counters, rows_of, up_all, vip_of
from service.acting import Actor
from support.hosts import Host, Hosts
from support.modes import Person
from support.program import DEADLINE, wait_until

Start = Callable[..., Actor]


@pytest.fixture(scope="module")
def pair(appswitch_command: Callable[[Person], Path], needs_root: None) -> Iterator[Hosts]:
    """Two hosts whose switches know of each other; for all tests that do not break them."""
    lab = Hosts(2, appswitch_command)
    try:
        up_all(lab)
        yield lab
    finally:
        lab.close()


@pytest.fixture(scope="module")
def needs_root() -> None:
    from support import modes

    if modes.MYSELF.uid != 0:
        pytest.skip("network namespaces for hosts need root")


@pytest.fixture
def a(pair: Hosts) -> Host:
    return pair[0]


@pytest.fixture
def b(pair: Hosts) -> Host:
    return pair[1]


def connections(host: Host, program: Actor) -> list[dict[str, object]]:
    ids = {row["pid"]: row["id"] for row in host.cli("ps", "-o", "json")}
    rows = host.cli("ps", "--connections", "-o", "json")
    return [row for row in rows if row["program"] == ids[program.pid]]


def test_both_sides_see_virtual_addresses(a: Host, b: Host, actor_on: Start) -> None:
    before = counters(a), counters(b)
    server, client = actor_on(b, "story-web"), actor_on(a, "story-cli", ip="10.20.30.40")
    server("l = listen(80)")
    carry(b, a)
    vip = vip_of(b, "story-web")
    client(f"s = call('{vip}', 80)")
    server("s, address = take(l)")
    mine, peer = client("story(s)")
    assert peer == [vip, 80]
    assert mine[0] == "10.20.30.40"
    assert server("story(s)") == [peer, mine]
    assert server("list(address)") == mine
    client("s.sendall(b'question')")
    assert server("s.recv(100).decode()") == "question"
    server("s.sendall(b'answer'); s.shutdown(SHUT_WR)")
    assert client("read_all(s)") == "answer"
    for host, program, side in ((a, client, "client"), (b, server, "server")):
        [row] = connections(host, program)
        assert (row["transport"], row["side"]) == ("remote", side)
        own, other = (mine, peer) if side == "client" else (peer, mine)
        assert (row["local"], row["peer"]) == (f"{own[0]}:{own[1]}", f"{other[0]}:{other[1]}")
    assert counters(a)["remote"] - before[0]["remote"] == 1
    assert counters(b)["arrived"] - before[1]["arrived"] == 1


_WAYS = {
    "blocking": "s = call(host, port)",
    "with a timeout": "s = socket(); s.settimeout(TIMEOUT); s.connect((host, port))",
    "non-blocking": """
s, code = begin_call(host, port)
assert code == "EINPROGRESS", code
assert events(s, select.POLLOUT) == select.POLLOUT
assert pending_error(s) is None
assert s.connect_ex((host, port)) == 0
assert s.connect_ex((host, port)) == errno.EISCONN
""",
    "in an epoll before": """
s = socket(); s.setblocking(False)
e = select.epoll(); e.register(s, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
e.poll(0)
assert s.connect_ex((host, port)) == errno.EINPROGRESS
assert e.poll(TIMEOUT)[0][0] == s.fileno()
assert pending_error(s) is None
e.modify(s, select.EPOLLIN)
""",
    "dup'ed before": "first = socket(); s = first.dup(); first.connect((host, port)); first.close()",
    "bound before": "s = call(host, port, bind=('', 4321)); assert s.getsockname()[1] == 4321",
    "by AF_INET6": "s = call('::ffff:' + host, port, AF_INET6)",
    "by a socket that was refused": """
s = socket()
assert s.connect_ex((host, 9)) == errno.ECONNREFUSED
s.connect((host, port))
""",
}


@pytest.mark.parametrize("way", list(_WAYS), ids=lambda way: way.replace(" ", "-"))
def test_every_way_to_connect(a: Host, b: Host, actor_on: Start, way: str) -> None:
    server, client = actor_on(b, "ways-web"), actor_on(a, "ways-cli")
    server("l = listen(80)")
    carry(b, a)
    client(f"host, port = '{vip_of(b, 'ways-web')}', 80")
    client(_WAYS[way])
    client("s.setblocking(True); s.settimeout(TIMEOUT); s.sendall(b'hello')")
    server("s, address = take(l)")
    assert server("s.recv(100).decode()") == "hello"
    assert server("story(s)")[1][1] == client("story(s)")[0][1]
    server("s.sendall(b'bye'); s.close()")
    assert client("read_all(s)") == "bye"


_SERVERS = {
    "blocked in accept": ("w = in_thread(lambda: l.accept()[0])", "s = w()"),
    "polling": ("l.setblocking(False)", "assert events(l, select.POLLIN); s, _ = l.accept()"),
    "by epoll": (
        "e = select.epoll(); l.setblocking(False); e.register(l, select.EPOLLIN | select.EPOLLET)",
        "assert e.poll(TIMEOUT); s, _ = l.accept()",
    ),
    "by accept4 with flags": ("", "s = l.accept()[0]; assert s.getblocking()"),
}


@pytest.mark.parametrize("way", list(_SERVERS), ids=lambda way: way.replace(" ", "-"))
def test_every_way_to_accept(a: Host, b: Host, actor_on: Start, way: str) -> None:
    server, client = actor_on(b, "serves"), actor_on(a)
    server("l = listen(80)")
    carry(b, a)
    before, after = _SERVERS[way]
    server(before)
    client(f"s = call('{vip_of(b, 'serves')}', 80)")
    server(after)
    # as accept(2) makes it on Linux: blocking, close-on-exec only because Python asks for it
    assert server("fcntl.fcntl(s, fcntl.F_GETFL) & os.O_NONBLOCK") == 0
    server("s.settimeout(TIMEOUT); s.sendall(b'first')")
    assert client("s.recv(100).decode()") == "first"


def test_a_server_may_speak_first_and_neither_waits(a: Host, b: Host, actor_on: Start) -> None:
    server, client = actor_on(b, "greeter"), actor_on(a)
    server("greet(listen(80), 'welcome')")
    carry(b, a)
    for _ in range(3):
        assert client(f"hear('{vip_of(b, 'greeter')}', 80)") == "welcome"


def test_options_hold_and_are_inherited(a: Host, b: Host, actor_on: Start) -> None:
    server, client = actor_on(b, "opts-web"), actor_on(a)
    server("l = socket(); l.setsockopt(SOL_SOCKET, SO_KEEPALIVE, 1); l.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)")
    server("l.setsockopt(IPPROTO_TCP, TCP_KEEPIDLE, 66); l.bind(('', 80)); l.listen()")
    carry(b, a)
    options = {
        "(IPPROTO_TCP, TCP_NODELAY)": 1,
        "(SOL_SOCKET, SO_KEEPALIVE)": 1,
        "(IPPROTO_TCP, TCP_KEEPIDLE)": 77,
        "(IPPROTO_TCP, TCP_USER_TIMEOUT)": 5000,
    }
    client("s = socket()")
    for option, value in options.items():
        client(f"s.setsockopt(*{option}, {value})")
    client(f"s.connect(('{vip_of(b, 'opts-web')}', 80))")
    for option, value in options.items():
        assert client(f"s.getsockopt(*{option})") == value
    server("s, _ = take(l)")
    assert server("s.getsockopt(SOL_SOCKET, SO_KEEPALIVE)") == 1
    assert server("s.getsockopt(IPPROTO_TCP, TCP_NODELAY)") == 1
    assert server("s.getsockopt(IPPROTO_TCP, TCP_KEEPIDLE)") == 66
    assert server("s.getsockopt(SOL_SOCKET, SO_DOMAIN)") == 2
    assert client("s.getsockopt(SOL_SOCKET, SO_DOMAIN)") == 2


def test_much_data_both_ways_and_half_closes(a: Host, b: Host, actor_on: Start) -> None:
    server, client = actor_on(b, "bulk"), actor_on(a)
    server("l = listen(80)")
    carry(b, a)
    client(f"s = call('{vip_of(b, 'bulk')}', 80)")
    server("s, _ = take(l)")
    for sender, receiver in ((client, server), (server, client)):
        sender.begin("s.sendall(b'0123456789abcdef' * 262144); s.shutdown(SHUT_WR)")
        assert receiver("read_all(s) == '0123456789abcdef' * 262144")
        sender.end()


@pytest.mark.parametrize("client_of", ["10.1.1.1", "fd00:aa::1"])
@pytest.mark.parametrize("service", ["10.1.1.2", "fd00:aa::2"])
def test_virtual_addresses_of_both_families(
    a: Host, b: Host, actor_on: Start, client_of: str, service: str
) -> None:
    server, client = actor_on(b, "families", ip=service), actor_on(a, ip=client_of)
    server("l = listen(80, '::', only6=0)")
    carry(b, a)
    client(f"s = call('{service}', 80)")
    server("s, _ = take(l)")
    local, peer = client("story(s)")
    assert peer == [service, 80]
    mapped = "::ffff:" if "." in service else ""
    assert server("story(s)") == [[f"{mapped}{service}", 80], [f"{mapped}{local[0]}", local[1]]]
    assert server("s.getsockopt(SOL_SOCKET, SO_DOMAIN)") == 10


# one distributed application -------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", ["0.0.0.0", "127.0.0.1", "10.3.3.3"])
def test_loopback_reaches_the_other_hosts_of_a_virtual_ip(a: Host, b: Host, actor_on: Start, bound: str) -> None:
    server, client, other = actor_on(b, ip="10.3.3.3"), actor_on(a, ip="10.3.3.3"), actor_on(a, ip="10.3.3.4")
    server(f"l = listen(80, '{bound}')")
    carry(b, a)
    if bound != "10.3.3.3":
        client("s = call('127.0.0.1', 80)")
        server("s, _ = take(l)")
        local, peer = client("story(s)")
        assert peer == ["127.0.0.1", 80]
        assert local[0] == "127.0.0.1"
        assert server("story(s)") == [peer, local]
    if bound != "127.0.0.1":
        assert client("call('10.3.3.3', 80).getpeername()[0]") == "10.3.3.3"
        assert other("call('10.3.3.3', 80).getpeername()[0]") == "10.3.3.3"
    else:
        assert other("outcome('10.3.3.3', 80)") == "ECONNREFUSED"
        assert client("outcome('10.3.3.3', 80)") == "ECONNREFUSED"


def test_this_host_s_instances_come_first_unless_spread(a: Host, b: Host, actor_on: Start) -> None:
    for method, expected in (("round-robin", {"near"}), ("random", {"near"}), ("spread", {"near", "far"})):
        name = f"many-{method}"
        far, near = (actor_on(host, name, options=["--balance", method]) for host in (b, a))
        far("greet(listen(80), 'far')")
        near("l = listen(80); greet(l, 'near')")
        carry(b, a)
        client, vip = actor_on(a), vip_of(a, name)
        assert {client(f"hear('{vip}', 80)") for _ in range(6)} == expected, method
        near("l.shutdown(SHUT_RDWR); l.close()")
        assert {client(f"hear('{vip}', 80)") for _ in range(4)} == {"far"}, method


def test_both_sides_apply_the_policy(a: Host, b: Host, actor_on: Start) -> None:
    server = actor_on(b, "grouped", tags=["group=1", "group=2"])
    server("l = listen(80); greet(l, 'in')")
    carry(b, a)
    vip = vip_of(b, "grouped")
    friend, stranger = actor_on(a, "friend", tags=["group=2"]), actor_on(a, "stranger", tags=["group=3", "x=y"])
    assert friend(f"hear('{vip}', 80)") == "in"
    assert stranger(f"outcome('{vip}', 80)") == "EACCES"
    assert [row["client"] for row in a.cli("denials", "-o", "json")] == ["stranger"]
    # A client's host that has the service's tags wrong lets it pass: the server's host does not.
    before = counters(b)
    carry(b, a, tags=(("group", "3"),))
    assert stranger(f"outcome('{vip}', 80)") == "ECONNRESET"
    [denied] = [row for row in b.cli("denials", "-o", "json") if row["service"] == "grouped"]
    assert (denied["tags"], denied["destination"], denied["port"]) == (["group=3", "x=y"], vip, 80)
    after = counters(b)
    assert (after["denied"] - before["denied"], after["arrived"] - before["arrived"]) == (1, 0)


# lives of workers and hosts --------------------------------------------------------------------------------


def test_a_connection_outlives_the_workers(a: Host, b: Host, actor_on: Start) -> None:
    server, client = actor_on(b, "lasting"), actor_on(a)
    server("l = listen(80)")
    carry(b, a)
    client(f"s = call('{vip_of(b, 'lasting')}', 80)")
    server("s, _ = take(l)")
    before = rows_of(b, "lasting")[0]
    for host, program in ((a, client), (b, server)):
        story = program("story(s)")
        [pid] = [row["pid"] for row in host.cli("status", "-o", "json")["processes"] if row["role"] == "worker-0"]
        with_pidfd_killed(pid)
        assert program("story(s)") == story
    client("s.sendall(b'still')")
    assert server("s.recv(100).decode()") == "still"
    [row] = wait_until(
        lambda: [row for row in rows_of(b, "lasting") if row.real != before.real], lambda: "a new real port"
    )
    assert row.epoch != before.epoch
    assert row.version > before.version
    # Until the other host hears of it, connects are refused; then they work.
    assert client(f"outcome('{vip_of(b, 'lasting')}', 80)") == "ECONNREFUSED"
    carry(b, a)
    client(f"t = call('{vip_of(b, 'lasting')}', 80)")
    server("t, _ = take(l)")


def with_pidfd_killed(pid: int) -> None:
    import os
    import signal

    pidfd = os.pidfd_open(pid)
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    assert select.select([pidfd], [], [], DEADLINE)[0]
    os.close(pidfd)
