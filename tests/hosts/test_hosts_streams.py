"""connect() from one host to another: the program's own TCP socket, with a caller's identity at its head."""

import os
import shutil
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest

from service.acting import Actor
from support.hosts import Host, Hosts
from support.needs import compile_c, need
from support.program import DEADLINE, wait_until

Start = Callable[..., Actor]

SYN_WITH_DATA = "tcp flags & (syn | ack) == syn meta length > 60"
"""A SYN without data has 60 bytes at most with IPv4, 40 of them TCP's header with its options."""

BOTH_WAYS = """
import hashlib
def both_ways(sock, data):
    writer = threading.Thread(target=lambda: (sock.sendall(data), sock.shutdown(SHUT_WR)))
    writer.start()
    heard = hashlib.sha256()
    while piece := sock.recv(1 << 16):
        heard.update(piece)
    writer.join()
    return heard.hexdigest()
sent = os.urandom(1 << 23)
"""


def sockets(host: Host, column: int) -> dict[int, str]:
    """`address:port` on the near (1) or far (2) side of established connections, by inode (proc_net_tcp(5))."""
    lines = host.namespace.call(Path("/proc/thread-self/net/tcp").read_text).splitlines()[1:]
    found = {}
    for words in map(str.split, lines):
        if words[3] == "01":
            address, _, port = words[column].partition(":")
            text = ".".join(str(byte) for byte in bytes.fromhex(address)[::-1])
            found[int(words[9])] = f"{text}:{int(port, 16)}"
    return found


def inode(actor: Actor, sock: str) -> int:
    """That of a program's socket."""
    return os.stat(f"/proc/{actor.pid}/fd/{actor(f'{sock}.fileno()')}").st_ino


def test_a_connection_is_the_program_s_own_socket(pair: Hosts, actor_on: Start) -> None:
    one, two = pair
    server, client = actor_on(two, "web", ip="10.9.8.7"), actor_on(one, ip="10.9.8.8")
    server("l = listen(80)")
    [row] = one.wait_service("web", 80)
    client("s = call('web', 80)")
    server("c, where = take(l)")
    # Both tell the same virtual story.
    own, peer = client("story(s)")
    assert (own[0], peer) == ("10.9.8.8", ["10.9.8.7", 80])
    assert server("story(c)") == [peer, own]
    assert server("list(where)") == own
    # It is one connection of the hosts' network, with nothing between the two programs' sockets.
    assert sockets(one, 2).get(inode(client, "s")) == row["address"]
    assert sockets(two, 1).get(inode(server, "c")) == row["address"]
    assert list(sockets(one, 2).values()).count(row["address"]) == 1
    # Data goes both ways at once, and so does its end.
    for one_side in (client, server):
        one_side(BOTH_WAYS)
    server.begin("both_ways(c, sent)")
    heard = client("both_ways(s, sent)")
    assert server.end() == client("hashlib.sha256(sent).hexdigest()")
    assert heard == server("hashlib.sha256(sent).hexdigest()")


def test_many_connections_and_both_directions(pair: Hosts, actor_on: Start) -> None:
    one, two = pair
    for here, there in ((one, two), (two, one)):
        server, client = actor_on(there, f"many-{here.number}"), actor_on(here)
        server("greet(listen(80), 'x')")
        here.wait_service(f"many-{here.number}", 80)
        assert client(f"''.join(hear('many-{here.number}', 80) for _ in range(100))") == "x" * 100
        assert client(f"bs = [call('many-{here.number}', 80) for _ in range(100)]; None") is None
        assert client("''.join(read_all(b) for b in bs)") == "x" * 100


def test_a_non_blocking_connect_is_as_natively(pair: Hosts, actor_on: Start) -> None:
    one, two = pair
    server, client = actor_on(two, "nb"), actor_on(one)
    server("l = listen(80)")
    [row] = one.wait_service("nb", 80)
    client(f"s, code = begin_call('{row['vip']}', 80)")
    assert client("code") in ("EINPROGRESS", 0)
    assert client("events(s) & select.POLLOUT")
    assert client("pending_error(s)") is None
    server("c, _ = take(l)")
    client("s.sendall(b'ping')")
    assert server("c.recv(4).decode()") == "ping"
    server("c.sendall(b'pong')")
    assert client("events(s, select.POLLIN) & select.POLLIN")
    assert client("s.recv(4).decode()") == "pong"
    # redis-cli does that.
    assert client(f"errno.errorcode.get(s.connect_ex(('{row['vip']}', 80)), 0)") in ("EISCONN", 0)
    # Registered in an epoll before: its events come there.
    client("e = select.epoll(); t = socket(); t.setblocking(False); e.register(t, select.EPOLLOUT | select.EPOLLET)")
    client(f"e.poll(0); t.connect_ex(('{row['vip']}', 80))")
    assert client("[(fd == t.fileno(), flags) for fd, flags in e.poll(TIMEOUT)]") == [[True, 4]]


def test_what_is_not_served_is_refused_at_once(pair: Hosts, actor_on: Start) -> None:
    one, two = pair
    server, client = actor_on(two, "closed", ip="10.9.8.9"), actor_on(one)
    server("l = listen(80)")
    one.wait_service("closed", 80)
    assert client("outcome('10.9.8.9', 81)") == "ECONNREFUSED"
    server("l.close()")
    wait_until(lambda: not one.services("closed"), lambda: "the row to go")
    assert client("outcome('10.9.8.9', 80)") == "ECONNREFUSED"


def test_a_server_that_speaks_first_and_a_client_that_does(pair: Hosts, actor_on: Start) -> None:
    one, two = pair
    server, client = actor_on(two, "talk"), actor_on(one)
    server("l = listen(80)")
    one.wait_service("talk", 80)
    client("s = call('talk', 80)")
    server("c, _ = take(l); c.sendall(b'220 ready')")
    assert client("s.recv(100).decode()") == "220 ready"
    client("t = call('talk', 80); t.sendall(b'GET /')")
    assert server("take(l)[0].recv(100).decode()") == "GET /"
    # A caller that closes at once is seen as such.
    client("call('talk', 80).close()")
    assert server("read_all(take(l)[0])") == ""


def test_the_sides_options_hold(pair: Hosts, actor_on: Start) -> None:
    one, two = pair
    server, client = actor_on(two, "opts"), actor_on(one)
    server("l = socket(); l.setsockopt(SOL_SOCKET, SO_KEEPALIVE, 1); l.bind(('', 80)); l.listen()")
    [row] = one.wait_service("opts", 80)
    client("s = socket(); s.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1); s.setsockopt(SOL_SOCKET, SO_KEEPALIVE, 1)")
    client(f"s.setsockopt(SOL_SOCKET, SO_RCVBUF, 40000); s.settimeout(TIMEOUT); s.connect(('{row['vip']}', 80))")
    wanted = "[s.getsockopt(IPPROTO_TCP, TCP_NODELAY), s.getsockopt(SOL_SOCKET, SO_KEEPALIVE)]"
    assert client(wanted) == [1, 1]
    assert client("s.getsockopt(SOL_SOCKET, SO_RCVBUF)") == 80000
    server("c, _ = take(l)")
    assert server("c.getsockopt(SOL_SOCKET, SO_KEEPALIVE)") == 1
    assert client("s.getsockopt(IPPROTO_TCP, TCP_INFO, 1)") is not None


def test_tags_are_enforced_between_hosts(pair: Hosts, actor_on: Start) -> None:
    one, two = pair
    server = actor_on(two, "safe", tags=["group=1", "group=2"])
    server("greet(listen(80), 'come in')")
    one.wait_service("safe", 80)
    for tags, seen in ((["group=2"], "come in"), (["group=3"], "EACCES"), ([], "EACCES")):
        assert actor_on(one, tags=tags)("outcome('safe', 80)") == seen
    denials = [row for row in one.cli("denials", "-o", "json") if row["service"] == "safe"]
    assert len(denials) == 2
    assert all("group" in row["rule"] and row["port"] == 80 for row in denials)


@pytest.fixture
def served(hosts: Callable[..., Hosts], actor_on: Start) -> Iterator[tuple[Host, Host, Actor, Actor]]:
    """Two hosts of a test's own; a server `web` on the second one, a client on the first."""
    lab = hosts(2)
    lab.up()
    one, two = lab
    server, client = actor_on(two, "web"), actor_on(one)
    server("l = listen(80)")
    one.wait_service("web", 80)
    return one, two, server, client


def talks(server: Actor, client: Actor) -> bool:
    """Whether a blocking and a non-blocking connect lead to the server, and words go both ways."""
    client("s = call('web', 80)")
    server("c, _ = take(l); c.sendall(b'220')")
    first: str = client("s.recv(3).decode()")
    client("s.sendall(b'hello')")
    second: str = server("c.recv(5).decode()")
    vip = client("s.getpeername()[0]")
    client(f"n, _ = begin_call('{vip}', 80)")
    assert client("events(n) & select.POLLOUT")
    assert client("pending_error(n)") is None
    client("n.sendall(b'again')")
    third: str = server("take(l)[0].recv(5).decode()")
    return (first, second, third) == ("220", "hello", "again")


def test_a_network_that_drops_syns_with_data(served: tuple[Host, Host, Actor, Actor]) -> None:
    one, two, server, client = served
    assert talks(server, client)
    two.namespace.drop(SYN_WITH_DATA)
    # A host is watched from time to time: what is lost is noticed by the one who waits for it.
    client("s = call('web', 80)")
    server("c, _ = take(l)")
    lost = two.namespace.dropped()
    assert lost > 0
    # Only the first connect pays.
    for _ in range(3):
        assert talks(server, client)
    assert two.namespace.dropped() == lost
    assert one.counters()["early_data_lost"] == 1


@pytest.mark.parametrize("side", [0, 1], ids=["client's", "server's"])
def test_a_host_without_fast_open(served: tuple[Host, Host, Actor, Actor], side: int) -> None:
    _, _, server, client = served
    served[side].namespace.sysctl("net/ipv4/tcp_fastopen", 0)  # type: ignore[union-attr]
    for _ in range(2):
        assert talks(server, client)


def test_a_network_with_small_segments(served: tuple[Host, Host, Actor, Actor]) -> None:
    one, two, server, client = served
    for host in (one, two):
        host.namespace.ip("link set eth0 mtu 200")
    assert talks(server, client)


def test_a_network_that_loses_packets(served: tuple[Host, Host, Actor, Actor]) -> None:
    one, two, server, client = served
    server("greet(l, 'x' * 50000)")
    client("TIMEOUT = 80")
    for host in (one, two):
        # with much more, natively too one of some hundred transfers is lost so often that it waits for a minute
        host.namespace.drop("meta l4proto tcp numgen random mod 100 < 10")
    transfers = 0
    while transfers < 3 or not one.namespace.dropped() + two.namespace.dropped():
        client.begin("len(hear('web', 80))")
        assert client.answer(DEADLINE)["value"] == 50000
        transfers += 1


def test_a_host_whose_clock_is_an_hour_off(hosts: Callable[..., Hosts], actor_on: Start, public: Path) -> None:
    shim = public / "clock.so"
    compile_c(str(Path(__file__).with_name("src") / "clock.c"), str(shim), "-shared", "-fPIC")
    shim.chmod(0o755)
    one, two = lab = hosts(2)
    one.up("--node-interface", "eth0")
    two.up("--join", one.token(), env={"LD_PRELOAD": str(shim)})
    lab.await_members()
    for here, there in ((one, two), (two, one)):
        name = f"web-{there.number}"
        server, client = actor_on(there, name, tags=["group=1"]), actor_on(here, tags=["group=1"])
        server("greet(listen(80), 'on time')")
        here.wait_service(name, 80)
        assert client(f"[hear('{name}', 80) for _ in range(3)]") == ["on time"] * 3
        assert actor_on(here)(f"outcome('{name}', 80)") == "EACCES"
    # The clock was really off, as the two switches themselves tell.
    first, second = (datetime.fromisoformat(host.cli("denials", "-o", "json")[-1]["time"]) for host in lab)
    assert 3500 < (second - first).total_seconds() < 3700


def test_real_programs_across_hosts(pair: Hosts, public: Path) -> None:
    one, two = pair
    site = public / "site-across-hosts"
    site.mkdir()
    (site / "data").write_bytes(os.urandom(1 << 22))
    web = two.run(["python3", "-m", "http.server", "80", "--directory", site], name="files")
    cache = one.run([need("redis-server"), "--save", "", "--protected-mode", "no"], name="cache")
    try:
        one.wait_service("files", 80)
        two.wait_service("cache", 6379)
        one.check([need("curl"), "-sS", "-o", "copy", "http://files/data"], status=0)
        assert (one.work / "copy").read_bytes() == (site / "data").read_bytes()
        benchmark = [need("redis-benchmark"), "-h", "cache", "-n", "2000", "-c", "20", "-t", "set,get", "--csv"]
        assert '"GET"' in two.check(benchmark, status=0).stdout
    finally:
        web.stop()
        cache.stop()
        shutil.rmtree(site)


def test_a_web_server_with_workers_in_epoll(pair: Hosts) -> None:
    one, two = pair
    config = "daemon off; pid nginx.pid; error_log stderr; worker_processes 2; events {} http { access_log off; "
    config += "client_body_temp_path a; proxy_temp_path b; fastcgi_temp_path c; uwsgi_temp_path d; scgi_temp_path e; "
    front = config + "server { listen 80; location / { proxy_pass http://back:8080; } } }"
    back = config + "server { listen 8080; location / { return 200 'behind\\n'; } } }"
    started = []
    try:
        for host, name, text in ((two, "back", back), (one, "front", front)):
            (host.work / "nginx.conf").write_text(text)
            command = [need("nginx"), "-p", host.work, "-c", "nginx.conf"]
            started.append(host.run(command, name=name))
            for other in pair:
                other.wait_service(name)
        # Client on two, front on one, back on two again.
        answer = two.check([need("curl"), "-sS", *["http://front/"] * 50], status=0).stdout
        assert answer == "behind\n" * 50
    finally:
        for program in started:
            program.stop()
