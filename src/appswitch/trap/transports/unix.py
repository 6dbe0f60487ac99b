"""On one host a connection is a Unix stream pair: no TCP, several times faster (paper, 5.1)."""

from __future__ import annotations

import _socket
import errno
import socket
from collections.abc import Callable
from socket import IPPROTO_TCP, SOCK_STREAM, SOL_SOCKET

from .. import delivery, options
from ..delivery import Note
from ..filter import SO_RCVLOWAT, SO_TIMESTAMPS, SO_ZEROCOPY
from ..program import cookie_of
from ..sockets import KEPT_BY_UNIX, UNIX, End, set_again
from . import tcp
from .attempt import Attempt

#: Brings the server's end (a descriptor that stays ours) to the server.
Deliver = Callable[[int, Note], None]

_TCP_ULP, _TCP_MD5SIG = 31, 14
#: Options that only TCP can honour: a program that sets one before connect() keeps TCP.
_TCP_ONLY = {
    (SOL_SOCKET, SO_ZEROCOPY),
    (SOL_SOCKET, SO_RCVLOWAT),
    (IPPROTO_TCP, _TCP_ULP),
    (IPPROTO_TCP, _TCP_MD5SIG),
    *((SOL_SOCKET, name) for name in SO_TIMESTAMPS),
}
_QUICKACK = (IPPROTO_TCP, socket.TCP_QUICKACK)  # not permanent (tcp(7))
_RESET_AT_CLOSE = (socket.SO_LINGER, delivery.RESET_AT_CLOSE)


def fits(attempt: Attempt, asked_by_service: str) -> bool:
    """May the socket become a Unix end? Whatever is in doubt stays TCP (docs/transparency.md)."""
    if not attempt.is_native:
        attempt.find_registrations()
        return True  # there is no TCP socket of its own any more
    program = attempt.program
    if not options.unix_is_wanted(program.options.transport, asked_by_service, attempt.worker.buffers.enough):
        return False
    if not _TCP_ONLY.isdisjoint(program.touched.get(attempt.cookie, ())):
        return False
    if _RESET_AT_CLOSE in attempt.carried():
        return False
    return not program.epolls.any or attempt.find_registrations()


def join(attempt: Attempt, deliver: Deliver, note: Note) -> None:
    """Make a pair, put one end into the caller, have the other delivered, answer."""
    worker = attempt.worker
    ours, theirs = _socket.socketpair(socket.AF_UNIX, SOCK_STREAM)
    try:
        worker.buffers.apply(theirs)
        nonblocking = attempt.dress(ours)
        # As connected only once the server has the other end: should this worker die in between, the call is made
        # again, and the next one begins anew.
        end = _put_in(attempt, ours, cookie_of(ours), note, connected=False)
        if end is None:
            tcp.join(attempt, deliver, note)
            return
        deliver(theirs.fileno(), note)
        worker.ends.note_closed(end.cookie, False)
    finally:
        ours.close()
        theirs.close()
    _answer(attempt, end, nonblocking)


def join_queue(attempt: Attempt, carrier: _socket.socket, note: Note, instead: Deliver) -> None:
    """Put the carrier, of which the server's listener has the other end, into the caller, answer.

    Where that cannot be (another process has the socket too), deliver a TCP end `instead`.
    """
    nonblocking = attempt.dress(carrier)
    if not nonblocking:
        carrier.setblocking(True)
    cookie = cookie_of(carrier)
    # before the program can write a word
    delivery.announce(carrier, note, cookie)
    end = None
    try:
        end = _put_in(attempt, carrier, cookie, note, connected=True)
    finally:
        if end is None:
            attempt.worker.receiver.withdraw(cookie)
    if end is None:
        tcp.join(attempt, instead, note)
        return
    carrier.close()
    _answer(attempt, end, nonblocking)


def _put_in(attempt: Attempt, ours: _socket.socket, cookie: int, note: Note, *, connected: bool) -> End | None:
    """Put the client's end, whose cookie this is, into the caller; None, and nothing is changed, when it stays TCP."""
    worker = attempt.worker
    worker.buffers.apply(ours)
    remembered = attempt.options()
    if remembered:
        remembered.pop(_QUICKACK, None)
        set_again(ours, {key: remembered.pop(key) for key in KEPT_BY_UNIX.intersection(remembered)})
    # known before the program has it
    end = attempt.remember(cookie, UNIX, note, remembered, in_progress=True, connected=connected)
    swapped = False
    try:
        swapped = attempt.swap(ours)
    finally:
        if not swapped:
            worker.ends.forget(cookie)
    return end if swapped else None


def _answer(attempt: Attempt, end: End, nonblocking: bool) -> None:
    attempt.worker.counters.add("unix")
    if nonblocking:
        attempt.program.fail(attempt.call, errno.EINPROGRESS)  # so that events come as they do natively
    elif attempt.program.reply(attempt.call):
        end.in_progress = False
    # else the call was cancelled; when it is made again it gets its 0
