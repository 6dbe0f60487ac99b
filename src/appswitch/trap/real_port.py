"""The host's own address and port for a service (paper, section 5.1): what reaches it comes from outside the switch."""

from __future__ import annotations

import _socket
import errno
import logging
import os
import random
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from ..header.identity import EPOCH_SIZE
from ..header.window import Windows
from ..linux.view import view
from ..model.address import show
from ..model.service import Service
from ..table.counters import Counters
from ..table.store import Table
from .events import Events
from .hosts import Hosts
from .options import Node
from .sockets import Listener

log = logging.getLogger("appswitch.worker")

#: So many are taken at a time: a flood must not keep other programs waiting.
_AT_ONCE = 64
_BACKLOG = 1024
#: Seconds until a worker without descriptors looks again at what has come from other hosts.
_PAUSE = 0.1
_INET, _STREAM = int(socket.AF_INET), int(socket.SOCK_STREAM)  # which family it is matters to nobody here
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)


class RealPorts:
    """The real ports of this worker's listeners: opened, attended to, closed. `arrived` is told that somebody has
    connected to one.
    """

    def __init__(self, table: Table, events: Events, hosts: Hosts, arrived: Callable[[Listener], object]) -> None:
        self._table = table
        self._events = events
        self._hosts = hosts
        self._arrived = arrived

    def open(self, listener: Listener) -> None:
        """Attend to a real port of the service from now on, if it is to have one."""
        row = listener.row
        if not self._has_one(row):
            return
        opened = listen(self._hosts.node, listener.family)
        if opened is not None:
            real, address = opened
            listener.row = replace(row, real=(address, real.getsockname()[1]))
            listener.real = real.detach()
            self._watch(listener)
            self._begin_epoch(listener)

    def _has_one(self, row: Service) -> bool:
        """To others of its virtual IP on other hosts loopback is one address; elsewhere nobody comes to it."""
        return not row.alone and bool(self._hosts.node.host or not row.own_only)

    def _begin_epoch(self, listener: Listener) -> None:
        """Headers that were written for it until now are good no more."""
        if self._hosts.node.host:
            listener.row = replace(listener.row, epoch=os.urandom(EPOCH_SIZE))
            listener.windows = Windows()

    def _watch(self, listener: Listener) -> None:
        listener.real_handle = self._events.watch(listener.real, lambda _: self._arrived(listener))

    def pause(self, listener: Listener) -> None:
        """There is no room for what comes to it: it stays in the kernel's queue for a moment."""
        port, handle = listener.real, listener.real_handle
        self._events.unwatch(port, handle)

        def go_on() -> None:
            if listener.real == port and listener.real_handle == handle:
                self._watch(listener)

        self._events.after(time.monotonic() + _PAUSE, go_on)

    def close(self, listener: Listener) -> None:
        if listener.real >= 0:
            self._events.forget(listener.real_handle)
            os.close(listener.real)
            listener.real = -1

    def reopen(self, listener: Listener) -> None:
        """Elsewhere, and told to all."""
        if not self._has_one(listener.row) and not listener.row.real[0]:
            return
        self.close(listener)
        listener.row = replace(listener.row, real=("", 0), epoch=b"", version=listener.row.version + 1)
        self.open(listener)
        self._table.put_service(listener.row)

    def renew_epoch(self, listener: Listener) -> None:
        """So many senders have called that no more can be remembered: begin anew."""
        self._begin_epoch(listener)
        listener.row = replace(listener.row, version=listener.row.version + 1)
        self._table.put_service(listener.row)


def listen(node: Node, family: int) -> tuple[socket.socket, str] | None:
    """(a new one, the address that other hosts reach it at); None when there is none to be had, which is logged.

    At the node's address, in the family of the program's listener if possible, so that what it accepts looks like
    its own. On loopback outside a cluster: what comes there is turned away.
    """
    if not node.host:
        return _bound(socket.AF_INET, "127.0.0.1", None), "127.0.0.1"
    if not node.address:
        return None
    own = node.bind or node.address
    try:
        if ":" in own:
            return _bound(socket.AF_INET6, own, node.port_range), node.address
        if family == socket.AF_INET6 and socket.has_dualstack_ipv6():
            return _bound(socket.AF_INET6, f"::ffff:{own}", node.port_range), node.address
        return _bound(socket.AF_INET, own, node.port_range), node.address
    except OSError as error:
        log.error("no port on %s for connections of other hosts: %s", own, error.strerror)
        return None


def _bound(family: int, address: str, port_range: tuple[int, int] | None) -> socket.socket:
    real = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if port_range is None:
            real.bind((address, 0))
        else:
            real.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            _bind_in(real, address, *port_range)
        real.listen(_BACKLOG)
    except BaseException:
        real.close()
        raise
    return real


def _bind_in(real: socket.socket, address: str, low: int, high: int) -> None:
    """To the first free port at or after a random one."""
    count = high - low + 1
    start = random.randrange(count)
    for step in range(count):
        try:
            real.bind((address, low + (start + step) % count))
            return
        except OSError as error:
            if error.errno != errno.EADDRINUSE or step == count - 1:
                raise


def arrivals(listener: Listener) -> Iterator[tuple[_socket.socket, tuple[str, int]]]:
    """(connection, address of its other end) of those that wait at the listener's real port now.

    OSError: there is no descriptor, or no memory, for the next one.
    """
    for _ in range(_AT_ONCE):
        if listener.real < 0:
            return  # one of them was the last that it could take
        try:
            fd, address = view(listener.real)._accept()  # type: ignore[attr-defined]
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                raise
            continue
        yield _socket.socket(_INET, _STREAM, 0, fd), address[:2]


def turn_away(counters: Counters, listener: Listener, arrival: _socket.socket, address: tuple[str, int]) -> None:
    """Close what carries no identity, and cannot have one (paper, section 4), and count it."""
    counters.add("strangers")
    reset(arrival)
    log.info(
        "a connection from %s:%s to the real port of %s was closed: it carries no identity",
        *address,
        listener.row.name or show(listener.row.vip, listener.row.port),
    )


def reset_when_lost(arrival: _socket.socket) -> None:
    """Have its client see a reset if nobody accepts it, as the kernel does with its own queue."""
    arrival.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)


def reset(arrival: _socket.socket) -> None:
    """Close with a reset."""
    reset_when_lost(arrival)
    arrival.close()
