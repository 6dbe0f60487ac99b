"""Published ports of this host: whoever connects to one comes to the service's program (paper, section 4: gateways).

The accepted socket itself is brought to the program's listener, as those of other hosts are: no proxy, and the client's
address is seen. `--expose` is the permission: a client from outside has no tags that could be compared.

A port is listened to while a listener of one of its programs takes connections, and shut down otherwise: it stays bound
then (supervisor's `exposing`). When all queues are full no more is taken from it, so that the kernel's own queue fills
and clients see what they would see natively.
"""

from __future__ import annotations

import _socket
import contextlib
import errno
import logging
import os
import socket
import time
from socket import SO_REUSEADDR, SOL_SOCKET

from ..linux.view import View, release, view
from ..model import balance
from ..model.address import is_any, pack
from ..model.exposure import Place
from ..model.identity import Identity
from ..model.service import Service
from . import delivery, real_port
from .calls import accept
from .delivery import Note
from .options import ProgramOptions
from .program import Program
from .room import RETRY
from .sockets import INGRESS
from .worker import Worker

log = logging.getLogger("appswitch.worker")

#: So many are taken at a time: a flood must not keep programs waiting.
_AT_ONCE = 64
_BACKLOG = 1024
_ACCEPTCONN = 30
_INET, _STREAM = int(socket.AF_INET), int(socket.SOCK_STREAM)  # which family it is matters to nobody here
_OUT_OF = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

Taken = tuple[_socket.socket, str, int]
"""A connection, and the address and port of its other end."""


class Gate:
    """A published port, shared by this worker's programs that publish it; `handle` is not 0 while it is watched.

    `held`: a connection that was taken when every queue was full.
    """

    __slots__ = ("handle", "held", "place", "programs", "seen", "sock", "takers", "vip")

    def __init__(self, place: Place, vip: bytes, fd: int) -> None:
        self.place, self.vip = place, vip
        self.sock: View = view(fd)
        self.programs: set[int] = set()
        self.handle = 0
        self.held: Taken | None = None
        self.seen = -1
        self.takers: list[Service] = []

    @property
    def listens(self) -> bool:
        return bool(self.sock.getsockopt(SOL_SOCKET, _ACCEPTCONN))


class Ingress:
    """The published ports of one worker's programs."""

    def __init__(self) -> None:
        self._gates: dict[tuple[bytes, Place], Gate] = {}

    def publish(self, worker: Worker, program: Program, places: list[Place], fds: list[int]) -> None:
        """A program's ports, as sockets that are bound and ours from now on; its listeners may be there already."""
        for place, fd in zip(places, fds, strict=True):
            key = program.identity.vip, place
            gate = self._gates.get(key)
            if gate is None:
                gate = self._gates[key] = Gate(place, program.identity.vip, fd)
            else:
                os.close(fd)
            gate.programs.add(program.number)
            gate.seen = -1
            self._open_or_shut(worker, gate)

    def forget(self, worker: Worker, program: Program) -> None:
        """It has ended, and its rows are gone."""
        for key, gate in [item for item in self._gates.items() if program.number in item[1].programs]:
            gate.programs.discard(program.number)
            if not gate.programs:
                del self._gates[key]
                self._unwatch(worker, gate)
                if gate.held is not None:
                    gate.held[0].close()
                release(gate.sock)

    def changed(self, worker: Worker, row: Service) -> None:
        """A listener has come or gone."""
        for gate in self._gates.values():
            if gate.vip == row.vip and gate.place.port == row.port:
                self._open_or_shut(worker, gate)

    # open or shut -----------------------------------------------------------------------------------

    def _open_or_shut(self, worker: Worker, gate: Gate) -> None:
        """Listen, and take what comes, while one of ours takes it; shut when nobody does, in other workers neither."""
        takers = self._takers(worker, gate)
        if any(worker.listeners.get(row.cookie) for row in takers):
            if self._listen(gate) and gate.held is None:
                self._watch(worker, gate)
            return
        self._unwatch(worker, gate)
        if takers or not gate.listens:
            return
        with contextlib.suppress(OSError):
            gate.sock.shutdown(socket.SHUT_RDWR)
        if not gate.programs.isdisjoint(worker.programs):  # else whoever comes next may have it at once
            gate.sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 0)
        if self._takers(worker, gate):  # another worker's, which began to listen in this very moment
            self._listen(gate)

    def _takers(self, worker: Worker, gate: Gate) -> list[Service]:
        """The listeners that connections may go to."""
        version = worker.table.version()
        if version != gate.seen:
            rows, _ = worker.table.lookup(gate.vip, gate.place.port)
            gate.takers = [
                row
                for row in rows
                if not row.remote and gate.place.is_for(row) and _publishes(worker, row.program, gate)
            ]
            gate.seen = version
        return gate.takers

    def _listen(self, gate: Gate) -> bool:
        if gate.listens:
            return True
        try:
            # connections that it had before do not count; while it listens nobody else can bind it anyhow
            gate.sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
            gate.sock.listen(_BACKLOG)
        except OSError as error:
            log.error("the published port %s cannot be opened: %s", gate.place, error.strerror)
            return False
        return True

    def _watch(self, worker: Worker, gate: Gate) -> None:
        if not gate.handle:
            gate.handle = worker.events.watch(gate.sock.fileno(), lambda _: self._arrived(worker, gate))
        worker.listeners.vigilant = True

    def _unwatch(self, worker: Worker, gate: Gate) -> None:
        worker.events.unwatch(gate.sock, gate.handle)
        gate.handle = 0
        worker.listeners.vigilant = any(gate.handle for gate in self._gates.values())

    # they come --------------------------------------------------------------------------------------

    def _arrived(self, worker: Worker, gate: Gate) -> None:
        for _ in range(_AT_ONCE):
            try:
                fd, address = gate.sock._accept()  # type: ignore[attr-defined]
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.EINVAL:  # shut down
                    self._open_or_shut(worker, gate)
                    return
                if error.errno in _OUT_OF:
                    self._pause(worker, gate)
                    return
                continue
            sock = _socket.socket(_INET, _STREAM, 0, fd)
            real_port.reset_when_lost(sock)
            taken = sock, address[0], address[1]
            if not self._admit(worker, gate, taken):
                return

    def _admit(self, worker: Worker, gate: Gate, taken: Taken) -> bool:
        """Bring it to an instance. False when there is no room now: then it is held, and no other taken meanwhile."""
        sock, host, port = taken
        client = pack(host)
        full: Service | None = None
        takers = self._takers(worker, gate)
        turn = worker.turn(gate.vip, gate.place.port)
        for row in balance.order(takers, turn, worker.random) if takers else ():
            note = Note(INGRESS, client, port, _seen_as(row, client), row.port)
            try:
                _bring(worker, row, sock, note)
            except BlockingIOError:
                full = full or row
            except OSError:
                worker.listeners.refused(row)
                worker.counters.add("passed_over")
            else:
                worker.counters.add("exposed")
                sock.close()
                return True
        if full is not None:
            gate.held = taken
            self._unwatch(worker, gate)
            worker.room.when(full.cookie, lambda: self._go_on(worker, gate))
            return False
        worker.counters.add("exposed_refused")
        real_port.reset(sock)
        self._open_or_shut(worker, gate)
        return True

    def _pause(self, worker: Worker, gate: Gate) -> None:
        """No descriptor is left for another connection: wait for some to be given back."""
        self._unwatch(worker, gate)
        worker.events.after(time.monotonic() + RETRY, lambda: self._go_on(worker, gate))

    def _go_on(self, worker: Worker, gate: Gate) -> None:
        if not gate.programs:
            return  # forgotten meanwhile
        if gate.held is not None:
            held, gate.held = gate.held, None
            if not self._admit(worker, gate, held):
                return
        self._open_or_shut(worker, gate)


def _publishes(worker: Worker, number: int, gate: Gate) -> bool:
    """Has this program, of this worker or another, published its service here?"""
    program = worker.programs.get(number)
    if program is not None:
        exposures = program.options.expose
    else:
        record = worker.table.program(number)
        exposures = ProgramOptions.of(record["options"]).expose if record is not None else ()
    return any(gate.place in exposure.places() for exposure in exposures)


def _seen_as(row: Service, client: bytes) -> bytes:
    """The address that the program has, as its client's family shows it: as if it had come to the virtual IP."""
    if not is_any(row.bound):
        return row.bound
    return Identity(row.name, row.vip, row.tags, row.uid).source_for(client)


def _bring(worker: Worker, row: Service, sock: _socket.socket, note: Note) -> None:
    """To the program, or the queue of its listener. BlockingIOError: that is full. Another OSError: it is closed."""
    if row.uid != os.geteuid():
        os.fchown(sock.fileno(), row.uid, -1)  # for rules that go by a socket's user
    listener = worker.listeners.get(row.cookie)
    if listener is not None:
        accept.bring(worker, listener, sock.fileno(), note)
    else:
        delivery.send(delivery.open_carrier(row.listener), sock.fileno(), note)
