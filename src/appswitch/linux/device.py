"""A program's point-to-point device: what its namespace sends arrives at a descriptor, an IP packet a read.

Before the packet stands a virtio-net header (`vnet`), if this kernel has one for UDP, and a packet socket's Ethernet
header; both together, a frame, can be written as they were read to another device of the same kind.

TUN (Documentation/networking/tuntap.rst) where /dev/net/tun may be opened. Else a veth pair whose other end
lies in a second network namespace; that one has nothing else in it and lives as long as the packet socket
(packet(7)) there.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
from typing import NamedTuple

from appswitch.linux import features, libc, netlink, vnet

MTU = 65535
"""Bytes of a packet: the largest there is, so that no datagram is ever cut up on its way to the relay."""

TUN, PACKET = "tun", "packet"
TUN_VNET, PACKET_VNET = "tun-vnet", "packet-vnet"

_CLONE_NEWNET = 0x40000000
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR = 0x400454CA, 0x0001, 0x1000, 0x4000
_TUNSETOFFLOAD, _TUN_F_CSUM, _TUN_F_USO = 0x400454D0, 0x01, 0x20 | 0x40
_SIOCETHTOOL, _ETHTOOL_STXCSUM = 0x8946, 0x17
_ETH_P_ALL, _SOL_PACKET, _PACKET_VNET_HDR, _PACKET_IGNORE_OUTGOING = 0x0003, 263, 15, 23

# Both ends' Ethernet addresses are fixed (each pair is alone on its wire): a frame's header is a constant.
_PROGRAM_ADDRESS = bytes([2, 0, 0, 0, 0, 1])
_RELAY_ADDRESS = bytes([2, 0, 0, 0, 0, 2])
_ETHERNET = 14
_PEER = "relay"
# A device without ARP sends to its own address, which is what the other programs' have, too.
V4_HEADER = _PROGRAM_ADDRESS + _PROGRAM_ADDRESS + b"\x08\x00"
V6_HEADER = _PROGRAM_ADDRESS + _PROGRAM_ADDRESS + b"\x86\xdd"

LINK = {TUN: 0, PACKET: _ETHERNET, TUN_VNET: 0, PACKET_VNET: _ETHERNET}
"""The kinds, and the bytes of a link-layer header before a packet."""
BEFORE = {TUN: 0, PACKET: _ETHERNET, TUN_VNET: vnet.SIZE, PACKET_VNET: vnet.SIZE + _ETHERNET}
"""Bytes of a frame before the packet."""
_LONGEST = 40 + 65535 + max(BEFORE.values())  # a batch may be longer than the MTU: as long as IPv6 can say


class Device(NamedTuple):
    """One end in a network namespace (`ifindex`), the other a descriptor.

    `kind` is one of LINK and must go wherever `fd` goes. `fd` is non-blocking and close-on-exec; the
    device is gone when its last copy is closed.
    """

    kind: str
    fd: int
    ifindex: int


def open_device(name: str) -> Device:
    """Make the device `name` in the current network namespace and bring it up: TUN if possible, else veth.

    What is sent or written from now on arrives. It has no address of its own and says nothing of its own accord.
    OSError when neither can be made; the process is then still in the namespace in which it was.
    """
    try:
        kind, fd = _open_tun(name)
    except OSError as tun_error:
        try:
            kind, fd = _open_veth(name)
            return Device(kind, fd, socket.if_nametoindex(name))
        except OSError as error:
            raise OSError(error.errno, f"no TUN device ({tun_error}), no veth pair ({error})") from None
    try:
        with netlink.Route() as route:
            _bring_up(route, name)
        return Device(kind, fd, socket.if_nametoindex(name))
    except OSError:
        os.close(fd)
        raise


def has_header(kind: str) -> bool:
    """Does a virtio-net header stand before each packet?"""
    return kind in (TUN_VNET, PACKET_VNET)


def read_frame(fd: int) -> bytes:
    """The next packet that the program's namespace sent, with what stands before it (BEFORE).

    BlockingIOError when there is none now.
    """
    return os.read(fd, _LONGEST)


def write_packet(fd: int, kind: str, packet: bytes, left: vnet.Unfinished = vnet.FINISHED) -> None:
    """Deliver one IP packet to the program's namespace. Without a virtio-net header nothing may be left to be done.

    OSError when the device has no room (EAGAIN, ENOBUFS) or is down (EIO, ENETDOWN): the packet is lost.
    """
    link = LINK[kind]
    if link:
        packet = (V4_HEADER if packet[0] >> 4 == 4 else V6_HEADER) + packet
    if has_header(kind):
        packet = vnet.pack(left, link) + packet
    os.write(fd, packet)


def try_tun() -> None:
    """OSError when this user cannot have TUN devices (in a network namespace of his own)."""
    os.close(_open_clone_device())


def _open_clone_device() -> int:
    if features.left_out(features.TUN):
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
    return os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)


def _open_tun(name: str) -> tuple[str, int]:
    fd = _open_clone_device()
    kind = TUN if features.left_out(features.VNET) else TUN_VNET
    flags = _IFF_TUN | _IFF_NO_PI | (_IFF_VNET_HDR if kind == TUN_VNET else 0)
    try:
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        if kind == TUN_VNET:
            try:
                fcntl.ioctl(fd, _TUNSETOFFLOAD, _TUN_F_CSUM | _TUN_F_USO)
            except OSError:  # before Linux 6.2: batches are cut in the sender's namespace
                fcntl.ioctl(fd, _TUNSETOFFLOAD, _TUN_F_CSUM)
    except OSError:
        os.close(fd)
        raise
    return kind, fd


def _open_veth(name: str) -> tuple[str, int]:
    if features.left_out(features.VETH):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    here = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        libc.call("unshare", _CLONE_NEWNET)
        try:
            hidden, end, index = _hidden_end(name, here)
        finally:
            libc.call("setns", here, _CLONE_NEWNET)
    finally:
        os.close(here)
    with hidden, end:
        kind = PACKET_VNET if _has_header(end) else PACKET
        if kind == PACKET:
            _complete_checksums(name)
        with netlink.Route() as route:
            _bring_up(route, name)
        # The carrier comes with the second end that is up, but the first sends only when the kernel's link
        # watch has run: without this wait its first packets may be dropped.
        hidden.wait_until_running(index)
        return kind, end.detach()


def _hidden_end(name: str, program_namespace: int) -> tuple[netlink.Route, socket.socket, int]:
    """Make the pair; its end in the current namespace, up with a packet socket on it, and that end's index."""
    pair = netlink.veth_message(_PEER, _RELAY_ADDRESS, name, _PROGRAM_ADDRESS, program_namespace, MTU)
    route = netlink.Route(watch=True)
    route.ask(pair)
    _bring_up(route, _PEER)
    flags = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    end = socket.socket(socket.AF_PACKET, flags, 0)
    end.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    end.bind((_PEER, _ETH_P_ALL))  # up by now: a socket bound earlier would read ENETDOWN first
    return route, end, socket.if_nametoindex(_PEER)


def _has_header(end: socket.socket) -> bool:
    """Give the packet socket a virtio-net header, if it can say that a packet is a batch: since Linux 6.2."""
    if features.left_out(features.VNET):
        return False
    end.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
    batch = vnet.pack(vnet.Unfinished(20, 1), _ETHERNET)
    packet = struct.pack("!B8xB10xHHHH", 0x45, socket.IPPROTO_UDP, 9, 9, 10, 0) + bytes(2)
    try:
        end.send(batch + V4_HEADER + packet)  # lost: the other end is down
    except OSError as error:
        if error.errno == errno.EINVAL:
            end.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 0)
            return False
    return True


def _bring_up(route: netlink.Route, name: str) -> None:
    index = socket.if_nametoindex(name)
    try:
        route.ask(netlink.no_link_local_message(index))
    except OSError:
        pass  # no IPv6 here: nothing to keep quiet
    route.ask(netlink.link_message(index, up=True, arp=False, multicast=False, mtu=MTU))


def _complete_checksums(name: str) -> None:
    """No checksum offload: else packets cross a veth with unfinished checksums, and several in one."""
    command = ctypes.create_string_buffer(struct.pack("=II", _ETHTOOL_STXCSUM, 0), 8)
    request = struct.pack("16sN16x", name.encode(), ctypes.addressof(command))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCETHTOOL, request)
