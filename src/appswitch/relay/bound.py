"""Which UDP ports programs have bound, as rows of the service table: for other hosts, `services` and DNS.

Programs of this host are asked whenever a conversation begins (`datagrams`), so that nothing depends on the rows being
up to date. A worker tells of each bind(2), at `udp.sock`; the kernel of each socket that is destroyed. What is bound
is then read anew: there is no timer, but for a program that changes so much that it must wait its turn, and for what
was lost or has failed (`sharing`).
"""

from __future__ import annotations

import logging
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import replace
from functools import partial

from appswitch.dns.forward import Poller
from appswitch.linux.udp_diag import UdpSocket
from appswitch.model.address import MAPPED
from appswitch.model.service import UDP, Service
from appswitch.table import poke
from appswitch.table.store import Table

from .hosts import Hosts
from .listening import FROM_WORKER, TO_WORKER
from .oneself import Socket
from .program import Program
from .sharing import Sharing

NAME = "udp.sock"
#: One bind(2) in a message of a worker's (`table.poke`): number of the program, cookie of the socket.
BIND = struct.Struct("!QQ")
#: Rows of one program.
MOST = 256
#: Reading may take this part of the time.
_SHARE = 0.05
#: Before a bind(2): number of the program, port, and what the answer is to begin with; and after it.
ANNOUNCE, OVER = struct.Struct("!QH8s"), struct.Struct("!QH")
_DNS_PORT = 53
_EPHEMERAL = range(32768, 61000)  # ip_local_port_range: chosen by the kernel, unless bind(2) named one of them

log = logging.getLogger("appswitch.relay")


class Bound:
    """`closed` is told of a program and a port that nobody has bound any more.

    `asked` is given workers' questions about listeners (`listening`), which come the same way, and what answers them.
    """

    def __init__(
        self,
        poller: Poller,
        table: Table,
        run_dir: str,
        hosts: Hosts,
        sharing: Sharing,
        closed: Callable[[Program, int], None],
        asked: Callable[[bytes, Callable[[bytes], None]], None] = lambda question, answer: None,
    ) -> None:
        self._asked, self._sharing = asked, sharing
        self._poller, self._table, self._hosts, self._closed = poller, table, hosts, closed
        #: Programs with the cookies of sockets that they bound to a port of their choice.
        self._named: dict[Program, set[int]] = {}
        self._by_id: dict[int, Program] = {}
        self._watched: set[Program] = set()
        #: When a program's ports are to be read, and before when not, on the monotonic clock.
        self._due: dict[Program, float] = {}
        self._not_before: dict[Program, float] = {}
        self._path = os.path.join(run_dir, NAME)
        self._pokes = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        with suppress(FileNotFoundError):
            os.unlink(self._path)
        self._pokes.bind(self._path)
        poller.watch(self._pokes.fileno(), select.EPOLLIN, self._on_poke)

    def attach(self, program: Program) -> None:
        """A program has come; it may have been there before this process."""
        if program.diag is not None and program.identity is not None:
            self._named[program] = set()
            self._by_id[int(program.id)] = program
            self._look(program)

    def _look(self, program: Program, by_number: Collection[int] = ()) -> None:
        self._read(program, by_number)
        # What one has bound that was alone until now may not have been looked at; it did not wait for that.
        other = self._sharing.only_other(program)
        if other in self._due:
            self._read(other)

    def detach(self, program: Program) -> None:
        """It has ended; the supervisor strikes its rows out. Before its sockets are closed."""
        if self._named.pop(program, None) is not None:
            del self._by_id[int(program.id)]
            self._due.pop(program, None)
            self._not_before.pop(program, None)
            if program in self._watched:
                self._watched.discard(program)
                assert program.diag is not None
                self._poller.forget(program.diag.socket.fileno())

    def place(self) -> None:
        """Where other hosts reach this one has changed: every row tells of it."""
        for program in self._named:
            self._read(program)

    def close(self) -> None:
        """Take no more messages; the rows stay, for the relay after this one."""
        self._poller.forget(self._pokes.fileno())
        self._pokes.close()

    def timeout(self) -> float | None:
        """Seconds until `expire` must be called; None when nothing waits."""
        moments = [*self._due.values(), *self._sharing.moments()]
        return max(0.0, min(moments) - time.monotonic()) if moments else None

    def expire(self) -> None:
        """Read what is due."""
        now = time.monotonic()
        for program, ports in self._sharing.overdue(now).items():
            self._look(program, ports)
        if self._due:
            for program in [program for program, due in self._due.items() if due <= now]:
                self._read(program)

    def _on_poke(self, _events: int) -> None:
        for _ in range(poke.KEYS):
            try:
                data, worker = self._pokes.recvfrom(1 << 16)
                told = poke.read(data)
            except OSError:
                return
            except ValueError:
                continue
            for question in (item for item in told if len(item) == FROM_WORKER.size):
                self._asked(question, partial(self._answer, worker))
            for number, port in (OVER.unpack(item) for item in told if len(item) == OVER.size):
                if (program := self._by_id.get(number)) is not None:
                    self._sharing.over(program, port)
                    self._changed(program)
            for number, port, word in (ANNOUNCE.unpack(item) for item in told if len(item) == ANNOUNCE.size):
                if (program := self._by_id.get(number)) is not None:
                    self._sharing.announce(program, port)
                self._answer(worker, TO_WORKER.pack(word, True))
            for number, cookie in (BIND.unpack(item) for item in told if len(item) == BIND.size):
                program = self._by_id.get(number)
                if program is not None:
                    self._named[program].add(cookie)
                    self._changed(program)

    def _answer(self, worker: str | bytes, answer: bytes) -> None:
        with suppress(OSError):  # it has ended
            self._pokes.sendto(answer, socket.MSG_DONTWAIT, worker)

    def _changed(self, program: Program, _events: int = 0) -> None:
        """Read at the end of this turn, or later: whoever binds and closes without end must not keep others waiting."""
        if program in self._due:
            return
        self._due[program] = self._not_before.get(program, 0.0)
        if program in self._watched and program.diag is not None:
            self._poller.change(program.diag.socket.fileno(), 0)

    def _read(self, program: Program, by_number: Collection[int] = ()) -> None:
        """`by_number`: ports that bind(2) may have named, which was not told."""
        diag = program.diag
        assert diag is not None
        began = time.monotonic()
        self._due.pop(program, None)
        try:
            diag.hear()
            found = diag.bound()
            self._named[program].update(item.cookie for item in found if item.port in by_number)
            self._enter(program, found)
            if program in self._watched:
                self._poller.change(diag.socket.fileno(), select.EPOLLIN)
        except OSError as error:
            log.error("the UDP ports of %s are not in the table as they are: %s", program.name, error)
        now = time.monotonic()
        self._not_before[program] = now + (now - began) / _SHARE

    def _enter(self, program: Program, sockets: list[UdpSocket]) -> None:
        """Make the table tell of these, as far as they are services. OSError when it has no room."""
        named = self._named[program]
        named.intersection_update(item.cookie for item in sockets)
        wanted: dict[tuple[bytes, int], UdpSocket] = {}
        chosen = []
        for item in sorted(sockets):
            if item.cookie in named or item.port not in _EPHEMERAL:
                address = MAPPED + item.address if len(item.address) == 4 else item.address
                chosen.append(Socket(address, item.port, item.dual))
                if not item.connected and item.port != _DNS_PORT:
                    wanted.setdefault((address, item.port), item)
        watched = self._sharing.bound(program, chosen)
        if len(wanted) > MOST:
            log.warning("%s has %d UDP ports bound: %d are told of", program.name, len(wanted), MOST)
            wanted = dict(list(wanted.items())[:MOST])
        if (wanted or watched) and program not in self._watched:
            # Of others nothing needs to be known: a client's sockets come and go.
            assert program.diag is not None
            self._watched.add(program)
            program.diag.watch_ends()
            self._poller.watch(program.diag.socket.fileno(), select.EPOLLIN, partial(self._changed, program))
        rows = self._table.services(int(program.id), UDP)
        gone = [row for row in rows if (row.bound, row.port) not in wanted]
        if gone:
            self._table.delete_services(gone)
            left = {item.port for item in sockets}
            for port in {row.port for row in gone} - left:
                self._closed(program, port)
        known = {(row.bound, row.port): row for row in rows}
        for (address, port), item in wanted.items():
            old = known.get((address, port))
            row = self._row(program, address, port, item) if old is None else old
            row = replace(row, real=self._hosts.real, epoch=self._hosts.life)
            if row != old:
                self._table.put_service(row)

    def _row(self, program: Program, address: bytes, port: int, item: UdpSocket) -> Service:
        number = int(program.id)
        return program.row(
            port,
            address,
            instance=number << 24 | item.cookie & 0xFFFFFF,
            dual=item.dual,
            cookie=item.cookie,
            since=time.time(),
        )
