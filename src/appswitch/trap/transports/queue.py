"""A server's accept queue is full: as natively, the connection waits until there is room (listen(2))."""

from __future__ import annotations

import _socket
import errno
import os
import socket
import struct
import time
from collections.abc import Callable
from socket import SOL_SOCKET

from ...linux import pidfd, procfs, seccomp
from ...linux.seccomp import Call
from ...linux.view import view
from ...model.service import Service
from .. import delivery
from ..delivery import Note
from ..parked import Waiter
from ..program import Borrowed, Program, cookie_of
from ..sockets import UNIX, End
from ..worker import Worker
from . import tcp, unix
from .attempt import Attempt

_TIMEVAL = struct.Struct("qq")


def wait(attempt: Attempt, row: Service, note: Note, again: Callable[[], None]) -> None:
    """Put a connecting end into the caller; park a blocking connect(), let a non-blocking one be in progress.

    Where the socket must stay TCP a non-blocking connect() succeeds at once and its connection waits, and a
    blocking one is made `again` from the start.
    """
    worker = attempt.worker
    nonblocking = bool(attempt.describe() & os.O_NONBLOCK)
    if unix.fits(attempt, row.transport):
        ours, theirs = _connecting_pair()
        try:
            worker.buffers.apply(theirs)
            attempt.dress(ours)
            options = attempt.options()
            if attempt.swap(ours):
                end = attempt.remember(cookie_of(ours), UNIX, note, options, in_progress=True, connected=False)
                waiting = InProgress(worker, row, note, end, theirs, Holder(attempt, ours))
                if nonblocking:
                    attempt.program.fail(attempt.call, errno.EINPROGRESS)
                else:
                    waiting.park(attempt.program, attempt.call, timeout(ours))
                return
        except BaseException:
            theirs.close()
            raise
        finally:
            ours.close()
        theirs.close()  # another process has the socket too
    if nonblocking or not seccomp.valid(attempt.program.listener, attempt.call.id):
        tcp.join(attempt, _Later(worker, row), note)
    else:
        _begin_again(attempt, row, again)


def _begin_again(attempt: Attempt, row: Service, again: Callable[[], None]) -> None:
    worker, program, call = attempt.worker, attempt.program, attempt.call
    waiter = Waiter(program, call, attempt.number, 0)
    seconds = timeout(attempt.sock)

    def resume() -> None:
        if not waiter.done:
            worker.unpark(waiter)
            if seccomp.valid(program.listener, call.id):
                again()

    def expire() -> None:
        if not waiter.done:
            worker.unpark(waiter)
            program.fail(call, errno.EINPROGRESS)

    if seconds:
        waiter.deadline, waiter.expire = time.monotonic() + seconds, expire
    worker.park(waiter)
    worker.room.when(row.cookie, resume)


def timeout(sock: socket.socket | Borrowed) -> float:
    """SO_SNDTIMEO, by which a blocking connect() gives up waiting (socket(7)); 0: it does not."""
    seconds, micros = _TIMEVAL.unpack(sock.getsockopt(SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.size))
    return float(seconds + micros / 1e6)


def _connecting_pair() -> tuple[socket.socket, socket.socket]:
    """A Unix pair whose first end polls as a TCP socket that is connecting: nothing to read, no room to write."""
    ours, theirs = socket.socketpair()
    ours.setsockopt(SOL_SOCKET, socket.SO_SNDBUF, 0)
    try:
        while True:
            ours.send(bytes(256), socket.MSG_DONTWAIT)
    except BlockingIOError:
        return ours, theirs


class Holder:
    """Where the program has its end: we keep none, or the server would meet clients that have long given up."""

    def __init__(self, attempt: Attempt, ours: _socket.socket) -> None:
        self._program = attempt.program
        self._pid = attempt.program.group(attempt.call.tid)
        self._number = attempt.number
        self._inode = os.fstat(ours.fileno()).st_ino
        self._namespace = procfs.network_namespace(self._pid)

    def copy(self) -> int:
        """A descriptor of ours for the end; -1 when the program has it no more."""
        link = f"socket:[{self._inode}]"
        try:
            if os.readlink(f"/proc/{self._pid}/fd/{self._number}") == link:
                return self._copy(self._pid, self._number)
        except OSError:
            pass  # closed there, or that process has ended
        for pid in procfs.processes():
            if procfs.network_namespace(pid) == self._namespace:
                for number in procfs.descriptors_of_kind(pid, link):
                    if (fd := self._copy(pid, number)) >= 0:
                        self._pid, self._number = pid, number
                        return fd
        return -1

    def _copy(self, pid: int, number: int) -> int:
        fd = pidfd.copy_of(pid, number)
        if fd >= 0 and os.fstat(fd).st_ino != self._inode:
            os.close(fd)
            return -1
        return fd


class InProgress:
    """A connect() that waits for room, whether its call still waits or not."""

    def __init__(
        self, worker: Worker, row: Service, note: Note, end: End, theirs: socket.socket, holder: Holder
    ) -> None:
        self._worker = worker
        self._row = row
        self._note = note
        self._end = end
        self._theirs = theirs
        self._holder = holder
        self._waiter: Waiter | None = None
        worker.connecting[end.cookie] = self
        worker.ends.note_closed(end.cookie)  # our death would be its end
        worker.room.when(row.cookie, self._retry)

    def park(self, program: Program, call: Call, seconds: float) -> None:
        """Have a blocking connect() wait for the outcome; another one that waited was interrupted."""
        if self._waiter is not None:
            self._worker.unpark(self._waiter)
        waiter = self._waiter = Waiter(program, call, -1, 0)

        def expire() -> None:
            if not waiter.done:
                self._answer(errno.EINPROGRESS)

        if seconds:
            waiter.deadline, waiter.expire = time.monotonic() + seconds, expire
        self._worker.park(waiter)

    def _answer(self, code: int) -> bool:
        """Answer the parked call; False when there is none (any more)."""
        waiter, self._waiter = self._waiter, None
        if waiter is None:
            return False
        self._worker.unpark(waiter)
        return waiter.program.fail(waiter.call, code) if code else waiter.program.reply(waiter.call)

    def _retry(self) -> None:
        ours = self._holder.copy()
        if ours < 0:
            self._finish(errno.ECONNABORTED)
            return
        with socket.socket(fileno=ours) as end:
            try:
                carrier = delivery.open_carrier(self._row.listener)
            except BlockingIOError:
                self._worker.room.when(self._row.cookie, self._retry)
                return
            except OSError:
                self._finish(errno.ECONNREFUSED)  # who polls sees an error and a hang-up
                return
            try:
                while self._theirs.recv(1 << 16, socket.MSG_DONTWAIT):
                    pass
            except BlockingIOError:
                pass
            self._worker.buffers.apply(end)
        delivery.send(carrier, self._theirs.fileno(), self._note)
        self._worker.counters.add("unix")
        self._finish(0)
        self._worker.room.made(self._row.cookie)

    def _finish(self, code: int) -> None:
        del self._worker.connecting[self._end.cookie]
        self._theirs.close()
        self._end.closed = bool(code)
        self._worker.ends.note_closed(self._end.cookie, bool(code))
        if self._answer(code):
            self._end.in_progress = False


def put(worker: Worker, row: Service, end: int, note: Note) -> None:
    """Have an end (it stays ours) lie in the server's queue, at the latest when there is room for it."""
    try:
        delivery.send(delivery.open_carrier(row.listener), end, note)
    except BlockingIOError:
        _Later(worker, row)(end, note)
    except OSError:
        pass  # closed in this very moment: the caller sees a connection that ends at once


class _Later:
    """Deliver an end as soon as there is room for it."""

    def __init__(self, worker: Worker, row: Service) -> None:
        self._worker = worker
        self._row = row

    def __call__(self, end: int, note: Note) -> None:
        self._when_room(os.dup(end), note)

    def _when_room(self, copy: int, note: Note) -> None:
        self._worker.room.when(self._row.cookie, lambda: self._retry(copy, note))

    def _retry(self, copy: int, note: Note) -> None:
        if _has_given_up(copy):
            os.close(copy)
            return
        try:
            carrier = delivery.open_carrier(self._row.listener)
        except BlockingIOError:
            self._when_room(copy, note)
            return
        except OSError:
            os.close(copy)  # refused after all: the client sees a reset or an end
            return
        try:
            delivery.send(carrier, copy, note)
        finally:
            os.close(copy)
        self._worker.room.made(self._row.cookie)


def _has_given_up(end: int) -> bool:
    """Has the client closed without a word? Natively such a one would never have been connected."""
    try:
        return not view(end).recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
