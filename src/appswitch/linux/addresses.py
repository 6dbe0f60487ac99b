"""The addresses of this network namespace's interfaces, and word of their changes (rtnetlink(7))."""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

_REQUEST_DUMP = 0x1 | 0x300  # NLM_F_REQUEST | NLM_F_DUMP
_NLMSG_ERROR, _NLMSG_DONE, _RTM_NEWADDR, _RTM_GETADDR = 2, 3, 20, 22
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_IFA_F_TEMPORARY, _IFA_F_DADFAILED, _IFA_F_DEPRECATED, _IFA_F_TENTATIVE = 0x01, 0x08, 0x20, 0x40
_HEADER = struct.Struct("=IHHII")
_MESSAGE = struct.Struct("=BBBBI")  # ifaddrmsg: family, prefix length, flags, scope, index
_ATTRIBUTE = struct.Struct("=HH")
_GROUPS = 0x10 | 0x100  # RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR
_SCOPE_LINK = 253


class Assigned(NamedTuple):
    """An address that an interface has. `preferred`: not secondary, temporary or deprecated."""

    interface: str
    address: str
    preferred: bool
    link_local: bool


def assigned() -> list[Assigned]:
    """Every address that can be used now, in the kernel's order. OSError."""
    with _open() as route:
        body = _MESSAGE.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        route.send(_HEADER.pack(_HEADER.size + len(body), _RTM_GETADDR, _REQUEST_DUMP, 1, 0) + body)
        found: list[Assigned] = []
        while True:
            data, start = route.recv(1 << 17), 0
            while start + _HEADER.size <= len(data):
                length, kind, _, _, _ = _HEADER.unpack_from(data, start)
                if kind in (_NLMSG_DONE, _NLMSG_ERROR):
                    return found
                if kind == _RTM_NEWADDR:
                    found += _read(data[start + _HEADER.size : start + length])
                start += max(length + 3 & ~3, _HEADER.size)


def watch() -> socket.socket:
    """A non-blocking socket that becomes readable when addresses come or go; what it says need not be read closely."""
    route = _open()
    route.bind((0, _GROUPS))
    route.setblocking(False)
    return route


def _open() -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)


def _read(body: bytes) -> list[Assigned]:
    family, _, flags, scope, index = _MESSAGE.unpack_from(body)
    if family not in (socket.AF_INET, socket.AF_INET6):
        return []
    values, start = {}, _MESSAGE.size
    while start + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, start)
        values[kind] = body[start + _ATTRIBUTE.size : start + length]
        start += max(length + 3 & ~3, _ATTRIBUTE.size)
    raw = values.get(_IFA_LOCAL, values.get(_IFA_ADDRESS, b""))
    flags = int.from_bytes(values[_IFA_FLAGS], "little") if _IFA_FLAGS in values else flags
    if flags & (_IFA_F_TENTATIVE | _IFA_F_DADFAILED) or len(raw) != (4 if family == socket.AF_INET else 16):
        return []
    try:
        name = socket.if_indextoname(index)
    except OSError:
        return []  # it has just gone
    preferred = not flags & (_IFA_F_TEMPORARY | _IFA_F_DEPRECATED)  # of IPv4 the first flag says "secondary"
    return [Assigned(name, socket.inet_ntop(family, raw), preferred, scope == _SCOPE_LINK)]
