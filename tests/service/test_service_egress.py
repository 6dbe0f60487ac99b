"""Addresses outside the table: the host's network, reached directly or not at all (paper, section 4)."""

import contextlib
import json
import os
import select
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator

import pytest

from service.acting import Actor
from support.needs import need
from support.switch import Switch

Start = Callable[..., Actor]
FAMILIES = ("v4", "v6")
Serve = Callable[[str], "HostServer"]


class HostServer:
    """A service of the host that is not in AppSwitch; says `host` and what it has been told, and closes."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.peers: list[str] = []
        self._open: list[socket.socket] = []
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._listener = socket.create_server((address, 0), family=family)
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                sock, peer = self._listener.accept()
            except OSError:
                return
            self.peers.append(peer[0])
            self._open.append(sock)
            with sock, contextlib.suppress(ConnectionError):
                sock.sendall(b"host")
                sock.sendall(sock.recv(100))

    def close(self) -> None:
        for sock in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()


def addresses() -> dict[str, str]:
    """This machine's own addresses, one of a family; what `lo` has may be another run's, and go."""
    found: dict[str, str] = {}
    for link in json.loads(subprocess.run([need("ip"), "-j", "addr"], capture_output=True, check=True).stdout):
        for info in link["addr_info"] if link["ifname"] != "lo" else ():
            if info["scope"] == "global" and not info.get("tentative"):
                found.setdefault("v4" if info["family"] == "inet" else "v6", info["local"])
    return found


@pytest.fixture(scope="module")
def host_addresses() -> Iterator[dict[str, str]]:
    """An address of each family; where the machine has none, root gives it one for the while."""
    found, own = addresses(), os.getpid()
    made = {"v4": f"198.51.100.{own % 254 + 1}", "v6": f"fd00:a5::{own % 0xFFFF + 1:x}"}
    made = {family: address for family, address in made.items() if family not in found and os.geteuid() == 0}
    for address in made.values():
        # "replace": a run that was killed may have left it behind.
        subprocess.run([need("ip"), "addr", "replace", address, "dev", "lo", "scope", "global"], check=True)
    yield found | made
    for address in made.values():
        subprocess.run([need("ip"), "addr", "del", address, "dev", "lo"], check=True)


@pytest.fixture
def serve() -> Iterator[Callable[[str], HostServer]]:
    """Starts services of the host at an address; they end with the test."""
    servers: list[HostServer] = []

    def start(address: str) -> HostServer:
        servers.append(HostServer(address))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture(params=FAMILIES)
def host(request: pytest.FixtureRequest, host_addresses: dict[str, str], serve: Serve) -> HostServer:
    if request.param not in host_addresses:
        pytest.skip(f"this machine has no {request.param} address, and giving it one needs root")
    return serve(host_addresses[request.param])


@pytest.fixture
def host4(host_addresses: dict[str, str], serve: Serve) -> HostServer:
    return serve(host_addresses["v4"])


def end_rows(switch: Switch, program: Actor) -> list[dict[str, object]]:
    ids = {row["pid"]: row["id"] for row in switch.cli("ps", "-o", "json")}
    rows: list[dict[str, object]] = switch.cli("ps", "--connections", "-o", "json")
    return [row for row in rows if row["program"] == ids[program.pid]]


def test_a_service_of_the_host_is_reached_directly(shared: Switch, actor: Start, host: HostServer) -> None:
    client = actor(ip="10.20.40.1")
    client(f"s = call('{host.address}', {host.port})")
    assert client("s.recv(4).decode()") == "host"
    local, peer = client("story(s)")
    # The program sees itself as ever; the server sees the host.
    assert peer == [host.address, host.port]
    assert local[0] not in ("", host.address)
    if ":" not in host.address:
        assert local[0] == "10.20.40.1"
    [row] = end_rows(shared, client)
    shown = f"[{host.address}]:{host.port}" if ":" in host.address else f"{host.address}:{host.port}"
    assert (row["transport"], row["side"], row["peer"]) == ("egress", "client", shown)
    client("s.sendall(b'bye')")
    assert client("read_all(s)") == "bye"
    assert host.peers == [host.address]


def test_by_v4_mapped_addresses_too(actor: Start, host4: HostServer) -> None:
    client = actor()
    client(f"s = call('::ffff:{host4.address}', {host4.port}, AF_INET6)")
    assert client("story(s)")[1] == [f"::ffff:{host4.address}", host4.port]
    assert client("s.recv(4).decode()") == "host"


_WAYS = {
    "blocking": "s = call(host, port)",
    "with a timeout": "s = socket(family_of(host)); s.settimeout(TIMEOUT); s.connect((host, port))",
    "non-blocking": """
s, code = begin_call(host, port)
assert code == "EINPROGRESS", code
assert events(s, select.POLLOUT) == select.POLLOUT
assert pending_error(s) is None
assert s.connect_ex((host, port)) in (0, errno.EISCONN)
""",
    "in an epoll before": """
s = socket(family_of(host)); s.setblocking(False)
e = select.epoll(); e.register(s, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
e.poll(0)
assert s.connect_ex((host, port)) == errno.EINPROGRESS
assert e.poll(TIMEOUT)[0][0] == s.fileno()
assert pending_error(s) is None
e.modify(s, select.EPOLLIN)
assert e.poll(TIMEOUT) == [(s.fileno(), select.EPOLLIN)]
""",
    "dup'ed before": """
first = socket(family_of(host)); s = first.dup(); first.connect((host, port)); first.close()
""",
    "forked before": """
s = socket(family_of(host)); r, w = os.pipe(); pid = os.fork()
if pid == 0: os.close(w); os.read(r, 1); os._exit(0)
try: s.connect((host, port))
finally: os.close(w); os.waitpid(pid, 0)
""",
}


@pytest.mark.parametrize("way", list(_WAYS), ids=lambda way: way.replace(" ", "-"))
def test_every_way_to_connect(actor: Start, host4: HostServer, way: str) -> None:
    client = actor()
    client(f"host, port = '{host4.address}', {host4.port}")
    client(_WAYS[way])
    client("s.setblocking(True); s.settimeout(TIMEOUT)")
    assert client("s.recv(4).decode()") == "host"
    client("s.sendall(b'bye'); s.shutdown(SHUT_WR)")
    assert client("read_all(s)") == "bye"


_NUMBERS = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (2048, 2048))
def egress_at(number):
    taken = os.dup(number) if os.path.exists(f"/proc/self/fd/{number}") else None
    first = socket(); first.setblocking(False)
    if first.fileno() == number: first.detach()
    else: os.dup2(first.fileno(), number); first.close()
    e = select.epoll(); e.register(number, select.EPOLLIN)
    s = socket(fileno=os.dup(number)); s.connect_ex((host, port))
    happened = [n for n, _ in e.poll(TIMEOUT)] == [number] and s.recv(4) == b"host"
    e.close(); s.close()
    if taken is None: os.close(number)
    else: os.dup2(taken, number); os.close(taken)
    return happened
"""


def test_any_number_of_a_descriptor_in_an_epoll_will_do(shared: Switch, actor: Start, host4: HostServer) -> None:
    """The switch may have files of its own at the same number, whose locks must outlive the exchange."""
    client = actor("numbers")
    client(f"host, port = '{host4.address}', {host4.port}")
    client(_NUMBERS)
    for number in (*range(3, 24), *range(998, 1010)):
        assert client(f"egress_at({number})"), number
    # Others open the table now, and find it as it was.
    actor("after")("greet(listen(80), 'after')")
    assert {row["name"] for row in shared.services(port=80)} == {"after"}
    client("l = listen(81)")
    assert client("hear('after', 80)") == "after"


def test_options_set_before_connect_hold(actor: Start, host: HostServer) -> None:
    client = actor()
    options = {
        "(IPPROTO_TCP, TCP_NODELAY)": 1,
        "(SOL_SOCKET, SO_KEEPALIVE)": 1,
        "(IPPROTO_TCP, TCP_KEEPIDLE)": 77,
        "(IPPROTO_TCP, TCP_USER_TIMEOUT)": 5000,
    }
    client(f"s = socket(family_of('{host.address}'))")
    for option, value in options.items():
        client(f"s.setsockopt(*{option}, {value})")
    client(f"s.connect(('{host.address}', {host.port}))")
    for option, value in options.items():
        assert client(f"s.getsockopt(*{option})") == value
    client("s.close()")


def test_a_refusal_outside_is_seen_as_natively(actor: Start, host_addresses: dict[str, str]) -> None:
    client, service = actor(), actor("near")
    service("greet(listen(80), 'near')")
    near = client("gethostbyname('near')")
    with socket.socket() as reserved:
        reserved.bind((host_addresses["v4"], 0))  # nobody listens there, and nobody else can
        refused_outside(client, near, f"'{host_addresses['v4']}', {reserved.getsockname()[1]}")


def refused_outside(client: Actor, near: str, target: str) -> None:
    client("s = socket(); s.settimeout(TIMEOUT)")
    assert client.errno(f"s.connect(({target}))") == "ECONNREFUSED"
    assert client("outcome('near', 80)") == "near"
    # As on Linux, a socket that was refused may try elsewhere.
    client(f"s.connect(('{near}', 80))")
    assert client("read_all(s)") == "near"
    client(f"s, code = begin_call({target})")
    if client("code") == "EINPROGRESS":
        assert client("events(s)") & (select.POLLERR | select.POLLHUP) == select.POLLERR | select.POLLHUP
        assert client("[pending_error(s), pending_error(s)]") == ["ECONNREFUSED", None]
    else:
        assert client("code") == "ECONNREFUSED"


def test_egress_may_be_denied(shared: Switch, actor: Start, host4: HostServer) -> None:
    before = shared.cli("status", "-o", "json")
    actor("near")("greet(listen(80), 'near')")
    client = actor("caged", options=["--egress", "deny"])
    assert client(f"outcome('{host4.address}', {host4.port})") == "EACCES"
    assert client(f"begin_call('{host4.address}', {host4.port})[1]") == "EACCES"
    assert client("outcome('near', 80)") == "near"
    assert host4.peers == []
    rows = [row for row in shared.cli("denials", "-o", "json") if row["client"] == "caged"]
    assert [(row["destination"], row["port"]) for row in rows] == [(host4.address, host4.port)] * 2
    assert all("--egress deny" in row["rule"] for row in rows)
    after = shared.cli("status", "-o", "json")
    assert after["denied"] - before["denied"] == 2
    assert after["counters"]["egress"] == before["counters"]["egress"]


@pytest.mark.parametrize("loopback", ["127.0.0.1", "::1"])
def test_the_host_s_loopback_is_not_the_program_s(actor: Start, serve: Serve, loopback: str) -> None:
    server = serve(loopback)
    client = actor("inner")
    for target in (loopback, "0.0.0.0" if "." in loopback else "::", "localhost"):
        assert client(f"outcome('{target}', {server.port})") == "ECONNREFUSED"
    client("l = listen(0); port = l.getsockname()[1]; greet(l, 'own')")
    assert client("hear('127.0.0.1', port)") == "own"
    assert server.peers == []


def test_curl_of_the_host_s_loopback_is_refused(shared: Switch, serve: Serve) -> None:
    server = serve("127.0.0.1")
    # 7: failed to connect (curl(1)).
    shared.check([need("curl"), "--silent", f"http://127.0.0.1:{server.port}/"], status=7)
    assert server.peers == []


def test_an_unknown_virtual_address_is_never_asked_of_the_host(actor: Start) -> None:
    client = actor()
    for address in ("100.64.99.99", "100.127.1.1", "169.254.99.99"):
        assert client(f"outcome('{address}', 80)") == "EHOSTUNREACH"


# UDP ---------------------------------------------------------------------------------------------------------


@pytest.fixture(params=FAMILIES)
def host_udp(request: pytest.FixtureRequest, host_addresses: dict[str, str]) -> Iterator[socket.socket]:
    """A UDP socket of the host's."""
    if request.param not in host_addresses:
        pytest.skip(f"this machine has no {request.param} address, and giving it one needs root")
    with socket.socket(socket.AF_INET if request.param == "v4" else socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.bind((host_addresses[request.param], 0))
        sock.settimeout(60)
        yield sock


def test_datagrams_leave_and_their_answers_find_back(actor: Start, host_udp: socket.socket) -> None:
    host, port = host_udp.getsockname()[:2]
    client = actor(ip="10.20.40.2")
    client(f"cs = [socket(family_of('{host}'), SOCK_DGRAM) for _ in range(2)]; [c.settimeout(TIMEOUT) for c in cs]")
    for number in range(2):
        client(f"cs[{number}].sendto(b'{number}', ('{host}', {port}))")
    peers = {}
    for _ in range(2):
        data, peer = host_udp.recvfrom(100)
        peers[data] = peer
    assert len(set(peers.values())) == 2
    for data, peer in peers.items():
        assert peer[0] == host  # the host's own address: the program's means nothing here
        host_udp.sendto(data * 2, peer)
    for number in range(2):
        client(f"d, peer = cs[{number}].recvfrom(100)")
        assert client("[d.decode(), *peer[:2]]") == [str(number) * 2, host, port]
    # Nobody else may answer.
    with socket.socket(host_udp.family, socket.SOCK_DGRAM) as other:
        other.bind((host, 0))
        other.sendto(b"forged", peers[b"0"])
    host_udp.sendto(b"true", peers[b"0"])
    assert client("cs[0].recv(100).decode()") == "true"
    large = 60000
    client(f"cs[0].sendto(bytes({large}), ('{host}', {port}))")
    assert len(host_udp.recv(70000)) == large
    batch = "b'A' * 1000 + b'B' * 1000 + b'C'"
    client(f"cs[0].setsockopt(IPPROTO_UDP, 103, 1000); cs[0].sendto({batch}, ('{host}', {port}))")  # UDP_SEGMENT
    assert [host_udp.recv(70000) for _ in range(3)] == [b"A" * 1000, b"B" * 1000, b"C"]
    client("cs[0].setsockopt(IPPROTO_UDP, 103, 0)")
    client(f"cs[0].connect(('{host}', {port}))")
    host_udp.close()
    assert client("outcome_of(lambda: [cs[0].send(b'?'), cs[0].recv(9)])") == "ECONNREFUSED"


def test_datagrams_that_may_not_leave(shared: Switch, actor: Start, host_udp: socket.socket) -> None:
    host, port = host_udp.getsockname()[:2]
    client = actor(f"udp-confined-{host_udp.family:d}", options=["--egress", "deny"])
    client(f"c = socket(family_of('{host}'), SOCK_DGRAM); c.settimeout(TIMEOUT); c.connect(('{host}', {port}))")
    error = "EACCES" if ":" in host else "EHOSTUNREACH"
    assert client("outcome_of(lambda: [c.send(b'?'), c.recv(9)])") == error
    rows = [row for row in shared.cli("denials", "-o", "json") if row["client"] == f"udp-confined-{host_udp.family:d}"]
    assert [(row["service"], row["destination"], row["port"]) for row in rows] == [("outside", host, port)]
    host_udp.setblocking(False)
    with pytest.raises(BlockingIOError):
        host_udp.recv(10)


def test_datagrams_never_reach_the_hosts_loopback_nor_an_address_of_nobodys(actor: Start) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        for client in (actor(ip="10.20.40.3"), actor(ip="2001:db8:40::3")):
            for host in ("127.0.0.1", "127.9.9.9", "0.0.0.0"):
                client(f"c = socket(AF_INET, SOCK_DGRAM); c.settimeout(TIMEOUT); c.connect(('{host}', {port}))")
                assert client("outcome_of(lambda: [c.send(b'?'), c.recv(9)])") == "ECONNREFUSED"
            client(f"c = socket(AF_INET, SOCK_DGRAM); c.settimeout(TIMEOUT); c.connect(('100.64.200.200', {port}))")
            assert client("outcome_of(lambda: [c.send(b'?'), c.recv(9)])") == "EHOSTUNREACH"
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(10)
