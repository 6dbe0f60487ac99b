"""The eBPF programs on the real kernel: what goes past the relay, and what comes to it."""

import os
import select
import socket
import struct
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appswitch.linux import bpf_objects, device, features, libc, netlink
from appswitch.linux.bpf_objects import Map
from appswitch.relay import offload_code as code
from appswitch.relay import packets
from appswitch.relay.hub import Door, Hub
from appswitch.relay.shortcuts import map_key
from support.program import DEADLINE

from .conftest import kinds, until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may load such programs")

CLONE_NEWNET = 0x40000000
IDLE = 180.0
#: UDP, and what may stand before it in IPv6: a fragment's header, destination options.
_UDP = (socket.IPPROTO_UDP, socket.IPPROTO_FRAGMENT, socket.IPPROTO_DSTOPTS)


class Poller:
    """Nothing is watched here: what is done is asked for."""

    def watch(self, fd: int, events: int, ready: Callable[[int], None]) -> None:
        self.ready = ready

    def change(self, fd: int, events: int) -> None: ...

    def forget(self, fd: int) -> None: ...


class Diag:
    def __init__(self) -> None:
        self.socket = socket.socket()


class Place:
    """A program's namespace as far as it is needed, with a door; to the hub it is a program."""

    def __init__(self, name: str, kind: str, address4: str, address6: str) -> None:
        libc.call("unshare", CLONE_NEWNET)
        self.id = self.name = name
        self.kind, self.addresses = kind, {4: address4, 6: address6}
        self.namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self.diag = Diag()
        missing = [features.TUN] * bool(device.LINK[kind]) + [features.VNET] * (not device.has_header(kind))
        features.leave_out(",".join(missing))
        made = device.open_device("as0")
        self.fd, self.index, self.end = made.fd, made.ifindex, 0
        loopback = socket.if_nametoindex("lo")
        with netlink.Route() as route:
            route.ask(netlink.link_message(loopback, up=True))
            for address in self.addresses.values():
                route.ask(netlink.address_message(loopback, address))
                route.ask(netlink.default_route_message(made.ifindex, netlink.family_of(address), address))
            route.ask(netlink.local_route_message(loopback, address6))
        assert made.kind == kind

    def socket(self, version: int, port: int) -> socket.socket:
        libc.call("setns", self.namespace, CLONE_NEWNET)
        sock = socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
        sock.bind((self.addresses[version], port))
        sock.settimeout(DEADLINE)
        return sock

    def relayed(self, least: int = 0) -> list[bytes]:
        """UDP packets that have come to the relay since this was asked last, of which so many are waited for."""
        found: list[bytes] = []
        while True:
            # A busy kernel leaves what a veth pair carries for later.
            select.select([self.fd], [], [], DEADLINE if len(found) < least else 0)
            try:
                packet = device.read_frame(self.fd)[device.BEFORE[self.kind] :]
            except BlockingIOError:
                return found
            if packet[9 if packet[0] >> 4 == 4 else 6] in _UDP:
                found.append(packet)


class Pair:
    """Two places, and a map."""

    def __init__(self, kind: str) -> None:
        self.map = Map("test", code.KEY.size, code.VALUE.size, 4)
        self.opened: list[Door] = []
        self.hub = self.new_hub()
        self.places = (Place("1", kind, "10.1.1.1", "fd00::1"), Place("2", kind, "10.1.1.2", "fd00::2"))
        for place in self.places:
            self.open(place)

    def new_hub(self) -> Hub:
        self._poller = Poller()
        return Hub(self._poller, self.map, IDLE, lambda _, door: self.opened.append(door))

    def open(self, place: Place) -> None:
        count = len(self.opened)
        self.hub.open(place)
        until(lambda: self._poller.ready(0) or len(self.opened) > count)
        place.end = self.opened[-1].end

    def key(self, version: int) -> bytes:
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        one, two = (socket.inet_pton(family, place.addresses[version]) for place in self.places)
        return map_key(self.places[0].end, one + two + struct.pack("!HH", 5000, 7000))

    def enter(self, version: int, ago: float = 0.0) -> None:
        last = time.monotonic_ns() - int(ago * 1e9)
        self.map.put(self.key(version), code.VALUE.pack(self.places[1].end, last, 0))

    def sockets(self, version: int) -> tuple[socket.socket, socket.socket]:
        sender, receiver = self.places[0].socket(version, 5000), self.places[1].socket(version, 7000)
        sender.connect(receiver.getsockname())
        return sender, receiver


def in_child(work: Callable[[], None]) -> None:
    """In a process of its own, for it changes its network namespace."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            os.write(write, traceback.format_exc().encode())
        os._exit(0)
    os.close(write)
    with open(read) as pipe:
        problem = pipe.read()
    os.waitpid(pid, 0)
    assert not problem, problem


@pytest.fixture(params=kinds())
def kind(request: pytest.FixtureRequest) -> Iterator[str]:
    yield request.param
    features.leave_out("")


both = pytest.mark.parametrize("version", [4, 6])


@both
def test_what_is_entered_goes_by(kind: str, version: int) -> None:
    def work() -> None:
        pair = Pair(kind)
        sender, receiver = pair.sockets(version)
        sender.send(b"to the relay")
        assert pair.places[0].relayed(1)[0].endswith(b"to the relay")
        pair.enter(version)
        sender.send(b"past it")
        assert receiver.recvfrom(100)[:2] == (b"past it", sender.getsockname())
        assert pair.places[0].relayed() == []
        end, last, count = code.VALUE.unpack(pair.map.take(pair.key(version)) or b"")
        assert (end, count) == (pair.places[1].end, 1)
        assert time.monotonic_ns() - last < 60e9
        sender.send(b"to the relay again")
        assert len(pair.places[0].relayed(1)) == 1

    in_child(work)


@both
def test_the_relay_sees_what_comes_after_silence(kind: str, version: int) -> None:
    def work() -> None:
        pair = Pair(kind)
        sender, receiver = pair.sockets(version)
        pair.enter(version, ago=IDLE + 1)
        sender.send(b"late")
        assert len(pair.places[0].relayed(1)) == 1
        pair.enter(version, ago=IDLE - 60)
        sender.send(b"soon enough")
        assert receiver.recv(100) == b"soon enough"

    in_child(work)


@both
def test_all_that_is_not_plain_comes_to_the_relay(kind: str, version: int) -> None:
    def work() -> None:
        pair = Pair(kind)
        sender, receiver = pair.sockets(version)
        pair.enter(version)
        level, options = (
            (socket.IPPROTO_IP, socket.IP_OPTIONS) if version == 4 else (socket.IPPROTO_IPV6, socket.IPV6_DSTOPTS)
        )
        sender.setsockopt(level, options, b"\1\1\1\1" if version == 4 else bytes([0, 0, 1, 4, 0, 0, 0, 0]))
        sender.send(b"with options")
        assert len(pair.places[0].relayed(1)) == 1
        sender.setsockopt(level, options, b"")
        other = pair.places[0].socket(version, 5001)
        other.sendto(b"from another port", receiver.getsockname())
        assert len(pair.places[0].relayed(1)) == 1
        with netlink.Route() as route:
            route.ask(netlink.link_message(pair.places[0].index, up=True, arp=False, multicast=False, mtu=1500))
        libc.call("setns", pair.places[0].namespace, CLONE_NEWNET)
        sender.setsockopt(level, 10 if version == 4 else 23, 0)  # IP_MTU_DISCOVER, IPV6_MTU_DISCOVER
        sender.send(bytes(3000))
        assert len(pair.places[0].relayed(3)) == 3, "fragments"
        sender.send(b"plain")
        assert receiver.recv(100) == b"plain"

    in_child(work)


def test_the_hub_lets_nothing_else_by(kind: str) -> None:
    """Whatever a program puts into its door: frames of its own making."""

    def work() -> None:
        pair = Pair(kind)
        sender, receiver = pair.sockets(4)
        pair.enter(4)
        sender.send(b"a true one")
        receiver.recv(100)
        libc.call("setns", pair.places[0].namespace, CLONE_NEWNET)
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind(("as1", 0))
            for source, wanted in (("10.1.1.9", False), ("10.1.1.2", False), ("10.1.1.1", True)):
                packet = packets.udp(socket.inet_aton(source), 5000, socket.inet_aton("10.1.1.2"), 7000, b"by hand")
                raw.send(code.ADDRESS * 2 + b"\x08\x00" + (packet or b""))
                if wanted:  # the control: what it may say by as0 it may say here
                    assert receiver.recvfrom(100)[1] == ("10.1.1.1", 5000)
        receiver.settimeout(0)
        with pytest.raises(BlockingIOError):
            receiver.recv(100)

    in_child(work)


def test_without_its_door_a_program_talks_by_the_relay(kind: str) -> None:
    """What it had entered does no harm; another door is as good as the first."""

    def work() -> None:
        pair = Pair(kind)
        sender, receiver = pair.sockets(4)
        pair.enter(4)
        sender.send(b"past the relay")
        receiver.recv(100)
        os.close(pair.opened[0].open)  # as when the process ends: the kernel does the rest in its time
        until(lambda: sender.send(b"to the relay") and pair.places[0].relayed())
        # The relay after it may find the doors still there, for the kernel takes its time over the hub.
        old, pair.hub = pair.hub, pair.new_hub()
        for place in pair.places:
            pair.open(place)
        pair.enter(4)
        receiver.setblocking(False)
        while select.select([receiver], [], [], 0)[0]:
            receiver.recv(100)
        receiver.settimeout(DEADLINE)
        sender.send(b"past it again")
        while (came := receiver.recv(100)) != b"past it again":
            assert came == b"to the relay"  # by the old door, just before it was shut
        old.close()

    in_child(work)


def test_a_door_that_is_shut_leaves_nothing(kind: str) -> None:
    def work() -> None:
        opened: list[object] = []
        poller = Poller()
        ways = Map("test", code.KEY.size, code.VALUE.size, 4)
        hub = Hub(poller, ways, IDLE, lambda _, door: opened.append(door))
        place = Place("1", kind, "10.1.1.1", "fd00::1")
        before = len(os.listdir("/proc/self/fd"))
        for turn in (1, 2):
            hub.open(place)
            until(lambda turn=turn: poller.ready(0) or len(opened) == turn)
            assert "as1" in Path("/proc/thread-self/net/dev").read_text()
            hub.shut(opened[-1])
            until(lambda: "as1" not in Path("/proc/thread-self/net/dev").read_text())
        until(lambda: len(os.listdir("/proc/self/fd")) == before + 1)  # the hub itself

    in_child(work)


def test_a_map_has_bounds() -> None:
    table = Map("test", 4, 4, 2)
    for number in range(2):
        table.put(bytes([number] * 4), b"abcd")
    with pytest.raises(OSError, match="Argument list too long"):
        table.put(b"more", b"abcd")
    assert table.take(bytes(4)) == b"abcd"
    assert table.take(bytes(4)) is table.get(bytes(4)) is None
    table.put(b"more", b"efgh")
    assert table.get(b"more") == b"efgh"
    os.close(table.fd)


def test_a_program_that_does_as_it_likes_is_refused() -> None:
    with pytest.raises(OSError, match="Permission denied"):
        bpf_objects.load("bad", struct.pack("=BBhi", 0x95, 0, 0, 0))  # R0 was never set
    table = Map("test", code.KEY.size, code.VALUE.size, 2)
    good = bpf_objects.load("good", code.crosses(table.fd))
    with pytest.raises(OSError, match="No such device"):
        bpf_objects.attach(good, 0x7FFFFFFF, bpf_objects.INGRESS)
    os.close(good)
    os.close(table.fd)
    bpf_objects.try_all()
