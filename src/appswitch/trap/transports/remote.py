"""To another host: a socket of this host's network takes the place of the caller's, and the program's data goes
straight to the host of the instance, after a header that says who calls (paper, 5.1; appswitch.header).
"""

from __future__ import annotations

import _socket
import errno
import fcntl
import os
import select
import socket
import time
from collections.abc import Callable, Sequence
from socket import IPPROTO_IPV6, IPPROTO_TCP, SOCK_STREAM

from ...linux import seccomp
from ...linux.seccomp import Call
from ...linux.view import release
from ...model.service import Service
from ..delivery import Note
from ..parked import Waiter
from ..program import Borrowed, Failure, Program, cookie_of
from ..sockets import REMOTE, End, set_again
from ..trials import PATIENCE, Trial, has_failed, is_under_way
from ..worker import Worker
from .attempt import Attempt, inside, raw_connect
from .queue import Holder, timeout

_FASTOPEN_NO_COOKIE = 34
#: Options of the program's that must not be on while the switch connects: the first would hold the SYN back until
#: the program sends, the second would bar an IPv6 socket from a host that is reached by IPv4.
_NOT_SET = {(IPPROTO_TCP, 30), (IPPROTO_IPV6, socket.IPV6_V6ONLY)}
#: Seconds that a non-blocking connect() may be kept waiting where it must be (see _Held).
_HELD_MOST = 3.0


def join(attempt: Attempt, rows: Sequence[Service], note: Note) -> None:
    """Connect to the first of these instances that can be had; Failure with the error of the last if none can now."""
    worker, program, call = attempt.worker, attempt.program, attempt.call
    held = worker.held.get(attempt.cookie)
    if isinstance(held, _Held) and held.again(attempt, note):
        return
    client, server = (note.client, note.client_port), (note.server, note.server_port)
    trial = Trial(worker.hosts, worker.counters, attempt.family, rows, client, server, program.identity.tags)
    new = _socket.socket(trial.family, SOCK_STREAM | socket.SOCK_CLOEXEC, 0)
    try:
        if program.identity.uid != os.geteuid():
            os.fchown(new.fileno(), program.identity.uid, -1)  # for rules that go by a socket's user
        nonblocking = attempt.dress(new)
        options = attempt.options()
        set_again(new, {key: value for key, value in options.items() if key not in _NOT_SET})
        new.setsockopt(IPPROTO_TCP, _FASTOPEN_NO_COOKIE, 1)
        if not trial.next(new):
            attempt.keep_options(options)
            raise Failure(trial.code)
        if trial.header_waits:
            attempt.keep_options(options)
            _Held(attempt, trial, new, note, nonblocking)
            return
        end = _give(attempt, trial, new, note, nonblocking)
        if (trial.more or (nonblocking and trial.to_be_looked_at())) and is_under_way(new):
            worker.trials.add(end.cookie, trial, Holder(attempt, new).copy)
        if nonblocking:
            program.fail(call, errno.EINPROGRESS)
        else:
            _wait_or_answer(worker, program, call, trial, new, end)
    finally:
        new.close()


def _give(attempt: Attempt, trial: Trial, new: _socket.socket, note: Note, nonblocking: bool) -> End:
    """Put the socket into the caller; from now on the program may send."""
    # Known before the program has it: should this worker die in between, the call is made again and finds it.
    end = attempt.remember(cookie_of(new), REMOTE, note._replace(kind=REMOTE), {}, in_progress=False)
    if trial.set_nonblocking and not nonblocking:
        fcntl.fcntl(new.fileno(), fcntl.F_SETFL, 0)
    try:
        attempt.exchange(new)
    except BaseException:
        attempt.worker.ends.forget(end.cookie)
        raise
    trial.given = True
    attempt.worker.counters.add("remote")
    return end


def _wait_or_answer(
    worker: Worker, program: Program, call: Call, trial: Trial, sock: _socket.socket, end: End
) -> None:
    if is_under_way(sock):
        _Parked.for_connect(worker, program, call, trial, sock, end)
    else:
        worker.trials.forget(end.cookie)
        _answer(program, call, sock, end)


def _answer(program: Program, call: Call, sock: _socket.socket, end: End) -> None:
    """The connect() has succeeded, unless its other end has reset it again; `sock` is not needed any more."""
    # the second connect() that tells the kernel that the first has been waited for
    code = raw_connect(sock.fileno(), inside(sock.family, 0, v4=sock.family == socket.AF_INET))
    sock.close()  # while the program still waits
    if code:
        program.fail(call, code)
    elif not program.reply(call):
        end.in_progress = True  # the call was cancelled; when it is made again it gets its 0


class _Parked:
    """A call that waits for the outcome of a trial, on a socket that the program has. `sock` is a copy of ours."""

    def __init__(
        self,
        worker: Worker,
        trial: Trial,
        sock: _socket.socket,
        waiter: Waiter,
        done: Callable[[int, _socket.socket], None],
        *,
        bounded: bool,
    ) -> None:
        """`done` is told the outcome, unless the call is cancelled; `bounded`: as in Trial.look."""
        self._worker = worker
        self._trial = trial
        self._sock = sock
        self._waiter = waiter
        self._done = done
        self._bounded = bounded
        trial.waiting = self
        worker.park(waiter)
        self._handle = worker.events.watch(sock.fileno(), lambda _: self._look(), select.EPOLLOUT | select.EPOLLERR)
        self._look_later()

    @classmethod
    def for_connect(
        cls,
        worker: Worker,
        program: Program,
        call: Call,
        trial: Trial,
        sock: _socket.socket,
        end: End,
    ) -> None:
        """Park a blocking connect()."""
        waiter = Waiter(program, call, -1, 0)

        def done(code: int, ours: _socket.socket) -> None:
            if code:
                program.fail(call, code)
            else:
                _answer(program, call, ours, end)

        ours = _socket.socket(sock.family, SOCK_STREAM, 0, os.dup(sock.fileno()))
        seconds = timeout(ours)
        parked: _Parked
        if seconds:
            waiter.deadline, waiter.expire = time.monotonic() + seconds, lambda: parked.expire()
        parked = cls(worker, trial, ours, waiter, done, bounded=False)

    def _look_later(self) -> None:
        if self._trial.more or self._bounded:
            self._worker.events.after(self._trial.began + PATIENCE, self._tick)

    def _tick(self) -> None:
        if not self._waiter.done:
            self._look()
            if not self._waiter.done:
                self._look_later()

    def _look(self) -> None:
        if not self.is_made():
            self.leave()  # interrupted: the outcome is for whoever asks next
            return
        outcome = self._trial.look(self._sock, bounded=self._bounded)
        if outcome is not None:
            self._worker.trials.forget(cookie_of(self._sock))
            self._unwatch()
            try:
                self._done(outcome, self._sock)
            finally:
                self._sock.close()

    def is_made(self) -> bool:
        return seccomp.valid(self._waiter.program.listener, self._waiter.call.id)

    def expire(self) -> None:
        """SO_SNDTIMEO is over (socket(7)): the connection goes on without the call."""
        if not self._waiter.done:
            self.leave()
            self._waiter.program.fail(self._waiter.call, errno.EINPROGRESS)

    def leave(self) -> None:
        self._unwatch()
        self._sock.close()

    def _unwatch(self) -> None:
        self._trial.waiting = None
        self._worker.unpark(self._waiter)
        self._worker.events.unwatch(self._sock, self._handle)


class _Held:
    """A connect() whose header must go out before the program can send: it gets the socket only then.

    So even a non-blocking connect() waits: for a round trip as a rule, for 3 s at most. When the call is cancelled
    and not made again, the connection is given up.
    """

    def __init__(self, attempt: Attempt, trial: Trial, new: _socket.socket, note: Note, nonblocking: bool) -> None:
        self._attempt = attempt
        self._trial = trial
        self._note = note
        self._nonblocking = nonblocking
        self._worker = attempt.worker
        self._sock = _socket.socket(trial.family, SOCK_STREAM, 0, os.dup(new.fileno()))
        attempt.closed = True  # not by connect(): the copy of the caller's socket is ours from now on
        self._has_copy = True
        seconds = _HELD_MOST if nonblocking else timeout(self._sock)
        self._deadline = time.monotonic() + seconds if seconds else None
        self._worker.held[attempt.cookie] = self
        self._park()
        self._handle = self._worker.events.watch(
            self._sock.fileno(), lambda _: self._look(), select.EPOLLOUT | select.EPOLLERR
        )
        self._look_later()

    def _park(self) -> None:
        waiter = self._waiter = Waiter(self._attempt.program, self._attempt.call, -1, 0)
        if self._deadline is not None:
            waiter.deadline, waiter.expire = self._deadline, lambda: self._expire(waiter)
        self._worker.park(waiter)

    def again(self, attempt: Attempt, note: Note) -> bool:
        """The call was cancelled and is made again: it goes on waiting. False when it goes elsewhere.

        Failure EALREADY when it was not cancelled: another thread makes it.
        """
        if not self._waiter.done and seccomp.valid(self._waiter.program.listener, self._waiter.call.id):
            raise Failure(errno.EALREADY)
        if (note.server, note.server_port) != self._trial.target:
            self._end()
            return False
        self._worker.unpark(self._waiter)
        self._attempt.call, self._attempt.number = attempt.call, attempt.number
        self._park()
        return True

    def _look_later(self) -> None:
        if self._trial.more:
            self._worker.events.after(self._trial.began + PATIENCE, self._tick)

    def _tick(self) -> None:
        if self._sock.fileno() >= 0:
            self._look()
            if self._sock.fileno() >= 0:
                self._look_later()

    def _look(self) -> None:
        attempt = self._attempt
        if not seccomp.valid(attempt.program.listener, attempt.call.id):
            if has_failed(self._sock) or not is_under_way(self._sock):
                self._end()  # nobody to give it to
            return
        outcome = self._trial.look(self._sock)
        if outcome is None:
            return
        self._stop()
        try:
            if outcome:
                attempt.program.fail(attempt.call, outcome)
            else:
                self._worker.handle(lambda *_: self._hand_over(), attempt.program, attempt.call)
        finally:
            self._close()

    def _hand_over(self) -> None:
        attempt = self._attempt
        there = attempt.program.borrow(attempt.call, attempt.number)
        try:
            if cookie_of(there) != attempt.cookie:
                raise Failure(errno.EBADF)  # another thread has put something else there
        finally:
            release(there)
        attempt.closed = False
        try:
            end = _give(attempt, self._trial, self._sock, self._note, self._nonblocking)
        finally:
            self._has_copy = not attempt.closed
        _answer(attempt.program, attempt.call, self._sock, end)

    def _expire(self, waiter: Waiter) -> None:
        if not waiter.done:
            self._end()
            self._attempt.program.fail(waiter.call, errno.ETIMEDOUT if self._nonblocking else errno.EINPROGRESS)

    def _end(self) -> None:
        """Give it up."""
        self._stop()
        self._close()

    def _stop(self) -> None:
        self._worker.unpark(self._waiter)
        del self._worker.held[self._attempt.cookie]
        self._worker.events.unwatch(self._sock, self._handle)

    def _close(self) -> None:
        self._sock.close()
        if self._has_copy:
            release(self._attempt.sock)


# what a program asks of a socket that it has --------------------------------------------------------------


def answer_error(
    worker: Worker, program: Program, call: Call, sock: Borrowed, answer: Callable[[int], None]
) -> bool:
    """Answer getsockopt(SO_ERROR): an instance that failed is passed over before the program hears of it.

    Then the call waits for the next one, for a bounded time. False when the kernel's own answer is right.
    """
    cookie = cookie_of(sock)
    trial = worker.trials.get(cookie)
    if trial is None or not trial.is_free():
        return False
    ours = _copy(trial, sock)
    code = trial.code
    try:
        if not trial.spent:
            if not (trial.passed if is_under_way(ours) else has_failed(ours) and trial.more):
                _see(worker, cookie, ours, trial)  # it asks too early, or hears the truth
                return False
            outcome = trial.look(ours)
            if outcome is None:
                _park_question(worker, Waiter(program, call, -1, 0), trial, _copy(trial, ours), answer)
                return True
            code = outcome
    finally:
        ours.close()
    worker.trials.forget(cookie)
    answer(code)
    return True


def _park_question(
    worker: Worker, waiter: Waiter, trial: Trial, ours: _socket.socket, answer: Callable[[int], None]
) -> None:
    def done(code: int, _: _socket.socket) -> None:
        worker.handle(lambda *_: answer(code), waiter.program, waiter.call)

    _Parked(worker, trial, ours, waiter, done, bounded=True)


def _copy(trial: Trial, sock: _socket.socket) -> _socket.socket:
    return _socket.socket(trial.family, SOCK_STREAM, 0, os.dup(sock.fileno()))


def _see(worker: Worker, cookie: int, sock: _socket.socket, trial: Trial) -> None:
    """Nothing is left to be done about a trial that has ended."""
    if is_under_way(sock):
        return
    worker.trials.forget(cookie)
    if not has_failed(sock):
        try:
            trial.established(sock)
        except OSError:
            pass  # the program will see


def connect_again(worker: Worker, program: Program, call: Call, sock: Borrowed, end: End) -> bool:
    """Answer another connect() on a socket that was put in; False when there is nothing left to be tried on it."""
    trial = worker.trials.get(end.cookie)
    if trial is None:
        return False
    if not trial.is_free():
        raise Failure(errno.EALREADY)
    ours = _copy(trial, sock)
    try:
        if not trial.spent and not is_under_way(ours) and not (has_failed(ours) and trial.more):
            _see(worker, end.cookie, ours, trial)
            return False
        outcome = trial.code if trial.spent else trial.look(ours)
        if outcome:
            worker.trials.forget(end.cookie)
            raise Failure(outcome)
        if outcome is None and fcntl.fcntl(ours.fileno(), fcntl.F_GETFL) & os.O_NONBLOCK:
            raise Failure(errno.EALREADY)
        _wait_or_answer(worker, program, call, trial, ours, end)
        return True
    finally:
        ours.close()
