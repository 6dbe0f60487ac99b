"""Out of the table: a socket of the host's own network (paper, section 4: external servers)."""

from __future__ import annotations

import _socket
import errno
import fcntl
import os
import select
import socket
import struct
import time
from socket import SOCK_STREAM, SOL_SOCKET

from ...linux import seccomp, sockaddr
from ...linux.seccomp import Call
from ..delivery import Note
from ..parked import Waiter
from ..program import Failure, Program, cookie_of
from ..sockets import EGRESS, set_again
from ..worker import Worker
from .attempt import Attempt, inside, raw_connect

_TIMEVAL = struct.Struct("qq")
_NOBODY_PORT = 0


def join(attempt: Attempt, destination: bytes, port: int) -> None:
    """Begin the connection on a host's socket, put that into the caller, answer when it stands or fails."""
    worker, program, call = attempt.worker, attempt.program, attempt.call
    new = _socket.socket(attempt.family, SOCK_STREAM | socket.SOCK_CLOEXEC, 0)
    try:
        if program.identity.uid != os.geteuid():
            os.fchown(new.fileno(), program.identity.uid, -1)  # for rules and services that go by a socket's user
        nonblocking = attempt.dress(new)
        set_again(new, attempt.options())
        fcntl.fcntl(new.fileno(), fcntl.F_SETFL, os.O_NONBLOCK)
        code = raw_connect(new.fileno(), sockaddr.encode(attempt.family, destination, port))
        if code not in (0, errno.EINPROGRESS):
            raise Failure(code)
        if not nonblocking:
            fcntl.fcntl(new.fileno(), fcntl.F_SETFL, 0)
        attempt.exchange(new)
        source = program.identity.source_for(destination)
        note = Note(EGRESS, source, new.getsockname()[1], destination, port)
        attempt.remember(cookie_of(new), EGRESS, note, {}, in_progress=False)
        worker.counters.add("egress")
        if nonblocking:
            program.fail(call, errno.EINPROGRESS)
        elif code == 0:
            program.reply(call)
        else:
            wait_established(worker, program, call, os.dup(new.fileno()))
    finally:
        new.close()


def wait_established(worker: Worker, program: Program, call: Call, fd: int) -> None:
    """Park a blocking connect() until the host's socket `fd` (ours to close) is connected or has failed."""
    sock = socket.socket(fileno=fd)
    seconds, micros = _TIMEVAL.unpack(sock.getsockopt(SOL_SOCKET, socket.SO_SNDTIMEO, 16))
    waiter = Waiter(program, call, -1, 0)

    def end() -> None:
        worker.unpark(waiter)
        worker.events.unwatch(sock, handle)
        sock.close()

    def finish(_: int) -> None:
        if not seccomp.valid(program.listener, call.id):
            end()  # interrupted: the error, if any, is for whoever asks next
            return
        code = sock.getsockopt(SOL_SOCKET, socket.SO_ERROR)
        if code == 0:
            # the second connect() that tells the kernel that the first has been waited for
            code = raw_connect(sock.fileno(), inside(sock.family, _NOBODY_PORT, v4=sock.family == socket.AF_INET))
        end()
        if code:
            program.fail(call, code)
        else:
            program.reply(call)

    def expire() -> None:
        if not waiter.done:
            end()
            program.fail(call, errno.EINPROGRESS)  # socket(7), SO_SNDTIMEO

    if seconds or micros:
        waiter.deadline, waiter.expire = time.monotonic() + seconds + micros / 1e6, expire
    worker.park(waiter)
    handle = worker.events.watch(sock.fileno(), finish, select.EPOLLOUT | select.EPOLLERR)
