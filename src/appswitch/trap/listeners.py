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
from collections.abc import Callable, Iterator
from dataclasses import replace

from ..header.identity import EPOCH_SIZE
from ..header.window import Windows
from ..linux import seccomp, sock_diag
from ..linux.seccomp import Call
from ..linux.view import View
from ..model import balance
from ..model.address import MAPPED, unpack
from ..model.service import TCP, Service
from ..table.store import Table
from . import real_port
from .events import Events
from .hosts import Hosts
from .parked import Pending, Waiter
from .program import Failure, Program, cookie_of
from .sockets import Listener
from .supervision import Supervisor

log = logging.getLogger("appswitch.worker")

#: Seconds between a trap and the look for listeners that their programs closed; nothing runs when nothing traps.
SWEEP_AFTER = 1.0

#: With so many more than the last sweep left, the next one does not wait: a program may open and close them quickly.
_SWEEP_AT = 128
#: Seconds at least between two sweeps for one that has as many as one may have: it may ask again and again.
_SWEEP_EVERY = 0.1

#: Seconds until a worker without descriptors looks again at what has come from other hosts.
_PAUSE = 0.1

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
        self._supervisor = supervisor
        self.alone = alone
        self._resume = arrived
        self._at_real_port = at_real_port
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
        #: Of dropped listeners that the supervisor still holds copies of: program, port, who waits for it.
        self._leaving: dict[str, tuple[int, int, list[Callable[[], None]]]] = {}
        #: Processes that have waited in accept(), as pidfds.
        self._lives: dict[int, int] = {}
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
        self._watch(listener)
        return listener

    def _watch(self, listener: Listener) -> None:
        listener.handle, listener.number = self._events.new_watch(lambda _: self._arrived(listener))

    def _arrived(self, listener: Listener) -> None:
        listener.armed = False
        self._resume(listener)

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
        self._watch(listener)
        self._open_real(listener)
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
            fds = kept.pop(_key(row.cookie), [])
            listener = self._of_row(row, fds)
            self._by_cookie[row.cookie] = listener
            self._of_user[row.uid] += 1
            self._natives[listener.native_cookie] = listener
            if row.cookie not in live:
                self.drop(listener)
            else:
                self._reopen_real(listener)
        for key, fds in kept.items():  # of a listen() that was not answered and will be made again, or of a close()
            with socket.socket(fileno=fds[0]) as native:
                self._leave(key, program.number, native.getsockname()[1])
        self.sweep_soon()

    def keep_native(self, program: Program, listener: Listener) -> None:
        """Have the supervisor keep the port taken, for the worker after this one."""
        self._supervisor.keep(_key(listener.cookie), program.number, [listener.native])

    def _open_real(self, listener: Listener) -> None:
        """Attend to a real port of the service from now on, if it is to have one."""
        row = listener.row
        if not self._has_real(row):
            return
        opened = real_port.listen(self._hosts.node, listener.family)
        if opened is not None:
            real, address = opened
            listener.row = replace(row, real=(address, real.getsockname()[1]))
            listener.real = real.detach()
            self._watch_real(listener)
            self._begin_epoch(listener)

    def _has_real(self, row: Service) -> bool:
        """To others of its virtual IP on other hosts loopback is one address; elsewhere nobody comes to it."""
        return not row.alone and bool(self._hosts.node.host or not row.own_only)

    def _begin_epoch(self, listener: Listener) -> None:
        """Headers that were written for it until now are good no more."""
        if self._hosts.node.host:
            listener.row = replace(listener.row, epoch=os.urandom(EPOCH_SIZE))
            listener.windows = Windows()

    def _watch_real(self, listener: Listener) -> None:
        listener.real_handle = self._events.watch(listener.real, lambda _: self._at_real_port(listener))

    def pause_real(self, listener: Listener) -> None:
        """There is no room for what comes to its real port: it stays in the kernel's queue for a moment."""
        port, handle = listener.real, listener.real_handle
        self._events.unwatch(port, handle)

        def go_on() -> None:
            if listener.real == port and listener.real_handle == handle:
                self._watch_real(listener)

        self._events.after(time.monotonic() + _PAUSE, go_on)

    def _close_real(self, listener: Listener) -> None:
        if listener.real >= 0:
            self._events.forget(listener.real_handle)
            os.close(listener.real)
            listener.real = -1

    def _reopen_real(self, listener: Listener) -> None:
        """Elsewhere, and told to all."""
        if not self._has_real(listener.row) and not listener.row.real[0]:
            return
        self._close_real(listener)
        listener.row = replace(listener.row, real=("", 0), epoch=b"", version=listener.row.version + 1)
        self._open_real(listener)
        self._table.put_service(listener.row)

    def reopen(self) -> None:
        """This host joined or left a cluster, or has another address: so have its services."""
        for listener in self._by_cookie.values():
            if listener.row.state == "up":
                self._reopen_real(listener)
        self.sweep_soon()

    def renew_epoch(self, listener: Listener) -> None:
        """So many senders have called that no more can be remembered: begin anew."""
        self._begin_epoch(listener)
        listener.row = replace(listener.row, version=listener.row.version + 1)
        self._table.put_service(listener.row)

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

    def drop(self, listener: Listener) -> None:
        """The program has closed it: its row, file, watch and copies go."""
        if self._by_cookie.pop(listener.cookie, None) is None:
            return
        self._of_user[listener.row.uid] -= 1
        self._natives.pop(listener.native_cookie, None)
        self._natives.pop(listener.before, None)
        while (waiter := self.next_waiter(listener)) is not None:
            waiter.program.fail(waiter.call, errno.EINVAL)
            self._pending.unpark(waiter)
        self._events.end_watch(listener.handle, listener.number)
        self._withdraw(listener)
        if listener.native >= 0:
            os.close(listener.native)
            listener.native = -1
        key = _key(listener.cookie)
        self._leave(key, listener.program, listener.name[1])

    def _leave(self, key: str, program: int, port: int) -> None:
        """Have the supervisor close its copies of a native socket, which hold this port."""
        self._leaving[key] = (program, port, [])
        self._supervisor.forget(key)

    def _withdraw(self, listener: Listener) -> None:
        """Nobody can connect to it any more: its row, its file and its real port go."""
        if listener.row.state != "up":
            return
        try:
            self._table.delete_services([listener.row])
        except OSError as error:  # no room: it goes with its program
            log.warning("the row of a closed listener stays for a while: %s", error)
        listener.row = replace(listener.row, state="down")
        self._close_real(listener)
        try:
            os.unlink(listener.row.listener)
        except FileNotFoundError:
            pass
        self.changed(listener.row)

    def has_left(self, key: str) -> None:
        """The supervisor has closed its copies of what was kept under this key."""
        leaving = self._leaving.pop(key, None)
        if leaving is not None:
            for resume in leaving[2]:
                self._events.guard(resume)

    def _leaving_at(self, program: Program, port: int) -> list[tuple[int, int, list[Callable[[], None]]]]:
        return [leaving for leaving in self._leaving.values() if leaving[:2] == (program.number, port)]

    def when_left(self, program: Program, port: int, call: Call, resume: Callable[[], object]) -> None:
        """Resume a call once no copy of a closed listener of the program holds this port: at once, as a rule."""
        holding = self._leaving_at(program, port)
        if not holding:
            resume()
            return
        waiter = self._pending.park(Waiter(program, call, -1, 0))

        def once() -> None:
            if seccomp.valid(program.listener, call.id):
                resume()
            self._pending.unpark(waiter)

        holding[-1][2].append(once)

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
        leaving = bool(self._leaving_at(program, port))
        mine = self.at_port(program, port)
        if not mine:
            return leaving
        self.forget_cancelled()
        live = self.live()
        closed = [listener for listener in mine if listener.cookie not in live]
        for listener in closed:
            self.drop(listener)
        return leaving or bool(closed)

    def drop_program(self, program: Program) -> None:
        """Its last process has ended."""
        for listener in [item for item in self._by_cookie.values() if item.program == program.number]:
            self.drop(listener)
        for listener in self._all():  # its threads may have waited on others'
            for tid in [tid for tid, waiter in listener.waiting.items() if waiter.program is program]:
                self._pending.unpark(listener.waiting.pop(tid))
            self.let_go(listener)

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
        self.forget_cancelled()
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
            self._events.end_watch(guest.handle, guest.number)
        for listener in list(self._by_cookie.values()):
            takes = live.get(listener.cookie)
            if takes is None:
                self.drop(listener)
            elif not takes:
                self._withdraw(listener)
        self._sweep_at, self._swept = 2 * len(self._by_cookie) + _SWEEP_AT, time.monotonic()

    # calls that wait on them ------------------------------------------------------------------------

    def wait(self, listener: Listener, waiter: Waiter, fd: int) -> None:
        """Park an accept() until something arrives; `fd` is a copy of the listener."""
        listener.waiting[waiter.call.tid] = self._pending.park(waiter)
        self.arm(listener, fd)
        self._watch_life(waiter.program, waiter.call.tid)

    def arm(self, listener: Listener, fd: int) -> None:
        """Report the next arrival, once, and hold the listener open until nobody waits for it (`let_go`)."""
        number = listener.number
        if not listener.held:
            os.dup2(fd, number, inheritable=False)
            listener.held = True
        if listener.armed:
            return
        self._events.arm(listener.handle, number)
        listener.armed = True

    def let_go(self, listener: Listener) -> None:
        """Unless calls wait on this listener, leave it to its program alone: its close is the end then."""
        if listener.held and not listener.waiting:
            listener.held = False
            self._events.vacate(listener.number)

    def still_waited_for(self, listener: Listener) -> bool:
        """Whether a call on this listener is still being made; those that are not are forgotten."""
        while listener.waiting:
            waiter = next(iter(listener.waiting.values()))
            if seccomp.valid(waiter.program.listener, waiter.call.id):
                return True
            del listener.waiting[waiter.call.tid]
            self._pending.unpark(waiter)
        self.let_go(listener)
        return False

    def next_waiter(self, listener: Listener) -> Waiter | None:
        """The longest parked call on this listener that is still being made; to be unparked when it is answered."""
        if not self.still_waited_for(listener):
            return None
        _, waiter = listener.waiting.popitem(last=False)
        self.let_go(listener)
        return waiter

    def forget_waiter(self, listener: Listener, tid: int) -> None:
        """A thread that calls again does not make its parked call any more."""
        waiter = listener.waiting.pop(tid, None)
        if waiter is not None:
            self._pending.unpark(waiter)

    def forget_cancelled(self) -> None:
        """Calls that are not being made any more hold no listener."""
        for listener in self._all():
            if listener.held:
                self.still_waited_for(listener)

    def _watch_life(self, program: Program, tid: int) -> None:
        """A process that dies in accept() must not keep its listener open through us."""
        group = program.group(tid)
        if group in self._lives:
            return
        try:
            self._lives[group] = life = os.pidfd_open(group)
        except OSError:
            return  # it has just ended
        handle = self._events.watch(life, lambda _: self._ended(group, handle))

    def _ended(self, group: int, handle: int) -> None:
        self._events.forget(handle)
        os.close(self._lives.pop(group))
        self.forget_cancelled()


def _key(cookie: int) -> str:
    """Under which the supervisor keeps a listener's native socket."""
    return f"native-{cookie}"
