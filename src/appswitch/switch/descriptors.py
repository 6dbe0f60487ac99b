"""The descriptors that a program hands over when it attaches, checked: its client may be anybody's."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from typing import Any

from ..linux import device
from . import wire
from .paths import SwitchError

_LISTENER_LINK = "anon_inode:seccomp notify"
#: Kind → how many there may be; in the order in which they come.
_COUNTS: dict[str, tuple[int, ...]] = {
    "listener": (1,),
    "device": (1,),
    "acceptors": (1, 2, 3),
    "diags": (3,),
    "dns": tuple(range(9)),
    "route": (0, 1),
    "trace": (0, 1),
}
_TUN = os.makedev(10, 200)  # /dev/net/tun (Documentation/admin-guide/devices.txt)
_INET = (socket.AF_INET, socket.AF_INET6)
_NETLINK_ROUTE, _NETLINK_SOCK_DIAG = 0, 4
#: Kind → (families, type, protocol).
_SOCKETS = {
    "acceptors": (_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP),
    "diags": ((socket.AF_NETLINK,), socket.SOCK_RAW, _NETLINK_SOCK_DIAG),
    "dns": (_INET, socket.SOCK_DGRAM, socket.IPPROTO_UDP),
    "route": ((socket.AF_NETLINK,), socket.SOCK_RAW, _NETLINK_ROUTE),
}


def sort(message: wire.Message, fds: list[int]) -> dict[str, list[int]]:
    """The descriptors by kind; SwitchError unless they are as many and of the kinds that their client says."""
    wrong = SwitchError("the program's descriptors are not as the switch knows them: use the same version of both")
    counts = message.get("fds")
    if not isinstance(counts, dict):
        raise wrong
    found: dict[str, list[int]] = {}
    rest = list(fds)
    for kind, allowed in _COUNTS.items():
        count = counts.get(kind, 0)
        if type(count) is not int or count not in allowed or count > len(rest):
            raise wrong
        found[kind], rest = rest[:count], rest[count:]
    if rest:
        raise wrong
    kind = device_kind(message)
    try:
        right = (
            os.readlink(f"/proc/self/fd/{fds[0]}") == _LISTENER_LINK
            and all(_is_socket(fd, *allowed) for name, allowed in _SOCKETS.items() for fd in found[name])
            and _is_device(found["device"][0], kind)
            and all(map(_is_written_to, found["trace"]))
        )
    except OSError:  # a socket that does not even tell its family
        right = False
    if not right:
        raise wrong
    return found


def _is_device(fd: int, kind: str) -> bool:
    """The relay reads and writes it as whoever runs the switch: it must be what it is said to be."""
    if kind in (device.PACKET, device.PACKET_VNET):
        return _is_socket(fd, (socket.AF_PACKET,), socket.SOCK_RAW, None)
    found = os.fstat(fd)
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == _TUN


def _is_written_to(fd: int) -> bool:
    return fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY


def _is_socket(fd: int, families: tuple[int, ...], kind: int, protocol: int | None) -> bool:
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        return False
    sock = socket.socket(fileno=fd)
    try:
        return sock.family in families and sock.type & 0xF == kind and protocol in (None, sock.proto)
    finally:
        sock.detach()


def device_kind(message: wire.Message) -> str:
    """The kind of the program's device; SwitchError when the relay does not know it."""
    found: Any = message.get("device")
    kind = found.get("kind") if isinstance(found, dict) else None
    if kind not in device.LINK:
        raise SwitchError("the program's device is of no kind that this switch knows: use the same version of both")
    return str(kind)


def close_all(fds: list[int]) -> None:
    """Give back descriptors that nothing watches."""
    for fd in fds:
        os.close(fd)
