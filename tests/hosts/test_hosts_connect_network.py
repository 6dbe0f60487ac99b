"""Networks and instances that make connecting hard: what programs see, and who pays how often."""

import itertools
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from appswitch.table.codec import host_id
from appswitch.trap import trials
from hosts.by_hand import carry, counters, name_of, put, remote_row, row_of, tell, up_all, vip_of
from service.acting import Actor
from support import modes
from support.hosts import Host, Hosts
from support.modes import Person
from support.program import wait_until

Start = Callable[..., Actor]
WAYS = ("blocking", "non-blocking")
#: Authors of rows that come before those of host 2, so that their instances are the first to be tried.
GONE_FIRST = sorted((f"gone-{n}" for n in range(40)), key=host_id)[:3]

#: Connects `s` to (host, port), by the way that is asked for; tells the error of the connect, if any.
CONNECTS = """
def reach(way, host, port, prepare=lambda s: None):
    global s
    s = socket(); prepare(s)
    if way == "blocking":
        code = s.connect_ex((host, port))
    else:
        s.setblocking(False)
        code = s.connect_ex((host, port))
        if code == errno.EINPROGRESS:
            assert events(s, select.POLLOUT, 90)
            code = s.getsockopt(SOL_SOCKET, SO_ERROR)
    assert bool(fcntl.fcntl(s, fcntl.F_GETFL) & os.O_NONBLOCK) == (way != "blocking")
    s.settimeout(TIMEOUT)
    return errno.errorcode.get(code, code)
"""


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture(scope="module")
def lab(appswitch_command: Callable[[Person], Path]) -> Iterator[Hosts]:
    """Two hosts with switches that know of each other."""
    if modes.MYSELF.uid != 0:
        pytest.skip("network namespaces for hosts need root")
    made = Hosts(2, appswitch_command)
    try:
        up_all(made)
        yield made
    finally:
        made.close()


@pytest.fixture
def ab(lab: Hosts, actor_on: Start) -> Iterator[Hosts]:
    """The two, with a network that is as it was, and nothing learned of it yet."""
    a = lab[0]
    sentinel = actor_on(a, "sentinel")
    sentinel("l = listen(7)")
    # A host that is somewhere else for a moment forgets what it knows.
    for address, changes in ((a.address, {}), ("127.0.0.1", {"host": "", "keys": ()}), (a.address, {})):
        tell(a, **changes)
        wait_until(lambda to=address: row_of(a, "sentinel").real[0] == to, lambda: "a real port elsewhere")
    yield lab
    for host in lab:
        host.namespace.pass_all()
        host.namespace.sysctl("net/ipv4/tcp_fastopen", 1)
    for name in (*GONE_FIRST, name_of(lab[1])):
        put(a, name, [])


def serve(host: Host, actor_on: Start, name: str = "web", **keywords: object) -> Actor:
    server = actor_on(host, name, **keywords)
    server(f"greet(listen(80), '{name}')")
    return server


def client_on(host: Host, actor_on: Start, **keywords: object) -> Actor:
    client = actor_on(host, **keywords)
    client(CONNECTS)
    return client


#: An nft(8) rule: a SYN longer than its own headers can be.
SYNS_WITH_DATA = "tcp flags & (syn | ack) == syn meta length > 120"


# the network ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["client", "server", "both"])
def test_without_fast_open(ab: Hosts, actor_on: Start, side: str, way: str) -> None:
    a, b = ab
    for host in {"client": (a,), "server": (b,), "both": (a, b)}[side]:
        host.namespace.sysctl("net/ipv4/tcp_fastopen", 0)
    serve(b, actor_on)
    carry(b, a)
    client = client_on(a, actor_on)
    client(f"vip = '{vip_of(b, 'web')}'")
    before = counters(b)["arrived"]
    for _ in range(3):
        assert client(f"reach('{way}', vip, 80)") == 0
        assert client("read_all(s)") == "web"
    assert client(f"reach('{way}', vip, 80)") == 0
    assert client("story(s)[1]") == [vip_of(b, "web"), 80]
    wait_until(lambda: counters(b)["arrived"] - before == 4, lambda: "the last one's header to have come")
    assert client(f"reach('{way}', vip, 81)") == "ECONNREFUSED"


def test_a_network_that_drops_syns_with_data_is_learned_of_once(ab: Hosts, actor_on: Start, way: str) -> None:
    a, b = ab
    serve(b, actor_on)
    carry(b, a)
    client = client_on(a, actor_on)
    client(f"vip = '{vip_of(b, 'web')}'")
    before = counters(a)["early_data_lost"], counters(b)["arrived"]
    b.namespace.drop(SYNS_WITH_DATA)
    assert client(f"reach('{way}', vip, 80)") == 0
    assert client("read_all(s)") == "web"
    # How a non-blocking one fared is looked at after a while.
    wait_until(lambda: counters(a)["early_data_lost"] == before[0] + 1, lambda: "the loss to be found out")
    dropped = b.namespace.dropped()
    assert dropped == 1
    for _ in range(3):
        assert client(f"reach('{way}', vip, 80)") == 0
        assert client("read_all(s)") == "web"
    assert b.namespace.dropped() == dropped
    assert counters(b)["arrived"] - before[1] == 4


def test_a_header_that_does_not_fit_a_syn(ab: Hosts, actor_on: Start, way: str) -> None:
    exchange(ab, actor_on, f"reach('{way}', vip, 80, lambda s: s.setsockopt(IPPROTO_TCP, TCP_MAXSEG, 88))")


def test_the_longest_header_on_a_narrow_network(hosts: Callable[..., Hosts], actor_on: Start, way: str) -> None:
    lab = hosts(2, family=4)
    up_all(lab)
    lab[0].namespace.ip("link set eth0 mtu 600")
    exchange(lab, actor_on, f"reach('{way}', vip, 80)", tags=[f"key{n}={'v' * 248}" for n in range(4)])


def exchange(ab: Hosts, actor_on: Start, reach: str, tags: Sequence[str] = ()) -> None:
    a, b = ab
    server = actor_on(b, "web")
    server("l = listen(80)")
    carry(b, a)
    client = client_on(a, actor_on, tags=tags)
    client(f"vip = '{vip_of(b, 'web')}'")
    for _ in range(2):
        assert client(reach) == 0
        client("s.sendall(b'question')")
        server("s, _ = take(l)")
        assert server("s.recv(100).decode()") == "question"
        server("s.sendall(b'answer'); s.close()")
        assert client("read_all(s)") == "answer"


@pytest.mark.parametrize("family", [4, 6])
def test_an_underlay_of_one_family_carries_both(
    hosts: Callable[..., Hosts], actor_on: Start, family: int, way: str
) -> None:
    lab = hosts(2, family=family)
    a, b = lab
    up_all(lab)
    server = actor_on(b, "web", ip="10.6.6.6")
    server("l = listen(80); greet(listen(443, '::', only6=1), 'six')")
    six = actor_on(b, ip="fd00:6::6")
    six("greet(listen(80, '::'), 'vip6')")
    carry(b, a)
    client = client_on(a, actor_on)
    assert client(f"reach('{way}', '10.6.6.6', 80)") == 0
    server("s, address = take(l)")
    # whatever carries it, both are sockets of the family that the programs asked for
    for program in (client, server):
        assert program("[s.getsockopt(SOL_SOCKET, SO_DOMAIN), len(s.getsockname())]") == [2, 2]
        program("s.setsockopt(IPPROTO_IP, IP_TOS, 0x10); s.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)")
    client("s.sendall(b'x')")
    assert server("s.recv(10).decode()") == "x"
    assert client("hear('fd00:6::6', 80)") == "vip6"
    assert client("hear('fd61:7070:7377:6974:6368:0:a06:606', 443)") == "six"


def test_packets_lost_at_random(ab: Hosts, actor_on: Start, way: str) -> None:
    a, b = ab
    server = serve(b, actor_on)
    carry(b, a)
    client = client_on(a, actor_on)
    for host in (a, b):
        host.namespace.drop("meta l4proto tcp numgen random mod 100 < 10")
    for _ in range(6):
        assert client(f"reach('{way}', '{vip_of(b, 'web')}', 80)") == 0
        client("s.settimeout(60)")
        assert client("read_all(s)") == "web"
    assert server.is_free()


# instances that are not there ------------------------------------------------------------------------------


def refusing(host: Host) -> tuple[str, int]:
    """A port of a host at which nothing listens, kept free of others."""

    def reserve() -> tuple[socket.socket, tuple[str, int]]:
        sock = socket.socket()
        sock.bind((host.address, 0))
        return sock, sock.getsockname()

    sock, address = host.namespace.call(reserve)
    _reserved.append(sock)
    return address


_reserved: list[socket.socket] = []


@pytest.fixture(autouse=True)
def _free() -> Iterator[None]:
    yield
    while _reserved:
        _reserved.pop().close()


GONE: dict[str, Callable[[Hosts], tuple[str, int]]] = {
    "refusing": lambda ab: refusing(ab[1]),
    "black-holed": lambda ab: (ab[1].address, 9),
    "without a route": lambda ab: ("192.0.2.77", 9),
    "not on the network": lambda ab: ("10.77.0.99", 9),
}


def make_black_hole(host: Host) -> None:
    host.namespace.drop("tcp dport 9")


_fresh = itertools.count(1)


@pytest.fixture
def vip() -> str:
    """A virtual IP whose instances nobody has tried yet."""
    return f"10.5.0.{next(_fresh)}"


@pytest.fixture
def gone_client(ab: Hosts, actor_on: Start, vip: str) -> Actor:
    """On the first host; on the second there is a service at `vip`, whose row the first does not have yet."""
    server = actor_on(ab[1], ip=vip)
    server("greet(listen(80), 'here')")
    make_black_hole(ab[1])
    return client_on(ab[0], actor_on)


@pytest.mark.parametrize("how", list(GONE), ids=lambda how: how.replace(" ", "-"))
def test_an_instance_that_is_gone_is_passed_over(ab: Hosts, gone_client: Actor, vip: str, how: str, way: str) -> None:
    a, b = ab
    carry(b, a)
    put(a, GONE_FIRST[0], [remote_row(vip, 80, GONE[how](ab), host=GONE_FIRST[0], since=0.0)])
    before, begun = counters(a)["passed_over"], time.monotonic()
    for _ in range(4):  # in turn: half of them come to the gone one first
        assert gone_client(f"reach('{way}', '{vip}', 80)") == 0
        assert gone_client("story(s)[1]") == [vip, 80]
        assert gone_client("read_all(s)") == "here"
    assert counters(a)["passed_over"] > before
    # silent ones come last after the first time
    assert time.monotonic() - begun < 60


@pytest.mark.parametrize("how", list(GONE), ids=lambda how: how.replace(" ", "-"))
def test_two_that_are_gone_are_passed_over(ab: Hosts, gone_client: Actor, vip: str, how: str, way: str) -> None:
    a, b = ab
    carry(b, a, since=9.0)
    for name in GONE_FIRST[:2]:
        put(a, name, [remote_row(vip, 80, GONE[how](ab), host=name, since=0.0)])
    for _ in range(3):
        assert gone_client(f"reach('{way}', '{vip}', 80)") == 0
        assert gone_client("read_all(s)") == "here"


def test_all_that_refuse_give_the_error_of_the_last(ab: Hosts, gone_client: Actor, vip: str, way: str) -> None:
    a, b = ab
    for name in GONE_FIRST:
        put(a, name, [remote_row(vip, 80, refusing(b), host=name)])
    assert gone_client(f"reach('{way}', '{vip}', 80)") == "ECONNREFUSED"
    put(a, GONE_FIRST[0], [remote_row(vip, 80, ("192.0.2.77", 9), host=GONE_FIRST[0])])
    for name in GONE_FIRST[1:]:
        put(a, name, [])
    assert gone_client(f"reach('{way}', '{vip}', 80)") == "ENETUNREACH"
    # what the program sees of one silent instance alone is the kernel's
    put(a, GONE_FIRST[0], [remote_row(vip, 80, (b.address, 9), host=GONE_FIRST[0])])
    gone_client("prepare = lambda s: s.setsockopt(IPPROTO_TCP, TCP_USER_TIMEOUT, 2500)")
    assert gone_client(f"reach('{way}', '{vip}', 80, prepare)") == "ETIMEDOUT"


def test_a_local_instance_is_the_fall_back_of_remote_ones(ab: Hosts, actor_on: Start, vip: str, way: str) -> None:
    a, b = ab
    options = ["--balance", "spread"]
    near = actor_on(a, ip=vip, options=options)
    near("greet(listen(80), 'near')")
    put(a, GONE_FIRST[0], [remote_row(vip, 80, refusing(b), host=GONE_FIRST[0], since=0.0, balance="spread")])
    client = client_on(a, actor_on)
    before = counters(a)["passed_over"]
    for _ in range(4):
        assert client(f"reach('{way}', '{vip}', 80)") == 0
        assert client("story(s)[1]") == [vip, 80]
        assert client("read_all(s)") == "near"
    assert counters(a)["passed_over"] > before


def test_so_sndtimeo_ends_the_wait(ab: Hosts, gone_client: Actor, vip: str) -> None:
    a, b = ab
    put(a, GONE_FIRST[0], [remote_row(vip, 80, (b.address, 9), host=GONE_FIRST[0])])
    gone_client(f"t = {struct.pack('qq', 0, 300_000)!r}")
    assert gone_client(f"reach('blocking', '{vip}', 80, lambda s: s.setsockopt(SOL_SOCKET, SO_SNDTIMEO, t))") == (
        "EINPROGRESS"
    )


INTERRUPTED = """
import signal
def interrupted(restart, host, port):
    global s
    r, w = os.pipe()
    signal.signal(signal.SIGALRM, lambda *_: os.write(w, b"."))
    signal.siginterrupt(signal.SIGALRM, not restart)
    libc = ctypes.CDLL(None, use_errno=True)
    s = socket()
    address = struct.pack("=H", AF_INET) + struct.pack("!H", port) + inet_aton(host) + bytes(8)
    # Again and again where it ends the call, for the first may come before that has begun.
    signal.setitimer(signal.ITIMER_REAL, 0.3, 0 if restart else 0.3)
    result = libc.connect(s.fileno(), address, 16)
    code = ctypes.get_errno() if result else 0
    signal.setitimer(signal.ITIMER_REAL, 0)
    os.read(r, 1)
    return errno.errorcode.get(code, code)
"""


@pytest.mark.parametrize("fast_open", [1, 0])
@pytest.mark.parametrize("restart", [True, False])
def test_signals_while_a_connect_waits(ab: Hosts, gone_client: Actor, vip: str, restart: bool, fast_open: int) -> None:
    a, b = ab
    a.namespace.sysctl("net/ipv4/tcp_fastopen", fast_open)
    carry(b, a, since=9.0)
    put(a, GONE_FIRST[0], [remote_row(vip, 80, (b.address, 9), host=GONE_FIRST[0], since=0.0)])
    gone_client(INTERRUPTED)
    code = gone_client(f"interrupted({restart}, '{vip}', 80)")
    if restart:
        assert code == 0
    else:
        assert code == "EINTR"
        if fast_open:  # as natively: it goes on, and is passed over when it is silent
            assert gone_client("events(s, select.POLLOUT)") & select.POLLOUT
            assert gone_client("pending_error(s)") is None
        else:
            assert gone_client(f"s.connect_ex(('{vip}', 80))") == 0
    assert gone_client("read_all(s)") == "here"


def test_patience_outlasts_one_lost_syn() -> None:
    assert 1.0 < trials.PATIENCE < 3.0
