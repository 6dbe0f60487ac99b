"""sock_diag(7): which sockets exist, known by their SO_COOKIE."""

from __future__ import annotations

import errno
import os
import random
import socket
import struct

_NETLINK_SOCK_DIAG = 4
_BY_FAMILY = 20
_DUMP = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_DONE, _ERROR = 3, 2
_BUSY = struct.pack("=i", -errno.EBUSY)
_TRIES = 5
_ALL = 0xFFFFFFFF
LISTEN = 1 << 10
_RECEIVE_SHUT = 1
_DIAG_SHUTDOWN = 6  # UNIX_DIAG_SHUTDOWN

_HEADER = struct.Struct("=IHHII")
_UNIX_REQUEST = struct.Struct("=BBHIII8s")
_UNIX_ANSWER = struct.Struct("=BBBBI8s")
_INET_REQUEST = struct.Struct("=BBBBI48s")


def open_socket() -> socket.socket:
    """A sock_diag socket of the net namespace we are in; it goes on telling of that one wherever it is used."""
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG)


def unix_cookies(netlink: socket.socket, states: int = _ALL) -> set[int]:
    """The cookies of all Unix sockets in these states (1 << TCP_*)."""
    request = _UNIX_REQUEST.pack(socket.AF_UNIX, 0, 0, states, 0, 0, b"\xff" * 8)
    return {_cookie(body, 8) for body in _dump(netlink, request)}


def unix_listeners(netlink: socket.socket) -> dict[int, bool]:
    """The listening Unix sockets by cookie; False for one that shutdown(2) has made refuse everybody."""
    request = _UNIX_REQUEST.pack(socket.AF_UNIX, 0, 0, LISTEN, 0, 0, b"\xff" * 8)
    return {_cookie(body, 8): not _shut(body[_UNIX_ANSWER.size :]) for body in _dump(netlink, request)}


def _shut(attributes: bytes) -> bool:
    """Whether the attributes that follow a struct unix_diag_msg tell of a shutdown for reading."""
    at = 0
    while at + 4 < len(attributes):
        length, kind = struct.unpack_from("=HH", attributes, at)
        if kind == _DIAG_SHUTDOWN:
            return bool(attributes[at + 4] & _RECEIVE_SHUT)
        at += max(4, (length + 3) & ~3)
    return False


def tcp_cookies(netlink: socket.socket, states: int = _ALL) -> set[int]:
    """The cookies of all bound or connected TCP sockets, IPv4 and IPv6, in these states."""
    found: set[int] = set()
    for family in (socket.AF_INET, socket.AF_INET6):
        request = _INET_REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, states, bytes(40) + b"\xff" * 8)
        # struct inet_diag_msg: 4 bytes, then the socket id, whose cookie is at 4 + 40
        found.update(_cookie(body, 44) for body in _dump(netlink, request))
    return found


def _cookie(body: bytes, at: int) -> int:
    low, high = struct.unpack_from("=II", body, at)
    return int(low | high << 32)


def _dump(netlink: socket.socket, request: bytes) -> list[bytes]:
    """The bodies of an answer. The socket may be one that other processes ask on, too, or that one died on while it
    was asking: OSError EBUSY when this answer could not be had whole.
    """
    for _ in range(_TRIES):
        number = random.getrandbits(32)
        _read_all(netlink)  # what is left over; a dump that somebody began goes on to its end by that
        netlink.send(_HEADER.pack(_HEADER.size + len(request), _BY_FAMILY, _DUMP, number, 0) + request)
        answer = _answer(netlink, number)
        if answer is not None:
            return answer
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))


def _answer(netlink: socket.socket, number: int) -> list[bytes] | None:
    """What answers the request of this number; None when a part is missing, or another was being answered."""
    found: list[bytes] = []
    while True:
        try:
            # What the kernel has to say is there at once: nothing is waited for that another might have read.
            data = netlink.recv(1 << 16, socket.MSG_DONTWAIT)
        except OSError:
            return None
        at = 0
        while at + _HEADER.size <= len(data):
            length, kind, _, sequence, _ = _HEADER.unpack_from(data, at)
            if length < _HEADER.size:
                return None
            body = data[at + _HEADER.size : at + length]
            at += (length + 3) & ~3
            if sequence != number:
                continue
            if kind == _ERROR and body[:4] == _BUSY:
                return None
            if kind in (_DONE, _ERROR):  # an error: a kernel that has none of these sockets
                return found
            found.append(body)


def _read_all(netlink: socket.socket) -> None:
    try:
        while netlink.recv(1 << 16, socket.MSG_DONTWAIT):
            pass
    except OSError:
        pass
