"""UDP between root's programs: what is established goes on in the kernel, as the relay has decided, until that ends."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from appswitch.linux import features
from service.acting import Actor, start_actor
from service.loads import roles, status
from service.test_service_udp import HELP
from support import modes
from support.program import wait_until
from support.switch import Switch

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="ordinary users' datagrams all go by the relay"),
    pytest.mark.parametrize("mode", modes.possible()[:1], ids=str),
]

class Scene:
    """A switch and actors under it."""

    def __init__(self, switch: Switch, public: Path, python: str) -> None:
        self.switch, self._public, self._python = switch, public, python
        self.started: list[Actor] = []

    def actor(self, name: str | None = None, **keywords: Any) -> Actor:
        self.started.append(start_actor(self.switch, self._public, self._python, name, **keywords))
        self.started[-1](HELP)
        return self.started[-1]

    def count(self, what: str) -> int:
        return int(status(self.switch)["counters"][what])

    def relay(self) -> int:
        return roles(self.switch)["relay"]

    def turns(self) -> int:
        """How often the relay's thread has gone to sleep, once it sleeps."""
        status = Path(f"/proc/{self.relay()}/task/{self.relay()}/status")

        def look() -> dict[str, str]:
            found = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
            return found if found["State"].startswith("S") else {}

        return int(wait_until(look, lambda: "the relay to sleep")["voluntary_ctxt_switches"])

    def establish(self, client: Actor, socks: str = "c") -> None:
        """Have these sockets' conversations go on until the relay sees nothing of them any more."""
        client(f"every = {socks} if isinstance({socks}, list) else [{socks}]")

        def none_seen() -> bool:
            before = self.count("datagrams")
            client("[talk(c, b'%d' % i) for i in range(5) for c in every]")
            return self.count("datagrams") == before

        wait_until(none_seen, lambda: f"nothing to be seen, not {status(self.switch)['counters']}")


@pytest.fixture
def new_scene(
    new_switch: Callable[..., Switch], actor_file: Path, python: str
) -> Iterator[Callable[..., Scene]]:
    made: list[Scene] = []

    def make(left_out: str = "") -> Scene:
        switch = new_switch(env={features.ENVIRONMENT: left_out})
        switch.up()
        made.append(Scene(switch, actor_file.parent, python))
        return made[-1]

    yield make
    for scene in made:
        for one in reversed(scene.started):
            one.close()


@pytest.fixture
def scene(new_scene: Callable[..., Scene]) -> Scene:
    return new_scene()


@pytest.mark.parametrize("left_out", ["", features.TUN], ids=["tun", "veth"])
@pytest.mark.parametrize("ips", [("10.31.1.1", "10.31.1.2"), ("fd00:31::1", "fd00:31::2")], ids=["v4", "v6"])
def test_the_relay_sees_nothing_of_what_is_established(
    new_scene: Callable[..., Scene], ips: tuple[str, str], left_out: str
) -> None:
    scene = new_scene(left_out)
    server, client = scene.actor(ip=ips[0]), scene.actor(ip=ips[1])
    server(f"s = udp(4000, '{ips[0]}'); echo(s)")
    client(f"c = udp(host='{ips[0]}'); c.connect(('{ips[0]}', 4000))")
    scene.establish(client)
    before, turns = scene.count("datagrams"), scene.turns()
    assert client("[hear(c, b'%d' % i) for i in range(1000)].count(True)") == 1000
    for size in (0, 1, 1400, 15900):
        assert client(f"hear(c, bytes({size}))")
    assert scene.count("datagrams") == before
    assert scene.turns() == turns, "it sleeps"
    assert scene.count("offloaded") == 1
    # What the other sees is what it saw before: the same conversation, by the same device.
    client(f"f = udp(host='{ips[0]}'); f.connect(('{ips[0]}', 4001))")
    device = "IPPROTO_IPV6, 50" if ":" in ips[0] else "IPPROTO_IP, 8"  # IPV6_PKTINFO; IP_PKTINFO
    option = "IPPROTO_IPV6, 49" if ":" in ips[0] else "IPPROTO_IP, 8"
    server(f"p = udp(4001, '{ips[0]}'); p.setsockopt({option}, 1)")
    kinds = []
    for _ in range(30):
        client("f.send(b'x')")
        server("d, ancillary, _, peer = p.recvmsg(10, 100)")
        found = "struct.unpack_from('=I', c, 16 if len(c) == 20 else 0)[0]"
        kinds.append(server(f"[{found} for l, k, c in ancillary if (l, k) == ({device})] + [peer[1]]"))
    port = client("f.getsockname()[1]")
    assert kinds == [[server("if_nametoindex('as0')"), port]] * 30


def test_conversations_within_a_virtual_ip_stay_with_the_relay(scene: Scene) -> None:
    one, two = scene.actor(ip="10.31.2.1"), scene.actor(ip="10.31.2.1")
    one("echo(udp(4000))")
    two("c = udp(4001); c.connect(('127.0.0.1', 4000))")
    talk = "[talk(c, b'%d' % i) == '%d' % i for i in range(20)].count(True)"
    assert two(talk) == 20
    server, client = scene.actor(ip="10.31.2.2"), scene.actor(ip="10.31.2.3")
    server("echo(udp(4000))")
    client("c = udp(); c.connect(('10.31.2.2', 4000))")
    scene.establish(client)
    before = scene.count("datagrams")
    assert two(talk) == 20
    assert scene.count("datagrams") >= before + 40
    assert scene.count("offloaded") == 1


def test_without_it_the_relay_sees_everything(new_scene: Callable[..., Scene]) -> None:
    """The negative control of the others."""
    scene = new_scene(features.UDP_OFFLOAD)
    server, client = scene.actor("server"), scene.actor("client")
    server("echo(udp(4000))")
    client("c = udp(); c.connect(('server', 4000)); hear(c, b'begin')")
    before, turns = scene.count("datagrams"), scene.turns()
    assert client("[hear(c, b'%d' % i) for i in range(1000)].count(True)") == 1000
    assert scene.count("datagrams") >= before + 2000
    assert scene.turns() > turns
    assert scene.count("offloaded") == 0
    [row] = [row for row in scene.switch.cli("status", "-o", "json")["missing"] if row["feature"] == "udp-offload"]
    assert row["without"] == features.FEATURES[features.UDP_OFFLOAD].without


def test_big_sends_arrive(scene: Scene) -> None:
    """UDP_SEGMENT, in both directions; and what is too long for this way takes the relay's, in order."""
    server, client = scene.actor("server"), scene.actor("client")
    server("s = udp(4000)")
    client("c = udp(); c.connect(('server', 4000)); c.send(b'?')")
    server("d, peer = s.recvfrom(100); s.connect(peer); echo_back = [s.send(b'!') for _ in range(1)]")
    client("c.recv(10)")
    for _ in range(10):
        client("c.send(b'?')")
        server("s.recv(10); s.send(b'!') and None")
        client("c.recv(10)")
    wait_until(lambda: _none_seen(scene, client, server), lambda: "an established conversation")
    for this, one, that, other in ((client, "c", server, "s"), (server, "s", client, "c")):
        before = scene.count("datagrams")
        this(f"{one}.setsockopt(IPPROTO_UDP, 103, 1000)")  # UDP_SEGMENT
        this(f"{one}.send(bytes(20500))")
        assert that(f"[len({other}.recv(70000)) for _ in range(21)]") == [1000] * 20 + [500]
        this(f"{one}.setsockopt(IPPROTO_UDP, 103, 0)")
        assert scene.count("datagrams") == before
    # Even a datagram that is not too long may be there before one that was, until the relay has seen the first such.
    client("c.send(bytes(30000))")
    assert server("len(s.recv(70000))") == 30000
    server("s.setsockopt(SOL_SOCKET, 33, 1 << 23)")  # SO_RCVBUFFORCE
    client("[c.send(bytes([i]) * (30000 if i % 3 else 10)) for i in range(60)]")
    assert server("[s.recv(70000)[0] for _ in range(60)]") == list(range(60))
    assert scene.count("datagrams") >= before + 61


def _none_seen(scene: Scene, client: Actor, server: Actor) -> bool:
    before = scene.count("datagrams")
    for _ in range(5):
        client("c.send(b'?')")
        server("s.recv(10); s.send(b'!') and None")
        client("c.recv(10)")
    return scene.count("datagrams") == before


def test_datagrams_stay_in_order_when_the_kernel_takes_over(scene: Scene) -> None:
    server, client = scene.actor("server"), scene.actor("client")
    server("s = udp(4000); s.setsockopt(SOL_SOCKET, 33, 1 << 23)")  # SO_RCVBUFFORCE
    client("c = udp(); c.connect(('server', 4000)); n = 0")

    seen_before = scene.count("datagrams")

    def taken_over() -> bool:
        # Never more on its way than a device holds for a relay that is late (500): what it drops is in no order.
        if client("n") - (scene.count("datagrams") - seen_before) <= 350:
            client("for n in range(n + 1, n + 51): c.send(struct.pack('=I', n))")
        return scene.count("offloaded") == 1

    wait_until(taken_over, lambda: "a conversation that the kernel carries on")
    client("for n in range(n + 1, n + 51): c.send(struct.pack('=I', n))")
    last = client("n")
    server(f"came = []\nwhile {last} not in came: came += struct.unpack('=I', s.recv(10))")
    assert server("came") == list(range(1, last + 1))


def test_each_conversation_keeps_its_instance_until_that_goes(scene: Scene) -> None:
    servers = {str(number): scene.actor("many") for number in range(3)}
    for number, server in servers.items():
        server(f"s = udp(4000); numbered(s, {number})")
    client = scene.actor("client")
    client("cs = [udp() for _ in range(6)]; [c.connect(('many', 4000)) for c in cs]")
    heard = client("[whose(c) for c in cs]")
    assert Counter(heard) == {"0": 2, "1": 2, "2": 2}
    scene.establish(client, "cs")
    assert client("[whose(c) for c in cs]") == heard
    # A program that ends, and one that goes on but closes its socket.
    servers[heard[0]].close()
    # Until the switch has noticed, its namespace says that nobody has the port.
    wait_until(lambda: len(scene.switch.services("many")) == 2, lambda: "two instances")
    again = client("[outcome_of(lambda: whose(c)) for c in cs]")
    assert heard[0] not in again
    assert "ECONNREFUSED" not in again
    assert all(old == new for old, new in zip(heard, again, strict=True) if old != heard[0])
    scene.establish(client, "cs")
    closing, left = (number for number in servers if number != heard[0])
    servers[closing]("s.shutdown(SHUT_RD) if False else None; socket(fileno=os.dup(s.fileno())); s.close()")
    servers[closing]("udp().sendto(b'wake the thread', (gethostbyname('many'), 4000))")

    def all_left() -> bool:
        return set(client("[outcome_of(lambda: whose(c)) for c in cs]")) == {left}

    wait_until(all_left, lambda: "all conversations at the last instance")
    assert scene.count("datagrams_offloaded") > 0


def test_policy_holds_for_whoever_comes_after(scene: Scene) -> None:
    """The same addresses and ports, other tags: nothing of the old conversation lets anybody through."""
    server = scene.actor("guarded", ip="10.31.3.1", tags=["group=1"])
    server("echo(udp(4000))")
    friend = scene.actor(ip="10.31.3.2", tags=["group=1"])
    friend("c = udp(5000); c.connect(('10.31.3.1', 4000))")
    scene.establish(friend)
    friend.close()
    stranger = scene.actor(ip="10.31.3.2", tags=["group=2"])
    stranger("c = udp(5000); c.connect(('10.31.3.1', 4000))")
    assert stranger("outcome_of(lambda: talk(c, b'?'))") == "EHOSTUNREACH"
    assert scene.count("denied") >= 1
    # And the other way about: the server comes again, and wants others.
    stranger.close()
    friend = scene.actor(ip="10.31.3.2", tags=["group=1"])
    friend("c = udp(5000); c.connect(('10.31.3.1', 4000))")
    scene.establish(friend)
    server.close()
    server = scene.actor("guarded", ip="10.31.3.1", tags=["group=2"])
    server("echo(udp(4000))")
    assert friend("outcome_of(lambda: talk(c, b'?'))") == "EHOSTUNREACH"


def test_a_closed_socket_is_told_of(scene: Scene) -> None:
    server, client = scene.actor(ip="10.31.4.1"), scene.actor(ip="10.31.4.2")
    server("s = udp(4000); echo(s)")
    client("c = udp(); c.connect(('10.31.4.1', 4000))")
    scene.establish(client)
    server("socket(fileno=os.dup(s.fileno())); s.close()")
    client("c.send(b'wakes the thread that waits for it')")
    assert client("outcome_of(lambda: [talk(c, b'?') for _ in range(2)])") == "ECONNREFUSED"
    server("s = udp(4000); echo(s)")
    assert client("talk(c, b'?')") == "?"


def test_a_lie_about_the_source_is_noticed(scene: Scene) -> None:
    """Another program's address, by the device and by the way past the relay, with the ports of what is established."""
    server, client, liar = (scene.actor(ip=f"10.31.5.{number}") for number in (1, 2, 3))
    server("s = udp(4000); echo(s, lambda data: data if data != b'lie' else b'believed')")
    client("c = udp(5000); c.connect(('10.31.5.1', 4000))")
    liar("c = udp(5000); c.connect(('10.31.5.1', 4000))")
    scene.establish(client)
    scene.establish(liar)
    spoofed, came = scene.count("spoofed"), scene.count("datagrams_offloaded")
    # Root may put the address on its own loopback (ip(8) in its namespace), and name the device.
    liar("subprocess.run(['ip', 'addr', 'add', '10.31.5.2/32', 'dev', 'lo'], check=True)")
    for device in ("as0", "as1"):
        liar("l = socket(AF_INET, SOCK_DGRAM); l.bind(('10.31.5.2', 5000))")
        liar(f"l.setsockopt(SOL_SOCKET, SO_BINDTODEVICE, b'{device}')")
        liar("[l.sendto(b'lie', ('10.31.5.1', 4000)) for _ in range(20)]")
        liar("l.close()")
    wait_until(lambda: scene.count("spoofed") >= spoofed + 20, lambda: "twenty lies noticed")
    # What was sent before this has been there by now, and the client has not been answered for it.
    client("came = ['']\nwhile came[-1] != 'truth': came.append(talk(c, b'truth'))\nc.setblocking(False)")
    client("try:\n    while True: came.append(c.recv(10).decode())\nexcept BlockingIOError: pass")
    assert "believed" not in client("came")
    assert scene.count("datagrams_offloaded") == came
    # The negative control: its own address is believed.
    assert liar("any(talk(c, b'lie') == 'believed' for _ in range(60))")


def test_the_relay_comes_again_and_takes_them_over(scene: Scene) -> None:
    server, client = scene.actor("server"), scene.actor("client")
    server("s = udp(4000); echo(s)")
    client("c = udp(); c.connect(('server', 4000))")
    scene.establish(client)
    relay = scene.relay()
    os.kill(relay, 9)
    wait_until(lambda: scene.relay() not in (0, relay), lambda: "another relay")
    before = scene.count("datagrams")
    assert client("hear(c, b'again')")
    wait_until(lambda: client("hear(c, b'again')") and scene.count("datagrams") > before, lambda: "a datagram seen")
    scene.establish(client)
    assert client("[name for _, name in if_nameindex()]").count("as1") == 1


def test_devices_end_with_their_program(scene: Scene) -> None:
    """Nothing of the way past the relay stays: neither a device, nor a descriptor."""

    def held() -> int:
        return len(os.listdir(f"/proc/{scene.relay()}/fd"))

    server = scene.actor("server")
    server("echo(udp(4000))")
    first = scene.actor("client")
    first("c = udp(); c.connect(('server', 4000))")
    scene.establish(first)
    before = held()
    for _ in range(3):
        client = scene.actor("client")
        client("c = udp(); c.connect(('server', 4000))")
        scene.establish(client)
        client.close()
    # It may have been about to close one when they were counted; each of three clients would leave at least one.
    wait_until(lambda: held() <= before, lambda: f"{before} descriptors, not {held()}")
