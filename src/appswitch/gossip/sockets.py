"""The two sockets of a member: UDP and TCP, on one address and port."""

from __future__ import annotations

import errno
import ipaddress
import socket

from .settings import Address

_IP_FREEBIND, _IPV6_FREEBIND = 15, 78  # linux/in.h, linux/in6.h
_RECEIVE_BUFFER = 1 << 20  # octets that are asked for: a burst of news should fit
_BACKLOG = 128
_TRIES = 32


def family_of(address: str) -> socket.AddressFamily:
    """AF_INET or AF_INET6. ValueError for what is no numeric address."""
    version = ipaddress.ip_address(address.partition("%")[0]).version
    return socket.AF_INET if version == 4 else socket.AF_INET6


def check_reachable(address: str) -> None:
    """ValueError for an address that means nothing to other hosts."""
    found = ipaddress.ip_address(address)
    if found.is_unspecified or found.is_multicast or (found.version == 6 and found.is_link_local):
        raise ValueError(f"{address} is no address at which other hosts could reach this one: advertise another")


def open_pair(address: Address, *, early: bool = False) -> tuple[socket.socket, socket.socket]:
    """A UDP socket and a listening TCP socket; port 0: one that is free in both. OSError.

    `early`: the address may still be missing on this host.
    """
    for _ in range(_TRIES):
        listener = _bound(socket.SOCK_STREAM, address, early)
        port = listener.getsockname()[1]
        try:
            datagrams = _bound(socket.SOCK_DGRAM, (address[0], port), early)
        except OSError as error:
            listener.close()
            if address[1] == 0 and error.errno == errno.EADDRINUSE:
                continue
            raise
        listener.listen(_BACKLOG)
        return datagrams, listener
    raise OSError(errno.EADDRINUSE, "no port is free for both UDP and TCP")


def _bound(kind: socket.SocketKind, address: Address, early: bool) -> socket.socket:
    family = family_of(address[0])
    made = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if kind == socket.SOCK_STREAM:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        else:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if early:
                made.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
        elif early:
            made.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        made.bind(address)
    except BaseException:
        made.close()
        raise
    return made
