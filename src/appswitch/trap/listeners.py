"""The listeners that a worker attends to, from the call that makes one to the day its program has closed it.

close() is never trapped and gives no event, so a sweep asks the kernel which listeners are left. No copy of one is
kept, or it would outlive its program's close; but a call that waits holds it open, as it does natively.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice

from ..linux import sock_diag
from ..linux.view import View
from ..model import balance
from ..model.address import MAPPED, unpack
from ..model.service import TCP, Service
from ..table.store import Table
from .accepting import Accepting
from .events import Events
from .hosts import Hosts
from .natives import KeptNatives, key_of
from .parked import Pending
from .program import Failure, Program, cookie_of
from .real_port import RealPorts
from .sockets import Listener
from .supervision import Supervisor

log = logging.getLogger("appswitch.worker")

#: Seconds between a trap and the look for listeners that their programs closed; nothing runs when nothing traps.
SWEEP_AFTER = 1.0

#: With so many more than the last sweep left, the next one does not wait: a program may open and close them quickly.
_SWEEP_AT = 128
#: Seconds at least between two sweeps for one that has as many as one may have: it may ask again and again.
_SWEEP_EVERY = 0.1
#: So many that were closed go at a time, a millisecond or two, before calls have their turn.
GO_AT_ONCE = 16

#: Seconds between two lines in the log on one user's wish for more than one may have.
_TELL_EVERY = 60.0

Report = Callable[[Listener], object]


class Listeners:
    """The listeners of this worker's programs, and what is known of others that were passed to its programs.

    `arrived` is told that something is in the queue of a listener on which calls wait, or that it was shut down;
    `at_real_port` that somebody has connected to its real port; `changed` that this row is in the table, or gone.
    """

    def __init__(
        self,
        table: Table,
        events: Events,
        pending: Pending,
        supervisor: Supervisor,
        diag: socket.socket,
        hosts: Hosts,
        *,
        alone: bool,
        per_user: int,
        arrived: Report,
        at_real_port: Report,
        changed: Callable[[Service], None],
    ) -> None:
        """`alone`: there is no other worker. `per_user`: listeners of a user, but for root's and our own user's."""
        self._per_user, self._unlimited = per_user, {0, os.geteuid()}
        self._of_user: Counter[int] = Counter()
        self._told: dict[int, float] = {}
        self._table = table
        self._events = events
        self._pending = pending
        self.natives = KeptNatives(events, pending, supervisor)
        self.alone = alone
        self.real_ports = RealPorts(table, events, hosts, at_real_port)
        self.changed = changed
        #: Somebody wants to know of each close within a moment.
        self.vigilant = False
        self._diag = diag
        self._hosts = hosts
        self._by_cookie: dict[int, Listener] = {}
        #: Listeners of other workers' programs, passed to programs of ours.
        self._guests: dict[int, Listener] = {}
        #: The cookie of a native socket, or of a listener that was shut down → the listener that replaced it (its dups
        #: may still show up).
        self._natives: dict[int, Listener] = {}
        self._sweeping = False
        self._sweep_at, self._swept = _SWEEP_AT, -_SWEEP_EVERY
        #: Closed ones that have yet to go.
        self._closed: dict[int, Listener] = {}
        self._dropping = False
        self.accepting = Accepting(events, pending, self._all, arrived)
        self.get = self._by_cookie.get
        self.in_place_of = self._natives.get

    # which socket is a listener ---------------------------------------------------------------------

    def of(self, cookie: int, sock: View) -> Listener | None:
        """The listener that this socket is, also when another worker's program passed it on."""
        listener = self._by_cookie.get(cookie)
        if listener is None and not self.alone:
            listener = self._guests.get(cookie)
            if listener is None and sock.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN) == socket.AF_UNIX:
                return self._take_in(cookie, sock)
        return listener

    def known(self, cookie: int) -> Listener | None:
        """The listener, or guest, with this cookie."""
        return self._by_cookie.get(cookie) or self._guests.get(cookie)

    def at_path(self, path: str) -> Listener | None:
        return next((item for item in self._all() if item.row.listener == path), None)

    def at_port(self, program: Program, port: int) -> list[Listener]:
        return [item for item in self._by_cookie.values() if item.program == program.number and item.name[1] == port]

    def _all(self) -> Iterator[Listener]:
        yield from self._by_cookie.values()
        yield from self._guests.values()

    def _take_in(self, cookie: int, sock: View) -> Listener | None:
        name = sock.getsockname()
        if isinstance(name, str) and name.startswith("l/"):  # as no path of the program's own is: see listen.py
            for row in self._table.services(proto=TCP):
                if row.cookie == cookie:
                    listener = self._guests[cookie] = self._of_row(row, [])
                    return listener
        return None

    def _of_row(self, row: Service, fds: list[int]) -> Listener:
        family = socket.AF_INET if row.bound.startswith(MAPPED) else socket.AF_INET6
        native_cookie = 0
        if fds:
            with socket.socket(fileno=os.dup(fds[0])) as native:
                native_cookie = cookie_of(native)
        listener = Listener(
            row.cookie,
            native_cookie,
            row.program,
            family,
            (row.bound, row.port),
            row,
            fds[0] if fds else -1,
            -1,
        )
        self.accepting.watch(listener)
        return listener

    # they come --------------------------------------------------------------------------------------

    def check_room(self, program: Program) -> None:
        """Failure ENOBUFS when the program's user has as many listeners as one may have."""
        uid = program.identity.uid
        if len(self._by_cookie) >= self._sweep_at:
            self._forget_closed()
        if uid in self._unlimited or self._of_user[uid] < self._per_user:
            return
        now = time.monotonic()
        if now - self._swept >= _SWEEP_EVERY:
            self._forget_closed()
            self.drop(*islice((item for item in self._closed.values() if item.row.uid == uid), GO_AT_ONCE))
            if self._of_user[uid] < self._per_user:
                return
        if now - self._told.get(uid, -_TELL_EVERY) >= _TELL_EVERY:
            self._told[uid] = now
            log.warning("user %d has %d listeners, and gets no more (--per-user)", uid, self._of_user[uid])
        raise Failure(errno.ENOBUFS)

    def add(self, listener: Listener) -> None:
        """A program's new one; its row is not in the table yet."""
        self._by_cookie[listener.cookie] = listener
        self._of_user[listener.row.uid] += 1
        self._natives[listener.native_cookie] = listener
        self.accepting.watch(listener)
        self.real_ports.open(listener)
        self.sweep_soon()

    def succeed(self, listener: Listener, before: int) -> None:
        """It is in the place of one that was shut down, whose cookie this is."""
        listener.before = before
        self._natives[before] = listener

    def recover(self, program: Program, kept: dict[str, list[int]]) -> None:
        """A dead predecessor's, from the table; `kept` are the descriptors that the supervisor had copies of, which are
        this worker's to close.
        """
        live = self.live()
        for row in self._table.services(program.number, TCP):
            fds = kept.pop(key_of(row.cookie), [])
            listener = self._of_row(row, fds)
            self._by_cookie[row.cookie] = listener
            self._of_user[row.uid] += 1
            self._natives[listener.native_cookie] = listener
            if row.cookie not in live:
                self.drop(listener)
            else:
                self.real_ports.reopen(listener)
        for key, fds in kept.items():  # of a listen() that was not answered and will be made again, or of a close()
            with socket.socket(fileno=fds[0]) as native:
                self.natives.forget(key, program.number, native.getsockname()[1])
        self.sweep_soon()

    def reopen(self) -> None:
        """This host joined or left a cluster, or has another address: so have its services."""
        for listener in self._by_cookie.values():
            if listener.row.state == "up":
                self.real_ports.reopen(listener)
        self.sweep_soon()

    def check_balance(self, row: Service) -> None:
        """The first instance's word on balancing wins; another word is worth a line in the log."""
        others = self._table.lookup(row.vip, row.port)[0]
        if others and (rules := balance.method(others)) != row.balance:
            log.warning(
                "%s:%s is balanced by %s, as its first instance asked; --balance %s of program %s is ignored",
                row.name or unpack(row.vip),
                row.port,
                rules,
                row.balance,
                row.program,
            )

    # they go ----------------------------------------------------------------------------------------

    def drop(self, *listeners: Listener) -> None:
        """Their programs have closed them: their rows, files, watches and copies go."""
        known = [listener for listener in listeners if self._by_cookie.pop(listener.cookie, None) is not None]
        for listener in known:
            self._of_user[listener.row.uid] -= 1
            self._natives.pop(listener.native_cookie, None)
            self._natives.pop(listener.before, None)
            self.accepting.end_all(listener)
            self.accepting.unwatch(listener)
        self._withdraw(*known)
        for listener in known:
            if listener.native >= 0:
                os.close(listener.native)
                listener.native = -1
            self.natives.forget(key_of(listener.cookie), listener.program, listener.name[1])

    def _drop_by_and_by(self, listeners: Iterable[Listener]) -> None:
        """The same of any number of them; calls are answered meanwhile."""
        self._closed |= {listener.cookie: listener for listener in listeners}
        if self._closed and not self._dropping:
            self._drop_some()

    def _drop_some(self) -> None:
        some = [self._closed.pop(cookie) for cookie in list(islice(self._closed, GO_AT_ONCE))]
        self._dropping = bool(self._closed)
        if self._dropping:
            self._events.after(time.monotonic(), self._drop_some)
        self.drop(*some)

    def _withdraw(self, *listeners: Listener) -> None:
        """Nobody can connect to them any more: their rows, files and real ports go."""
        up = [listener for listener in listeners if listener.row.state == "up"]
        try:
            self._table.delete_services([listener.row for listener in up])
        except OSError as error:  # no room: they go with their programs
            log.warning("the row of a closed listener stays for a while: %s", error)
        for listener in up:
            listener.row = replace(listener.row, state="down")
            self.real_ports.close(listener)
            try:
                os.unlink(listener.row.listener)
            except FileNotFoundError:
                pass
            self.changed(listener.row)

    def refused(self, row: Service) -> None:
        """A connect was refused: nothing listens behind this row any more."""
        listener = self._by_cookie.get(row.cookie)
        if listener is None:
            self._table.delete_services([row])
        elif row.cookie in self.live():
            self._withdraw(listener)  # shut down, yet the program has it and may listen() again
        else:
            self.drop(listener)

    def drop_closed(self, program: Program, port: int) -> bool:
        """A listener that the program has closed must not hold its port until the next sweep. Was there one?"""
        leaving = self.natives.hold(program, port)
        mine = self.at_port(program, port)
        if not mine:
            return leaving
        self.accepting.forget_cancelled()
        live = self.live()
        closed = [listener for listener in mine if listener.cookie not in live]
        self.drop(*closed)
        return leaving or bool(closed)

    def drop_program(self, program: Program) -> None:
        """Its last process has ended."""
        self._drop_by_and_by(item for item in self._by_cookie.values() if item.program == program.number)
        self.accepting.forget_program(program)

    def live(self) -> dict[int, bool]:
        """Those that somebody has open, by cookie; False when shut down."""
        return sock_diag.unix_listeners(self._diag)

    def sweep_soon(self) -> None:
        if not self._sweeping and (self._by_cookie or self._guests):
            self._sweeping = True
            self._events.after(time.monotonic() + SWEEP_AFTER, self._sweep)

    def _sweep(self) -> None:
        self._sweeping = False
        if not self._by_cookie and not self._guests:
            return
        self.accepting.forget_cancelled()
        self._forget_closed()
        if self._hosts.node.host or self.vigilant:
            self.sweep_soon()  # others learn by this alone that one was closed while its program lives

    def _forget_closed(self) -> None:
        """Drop the listeners that their programs have closed."""
        try:
            live = self.live()
        except OSError:  # at the next sweep
            return
        for guest in [guest for guest in self._guests.values() if guest.cookie not in live]:
            del self._guests[guest.cookie]
            self.accepting.unwatch(guest)
        closed = [listener for cookie, listener in self._by_cookie.items() if cookie not in live]
        self._withdraw(*(listener for cookie, listener in self._by_cookie.items() if live.get(cookie) is False))
        self._drop_by_and_by(closed)
        self._sweep_at, self._swept = 2 * (len(self._by_cookie) - len(self._closed)) + _SWEEP_AT, time.monotonic()
