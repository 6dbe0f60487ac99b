"""accept(2), accept4(2): the next connection from the kernel's queue, put into the caller in one atomic step."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import time
from socket import SOL_SOCKET

from ...linux import sockaddr
from ...linux.seccomp import Call
from ...linux.view import release, view
from .. import delivery
from ..delivery import Note
from ..parked import Waiter
from ..program import Borrowed, Failure, Program, as_int, cookie_of
from ..sockets import INGRESS, TCP, UNIX, End, Listener, set_again
from ..transports import queue
from ..worker import Worker
from .listen import SHORTEST, adopt

_FLAGS = int(socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
_TIMEVAL = struct.Struct("qq")
_ACCEPTCONN = 30
_DEFER_ACCEPT = (socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT)  # the one option that is not inherited


#: Seconds until another try when there was no descriptor for a connection.
_SHORT = 0.1
#: Calls on one listener that are served before others have their turn.
_AT_ONCE = 64


class ShutDown(Exception):
    """The listener was shut down: accept() gives EINVAL (accept(2))."""


def accept(worker: Worker, program: Program, call: Call) -> None:
    _accept(worker, program, call, 0)


def accept4(worker: Worker, program: Program, call: Call) -> None:
    _accept(worker, program, call, as_int(call.a3))


def _accept(worker: Worker, program: Program, call: Call, flags: int) -> None:
    sock = program.borrow(call, call.a0)
    try:
        cookie = cookie_of(sock)
        listener = worker.listeners.of(cookie, sock)
        if listener is None:
            known = worker.listeners.in_place_of(cookie)
            if known is None:
                program.proceed(call)
                return
            native, sock, listener = sock, adopt(program, call, sock, known), known
            release(native)
        if flags & ~_FLAGS:
            raise Failure(errno.EINVAL)
        if listener.waiting:
            # a parked call of this thread is over if the thread calls again
            worker.listeners.accepting.forget_waiter(listener, call.tid)
        try:
            taken = take(worker, sock)
        except ShutDown:
            raise Failure(errno.EINVAL) from None
        if taken is not None:
            if not _give(worker, program, call, flags, listener, *taken):
                put_back(worker, listener, *taken)
            worker.room.made(listener.cookie)
        elif fcntl.fcntl(sock.fileno(), fcntl.F_GETFL) & os.O_NONBLOCK:
            raise Failure(errno.EAGAIN)
        else:
            _wait(worker, listener, Waiter(program, call, as_int(call.a0), flags), sock)
        worker.listeners.accepting.let_go(listener)
    finally:
        release(sock)


def take(worker: Worker, sock: Borrowed) -> tuple[int, Note] | None:
    """The next end in the listener's queue, as a descriptor of ours; None when there is none now."""
    while True:
        events = delivery.poll_now(sock.fileno())  # the listener may be a blocking one
        if not events:
            return None
        if events & delivery.SHUT:
            raise ShutDown
        try:
            fd = _next(sock) if worker.alone else _next_in_time(sock)
        except BlockingIOError:
            return None
        taken = worker.receiver.receive(fd)
        if taken is not None:
            return taken


def _next(sock: Borrowed) -> int:
    fd: int = sock._accept()[0]  # type: ignore[attr-defined]
    return fd


def _next_in_time(sock: Borrowed) -> int:
    """Another worker may empty the queue between poll() and accept(): never wait for longer than a tick."""
    before: bytes = sock.getsockopt(SOL_SOCKET, socket.SO_RCVTIMEO, 16)
    if before == SHORTEST:
        return _next(sock)
    sock.setsockopt(SOL_SOCKET, socket.SO_RCVTIMEO, SHORTEST)
    try:
        return _next(sock)
    finally:
        sock.setsockopt(SOL_SOCKET, socket.SO_RCVTIMEO, before)


def bring(worker: Worker, listener: Listener, end: int, note: Note) -> None:
    """Bring the server's end of a connection (a descriptor that stays ours) to one of our listeners.

    To a thread that waits in accept(), or into the queue. BlockingIOError: that is full. Another OSError: the listener
    is closed.
    """
    while (waiter := worker.listeners.accepting.next_waiter(listener)) is not None:
        copy = os.dup(end)
        if give(worker, waiter, listener, copy, note):
            return
        os.close(copy)
    delivery.send(delivery.open_carrier(listener.row.listener), end, note)


def give(worker: Worker, waiter: Waiter, listener: Listener, end: int, note: Note) -> bool:
    """Put an end into the caller of a parked accept(); False when the call is gone: the end is still ours.

    Anything else that goes wrong is the caller's own (EMFILE, EFAULT): it is told, and the connection is lost
    only where the kernel loses it too.
    """
    try:
        return _give(worker, waiter.program, waiter.call, waiter.flags, listener, end, note)
    finally:
        worker.unpark(waiter)


def _give(
    worker: Worker, program: Program, call: Call, flags: int, listener: Listener, end: int, note: Note
) -> bool:
    client, server = (note.client, note.client_port), (note.server, note.server_port)
    sock = view(end)
    if note.kind == TCP:
        sock.setsockopt(SOL_SOCKET, socket.SO_LINGER, delivery.END_AT_CLOSE)
    if call.a1:
        try:
            program.write_sized(call, call.a1, call.a2, sockaddr.encode(listener.family, *client))
        except FileNotFoundError:
            return False  # interrupted
        except (Failure, OSError) as error:
            os.close(end)
            program.fail(call, errno.EINVAL if error.errno == errno.EINVAL else errno.EFAULT)
            return True
    for level, name, value in listener.inherited:
        sock.setsockopt(level, name, value)
    cookie = cookie_of(sock)
    options = listener.options.copy()
    if options:
        options.pop(_DEFER_ACCEPT, None)
    if note.kind != UNIX:
        set_again(sock, options)
        if note.kind == INGRESS and not any(name == socket.SO_LINGER for _, name, _ in listener.inherited):
            sock.setsockopt(SOL_SOCKET, socket.SO_LINGER, bytes(8))  # see real_port.reset_when_lost
    worker.ends.add(End(cookie, program.number, note.kind, listener.family, True, server, client, options=options))
    if flags & socket.SOCK_NONBLOCK:
        fcntl.fcntl(end, fcntl.F_SETFL, os.O_NONBLOCK)
    try:
        program.hand_over(call, end, bool(flags & socket.SOCK_CLOEXEC))
    except OSError as error:
        worker.ends.forget(cookie)
        if error.errno in (errno.ENOENT, errno.ESRCH, errno.EINPROGRESS):
            return False
        program.fail(call, errno.EMFILE)
        put_back(worker, listener, end, note)
        return True
    os.close(end)
    worker.counters.add("accepted")
    return True


def put_back(worker: Worker, listener: Listener, end: int, note: Note) -> None:
    """Nobody took it: back into the kernel's queue, at its end; reset if the listener has gone meanwhile."""
    queue.put(worker, listener.row, end, note)
    os.close(end)


def _wait(worker: Worker, listener: Listener, waiter: Waiter, sock: Borrowed) -> None:
    timeout: bytes = sock.getsockopt(SOL_SOCKET, socket.SO_RCVTIMEO, 16)
    seconds, micros = _TIMEVAL.unpack(timeout)
    if (seconds or micros) and timeout != SHORTEST:
        waiter.deadline = time.monotonic() + seconds + micros / 1e6
        waiter.expire = lambda: _time_out(worker, listener, waiter)
    worker.listeners.accepting.wait(listener, waiter, sock.fileno())


def _time_out(worker: Worker, listener: Listener, waiter: Waiter) -> None:
    if not waiter.done:
        del listener.waiting[waiter.call.tid]
        worker.listeners.accepting.let_go(listener)
        waiter.program.fail(waiter.call, errno.EAGAIN)
        worker.unpark(waiter)


def resume(worker: Worker, listener: Listener) -> None:
    """Something has arrived (or the listener was shut down): serve the parked calls, so many in a turn."""
    listeners = worker.listeners
    for _ in range(_AT_ONCE):
        if not listeners.accepting.still_waited_for(listener):
            return
        try:
            taken = take(worker, view(listener.number))
        except OSError as error:
            if not worker.is_short(error):
                raise
            worker.events.after(time.monotonic() + _SHORT, lambda: resume(worker, listener))
            return
        except ShutDown:
            if (waiter := listeners.accepting.next_waiter(listener)) is not None:
                waiter.program.fail(waiter.call, errno.EINVAL)
                worker.unpark(waiter)
            continue
        if taken is None:
            listeners.accepting.arm(listener, listener.number)
            return
        waiter = listeners.accepting.next_waiter(listener)
        if waiter is None or not give(worker, waiter, listener, *taken):
            put_back(worker, listener, *taken)
        worker.room.made(listener.cookie)
    worker.events.after(time.monotonic(), lambda: resume(worker, listener))


def announced_late(worker: Worker, carrier: int) -> None:
    """The worker that made this connection is held up before it said what it is: nobody waits for that."""
    path = view(carrier).getsockname()

    def announced(_: int) -> None:
        worker.events.unwatch(view(carrier), handle)
        taken = worker.receiver.receive(carrier)
        if taken is None:
            return
        end, note = taken
        listener = worker.listeners.at_path(path)
        if listener is not None:
            try:
                bring(worker, listener, end, note)
            except BlockingIOError:
                queue.put(worker, listener.row, end, note)
            except OSError:
                pass  # closed meanwhile: the caller sees a connection that ends at once
        os.close(end)

    handle = worker.events.watch(carrier, announced)
