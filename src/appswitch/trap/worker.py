"""What a trap worker knows and can do: the handlers in `calls` and the `transports` work on it.

Nothing here may block: not on a program's descriptor, not on another process.
"""

from __future__ import annotations

import _socket
import errno
import itertools
import logging
import os
import random
import resource
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from ..linux import epoll, procfs, sock_diag
from ..linux.seccomp import Call
from ..model.egress import Virtual
from ..model.resolve import Decision, resolve, where
from ..model.service import Service
from ..table.counters import Counters
from ..table.poke import Poke
from ..table.store import Table
from . import delivery, real_port
from .events import Events
from .hosts import Hosts
from .listeners import Listeners
from .news import News
from .options import WorkerSettings
from .parked import Binding, Pending
from .program import Borrowed, Failure, Program
from .references import References
from .room import Room
from .sockets import OF_HOST, TCP, UNIX, End, Ends, Listener
from .supervision import Supervisor
from .trials import Trials
from .waits import Waits

log = logging.getLogger("appswitch.worker")

#: The table's descriptors of ours come after this number.
_TABLE_ABOVE = 1000
_TCP_CLOSE, _TCP_LISTEN = 7, 10
_DECISIONS_KEPT = 10_000
_UDP_BIND, _UDP_OVER = struct.Struct("!QQ"), struct.Struct("!QH")  # as relay.bound has it
_PORTS_KEPT = 65_536
#: Seconds that must have been well before another shortage is told.
_SHORT_TOLD_EVERY = 60.0

Handler = Callable[["Worker", Program, Call], None]


class Connecting(Protocol):
    """A connect() under way whose outcome a further, blocking connect() waits for."""

    def park(self, program: Program, call: Call, seconds: float) -> None: ...


class Worker:
    """State of one worker.

    `resume` is given every listener on which parked calls can go on, `arrived` every connection to a listener's real
    port, with the address of its other end: from outside the switch. `changed` is given every row that was put into
    the table, or taken out. `announced_late` gets connections taken from a queue before the worker that made them had
    said what they are.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        settings: WorkerSettings,
        resume: Callable[[Worker, Listener], None],
        arrived: Callable[[Worker, Listener, _socket.socket, tuple[str, int]], None],
        changed: Callable[[Worker, Service], None],
        announced_late: Callable[[Worker, int], None],
    ) -> None:
        os.chdir(settings.run_dir)  # listeners are named by short relative paths: sun_path holds 108 bytes
        self.settings = settings
        self.table = _open_table(settings.table)
        self.counters = Counters(settings.counters)
        self.events = Events(self.counters)
        self.pending = Pending(settings.pending, self.events)
        self.binding = Binding(settings.pending + ".bind")
        self.park, self.unpark = self.pending.park, self.pending.unpark
        self.diag = sock_diag.open_socket()
        self.programs: dict[int, Program] = {}
        self.hosts = Hosts()
        self.ends = Ends(settings.ends, self._live_ends)
        self._others = settings.others_ends
        self.alone = not self._others
        self._udp_bound = Poke("udp.sock")
        self.news = News(self.events, "udp.sock")

        def at_real_port(listener: Listener) -> None:
            try:
                for arrival, address in real_port.arrivals(listener):
                    arrived(self, listener, arrival, address)
            except OSError as error:
                self.is_short(error)
                self.listeners.real_ports.pause(listener)

        self.listeners = Listeners(
            self.table,
            self.events,
            self.pending,
            supervisor,
            self.diag,
            self.hosts,
            alone=self.alone,
            per_user=settings.listeners_per_user,
            arrived=lambda listener: resume(self, listener),
            at_real_port=at_real_port,
            changed=lambda row: changed(self, row),
        )
        self.room = Room(self.events)
        self.waits = Waits(self.events, self.table)
        #: Connections that wait for room in a listener's queue, by the cookie of the client's end.
        self.connecting: dict[int, Connecting] = {}
        self.trials = Trials(self.events)
        #: Connects to other hosts whose sockets the programs have not yet, by the cookie of the caller's own.
        self.held: dict[int, object] = {}
        self.random = random.Random()
        self.turns: dict[tuple[bytes, int], int] = {}
        #: Ephemeral ports that were bound to lately, by virtual IP, in order.
        self.ephemeral: dict[tuple[bytes, int], None] = {}
        self.last_reference = epoll.LastReference()
        self.references = References()
        self.peers = delivery.Peers(f"{settings.run_dir}/state/pids")
        self.buffers = delivery.Buffers.probe()
        self.receiver = delivery.Receiver(
            self.peers, self.buffers, self.counters, lambda carrier: announced_late(self, carrier)
        )
        self._ports: dict[bytes, int] = {}
        self._instances = itertools.count(time.monotonic_ns() & 0xFFFFFF)
        self._short_at = self._table_failed_at = -_SHORT_TOLD_EVERY
        #: With the number of the table's write as of which each holds.
        self._decisions: dict[tuple[int, bytes, int], tuple[int, Decision]] = {}
        self.virtual = Virtual(settings.virtual_range)

    def know_others(self, workers: int) -> None:
        """There are more workers now."""
        self.settings = replace(self.settings, workers=workers)
        self._others = self.settings.others_ends
        self.alone = self.listeners.alone = not self._others

    def handle(self, handler: Handler, program: Program, call: Call) -> None:
        """Have a call answered; whatever goes wrong, it is answered."""
        try:
            handler(self, program, call)
        except Failure as failure:
            program.fail(call, failure.errno)
        except OSError as error:
            # the thread has gone, or lied about its memory or descriptors
            if error.errno in (errno.ENOSPC, errno.EIO):
                self.table_failed(error)
            elif error.errno not in _OF_THE_CALLER and not self.is_short(error):
                log.warning("call %s of %s failed: %s", call.nr, program.identity.label, error)
                self.counters.add("faults")
            program.fail(call, error.errno if error.errno in _ERRNOS else errno.ENOBUFS)
        except Exception:
            self.counters.add("faults")
            log.exception("error in the trap handler for call %s", call.nr)
            program.fail(call, errno.ENOBUFS)

    def is_short(self, error: OSError) -> bool:
        """Is it that this process has no descriptor left? Then it gives back what it can do without, and says so."""
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            return False
        for program in self.programs.values():
            program.forget_threads()
        now = time.monotonic()
        if now - self._short_at > _SHORT_TOLD_EVERY:
            log.error("no descriptor is left (%s): calls fail until some are closed", error.strerror)
        self._short_at = now
        return True

    def table_failed(self, error: Exception) -> None:
        """Say that nothing can be written, if that was not said lately."""
        self.counters.add("faults")
        now = time.monotonic()
        if now - self._table_failed_at > _SHORT_TOLD_EVERY:
            log.error("the service table cannot be written (%s): listen() fails until something is deleted", error)
        self._table_failed_at = now

    # decisions --------------------------------------------------------------------------------------

    def decide(self, program: Program, destination: bytes, port: int) -> Decision:
        """resolve → policy from the table; remembered until something of that virtual IP changes."""
        version = self.table.version()
        key = (program.number, destination, port)
        known = self._decisions.get(key)
        if known is not None and known[0] == version:
            return known[1]
        vip, _ = where(program.identity, destination)
        if known is not None and self.table.generation(vip) <= known[0]:
            decision = known[1]
        else:
            rows, claimed = self.table.lookup(vip, port, client=program.identity)
            decision = resolve(program.identity, destination, port, rows, known=claimed)
            if len(self._decisions) >= _DECISIONS_KEPT:
                self._decisions.clear()
        self._decisions[key] = version, decision
        return decision

    def turn(self, vip: bytes, port: int) -> int:
        turn = self.turns.get((vip, port), -1) + 1
        self.turns[vip, port] = turn
        return turn

    def ephemeral_port(self, source: bytes) -> int:
        """A virtual source port: counted, so that two connections of one address rarely share one (RFC 6056, 3.3)."""
        step = self.settings.workers
        port = self._ports.get(source)
        if port is None:
            if len(self._ports) >= _PORTS_KEPT:  # 127.0.0.0/8 alone has more addresses
                self._ports.clear()
            port = self.random.randrange(32768, 60999 - step, step) + self.settings.index
        else:
            port += step
            if port > 60999:
                port = 32768 + self.settings.index
        self._ports[source] = port
        return port

    def new_instance(self, program: Program) -> int:
        return program.number << 24 | next(self._instances) & 0xFFFFFF

    def udp_bound(self, program: Program, cookie: int, announced: int = 0) -> None:
        """Tell the relay, which looks what is bound (relay.bound); `announced`: the port, if it was told before."""
        told = [_UDP_BIND.pack(program.number, cookie)]
        if announced:
            told.append(_UDP_OVER.pack(program.number, announced))
        self._udp_bound(told)

    def forget_program(self, program: Program) -> None:
        """Its last process has ended."""
        del self.programs[program.number]
        self.listeners.drop_program(program)
        self.ends.forget_program(program.number)
        self._ports.pop(program.identity.vip, None)

    # ends of connections ----------------------------------------------------------------------------

    def end_of(self, cookie: int, sock: Borrowed) -> End | None:
        """The end that this socket is, also when another worker's program passed it on."""
        end = self.ends.get(cookie)
        if end is None and self._others and self._is_an_end(sock):
            return self.ends.find(cookie, self._others)
        return end

    def _is_an_end(self, sock: Borrowed) -> bool:
        """Whether it can be one: connected by TCP, or a Unix socket that the switch has made."""
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN) == socket.AF_UNIX:
            return self.peers.ours(sock)
        try:
            return bool(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] not in (_TCP_CLOSE, _TCP_LISTEN))
        except OSError:
            return False  # not TCP

    def _live_ends(self) -> set[int]:
        kinds = {end.kind for end in self.ends._by_cookie.values()}
        live: set[int] = set()
        if UNIX in kinds:
            live |= sock_diag.unix_cookies(self.diag)
        if TCP in kinds:
            unsure = self.table.programs().keys() - self.programs.keys()  # after a restart they come one by one
            for number, program in self.programs.items():
                cookies = program.tcp_cookies()
                if cookies is None:
                    unsure.add(number)
                else:
                    live |= cookies
            live |= self.ends.newest(unsure)
        if kinds.intersection(OF_HOST):
            live |= sock_diag.tcp_cookies(self.diag)
        return live


_OF_THE_CALLER = (errno.ESRCH, errno.ENOENT, errno.EFAULT, errno.EBADF, errno.ENOTSOCK)
#: What a handler's OSError may show to the program; anything else becomes ENOBUFS, which every socket call can give.
_ERRNOS = {
    errno.EBADF,
    errno.ENOTSOCK,
    errno.EFAULT,
    errno.EINVAL,
    errno.ENOBUFS,
    errno.ENOMEM,
}


def _open_table(path: str) -> Table:
    """The table on descriptor numbers that programs seldom have, for epoll.move must never lend those.

    By the record locks on its lock file LMDB knows who else is there: without ours the next to open the table would
    begin it anew.
    """
    last = min(_TABLE_ABOVE, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
    fillers = [os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)]
    while fillers[-1] < last:
        fillers.append(os.dup(fillers[0]))
    table = Table(path)
    for fd in fillers:
        os.close(fd)
    epoll.never_lent.update(procfs.descriptors_below("self", os.path.realpath(path)))
    return table
