"""Connections of other hosts, from a service's real port to its program: read their header, check it, bring them in.

A connection is the program's only when its header is known to be good, so nobody without an identity wakes a program
(paper, section 4). Headers are read as they come, exactly to their end: what follows is the program's. Who does not
send one is waited for a while, among so many others, and delays nobody.
"""

from __future__ import annotations

import _socket
import logging
import os
import resource
import select
import socket
import time

from ..header import proxy2
from ..header.identity import Header, verify
from ..header.refused import Refused, Truncated
from ..model.address import show, unpack
from ..model.identity import behind
from ..model.policy import check
from . import real_port
from .calls import accept
from .delivery import Note
from .sockets import REMOTE, Listener
from .worker import Worker

log = logging.getLogger("appswitch.worker")

#: Seconds that a header may take: one that is lost thrice comes after 7 s (RFC 6298). And so long room in the
#: server's queue is waited for.
HEADER_TIME = 10.0
ROOM_TIME = 5.0
#: Connections without a header that one listener lets wait, and all of a worker's together, each with a descriptor.
#: When one more comes the oldest is closed.
WAITING = 128
ALL_WAITING = 1024
#: Connections that wait for room in one listener's queue; the next is reset.
QUEUED = 128


_AT_ONCE = int(socket.MSG_DONTWAIT)


class Arrivals:
    """Those of one worker. `admit` takes a connection from a listener's real port, with its other end's address."""

    def __init__(self) -> None:
        self._most = min(ALL_WAITING, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 8)
        # the oldest first
        self._all: dict[Arrival, None] = {}
        self._of: dict[int, dict[Arrival, None]] = {}
        self._queued: dict[int, int] = {}

    def admit(self, worker: Worker, listener: Listener, sock: _socket.socket, address: tuple[str, int]) -> None:
        """Begin with a connection; it is ours from now on."""
        if worker.hosts.ring is None:
            real_port.turn_away(worker.counters, listener, sock, address)
            return
        arrival = Arrival(self, worker, listener, sock, address)
        if arrival.read():
            return
        for waiting, most in ((self._of.get(listener.cookie, {}), WAITING), (self._all, self._most)):
            if len(waiting) >= most:
                next(iter(waiting)).give_up("header_timeout", "too many connections wait with unfinished headers")
        self._all[arrival] = self._of.setdefault(listener.cookie, {})[arrival] = None
        arrival.wait()

    def forget(self, arrival: Arrival, cookie: int) -> None:
        """It does not wait any more."""
        del self._all[arrival], self._of[cookie][arrival]
        if not self._of[cookie]:
            del self._of[cookie]

    def bring(self, worker: Worker, listener: Listener, sock: _socket.socket, note: Note) -> None:
        """A connection that is let in: to a call that waits or into the queue; a full one is given time."""
        if not _bring(worker, listener, sock, note):
            self._queue(worker, listener, sock, note)

    def _queue(self, worker: Worker, listener: Listener, sock: _socket.socket, note: Note) -> None:
        cookie = listener.cookie
        queued = self._queued.get(cookie, 0)
        if queued >= QUEUED:
            _turn_off(worker, sock)
            return
        self._queued[cookie] = queued + 1
        deadline = time.monotonic() + ROOM_TIME

        def again() -> None:
            if not _bring(worker, listener, sock, note):
                if time.monotonic() < deadline:
                    worker.room.when(cookie, again)
                    return
                _turn_off(worker, sock)
            self._queued[cookie] -= 1
            if not self._queued[cookie]:
                del self._queued[cookie]

        worker.room.when(cookie, again)


class Arrival:
    """One connection whose header is not read to its end."""

    __slots__ = ("_address", "_arrivals", "_data", "_handle", "_listener", "_needs", "_sock", "_worker")

    def __init__(
        self, arrivals: Arrivals, worker: Worker, listener: Listener, sock: _socket.socket, address: tuple[str, int]
    ) -> None:
        self._arrivals = arrivals
        self._worker = worker
        self._listener = listener
        self._sock = sock
        self._address = address
        self._handle = 0
        self._data = b""
        self._needs = proxy2.FIXED.size

    def wait(self) -> None:
        events = self._worker.events
        self._handle = events.watch(self._sock.fileno(), self._on_readable, select.EPOLLIN | select.EPOLLRDHUP)
        events.after(time.monotonic() + HEADER_TIME, self._too_late)

    def _on_readable(self, _: int) -> None:
        self.read()

    def _too_late(self) -> None:
        if self._handle:
            self.give_up("header_timeout", "its header did not come in time")

    def read(self) -> bool:
        """Read on; True when that has come to an end, good or bad."""
        try:
            while len(self._data) < self._needs:
                piece = self._sock.recv(self._needs - len(self._data), _AT_ONCE)
                if not piece:
                    raise ConnectionResetError
                self._data += piece
                if len(self._data) <= proxy2.FIXED.size:
                    self._needs = self._size()
        except BlockingIOError:
            return False
        except Refused as refused:
            self.give_up(f"header_{refused.reason}", str(refused))
            return True
        except OSError:
            self.give_up("header_missing", "it ended before its header did")
            return True
        self._done()
        return True

    def _size(self) -> int:
        try:
            return proxy2.size(self._data)
        except Truncated as truncated:
            return truncated.needs

    def _done(self) -> None:
        self._end_waiting()
        worker, listener, sock = self._worker, self._listener, self._sock
        ring = worker.hosts.ring
        if ring is None or listener.row.state != "up":
            real_port.turn_away(worker.counters, listener, sock, self._address)
            return
        try:
            header = verify(self._data, ring, listener.row, listener.windows)
        except Refused as refused:
            self.give_up(f"header_{refused.reason}", str(refused))
            return
        if listener.windows.full:
            worker.listeners.real_ports.renew_epoch(listener)
        verdict = check(header.tags, listener.row.tags)
        if not verdict.allowed:
            _deny(worker, listener, header, verdict.rule)
            real_port.reset(sock)
            return
        if listener.row.uid != os.geteuid():
            os.fchown(sock.fileno(), listener.row.uid, -1)  # for rules that go by a socket's user
        note = Note(REMOTE, header.client, header.client_port, header.server, header.server_port)
        self._arrivals.bring(worker, listener, sock, note)

    def give_up(self, counter: str, why: str) -> None:
        """Count and close it: who sees it closed finds it counted."""
        self._end_waiting()
        self._worker.counters.add(counter)
        real_port.reset(self._sock)
        row = self._listener.row
        log.info(
            "a connection from %s:%s to the real port of %s was closed: %s",
            *self._address,
            row.name or show(row.vip, row.port),
            why,
        )

    def _end_waiting(self) -> None:
        if self._handle:
            self._worker.events.unwatch(self._sock, self._handle)
            self._handle = 0
            self._arrivals.forget(self, self._listener.cookie)


def _bring(worker: Worker, listener: Listener, sock: _socket.socket, note: Note) -> bool:
    """False when there is no room now; else the connection has been dealt with."""
    try:
        accept.bring(worker, listener, sock.fileno(), note)
    except BlockingIOError:
        return False
    except OSError:
        worker.listeners.refused(listener.row)
        real_port.reset(sock)  # closed meanwhile: as natively
        return True
    worker.counters.add("arrived")
    sock.close()
    return True


def _turn_off(worker: Worker, sock: _socket.socket) -> None:
    worker.counters.add("backlog_full")
    real_port.reset(sock)


def _deny(worker: Worker, listener: Listener, header: Header, rule: str) -> None:
    row = listener.row
    worker.counters.add("denied")
    names = worker.table.names_of(behind(header.client))
    worker.table.add_denial(
        client=names[0] if names else unpack(header.client),
        program=0,  # none of this host
        tags=header.tags,
        service=row.name or show(row.vip, row.port),
        destination=unpack(header.server),
        port=header.server_port,
        rule=rule,
    )
