"""A program's surroundings on the real kernel: made by a forked child, used from here as by the switch."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import pickle
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from appswitch.linux import device, features, libc, namespace, netlink, vnet
from appswitch.trap import surroundings

NOBODY = 65534
AS_ROOT = os.geteuid() == 0
PYTHON = os.path.realpath(sys.executable)  # a virtual environment may lie where others cannot read
CLONE_NEWNS, MS_BIND, MS_REC, MS_PRIVATE, MS_SHARED = 0x20000, 0x1000, 0x4000, 0x40000, 0x100000
WAIT = 90.0
RESOLVER = "100.64.0.53"
V4, V6 = "100.64.1.2", "2001:db8:ffff::7"

USERS = [pytest.param(True, id="user")] + [pytest.param(False, id="root")] * AS_ROOT


class Inside:
    """A forked child that runs functions of this module one by one; what it does to itself stays with it."""

    def __init__(self) -> None:
        self._here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.descriptors: list[int] = []
        self._pid = os.fork()
        if self._pid == 0:
            self._here.close()
            try:
                _serve(there)
            finally:
                os._exit(0)
        there.close()
        self._here.settimeout(WAIT)

    def start(self, work: Callable[..., Any], *args: Any) -> None:
        self._here.send(pickle.dumps((work, args)))

    def result(self) -> Any:
        data, descriptors, _, _ = socket.recv_fds(self._here, 1 << 20, 16)
        self.descriptors += descriptors
        done, value = pickle.loads(data)
        assert done, value
        return value

    def call(self, work: Callable[..., Any], *args: Any) -> Any:
        self.start(work, *args)
        return self.result()

    def build(self, plan: surroundings.Plan) -> surroundings.Surroundings:
        """The surroundings, with descriptors of this process."""
        made = self.call(_build, plan)
        fds = iter(self.descriptors)
        return surroundings.Surroundings(
            device_kind=made.device_kind,
            device_fd=next(fds),
            device_ifindex=made.device_ifindex,
            acceptor_v4=next(fds),
            acceptor_v6=next(fds) if made.acceptor_v6 >= 0 else -1,
            acceptor_mapped=next(fds) if made.acceptor_mapped >= 0 else -1,
            dns=list(itertools.islice(fds, len(made.dns))),
            route=list(fds),
        )

    def end(self) -> None:
        self._here.close()
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        for fd in self.descriptors:
            os.close(fd)


def _serve(there: socket.socket) -> None:
    while request := there.recv(1 << 20):
        work, args = pickle.loads(request)
        descriptors: list[int] = []
        try:
            value = work(*args)
            if isinstance(value, surroundings.Surroundings):
                acceptors = [value.acceptor_v4, value.acceptor_v6, value.acceptor_mapped]
                numbers = [value.device_fd, *acceptors, *value.dns, *value.route]
                descriptors = [number for number in numbers if number >= 0]
            outcome = (True, value)
        except BaseException:
            outcome = (False, traceback.format_exc())
        socket.send_fds(there, [pickle.dumps(outcome)], descriptors)
        for number in descriptors:  # handed over, as `appswitch run` does
            os.close(number)


def _build(plan: surroundings.Plan) -> surroundings.Surroundings:
    return surroundings.build(plan)


def _refusal(plan: surroundings.Plan) -> tuple[int | None, str]:
    try:
        surroundings.build(plan)
    except surroundings.SurroundingsError as error:
        return error.errno, str(error)
    return 0, ""


def _drop() -> None:
    if AS_ROOT:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        libc.call("prctl", 4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: else /proc/self belongs to root


def _mount(source: str, target: str, kind: bytes | None, flags: int, data: bytes | None = None) -> None:
    libc.call("mount", source.encode(), target.encode(), kind, flags, data)


def _own_mounts() -> None:
    libc.call("unshare", CLONE_NEWNS)
    _mount("none", "/", None, MS_REC | MS_PRIVATE)


def _replace_tun(kind: str, folder: str) -> None:
    """Let everybody open /dev/net/tun, or make it something that is no TUN."""
    _own_mounts()
    node = "/dev/null"
    if kind in (device.TUN, device.TUN_VNET):
        _mount("none", folder, b"tmpfs", 0, b"mode=755")
        node = folder + "/tun"
        os.mknod(node, 0o020666, os.makedev(10, 200))
        os.chmod(node, 0o666)
    _mount(node, "/dev/net/tun", None, MS_BIND)


@pytest.fixture
def folder() -> Iterator[str]:
    """A directory that an ordinary user can reach (tmp_path is its owner's alone)."""
    path = tempfile.mkdtemp(prefix="appswitch-test-")
    os.chmod(path, 0o755)
    Path(path, "resolv.conf").write_text(f"nameserver {RESOLVER}\n")
    yield path
    shutil.rmtree(path)


@pytest.fixture
def child() -> Iterator[Inside]:
    inside = Inside()
    yield inside
    inside.end()


class Case(NamedTuple):
    user: bool
    kind: str


CASES = [
    pytest.param(Case(True, device.PACKET_VNET), id="user-packet-vnet"),
    pytest.param(Case(True, device.PACKET), id="user-packet"),
]
if AS_ROOT:
    CASES += [
        pytest.param(Case(False, device.TUN_VNET), id="root-tun-vnet"),
        pytest.param(Case(True, device.TUN_VNET), id="user-tun-vnet"),
        pytest.param(Case(False, device.PACKET_VNET), id="root-packet-vnet"),
        pytest.param(Case(False, device.TUN), id="root-tun"),
    ]


def plan_for(case: Case, folder: str, addresses: list[str]) -> surroundings.Plan:
    return surroundings.Plan(
        user=case.user, addresses=addresses, nameserver=RESOLVER, resolv_conf=folder + "/resolv.conf"
    )


def prepare(case: Case, child: Inside, folder: str) -> None:
    """What decides on the kind of the device and on the user."""
    if AS_ROOT:
        os.mkdir(folder + "/dev")
        child.call(_replace_tun, case.kind, folder + "/dev")
    if not device.has_header(case.kind):
        child.call(features.leave_out, features.VNET)
    if case.user:
        child.call(_drop)


def made(case: Case, child: Inside, folder: str, *addresses: str) -> surroundings.Surroundings:
    prepare(case, child, folder)
    result = child.build(plan_for(case, folder, list(addresses)))
    assert result.device_kind == case.kind
    return result


# --- packets ---------------------------------------------------------------------------------------------


class Datagram(NamedTuple):
    source: str
    destination: str
    source_port: int
    destination_port: int
    payload: bytes


def checksum(data: bytes) -> int:
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return int(~total & 0xFFFF)


def pseudo_header(source: bytes, destination: bytes, protocol: int, length: int) -> bytes:
    return source + destination + struct.pack("!IxxxB", length, protocol)


def parse(packet: bytes) -> Datagram:
    """A UDP datagram; its checksums must be right and it must be whole."""
    if packet[0] >> 4 == 4:
        family, start, protocol, source, destination = (
            socket.AF_INET,
            (packet[0] & 15) * 4,
            packet[9],
            packet[12:16],
            packet[16:20],
        )
        assert struct.unpack_from("!H", packet, 2)[0] == len(packet)
        assert struct.unpack_from("!H", packet, 6)[0] & 0x3FFF == 0, "a fragment"
        assert checksum(packet[:start]) == 0
    else:
        family, start, protocol, source, destination = (
            socket.AF_INET6,
            40,
            packet[6],
            packet[8:24],
            packet[24:40],
        )
    assert protocol == socket.IPPROTO_UDP, packet.hex()
    udp = packet[start:]
    source_port, destination_port, length, _ = struct.unpack_from("!HHHH", udp)
    assert length == len(udp)
    assert checksum(pseudo_header(source, destination, protocol, length) + udp) == 0, "unfinished checksum"
    return Datagram(
        socket.inet_ntop(family, source),
        socket.inet_ntop(family, destination),
        source_port,
        destination_port,
        udp[8:],
    )


def ip_packet(source: bytes, destination: bytes, protocol: int, body: bytes) -> bytes:
    if len(source) == 16:
        return struct.pack("!IHBB", 6 << 28, len(body), protocol, 64) + source + destination + body
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, 64, protocol, 0) + source + destination
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + body


def answer_to(query: Datagram, payload: bytes) -> bytes:
    family = netlink.family_of(query.source)
    source, destination = (socket.inet_pton(family, a) for a in (query.destination, query.source))
    length = 8 + len(payload)
    udp = struct.pack("!HHHH", query.destination_port, query.source_port, length, 0) + payload
    value = checksum(pseudo_header(source, destination, 17, length) + udp) or 0xFFFF
    return ip_packet(source, destination, 17, udp[:6] + struct.pack("!H", value) + payload)


def port_unreachable(packet: bytes) -> bytes:
    """RFC 792 and RFC 4443: destination unreachable, port."""
    if packet[0] >> 4 == 4:
        body = struct.pack("!BBHI", 3, 3, 0, 0) + packet[:28]
        body = body[:2] + struct.pack("!H", checksum(body)) + body[4:]
        return ip_packet(packet[16:20], packet[12:16], 1, body)
    source, destination = packet[24:40], packet[8:24]
    body = struct.pack("!BBHI", 1, 4, 0, 0) + packet[:1200]
    value = checksum(pseudo_header(source, destination, 58, len(body)) + body)
    return ip_packet(source, destination, 58, body[:2] + struct.pack("!H", value) + body[4:])


def next_frame(end: surroundings.Surroundings) -> tuple[bytes, vnet.Unfinished]:
    """The next packet, and what is left to be done for it."""
    assert select.select([end.device_fd], [], [], WAIT)[0], "nothing arrives"
    frame, kind = device.read_frame(end.device_fd), end.device_kind
    left = vnet.unpack(frame, device.LINK[kind]) if device.has_header(kind) else vnet.FINISHED
    return frame[device.BEFORE[kind] :], left


def next_packet(end: surroundings.Surroundings) -> bytes:
    """The next packet; where a checksum was left out, what stands for it is right, and it is filled in."""
    packet, left = next_frame(end)
    if not left.start:
        return packet
    addresses = (packet[12:16], packet[16:20]) if packet[0] >> 4 == 4 else (packet[8:24], packet[24:40])
    udp = packet[left.start :]
    pseudo = pseudo_header(*addresses, 17, len(udp))
    assert struct.unpack_from("!H", udp, 6)[0] == ~checksum(pseudo) & 0xFFFF
    value = checksum(pseudo + udp[:6] + b"\0\0" + udp[8:]) or 0xFFFF
    return packet[: left.start + 6] + struct.pack("!H", value) + udp[8:]


def silent(end: surroundings.Surroundings) -> bool:
    try:
        packet = device.read_frame(end.device_fd)
    except BlockingIOError:
        return True
    raise AssertionError(packet.hex())


# --- what runs in the child ------------------------------------------------------------------------------


def _ask(address: str, payload: bytes, port: int = 53, *, connected: bool = False) -> tuple[bytes, str] | int:
    """Send a datagram and wait for the answer; the errno when the socket reports one."""
    with socket.socket(netlink.family_of(address), socket.SOCK_DGRAM) as sock:
        sock.settimeout(WAIT)
        try:
            if connected:
                sock.connect((address, port))
                sock.send(payload)
            else:
                sock.sendto(payload, (address, port))
            data, peer = sock.recvfrom(65536)
        except OSError as error:
            return error.errno or -1
        return data, peer[0]


def _interfaces() -> list[str]:
    return [name for _, name in socket.if_nameindex()]


def _text(path: str) -> str:
    with open(path) as file:
        return file.read()


def _overwrite(path: str) -> int:
    try:
        with open(path, "w"):
            return 0
    except OSError as error:
        return error.errno or -1


def _connect(address: str, port: int) -> int:
    with socket.socket(netlink.family_of(address), socket.SOCK_STREAM) as sock:
        sock.settimeout(WAIT)
        return sock.connect_ex((address, port))


def _run(script: str) -> str:
    command = [PYTHON, "-I", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# --- datagrams -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_queries_cross_the_device_and_answers_come_back(case: Case, child: Inside, folder: str) -> None:
    end = made(case, child, folder, V4, V6)
    for address, source in ((RESOLVER, V4), ("8.8.8.8", V4), ("2001:db8::1", V6)):
        for query, answer in ((b"query", b"answer"), (b"q" * 4000, b"a" * 60000)):
            child.start(_ask, address, query)
            datagram = parse(next_packet(end))
            assert datagram[:2] == (source, address)
            assert (datagram.destination_port, datagram.payload) == (53, query)
            device.write_packet(end.device_fd, end.device_kind, answer_to(datagram, answer))
            assert child.result() == (answer, address)
    assert silent(end)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("own", "address", "source"), [(V4, "2001:db8::1", "fe80::1"), (V6, RESOLVER, "127.0.0.1")])
def test_resolvers_of_the_other_family_answer_too(
    case: Case, own: str, address: str, source: str, child: Inside, folder: str
) -> None:
    end = made(case, child, folder, own)
    child.start(_ask, address, b"query")
    datagram = parse(next_packet(end))
    assert datagram[:2] == (source, address)
    device.write_packet(end.device_fd, end.device_kind, answer_to(datagram, b"answer"))
    assert child.result() == (b"answer", address)


@pytest.mark.parametrize("own", [V4, "169.254.7.7"])
def test_ipv4_stays_the_first_choice_of_a_program_with_an_ipv4_address(own: str, child: Inside, folder: str) -> None:
    """getaddrinfo(3) sorts by the sources that it finds (RFC 6724, section 6)."""
    if AS_ROOT:
        child.call(_drop)
    Path(folder, "hosts").write_text("2001:db8::1 both\n8.8.8.8 both\n")
    child.build(plan_for(Case(True, ""), folder, [own]))
    child.call(namespace.cover, "/etc/hosts", folder + "/hosts")
    assert child.call(_resolve, "both") == ["8.8.8.8", "2001:db8::1"]


def _resolve(name: str) -> list[str]:
    return [str(entry[4][0]) for entry in socket.getaddrinfo(name, 80, type=socket.SOCK_STREAM)]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("address", ["8.8.8.8", "2001:db8::1"])
def test_an_icmp_error_reaches_the_socket(case: Case, address: str, child: Inside, folder: str) -> None:
    end = made(case, child, folder, V4, V6)
    child.start(_ask_connected, address)
    device.write_packet(end.device_fd, end.device_kind, port_unreachable(next_packet(end)))
    assert child.result() == errno.ECONNREFUSED


def _ask_connected(address: str) -> tuple[bytes, str] | int:
    return _ask(address, b"ping", 9, connected=True)


@pytest.mark.parametrize("case", CASES)
def test_many_queries_at_once_each_arrive_once(case: Case, child: Inside, folder: str) -> None:
    end = made(case, child, folder, V4, V6)
    child.call(_burst, 64)
    assert [parse(next_packet(end)).payload for _ in range(64)] == [b"%d" % number for number in range(64)]
    assert silent(end)


def _burst(count: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for number in range(count):
            sock.sendto(b"%d" % number, ("8.8.8.8", 53))


@pytest.mark.parametrize("case", CASES)
def test_segmented_sends_arrive_as_datagrams(case: Case, child: Inside, folder: str) -> None:
    """UDP_SEGMENT (udp(7)): a kernel, not the relay, cuts a send into datagrams: the sender's, or the receiver's."""
    end = made(case, child, folder, V4)
    child.call(_segmented)
    if device.has_header(case.kind):
        packet, left = next_frame(end)
        assert (packet[28:], left) == (b"x" * 2500, vnet.Unfinished(20, 1000))
        return
    assert [parse(next_packet(end)).payload for _ in range(3)] == [b"x" * 1000, b"x" * 1000, b"x" * 500]


def _segmented() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_UDP, 103, 1000)
        sock.sendto(b"x" * 2500, ("8.8.8.8", 53))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("own", [V4, V6])
def test_what_is_written_at_once_arrives(case: Case, own: str, child: Inside, folder: str) -> None:
    """A new device and a new address take the kernel some work that it does later, unless one sees to it."""
    prepare(case, child, folder)
    assert child.call(_lost_of, 25, own, plan_for(case, folder, [own])) == 0


def _lost_of(count: int, own: str, plan: surroundings.Plan) -> int:
    return sum(_in_fork(_loses_first_packet, own, plan) for _ in range(count))


def _loses_first_packet(own: str, plan: surroundings.Plan) -> bool:
    end = surroundings.build(plan)
    with socket.socket(netlink.family_of(own), socket.SOCK_DGRAM) as sock:
        sock.bind((own, 0))
        far = "8.8.8.8" if own == V4 else "2001:db8::1"
        packet = answer_to(Datagram(own, far, sock.getsockname()[1], 53, b""), b"first")
        device.write_packet(end.device_fd, end.device_kind, packet)
        return not select.select([sock], [], [], 10)[0]


def _in_fork(work: Callable[..., bool], *args: Any) -> bool:
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(work(*args))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0


@pytest.mark.parametrize("case", CASES)
def test_there_is_no_other_way_out_and_no_noise(case: Case, child: Inside, folder: str) -> None:
    """An IPv6 stack would ask for routers within a second: RFC 4861, 6.3.7."""
    end = made(case, child, folder, V4)
    assert child.call(_interfaces) == ["lo", "as0"]
    assert not select.select([end.device_fd], [], [], 1.3)[0], next_packet(end).hex()
    received = next(line for line in child.call(_text, "/proc/self/net/dev").splitlines() if "as0:" in line)
    assert received.split()[2] == "0"


@pytest.mark.parametrize("case", CASES)
def test_the_device_goes_with_its_last_descriptor(case: Case, child: Inside, folder: str) -> None:
    end = made(case, child, folder, V4)
    child.call(_watch_links)
    os.close(child.descriptors.pop(0))
    assert child.call(_link_gone) == ["lo"]
    with pytest.raises(OSError):
        device.read_frame(end.device_fd)


WATCH: list[socket.socket] = []


def _watch_links() -> None:
    watch = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    watch.bind((0, 1))  # RTMGRP_LINK
    watch.settimeout(WAIT)
    WATCH.append(watch)


def _link_gone() -> list[str]:
    while "as0" in _interfaces():
        WATCH[0].recv(65536)
    return _interfaces()


# --- loopback --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("user", USERS)
def test_acceptors_take_connections_for_the_switch(user: bool, child: Inside, folder: str) -> None:
    if user:
        child.call(_drop)
    end = child.build(plan_for(Case(user, ""), folder, [V4]))
    mapped = surroundings.MAPPED_LOOPBACK
    for fd, address in ((end.acceptor_v4, "127.0.0.1"), (end.acceptor_v6, "::1"), (end.acceptor_mapped, mapped)):
        assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK
        with socket.socket(fileno=os.dup(fd)) as acceptor:
            assert acceptor.getsockname()[:2] == (address, surroundings.ACCEPTOR_PORT)
            with pytest.raises(BlockingIOError):
                acceptor.accept()
            assert child.call(_connect, address, surroundings.ACCEPTOR_PORT) == 0
            assert select.select([acceptor], [], [], WAIT)[0]  # the last of its three packets may be on its way
            connection, peer = acceptor.accept()
            assert peer[0] == address.replace("127.0.0.2", "127.0.0.1")  # the source that the kernel chooses
            connection.close()


@pytest.mark.parametrize("user", USERS)
def test_queries_to_loopback_come_to_the_switch(user: bool, child: Inside, folder: str) -> None:
    if user:
        child.call(_drop)
    end = child.build(plan_for(Case(user, ""), folder, [V4]))
    for fd, address in zip(end.dns, ("127.0.0.1", "127.0.0.53", "::1"), strict=True):
        child.start(_ask, address, b"query")
        assert select.select([fd], [], [], WAIT)[0]
        with socket.socket(fileno=os.dup(fd)) as resolver:
            query, peer = resolver.recvfrom(100)
            resolver.sendto(b"to " + query, peer)
        assert child.result() == (b"to query", address)


@pytest.mark.parametrize("user", USERS)
def test_descriptors_are_close_on_exec_and_non_blocking(user: bool, child: Inside, folder: str) -> None:
    if user:
        child.call(_drop)
    flags = child.call(_flags, plan_for(Case(user, ""), folder, [V4]))
    assert flags == [(fcntl.FD_CLOEXEC, os.O_NONBLOCK)] * 7


def _flags(plan: surroundings.Plan) -> list[tuple[int, int]]:
    end = surroundings.build(plan)
    return [
        (fcntl.fcntl(fd, fcntl.F_GETFD), fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK)
        for fd in (end.device_fd, end.acceptor_v4, end.acceptor_v6, end.acceptor_mapped, *end.dns)
    ]


# --- the program -----------------------------------------------------------------------------------------

PROGRAM = f"""
import os, socket
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
web = socket.create_server(("0.0.0.0", 80))
own = socket.create_server(("{V4}", 443))
dns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
dns.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
dns.bind(("0.0.0.0", 53))
print(os.getuid(), os.getgid(), int(status["CapEff"], 16) == 0)
"""


@pytest.mark.parametrize("user", USERS)
def test_a_program_serves_low_ports_without_privilege(user: bool, child: Inside, folder: str) -> None:
    if user:
        child.call(_drop)
    child.build(plan_for(Case(user, ""), folder, [V4]))
    uid = NOBODY if user and AS_ROOT else os.geteuid()
    gid = NOBODY if user and AS_ROOT else os.getegid()
    start = child.call(_text, "/proc/sys/net/ipv4/ip_unprivileged_port_start")
    printed = child.call(_run, PROGRAM)
    assert start.strip() == "0"
    assert printed == f"{uid} {gid} {user}"


@pytest.mark.parametrize(("own", "other"), [(V4, "100.64.9.9"), (V6, "2001:db8::9")], ids=["ipv4", "ipv6"])
def test_the_virtual_address_is_the_programs_own(own: str, other: str, child: Inside, folder: str) -> None:
    if AS_ROOT:
        child.call(_drop)
    child.build(plan_for(Case(True, ""), folder, [own]))
    assert child.call(_bind, own) == 0
    assert child.call(_bind, other) == errno.EADDRNOTAVAIL
    assert child.call(_connect, own, 4711) == errno.ECONNREFUSED  # local: no packet leaves for it


def _bind(address: str) -> int:
    with socket.socket(netlink.family_of(address), socket.SOCK_DGRAM) as sock:
        try:
            sock.bind((address, 0))
        except OSError as error:
            return error.errno or -1
    return 0


@pytest.mark.parametrize("user", USERS)
def test_tuning_of_the_host_is_taken_over(user: bool, child: Inside, folder: str) -> None:
    if user:
        child.call(_drop)
    child.call(_tuned, user)
    child.build(plan_for(Case(user, ""), folder, [V4]))
    assert child.call(_text, "/proc/sys/net/unix/max_dgram_qlen").strip() == "77"
    assert child.call(_text, "/proc/sys/net/ipv4/ip_local_port_range").split() == ["40000", "41000"]


def _tuned(user: bool) -> None:
    namespace.enter(user=user)
    for name, value in (("unix/max_dgram_qlen", "77"), ("ipv4/ip_local_port_range", "40000 41000")):
        with open("/proc/sys/net/" + name, "w") as file:
            file.write(value)


# --- the host's resolver ---------------------------------------------------------------------------------


@pytest.mark.parametrize("user", USERS)
def test_resolv_conf_is_ours_there_and_untouched_here(user: bool, child: Inside, folder: str) -> None:
    before = _text("/etc/resolv.conf"), os.stat("/etc/resolv.conf")
    if user:
        child.call(_drop)
    child.build(plan_for(Case(user, ""), folder, [V4]))
    assert child.call(_text, "/etc/resolv.conf") == f"nameserver {RESOLVER}\n"
    assert child.call(_overwrite, "/etc/resolv.conf") == errno.EROFS
    assert (_text("/etc/resolv.conf"), os.stat("/etc/resolv.conf")) == before
    assert before[0] != f"nameserver {RESOLVER}\n"
    assert _text(folder + "/resolv.conf") == f"nameserver {RESOLVER}\n"


@pytest.mark.parametrize("user", USERS)
def test_a_missing_resolv_conf_stays_missing(user: bool, child: Inside, folder: str) -> None:
    missing = folder + "/etc-resolv.conf"
    os.symlink(folder + "/nowhere", missing)
    if user:
        child.call(_drop)
    child.call(_set, "_RESOLV_CONF", missing)
    child.build(plan_for(Case(user, ""), folder, [V4]))
    assert sorted(os.listdir(folder)) == ["etc-resolv.conf", "resolv.conf"]


def _set(name: str, value: object) -> None:
    """Change something of the module, in this child alone."""
    setattr(surroundings, name, value)


@pytest.mark.skipif(not AS_ROOT, reason="needs root to lay sockets under /run")
@pytest.mark.parametrize("user", USERS)
def test_side_doors_to_the_hosts_resolver_are_shut(user: bool, child: Inside, folder: str) -> None:
    doors = ["/var/run/nscd/socket", "/run/systemd/resolve/io.systemd.Resolve"]
    child.call(_open_doors, doors)
    assert child.call(_knock, doors) == [0, 0]
    if user:
        child.call(_drop)
    child.build(plan_for(Case(user, ""), folder, [V4]))
    refused = errno.EACCES if user else errno.ECONNREFUSED  # unix(7): no right to write, no socket
    assert child.call(_knock, doors) == [refused, refused]


DOORS: list[socket.socket] = []


def _open_doors(paths: list[str]) -> None:
    _own_mounts()
    _mount("none", "/run", b"tmpfs", 0, b"mode=755")
    for path in paths:
        os.makedirs(os.path.dirname(path))
        door = socket.socket(socket.AF_UNIX)
        door.bind(path)
        os.chmod(path, 0o666)
        door.listen()
        DOORS.append(door)


def _knock(paths: list[str]) -> list[int]:
    answers = []
    for path in paths:
        with socket.socket(socket.AF_UNIX) as sock:
            answers.append(sock.connect_ex(path))
    return answers


def test_cover_follows_links_and_stays_in_its_namespace(child: Inside, folder: str) -> None:
    target, link = Path(folder, "target"), Path(folder, "link")
    target.write_text("host")
    link.symlink_to("target")
    if AS_ROOT:
        child.call(_drop)
    child.call(_enter_and_cover, str(link), folder + "/resolv.conf")
    assert child.call(_text, str(target)) == f"nameserver {RESOLVER}\n"
    assert (target.read_text(), link.is_symlink()) == ("host", True)


def _enter_and_cover(target: str, source: str) -> None:
    namespace.enter(user=True)
    namespace.cover(target, source)


@pytest.mark.skipif(not AS_ROOT, reason="needs root to share mounts")
def test_mounts_come_in_and_do_not_go_out(child: Inside, folder: str) -> None:
    """With shared mounts, as systemd has them: a private copy would hold on to what the host unmounts."""
    os.mkdir(folder + "/late")
    Path(folder, "target").write_text("host")
    assert child.call(_mounts_of_both, folder) == ("host", True, False)


def _mounts_of_both(folder: str) -> tuple[str, bool, bool]:
    _own_mounts()
    _mount("none", "/", None, MS_REC | MS_SHARED)
    here, there = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        namespace.enter(user=False)
        namespace.cover(folder + "/target", folder + "/resolv.conf")
        for _ in range(2):
            there.send(b"x")
            there.recv(1)
            there.send(b"%d" % os.path.ismount(folder + "/late"))
        os._exit(0)
    here.settimeout(WAIT)
    here.recv(1)
    target = _text(folder + "/target")
    seen = []
    for change in (
        lambda: _mount("none", folder + "/late", b"tmpfs", 0),
        lambda: libc.call("umount2", (folder + "/late").encode(), 0),
    ):
        change()
        here.send(b"x")
        seen.append(here.recv(1) == b"1")
        if len(seen) == 1:
            here.recv(1)
    os.waitpid(pid, 0)
    return target, seen[0], seen[1]


# --- refusals --------------------------------------------------------------------------------------------


def test_without_ipv6_the_rest_works(child: Inside, folder: str) -> None:
    if AS_ROOT:
        child.call(_drop)
    child.call(_switch_ipv6_off)
    end = child.build(plan_for(Case(True, ""), folder, [V4]))
    assert end.acceptor_v6 == -1
    assert len(end.dns) == 2
    child.start(_ask, "8.8.8.8", b"query")
    datagram = parse(next_packet(end))
    device.write_packet(end.device_fd, end.device_kind, answer_to(datagram, b"answer"))
    assert child.result() == (b"answer", "8.8.8.8")


def test_an_ipv6_address_without_ipv6_is_refused_in_plain_words(child: Inside, folder: str) -> None:
    if AS_ROOT:
        child.call(_drop)
    child.call(_switch_ipv6_off)
    number, sentence = child.call(_refusal, plan_for(Case(True, ""), folder, [V6]))
    assert number
    assert sentence.startswith(f"cannot use {V6} as the program's address (")
    assert sentence.endswith("): IPv6 is switched off on this host; choose an IPv4 address")


def _switch_ipv6_off() -> None:
    _after_enter("/proc/sys/net/ipv6/conf/all/disable_ipv6")


def _after_enter(path: str, *, read_only: bool = False) -> None:
    """In this child, have namespace.enter followed by a change to the new namespaces."""
    enter = namespace.enter

    def then(*, user: bool) -> None:
        enter(user=user)
        if read_only:
            namespace.cover(path, path)
        else:
            with open(path, "w") as file:
                file.write("1")

    namespace.enter = then


def _read_only_sysctl() -> None:
    _after_enter("/proc/sys/net/ipv4/ip_unprivileged_port_start", read_only=True)


@pytest.mark.parametrize("user", USERS)
def test_a_read_only_proc_matters_to_ordinary_users_alone(user: bool, child: Inside, folder: str) -> None:
    if user:
        child.call(_drop)
    child.call(_read_only_sysctl)
    number, sentence = child.call(_refusal, plan_for(Case(user, ""), folder, [V4]))
    assert number == (errno.EROFS if user else 0)
    if user:
        assert sentence == (
            "cannot give the program ports below 1024 (Read-only file system): "
            "mount /proc/sys writable, or run appswitch as root"
        )


@pytest.mark.parametrize(
    ("addresses", "resolv_conf", "number", "sentence"),
    [
        ([RESOLVER], "resolv.conf", errno.EADDRINUSE, f"{RESOLVER} is the address of AppSwitch's resolver: "),
        ([V4, V4], "resolv.conf", errno.EEXIST, f"cannot use {V4} as the program's address (File exists): "),
        ([V4], "none.conf", errno.ENOENT, "cannot cover the host's resolver by "),
    ],
    ids=["the resolver's address", "an address twice", "no resolver file"],
)
def test_a_bad_plan_is_refused_in_plain_words(
    addresses: list[str], resolv_conf: str, number: int, sentence: str, child: Inside, folder: str
) -> None:
    if AS_ROOT:
        child.call(_drop)
    plan = plan_for(Case(True, ""), folder, addresses)._replace(resolv_conf=f"{folder}/{resolv_conf}")
    got_number, got = child.call(_refusal, plan)
    assert got_number == number
    assert got.startswith(sentence)


def test_user_namespaces_switched_off(child: Inside, folder: str) -> None:
    """user.max_user_namespaces is each user namespace's own: 0 in a first one forbids a second."""
    if AS_ROOT:
        child.call(_drop)
    child.call(_forbid_user_namespaces)
    number, sentence = child.call(_refusal, plan_for(Case(True, ""), folder, [V4]))
    assert number == errno.ENOSPC
    assert sentence == (
        "cannot make a user namespace: user.max_user_namespaces is 0 on this system; "
        "have root run `sysctl -w user.max_user_namespaces=10000`, or run appswitch as root"
    )


def _forbid_user_namespaces() -> None:
    namespace.enter(user=True)
    with open("/proc/sys/user/max_user_namespaces", "w") as file:
        file.write("0")


def test_root_without_the_capability(child: Inside, folder: str) -> None:
    if AS_ROOT:
        child.call(_drop)
    number, sentence = child.call(_refusal, plan_for(Case(False, ""), folder, [V4]))
    assert number == errno.EPERM
    assert sentence == (
        "cannot make a network namespace: root lacks CAP_SYS_ADMIN here (a container?); "
        "give the container that capability or run as an ordinary user"
    )


def test_no_device_at_all_is_said_once_for_both(child: Inside, folder: str) -> None:
    if AS_ROOT:
        os.mkdir(folder + "/dev")
        child.call(_replace_tun, device.PACKET, folder + "/dev")
        child.call(_drop)
    child.call(_break_veth)
    number, sentence = child.call(_refusal, plan_for(Case(True, ""), folder, [V4]))
    assert number == errno.EOPNOTSUPP
    assert sentence.startswith("cannot make a network device (no TUN device (")
    assert ", no veth pair (" in sentence
    assert child.call(_interfaces) == ["lo"]


def _break_veth() -> None:
    def refuse(*_: object) -> netlink.Message:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    netlink.veth_message = refuse  # type: ignore[assignment]


OFF = {"kernel.unprivileged_userns_clone": "0"}
APPARMOR = {"kernel.apparmor_restrict_unprivileged_userns": "1", "user.max_user_namespaces": "96365"}
FULL = {"user.max_user_namespaces": "5", "user.max_net_namespaces": "7"}


@pytest.mark.parametrize(
    ("number", "user", "sysctls", "part"),
    [
        (errno.EPERM, True, OFF, "have root run `sysctl -w kernel.unprivileged_userns_clone=1`"),
        (errno.EPERM, True, APPARMOR, "`sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`"),
        (errno.EACCES, True, APPARMOR, "kernel.apparmor_restrict_unprivileged_userns is 1 on this system"),
        (errno.EPERM, True, {}, "a container's seccomp profile"),
        (errno.EINVAL, True, {}, "CONFIG_USER_NS"),
        (errno.ENOSPC, True, FULL, "user.max_user_namespaces = 5, user.max_net_namespaces = 7"),
        (errno.ENOSPC, False, FULL, "a limit on namespaces is reached"),
        (errno.EPERM, False, OFF, "CAP_SYS_ADMIN"),
        (errno.ENOMEM, True, OFF, "Cannot allocate memory"),
    ],
)
def test_the_reason_for_a_refusal(number: int, user: bool, sysctls: dict[str, str], part: str) -> None:
    sentence = namespace.explain(number, user, sysctls)
    assert part in sentence
    assert "\n" not in sentence
