"""rtnetlink on the real kernel, in namespaces that forked children make for themselves."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable
from typing import Any

import pytest

from appswitch.linux import libc, namespace, netlink
from linux import children
from linux.children import AS_ROOT, NOBODY

CLONE_NEWNET = 0x40000000


def in_child(work: Callable[[], Any], *, user: bool = True) -> Any:
    """What `work` returns in a forked child, in namespaces of its own (an ordinary user's when `user`)."""

    def enter_and_work() -> Any:
        namespace.enter(user=user)
        return work()

    return children.in_child(enter_and_work, drop=user)


USERS = [pytest.param(True, id="user")] + [pytest.param(False, id="root")] * AS_ROOT


def index_of(name: str) -> int:
    return socket.if_nametoindex(name)


def interface(request: int, name: str) -> int:
    """The answer to an interface ioctl of netdevice(7) that gives a number."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        answer = fcntl.ioctl(sock, request, struct.pack("16s24x", name.encode()))
    if request == 0x8913:  # SIOCGIFFLAGS
        return int(struct.unpack_from("=H", answer, 16)[0])
    return int(struct.unpack_from("=i", answer, 16)[0])


def errno_of(work: Callable[[], object]) -> int | None:
    try:
        work()
    except OSError as error:
        return error.errno
    return None


def source_for(address: str) -> str:
    """The source address that the kernel would use towards `address`."""
    with socket.socket(netlink.family_of(address), socket.SOCK_DGRAM) as sock:
        sock.connect((address, 9))
        return str(sock.getsockname()[0])


def bind(address: str) -> None:
    with socket.socket(netlink.family_of(address), socket.SOCK_DGRAM) as sock:
        sock.bind((address, 0))


def make_pair(route: netlink.Route, name: str, peer: str, namespace_fd: int, mtu: int = 9000) -> None:
    addresses = bytes([2, 0, 0, 0, 0, 1]), bytes([2, 0, 0, 0, 0, 2])
    route.ask(netlink.veth_message(name, addresses[0], peer, addresses[1], namespace_fd, mtu))


def test_attributes_are_padded_to_four_bytes() -> None:
    assert netlink.attribute(3, b"as0\0x") == struct.pack("=HH", 9, 3) + b"as0\0x\0\0\0"
    assert len(netlink.attribute(3, b"1234")) == 8


def test_family_by_text() -> None:
    assert netlink.family_of("100.64.0.1") == socket.AF_INET
    assert netlink.family_of("::1") == socket.AF_INET6


@pytest.mark.parametrize("user", USERS)
def test_loopback_comes_up_only_when_asked(user: bool) -> None:
    def work() -> tuple[int | None, int | None, int]:
        before = errno_of(lambda: source_for("127.0.0.1"))
        with netlink.Route() as route:
            route.ask(netlink.link_message(index_of("lo"), up=True))
        return before, errno_of(lambda: source_for("127.0.0.1")), interface(0x8913, "lo") & 1

    assert in_child(work, user=user) == (errno.ENETUNREACH, None, 1)


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("address", ["100.64.1.2", "2001:db8::7"])
def test_an_address_is_usable_at_once(user: bool, address: str) -> None:
    def work() -> tuple[int | None, int | None]:
        with netlink.Route() as route:
            route.ask(netlink.link_message(index_of("lo"), up=True))
            before = errno_of(lambda: bind(address))
            route.ask(netlink.address_message(index_of("lo"), address))
        return before, errno_of(lambda: bind(address))

    assert in_child(work, user=user) == (errno.EADDRNOTAVAIL, None)


@pytest.mark.parametrize("user", USERS)
def test_veth_pair_across_two_namespaces(user: bool) -> None:
    def work() -> tuple[list[str], list[str], int, int]:
        here = os.open("/proc/self/ns/net", os.O_RDONLY)
        libc.call("unshare", CLONE_NEWNET)
        with netlink.Route() as route:
            make_pair(route, "one", "two", here)
        there_names = sorted(name for _, name in socket.if_nameindex())
        mtu_there = interface(0x8921, "one")  # SIOCGIFMTU
        libc.call("setns", here, CLONE_NEWNET)
        names = sorted(name for _, name in socket.if_nameindex())
        return there_names, names, mtu_there, interface(0x8921, "two")

    assert in_child(work, user=user) == (["lo", "one"], ["lo", "two"], 9000, 9000)


def test_flags_and_mtu_of_a_device() -> None:
    def work() -> tuple[int, int, int]:
        here = os.open("/proc/self/ns/net", os.O_RDONLY)
        with netlink.Route() as route:
            make_pair(route, "one", "two", here)
            before = interface(0x8913, "one")
            route.ask(netlink.link_message(index_of("one"), up=True, arp=False, multicast=False, mtu=65535))
        return before, interface(0x8913, "one"), interface(0x8921, "one")

    before, after, mtu = in_child(work)
    up, noarp, multicast = 0x1, 0x80, 0x1000
    assert before & (up | noarp | multicast) == multicast
    assert after & (up | noarp | multicast) == up | noarp
    assert mtu == 65535


def test_no_link_local_address_on_a_device() -> None:
    def work() -> list[str]:
        with netlink.Route() as route:
            make_pair(route, "one", "two", os.open("/proc/self/ns/net", os.O_RDONLY))
            route.ask(netlink.no_link_local_message(index_of("one")))
        return [text(f"/proc/sys/net/ipv6/conf/{name}/addr_gen_mode") for name in ("one", "two")]

    assert in_child(work) == ["1", "0"]


def text(path: str) -> str:
    with open(path) as file:
        return file.read().strip()


def test_waiting_until_a_device_runs_wants_both_ends_up() -> None:
    def work() -> tuple[bool, int]:
        with netlink.Route(watch=True) as route:
            make_pair(route, "one", "two", os.open("/proc/self/ns/net", os.O_RDONLY))
            route.ask(netlink.link_message(index_of("one"), up=True))
            route._socket.settimeout(0.3)
            try:
                route.wait_until_running(index_of("one"))
                alone = True
            except TimeoutError:
                alone = False
            route._socket.settimeout(90)
            with netlink.Route() as other:
                other.ask(netlink.link_message(index_of("two"), up=True))
            route.wait_until_running(index_of("one"))
        return alone, interface(0x8913, "one") & 0x40  # IFF_RUNNING

    assert in_child(work) == (False, 0x40)


def test_a_local_route_makes_an_ipv6_address_work_before_the_kernel_does() -> None:
    def work() -> list[int | None]:
        with netlink.Route() as route:
            route.ask(netlink.link_message(index_of("lo"), up=True))
            before = errno_of(lambda: source_for("2001:db8::7"))
            route.ask(netlink.local_route_message(index_of("lo"), "2001:db8::7"))
            return [before, errno_of(lambda: source_for("2001:db8::7"))]

    assert in_child(work) == [errno.ENETUNREACH, None]


def test_default_routes_and_their_preferred_source() -> None:
    def work() -> list[object]:
        with netlink.Route() as route:
            loopback = index_of("lo")
            make_pair(route, "one", "two", os.open("/proc/self/ns/net", os.O_RDONLY))
            route.ask(
                netlink.link_message(loopback, up=True),
                netlink.link_message(index_of("two"), up=True),
                netlink.link_message(index_of("one"), up=True, arp=False),
                *[netlink.address_message(loopback, a) for a in ("100.64.1.2", "100.64.1.3", "2001:db8::7")],
            )
            before = [errno_of(lambda: source_for("8.8.8.8")), errno_of(lambda: source_for("2001:db8:1::1"))]
            route.ask(
                netlink.default_route_message(index_of("one"), socket.AF_INET, "100.64.1.3"),
                netlink.default_route_message(index_of("one"), socket.AF_INET6),
            )
        return [*before, source_for("8.8.8.8"), source_for("2001:db8:1::1")]

    assert in_child(work) == [errno.ENETUNREACH, errno.ENETUNREACH, "100.64.1.3", "2001:db8::7"]


def test_errors_carry_the_errno_and_later_requests_are_tried() -> None:
    def work() -> list[int | None]:
        with netlink.Route() as route:
            up = netlink.link_message(index_of("lo"), up=True)
            again = netlink.address_message(index_of("lo"), "100.64.1.2")
            return [
                errno_of(lambda: route.ask(netlink.link_message(4711, up=True), up, again)),
                errno_of(lambda: bind("100.64.1.2")),
                errno_of(lambda: route.ask(again)),
            ]

    assert in_child(work) == [errno.ENODEV, None, errno.EEXIST]


@pytest.mark.skipif(not AS_ROOT, reason="needs two users")
def test_without_the_capability_it_is_refused() -> None:
    def work() -> int | None:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        with netlink.Route() as route:
            return errno_of(lambda: route.ask(netlink.link_message(index_of("lo"), up=True)))

    assert in_child(work, user=False) == errno.EPERM
