"""Network devices, addresses and routes by rtnetlink (rtnetlink(7), RFC 3549): no more than AppSwitch needs.

The functions named `…_message` are pure: they give one request. `Route.ask` sends requests, several in one
datagram, and waits for the kernel's answer to each.
"""

from __future__ import annotations

import os
import socket
import struct

_ACK = 0x1 | 0x4  # NLM_F_REQUEST | NLM_F_ACK
_CREATE = _ACK | 0x400 | 0x200  # … | NLM_F_CREATE | NLM_F_EXCL
_NLMSG_ERROR = 2
_RTM_NEWLINK, _RTM_DELLINK, _RTM_NEWADDR, _RTM_NEWROUTE, _RTM_DELROUTE = 16, 17, 20, 24, 25

_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINKINFO, _IFLA_AF_SPEC, _IFLA_NET_NS_FD = 1, 3, 4, 18, 26, 28
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _VETH_INFO_PEER = 1, 2, 1
_IFLA_INET6_ADDR_GEN_MODE, _ADDR_GEN_NONE = 8, 1
_IFA_ADDRESS, _IFA_LOCAL, _IFA_CACHEINFO, _IFA_F_NODAD, _FOREVER = 1, 2, 6, 0x02, 0xFFFFFFFF
_RTA_DST, _RTA_OIF, _RTA_PREFSRC = 1, 4, 7
_RT_TABLE_MAIN, _RT_TABLE_LOCAL, _RTPROT_BOOT, _RT_SCOPE_LINK = 254, 255, 3, 253
_RTN_UNICAST, _RTN_LOCAL, _RTN_MULTICAST, _RTN_THROW = 1, 2, 5, 9
_IFF_UP, _IFF_NOARP, _IFF_MULTICAST = 0x1, 0x80, 0x1000
_RUNNING = 0x40 | 0x10000  # IFF_RUNNING | IFF_LOWER_UP

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_SOL_NETLINK, _NETLINK_CAP_ACK = 270, 10
_RTMGRP_LINK = 1
_PATIENCE = 20.0  # seconds for what the kernel does within milliseconds

Message = tuple[int, int, bytes]
"""A request: its type, its flags, what follows its header."""


def family_of(address: str) -> int:
    """AF_INET or AF_INET6 by the text of an address."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def attribute(kind: int, value: bytes) -> bytes:
    """One rtattr, padded to 4 bytes."""
    return struct.pack("=HH", len(value) + 4, kind) + value + b"\0" * (-len(value) % 4)


def _link(flags: int, index: int, state: int, change: int, attributes: bytes) -> Message:
    return _RTM_NEWLINK, flags, struct.pack("=BxHiII", 0, 0, index, state, change) + attributes


def link_message(index: int, *, up: bool = False, arp: bool = True, multicast: bool = True, mtu: int = 0) -> Message:
    """Bring a device up, take ARP (IPv6's likewise) or multicast from it, set its MTU in bytes."""
    state = _IFF_UP * up | _IFF_NOARP * (not arp)
    change = state | _IFF_MULTICAST * (not multicast)
    return _link(_ACK, index, state, change, attribute(_IFLA_MTU, struct.pack("=I", mtu)) if mtu else b"")


def delete_link_message(index: int) -> Message:
    """Remove a device, and with it the other end of a pair."""
    return _RTM_DELLINK, _ACK, struct.pack("=BxHiII", 0, 0, index, 0, 0)


def no_link_local_message(index: int) -> Message:
    """Have IPv6 make no link-local address of its own on a device that is still down."""
    mode = attribute(_IFLA_INET6_ADDR_GEN_MODE, bytes([_ADDR_GEN_NONE]))
    return _link(_ACK, index, 0, 0, attribute(_IFLA_AF_SPEC, attribute(socket.AF_INET6, mode)))


def veth_message(name: str, address: bytes, peer: str, peer_address: bytes, peer_namespace: int, mtu: int) -> Message:
    """A veth pair (veth(4)), down: `name` here, `peer` in the network namespace of a descriptor.

    Both get the 6-byte Ethernet address given; `mtu` is in bytes without the Ethernet header.
    """
    other = (
        bytes(16)  # the peer's own ifinfomsg
        + attribute(_IFLA_IFNAME, peer.encode() + b"\0")
        + attribute(_IFLA_ADDRESS, peer_address)
        + attribute(_IFLA_MTU, struct.pack("=I", mtu))
        + attribute(_IFLA_NET_NS_FD, struct.pack("=I", peer_namespace))
    )
    info = attribute(_IFLA_INFO_KIND, b"veth") + attribute(_IFLA_INFO_DATA, attribute(_VETH_INFO_PEER, other))
    this = (
        attribute(_IFLA_IFNAME, name.encode() + b"\0")
        + attribute(_IFLA_ADDRESS, address)
        + attribute(_IFLA_MTU, struct.pack("=I", mtu))
        + attribute(_IFLA_LINKINFO, info)
    )
    return _link(_CREATE, 0, 0, 0, this)


def address_message(index: int, address: str, *, deprecated: bool = False) -> Message:
    """Put one address (its whole length as prefix, usable at once: IFA_F_NODAD) on a device.

    `deprecated` is for IPv6: not preferred as a source by the kernel, nor what it reaches by getaddrinfo(3).
    """
    family = family_of(address)
    packed = socket.inet_pton(family, address)
    body = struct.pack("=BBBBI", family, len(packed) * 8, _IFA_F_NODAD, 0, index)
    body += attribute(_IFA_LOCAL, packed) + attribute(_IFA_ADDRESS, packed)
    if deprecated:
        body += attribute(_IFA_CACHEINFO, struct.pack("=IIII", 0, _FOREVER, 0, 0))  # preferred, valid
    return _RTM_NEWADDR, _CREATE, body


def local_route_message(index: int, address: str) -> Message:
    """Have IPv6 take packets for an address of this device as its own at once.

    The kernel adds such a route by itself, but IPv6's only after the answer to address_message.
    """
    packed = socket.inet_pton(socket.AF_INET6, address)
    body = struct.pack("=BBBBBBBBI", socket.AF_INET6, 128, 0, 0, _RT_TABLE_LOCAL, _RTPROT_BOOT, 0, _RTN_LOCAL, 0)
    body += attribute(_RTA_DST, packed) + attribute(_RTA_OIF, struct.pack("=I", index))
    return _RTM_NEWROUTE, _CREATE, body


def default_route_message(index: int, family: int, source: str = "") -> Message:
    """A default route through a device that needs no gateway; `source` is the preferred source address."""
    scope = _RT_SCOPE_LINK if family == socket.AF_INET else 0  # IPv6 routes have no scope
    body = struct.pack("=BBBBBBBBI", family, 0, 0, 0, _RT_TABLE_MAIN, _RTPROT_BOOT, scope, _RTN_UNICAST, 0)
    body += attribute(_RTA_OIF, struct.pack("=I", index))
    if source:
        body += attribute(_RTA_PREFSRC, socket.inet_pton(family, source))
    return _RTM_NEWROUTE, _CREATE, body


def no_route_message(family: int, network: str, bits: int) -> Message:
    """Have a network lead nowhere: what is sent there fails with ENETUNREACH, as without any route."""
    body = struct.pack("=BBBBBBBBI", family, bits, 0, 0, _RT_TABLE_MAIN, _RTPROT_BOOT, 0, _RTN_THROW, 0)
    return _RTM_NEWROUTE, _CREATE, body + attribute(_RTA_DST, socket.inet_pton(family, network))


def no_multicast_message(index: int) -> Message:
    """Take away the route for multicast of IPv6 that the kernel gave a device."""
    body = struct.pack(
        "=BBBBBBBBI", socket.AF_INET6, 8, 0, 0, _RT_TABLE_LOCAL, 0, 0, _RTN_MULTICAST, 0
    )
    body += attribute(_RTA_DST, b"\xff" + bytes(15)) + attribute(_RTA_OIF, struct.pack("=I", index))
    return _RTM_DELROUTE, _ACK, body


class Route:
    """A NETLINK_ROUTE socket. It belongs to the network namespace in which it was opened.

    With `watch` it also notes what becomes of the devices there, for wait_until_running.
    """

    def __init__(self, *, watch: bool = False) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
        self._socket = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)  # answers without a copy of the request
        self._socket.settimeout(_PATIENCE)
        self._running: set[int] = set()
        if watch:
            self._socket.bind((0, _RTMGRP_LINK))

    def __enter__(self) -> Route:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def detach(self) -> int:
        """The descriptor, for another process; this is of no use then."""
        return self._socket.detach()

    def ask(self, *messages: Message) -> None:
        """Send requests in order. OSError with the errno of the first refused; the others are still tried."""
        packed = [
            _HEADER.pack(_HEADER.size + len(body), kind, flags, number, 0) + body
            for number, (kind, flags, body) in enumerate(messages)
        ]
        self._socket.send(b"".join(packed))
        left = set(range(len(messages)))
        failed = 0
        while left:
            for number, errno in self._receive():
                left.discard(number)
                failed = failed or errno
        if failed:
            raise OSError(failed, os.strerror(failed))

    def wait_until_running(self, index: int) -> None:
        """Return when the device is up and its other end too, and it sends. TimeoutError after seconds."""
        while index not in self._running:
            self._receive()

    def _receive(self) -> list[tuple[int, int]]:
        """Take in one datagram: the answers in it, each the request's number and its errno or 0."""
        data, start, answers = self._socket.recv(65536), 0, []
        while start < len(data):
            length, kind, _, number, _ = _HEADER.unpack_from(data, start)
            body = start + _HEADER.size
            if kind == _NLMSG_ERROR:
                answers.append((number, -struct.unpack_from("=i", data, body)[0]))
            elif kind == _RTM_NEWLINK:
                index, flags = struct.unpack_from("=4xiI", data, body)
                # RUNNING alone is also said of a device whose state the kernel has not looked at yet.
                if flags & _RUNNING == _RUNNING:
                    self._running.add(index)
            start += max(length + 3 & ~3, _HEADER.size)
        return answers
