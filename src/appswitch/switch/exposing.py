"""Ports of this host that programs publish: taken when a program starts, so that a clash is known then.

A port is bound here and not listened to: until a worker does that, because the service listens, nothing answers at it,
and yet nobody else can have it. The one socket is shared by all programs that publish the same port of one service, by
their workers and the supervisor; so what waits in its queue outlives a worker.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
from collections.abc import Iterable, Iterator

from ..model.exposure import ANY6, Place
from ..model.identity import Refusal
from .registry import Entry

_FIRST_FOR_ALL = "/proc/sys/net/ipv4/ip_unprivileged_port_start"


def rivals(entry: Entry, entries: Iterable[Entry]) -> list[Entry]:
    """The other programs that have ports which this one wants."""
    wanted = [place for exposure in entry.options.expose for place in exposure.places()]
    return [
        other
        for other in entries
        if other is not entry and any(place.overlaps(taken) for place in wanted for taken in other.places)
    ]


def has_ended(entry: Entry) -> bool:
    """Has the program's last process ended, whether that was heard of or not?"""
    if not entry.attached:
        return False
    poll = select.poll()
    poll.register(entry.fds["listener"][0], 0)
    return bool(poll.poll(0))


def take(entry: Entry, entries: Iterable[Entry], uid: int) -> None:
    """Have the ports that the entry wants in `places` and `fds["ports"]`; Refusal, and none is taken.

    `uid`: who asks for them; root may for others.
    """
    others = [other for other in entries if other is not entry]
    fds = entry.fds["ports"] = []
    try:
        for exposure in entry.options.expose:
            for place in exposure.places():
                fd = _shared(place, entry, others)
                if fd is None:
                    fd = _bind(place, uid, optional=place.address == ANY6 and not exposure.address)
                if fd is not None:
                    fds.append(fd)
                    entry.places.append(place)
    except Refusal:
        for fd in release(entry, others):
            os.close(fd)
        raise


def release(entry: Entry, entries: Iterable[Entry]) -> list[int]:
    """Give up the entry's ports; its descriptors are to be closed. What nobody else publishes is closed for all."""
    left = {place for other in entries if other is not entry for place in other.places}
    fds = entry.fds.pop("ports", [])
    for place, fd in zip(entry.places, fds, strict=True):
        if place not in left:
            with socket.socket(fileno=os.dup(fd)) as sock, contextlib.suppress(OSError):  # it does not listen
                # a worker may have it for a moment more, which must not be in the way of whoever comes next
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.shutdown(socket.SHUT_RDWR)
    entry.places = []
    return fds


def _shared(place: Place, entry: Entry, others: list[Entry]) -> int | None:
    """A copy of the socket of another instance of the same service; Refusal when the port is another service's."""
    for other, taken, fd in _taken(others):
        if taken.overlaps(place):
            if taken == place and other.identity.vip == entry.identity.vip:
                return os.dup(fd)
            raise Refusal(
                f"port {place.host_port} of this host is published already, for port {taken.port} of "
                f"{other.identity.label} (program {other.number}, at {taken}): choose another, or end that program"
            )
    if any(taken.overlaps(place) for taken in entry.places):
        raise Refusal(f"--expose takes port {place.host_port} of this host twice: give each port of the host once")
    return None


def _taken(entries: Iterable[Entry]) -> Iterator[tuple[Entry, Place, int]]:
    for entry in entries:
        for place, fd in zip(entry.places, entry.fds.get("ports", ()), strict=True):
            yield entry, place, fd


def _bind(place: Place, uid: int, *, optional: bool) -> int | None:
    """A bound socket; None when it is `optional` and this host has no such addresses. Refusal."""
    first = _first_for_all()
    if uid not in (0, os.geteuid()) and place.host_port < first:
        raise _privileged(place, first)
    family = socket.AF_INET6 if ":" in place.address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as sock:
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            # connections that an earlier program left behind do not count
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((place.address, place.host_port))
            # nor is anybody else let in while nothing listens
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
            return sock.detach()
    except OSError as error:
        if optional and error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            return None
        raise _refusal(place, error, first) from None


def _refusal(place: Place, error: OSError, first: int) -> Refusal:
    if error.errno in (errno.EACCES, errno.EPERM):
        return _privileged(place, first)
    if error.errno == errno.EADDRINUSE:
        return Refusal(
            f"port {place.host_port} of this host ({place}) is in use: publish another one with --expose, or end what "
            f"listens there (`ss -ltnp sport = :{place.host_port}` shows it)"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return Refusal(
            f"this host has no address {place.address}: give --expose one that `ip address` shows, or leave it out"
        )
    return Refusal(f"port {place.host_port} of this host cannot be had at {place}: {error.strerror or error}")


def _privileged(place: Place, first: int) -> Refusal:
    return Refusal(
        f"port {place.host_port} of this host is for root alone: publish one from {first} on, such as --expose "
        f"{max(first, 8000 + place.port % 1000)}:{place.port}, or have root set net.ipv4.ip_unprivileged_port_start"
    )


def _first_for_all() -> int:
    with open(_FIRST_FOR_ALL, encoding="ascii") as file:
        return int(file.read())
