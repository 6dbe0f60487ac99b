"""The surroundings in which a program finds itself, made by its own process just before exec.

A network namespace with loopback, the virtual addresses and one point-to-point device whose other end is the
relay's; and a mount namespace in which the ways to the host's resolver are covered. The host stays as it is.
"""

from __future__ import annotations

import errno
import os
import socket
from contextlib import suppress
from typing import NamedTuple

from appswitch.linux import device, namespace, netlink, rules

DEVICE = "as0"
"""Name of the point-to-point device in the program's namespace."""

ACCEPTOR_PORT = 1
"""TCP port of the acceptors: one that no program serves (tcpmux), so that no bind() meets it."""
MAPPED_LOOPBACK = "::ffff:127.0.0.2"
"""Where clients of IPv4 are accepted for servers that listen on IPv6."""

_BACKLOG = 128
_DNS_PORT = 53
_DNS_ADDRESSES = ("127.0.0.1", "127.0.0.53", "::1")
_RESOLV_CONF = "/etc/resolv.conf"
# Sockets by which glibc asks a resolver of the host instead of sending queries: nscd(8), nss-resolve(8).
_SIDE_DOORS = ("/var/run/nscd/socket", "/run/systemd/resolve/io.systemd.Resolve")
# What the host may have tuned, programs meet, and a new network namespace does not take over.
_TAKEN_OVER = ("net/unix/max_dgram_qlen", "net/ipv4/ip_local_port_range")
# With no virtual IPv6 address, queries to IPv6 resolvers need a source to which answers can come back. It is
# a deprecated one, so that getaddrinfo(3) does not take IPv6 for the better way to anywhere.
_LINK_LOCAL = "fe80::1"
# Multicast, the reserved class E and the broadcast address in it; multicast of IPv6.
_GROUPS4, _GROUPS6 = "224.0.0.0", "ff00::"
_NO_REMEDY = "AppSwitch does not know why; report it with the output of `uname -a`"


class Plan(NamedTuple):
    """What to make."""

    user: bool
    """Put a user namespace around it: for a process without CAP_SYS_ADMIN."""
    addresses: list[str]
    """The program's virtual addresses, IPv4 and IPv6."""
    nameserver: str
    """The virtual address of the switch's resolver."""
    resolv_conf: str
    """Path of the file that the program is to see as /etc/resolv.conf."""


class Surroundings(NamedTuple):
    """What was made and the switch must have. All descriptors are non-blocking and close-on-exec."""

    device_kind: str
    """For device.read_packet and device.write_packet, as is `device_fd`."""
    device_fd: int
    device_ifindex: int
    """Of the program's end, in its namespace."""
    acceptor_v4: int
    """Listens for TCP on the program's 127.0.0.1, port ACCEPTOR_PORT."""
    acceptor_v6: int
    """The same on ::1; -1 when this host has no IPv6."""
    acceptor_mapped: int
    """An IPv6 socket that listens on MAPPED_LOOPBACK, which is an IPv4 address; -1 when the kernel has no IPv6."""
    dns: list[int]
    """UDP sockets on the program's loopback addresses, port 53."""
    route: list[int]
    """A NETLINK_ROUTE socket of the namespace, for `linux.rules` to be set by; none where they would lead nowhere."""


class SurroundingsError(OSError):
    """A step failed; `str` of it is one sentence that says which, why, and what to do."""

    def __str__(self) -> str:
        return str(self.args[-1])


def build(plan: Plan) -> Surroundings:
    """Make the surroundings of `plan` around this process, which must have one thread only.

    SurroundingsError when a step fails; the process may be in the new namespaces by then: it should say so
    and exit.
    """
    if plan.nameserver in plan.addresses:
        reason = f"{plan.nameserver} is the address of AppSwitch's resolver: choose another one"
        raise SurroundingsError(errno.EADDRINUSE, reason)
    host_values = [(name, _read_sysctl(name)) for name in _TAKEN_OVER]
    try:
        namespace.enter(user=plan.user)
    except namespace.NamespaceError as error:
        raise SurroundingsError(error.errno, str(error)) from None
    for name, value in host_values:
        _write_sysctl(name, value, needed=False)
    with _Step("give the program ports below 1024", "mount /proc/sys writable, or run appswitch as root"):
        _write_sysctl("net/ipv4/ip_unprivileged_port_start", "0", needed=plan.user)  # root may anyway
    with _Step("make a network device", "see that this kernel has its tun or its veth module"):
        end = device.open_device(DEVICE)
    with netlink.Route() as route:
        with _Step("bring up loopback", _NO_REMEDY):
            loopback = socket.if_nametoindex("lo")
            route.ask(netlink.link_message(loopback, up=True))
            acceptor_v4 = _bound_socket("127.0.0.1", ACCEPTOR_PORT, socket.SOCK_STREAM)
            acceptor_v6 = _acceptor_v6("::1")
            acceptor_mapped = _acceptor_v6(MAPPED_LOOPBACK)
        ipv6 = acceptor_v6 >= 0
        for address in plan.addresses:
            remedy = "choose another one"
            if ":" in address and not ipv6:
                remedy = "IPv6 is switched off on this host; choose an IPv4 address"
            with _Step(f"use {address} as the program's address", remedy):
                route.ask(*_address_messages(loopback, address))
        with _Step(f"send through the device {DEVICE}", _NO_REMEDY):
            _connect_device(route, end.ifindex, plan.addresses, ipv6=ipv6)
            routes = _let_out(route, end.ifindex, plan.addresses)
    with _Step("listen for DNS queries on the program's loopback", _NO_REMEDY):
        addresses = [address for address in _DNS_ADDRESSES if ipv6 or ":" not in address]
        dns = [_bound_socket(address, _DNS_PORT, socket.SOCK_DGRAM) for address in addresses]
    with _Step(f"cover the host's resolver by {plan.resolv_conf}", "see that this user may read that file"):
        for target in (_RESOLV_CONF, *_SIDE_DOORS):
            if os.path.exists(target):
                namespace.cover(target, plan.resolv_conf)
    return Surroundings(end.kind, end.fd, end.ifindex, acceptor_v4, acceptor_v6, acceptor_mapped, dns, routes)


def remedy(error: OSError, otherwise: str) -> str:
    """What to do about it: have more descriptors if they ran out, else what is likely to help where it happened."""
    return "raise the limit of open files (`ulimit -n`)" if error.errno == errno.EMFILE else otherwise


class _Step:
    """Turns an OSError inside it into a SurroundingsError that names the step and the remedy."""

    def __init__(self, what: str, remedy: str) -> None:
        self._what, self._remedy = what, remedy

    def __enter__(self) -> None:
        pass

    def __exit__(self, _type: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, OSError):
            reason, helps = error.strerror or str(error), remedy(error, self._remedy)
            raise SurroundingsError(error.errno, f"cannot {self._what} ({reason}): {helps}") from None


def _connect_device(route: netlink.Route, index: int, addresses: list[str], *, ipv6: bool) -> None:
    """Send through the device whatever is not local."""
    source = next((address for address in addresses if ":" not in address), "")
    if not source:
        # With no other IPv4 address loopback's own must do; by this the kernel lets it cross the device.
        source = "127.0.0.1"
        _write_sysctl(f"net/ipv4/conf/{DEVICE}/route_localnet", "1")
    # A group is nobody's here: to send to one fails at once, ENETUNREACH, as on a host without a way for it.
    messages = [
        netlink.default_route_message(index, socket.AF_INET, source),
        netlink.no_route_message(socket.AF_INET, _GROUPS4, 3),
    ]
    if ipv6:
        _write_sysctl(f"net/ipv6/conf/{DEVICE}/accept_ra", "0")  # else it would ask for a router
        source = next((address for address in addresses if ":" in address), "")
        if not source:
            source = _LINK_LOCAL
            messages += _address_messages(index, source, deprecated=True)
        messages.append(netlink.default_route_message(index, socket.AF_INET6, source))
        messages.append(netlink.no_route_message(socket.AF_INET6, _GROUPS6, 8))
    route.ask(*messages)
    if ipv6:
        with suppress(OSError):  # there is none on a kernel without multicast
            route.ask(netlink.no_multicast_message(index))


def _let_out(route: netlink.Route, index: int, addresses: list[str]) -> list[int]:
    """Prepare the way by which datagrams to the program's own addresses can leave, and come from outside."""
    try:
        for name in (f"{DEVICE}/route_localnet", f"{DEVICE}/accept_local"):
            _write_sysctl(f"net/ipv4/conf/{name}", "1")
        for name in ("all", DEVICE):
            _write_sysctl(f"net/ipv4/conf/{name}/rp_filter", "0")
        route.ask(*rules.routes(index, ["127.0.0.1", *addresses]))
    except OSError:
        return []
    return [netlink.Route().detach()]


def _address_messages(index: int, address: str, *, deprecated: bool = False) -> list[netlink.Message]:
    messages = [netlink.address_message(index, address, deprecated=deprecated)]
    if ":" in address:
        messages.append(netlink.local_route_message(index, address))
    return messages


def _acceptor_v6(address: str) -> int:
    try:
        return _bound_socket(address, ACCEPTOR_PORT, socket.SOCK_STREAM)
    except OSError as error:
        # How IPv6 shows that it was switched off, at boot and by net.ipv6.conf.*.disable_ipv6.
        if error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            return -1
        raise


def _bound_socket(address: str, port: int, kind: int) -> int:
    family = netlink.family_of(address)
    with socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as sock:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, address != MAPPED_LOOPBACK)
        if kind == socket.SOCK_DGRAM:
            # By this a program that serves DNS itself, and sets the option too, may still bind 0.0.0.0.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        if kind == socket.SOCK_STREAM:
            sock.listen(_BACKLOG)
        return sock.detach()


def _read_sysctl(name: str) -> str:
    try:
        with open("/proc/sys/" + name) as file:
            return file.read()
    except OSError:
        return ""


def _write_sysctl(name: str, value: str, *, needed: bool = True) -> None:
    """/proc/sys/net shows the network namespace of whoever opens it."""
    try:
        fd = os.open("/proc/sys/" + name, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)
    except OSError:
        if needed:
            raise
