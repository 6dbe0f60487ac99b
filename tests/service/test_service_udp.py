"""UDP between programs of one host: identity, policy, balancing and errors, by sockets that nobody traps."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable

import pytest

from service.acting import Actor
from service.loads import status
from support.program import wait_until
from support.switch import Row, Switch

Start = Callable[..., Actor]

HELP = """
def udp(port=None, host="0.0.0.0", family=None):
    s = socket(family or family_of(host), SOCK_DGRAM)
    if port is not None:
        s.bind((host, port))
    s.settimeout(TIMEOUT)
    return s

def echo(sock, answer=lambda data: data):
    "In a thread: answer whoever sends."
    def serve():
        while True:
            try:
                data, peer = sock.recvfrom(65535)
                sock.sendto(answer(data), peer)
            except OSError:
                return
    threading.Thread(target=serve, daemon=True).start()

def talk(sock, data, tries=60):
    "What a connected socket hears; again when that takes a second, for a busy machine loses datagrams."
    sock.settimeout(1)
    for _ in range(tries):
        try:
            sock.send(data)
            return sock.recv(65535).decode()
        except TimeoutError:
            pass
    return "nothing"

def hear(sock, data, tries=60):
    "Whether the answer to this very question comes; one to a question that was asked again may come before it."
    return any(talk(sock, data) == data.decode() for _ in range(tries))

def numbered(sock, number):
    "In a thread: answer with a number and what was asked."
    echo(sock, lambda data: b"%d %s" % (number, data))

def whose(sock, tries=60):
    "The number of the server that answers this very question."
    question = b"%d" % time.monotonic_ns()
    for _ in range(tries):
        number, _, asked = talk(sock, question).partition(" ")
        if asked == question.decode():
            return number
    return "nobody's"

def ask(host, port, data=b"?"):
    "What comes back, or the name of the error."
    with udp(host=host) as s:
        s.connect((host, port))
        return outcome_of(lambda: talk(s, data))
"""


@pytest.fixture
def udp_actor(actor: Start) -> Start:
    """Starts actors that know the functions above."""

    def start(name: str | None = None, **keywords: object) -> Actor:
        started = actor(name, **keywords)
        started(HELP)
        return started

    return start


def address(actor: Actor, name: str) -> str:
    return str(actor(f"gethostbyname('{name}')"))


@pytest.mark.parametrize(
    ("server_ip", "client_ip", "seen"),
    [
        ("10.30.1.1", "10.30.1.2", "10.30.1.2"),
        ("2001:db8:30::1", "2001:db8:30::2", "2001:db8:30::2"),
        ("2001:db8:30::1", "10.30.1.2", "fd61:7070:7377:6974:6368:0:a1e:102"),
        ("10.30.1.1", None, "169.254."),
        ("10.30.1.1", "2001:db8:30::2", "169.254."),
    ],
    ids=["v4", "v6", "v4-to-v6", "nameless", "v6-to-v4"],
)
def test_both_see_virtual_addresses(udp_actor: Start, server_ip: str, client_ip: str | None, seen: str) -> None:
    server = udp_actor(ip=server_ip)
    server(f"s = udp(4000, '{'::' if ':' in server_ip else '0.0.0.0'}')")
    client = udp_actor(**({} if client_ip is None else {"ip": client_ip}))
    for size in (0, 1, 1400, 65507):
        client(f"c = udp(host='{server_ip}'); c.sendto(bytes({size}), ('{server_ip}', 4000))")
        assert server("d, peer = s.recvfrom(70000)") is None
        assert server("len(d)") == size
        assert server("peer[0]").startswith(seen)
        if client_ip is not None and (":" in client_ip) == (":" in server_ip):
            assert server("peer[1]") == client("c.getsockname()[1]")
        server("s.sendto(b'answer', peer)")
        assert client("a, who = c.recvfrom(100); ") is None
        assert client("[a.decode(), *who[:2]]") == ["answer", server_ip, 4000]


def test_another_socket_may_answer_and_both_may_begin(udp_actor: Start) -> None:
    one, two = udp_actor("udp-one"), udp_actor("udp-two")
    one("s = udp(4000)")
    two("s = udp(4000)")
    # At the same moment, from and to the same port: one conversation.
    for this, other in ((one, "udp-two"), (two, "udp-one")):
        this(f"s.sendto(b'hello', ('{other}', 4000))")
    for this, other in ((one, address(one, "udp-two")), (two, address(two, "udp-one"))):
        assert this("d, peer = s.recvfrom(100)") is None
        assert this("[d.decode(), *peer]") == ["hello", other, 4000]
    # Whoever is not connected hears anybody: another socket, here of another thread.
    one("c = udp(); c.sendto(b'?', ('udp-two', 4000))")
    two("d, peer = s.recvfrom(100)")
    two("t = threading.Thread(target=lambda: udp().sendto(b'other', peer)); t.start(); t.join()")
    assert one("d, peer = c.recvfrom(100)") is None
    assert one("d.decode()") == "other"
    assert one("peer[1]") != 4000


@pytest.mark.parametrize("ip", ["10.30.2.1", "2001:db8:30:2::1"], ids=["v4", "v6"])
def test_nobody_there_is_told_at_once(udp_actor: Start, ip: str) -> None:
    server = udp_actor(ip=ip)
    server(f"s = udp(4000, '{ip}')")
    client = udp_actor(ip="2001:db8:30:2::2" if ":" in ip else "10.30.2.2")
    assert client(f"ask('{ip}', 4001)") == "ECONNREFUSED"
    client(f"c = udp(host='{ip}'); c.connect(('{ip}', 4000)); c.send(b'?')")
    assert server("s.recv(10).decode()") == "?"
    server("s.close()")
    assert client("outcome_of(lambda: talk(c, b'?'))") == "ECONNREFUSED"
    assert client("outcome_of(lambda: talk(c, b'?'))") == "ECONNREFUSED"
    server(f"s = udp(4000, '{ip}'); echo(s)")
    assert client("talk(c, b'?')") == "?"


def test_policy_holds_for_each_conversation(shared: Switch, udp_actor: Start) -> None:
    server = udp_actor("udp-guarded", tags=["group=1"])
    server("echo(udp(4000, '::'))")
    friend, stranger = udp_actor("udp-friend", tags=["group=1"]), udp_actor("udp-stranger")
    vip = address(friend, "udp-guarded")
    mapped = "fd61:7070:7377:6974:6368:0:" + ":".join(f"{b:x}" for b in _halves(vip))
    assert friend(f"ask('{vip}', 4000)") == "?"
    before, began = status(shared)["counters"]["denied"], time.monotonic()

    def denied() -> int:
        return int(status(shared)["counters"]["denied"]) - before

    def rows() -> list[Row]:
        return [row for row in shared.cli("denials", "-o", "json") if row["client"] == "udp-stranger"]

    # As icmp(7) has it for a firewall's refusal.
    assert stranger(f"ask('{vip}', 4000)") == "EHOSTUNREACH"
    assert stranger(f"ask('{mapped}', 4000)") == "EACCES"
    stranger(f"s = udp(); [s.sendto(b'?', ('{vip}', 4000)) for _ in range(50)]")
    wait_until(lambda: denied() >= 3, lambda: "three denials")
    # One for a conversation and second, of three conversations.
    wait_until(lambda: len(rows()) == denied(), lambda: f"as many rows as denials, {denied()}: {rows()}")
    assert denied() <= 3 * (1 + time.monotonic() - began)
    assert {(row["service"], row["port"], row["rule"]) for row in rows()} == {
        ("udp-guarded", 4000, "service has group 1, client has none")
    }
    # Nor the other way: the server may not begin either.
    stranger("s = udp(4100)")
    assert server("ask('udp-stranger', 4100)") == "EHOSTUNREACH"


def _halves(vip: str) -> list[int]:
    octets = [int(part) for part in vip.split(".")]
    return [octets[0] << 8 | octets[1], octets[2] << 8 | octets[3]]


def test_each_conversation_has_one_instance_which_does_not_keep_it_captive(udp_actor: Start) -> None:
    servers = {str(number): udp_actor("udp-many") for number in range(3)}
    for number, server in servers.items():
        server(f"s = udp(4000); numbered(s, {number})")
    client = udp_actor("udp-many-client")
    client("cs = [udp() for _ in range(6)]; [c.connect(('udp-many', 4000)) for c in cs]")
    heard = client("[whose(c) for c in cs]")
    assert Counter(heard) == {"0": 2, "1": 2, "2": 2}
    assert client("[whose(c) for c in cs]") == heard
    # A program that has ended, and one that goes on but has closed its socket.
    servers[heard[0]].close()
    again = client("[outcome_of(lambda: whose(c)) for c in cs]")
    assert heard[0] not in again
    assert "ECONNREFUSED" not in again
    kept = [(old, new) for old, new in zip(heard, again, strict=True) if old != heard[0]]
    assert all(old == new for old, new in kept)
    closing, left = kept[0][0], next(old for old, _ in kept if old != kept[0][0])
    servers[closing]("s.shutdown(SHUT_RD) if False else None; socket(fileno=os.dup(s.fileno())); s.close()")
    servers[closing]("udp().sendto(b'wake the thread', (gethostbyname('udp-many'), 4000))")

    def all_left() -> bool:
        return set(client("[outcome_of(lambda: whose(c)) for c in cs]")) == {left}

    wait_until(all_left, lambda: "all conversations at the last instance")


def test_programs_of_one_address_may_use_one_port(udp_actor: Start) -> None:
    """As in a translator: the second is shown with another port, and each hears its own answers."""
    server = udp_actor("udp-hub")
    server("s = udp(4000); echo(s)")
    twins = [udp_actor("udp-twin") for _ in range(2)]
    for number, twin in enumerate(twins):
        twin("c = udp(5000); c.connect(('udp-hub', 4000))")
        assert twin(f"talk(c, b'{number}')") == str(number)
    for number, twin in enumerate(twins):
        assert twin(f"talk(c, b'again {number}')") in (str(number), f"again {number}")


def test_bound_ports_are_services(shared: Switch, udp_actor: Start) -> None:
    server = udp_actor("udp-listed")
    server("s = [udp(4000), udp(4000, '::1'), udp(40001), udp(0)]; c = udp(); c.sendto(b'?', ('udp-listed', 9))")

    def rows() -> list[tuple[int, str, str]]:
        return [(row["port"], row["bound"], row["protocol"]) for row in shared.services("udp-listed")]

    wanted = [(4000, "0.0.0.0", "udp"), (4000, "::1", "udp"), (40001, "0.0.0.0", "udp")]
    wait_until(lambda: sorted(rows()) == wanted, lambda: f"three rows, not {rows()}")
    server("s[0].close(); s[2].close()")
    wait_until(lambda: rows() == [wanted[1]], lambda: f"one row, not {rows()}")
    text = shared.cli("services")
    assert any(line.split()[:4:3] == ["udp-listed", "udp"] for line in text.splitlines())
    server.close()
    wait_until(lambda: not rows(), lambda: "no row")


def test_groups_are_nobodys(udp_actor: Start) -> None:
    client = udp_actor("udp-group")
    for host in ("224.0.0.251", "255.255.255.255", "240.0.0.1", "ff0e::1"):
        client(f"s = udp(host='{host}'); s.setsockopt(SOL_SOCKET, SO_BROADCAST, 1)")
        assert client.errno(f"s.sendto(b'x', ('{host}', 4000))") == "ENETUNREACH", host
    group = "inet_aton('224.0.0.251') + bytes(4)"
    assert client.errno(f"udp().setsockopt(IPPROTO_IP, IP_ADD_MEMBERSHIP, {group})") == "ENODEV"


def test_a_flood_leaves_others_their_turns(udp_actor: Start) -> None:
    udp_actor("udp-sink")("s = udp(4000)")
    udp_actor("udp-quiet-server")("echo(udp(4000))")
    flooders = [udp_actor("udp-flooder") for _ in range(2)]
    client = udp_actor("udp-quiet")
    client("c = udp(); c.connect(('udp-quiet-server', 4000)); c.settimeout(1)")
    for flooder in flooders:
        flooder(
            "stop, sent = [], [0]\n"
            "def flood():\n"
            "    s = udp(); s.connect(('udp-sink', 4000))\n"
            "    while not stop:\n"
            "        s.send(bytes(100)); sent[0] += 1\n"
            "t = threading.Thread(target=flood); t.start()"
        )
    for flooder in flooders:
        wait_until(lambda: flooder("sent[0]") > 5000, lambda: "a flood")  # noqa: B023
    # Both flood as fast as they can; a datagram may be lost, but as a rule it comes back soon.
    client(
        "def once():\n"
        "    begin = time.monotonic(); c.send(b'?'); c.recv(10)\n"
        "    return time.monotonic() - begin\n"
    )
    times = client("[outcome_of(once) for _ in range(100)]")
    for flooder in flooders:
        flooder("stop.append(1); t.join()")
    came = sorted(time for time in times if isinstance(time, float))
    assert len(came) >= 90, times
    assert came[50] < 0.1, came


def test_no_data_call_is_trapped(shared: Switch, udp_actor: Start) -> None:
    udp_actor("udp-count-server")("echo(udp(4000))")
    client = udp_actor("udp-count")
    client("c = udp(); c.sendto(b'?', ('udp-count-server', 4000)); peer = c.recvfrom(10)[1]")

    def traps() -> int:
        return int(status(shared)["counters"]["traps"])

    client("time.sleep(0)")
    before = traps()
    assert client("[[c.sendto(b'x', peer), c.recvfrom(10)] and 1 for _ in range(500)].count(1)") == 500
    assert client("[[c.sendmsg([b'x'], [], 0, peer), c.recvmsg(10)] and 1 for _ in range(500)].count(1)") == 500
    assert traps() - before < 20  # what the command that asks costs, nothing for each of 2000 calls


def test_sockets_survive_the_relay(shared: Switch, udp_actor: Start) -> None:
    server = udp_actor("udp-survivor")
    server("s = udp(4000); echo(s)")
    client = udp_actor("udp-lasting")
    client("c = udp(); c.connect(('udp-survivor', 4000))")
    assert client("talk(c, b'?')") == "?"
    [relay] = [each["pid"] for each in status(shared)["processes"] if each["role"] == "relay"]
    os.kill(relay, signal.SIGKILL)
    wait_until(lambda: client("talk(c, b'!')") in "?!", lambda: "an answer")
    assert [row["protocol"] for row in shared.services("udp-survivor")] == ["udp"]
