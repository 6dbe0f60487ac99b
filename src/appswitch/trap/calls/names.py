"""getsockname(2) and getpeername(2): the virtual addresses, the same on both sides."""

from __future__ import annotations

import errno

from ...linux import sockaddr
from ...linux.seccomp import Call
from ...linux.view import release
from ..program import Borrowed, Failure, Program, cookie_of
from ..sockets import UNIX
from ..worker import Worker


def getsockname(worker: Worker, program: Program, call: Call) -> None:
    sock = program.borrow(call, call.a0)
    try:
        cookie = cookie_of(sock)
        end = worker.end_of(cookie, sock)
        listener = worker.listeners.of(cookie, sock) if end is None else None
    finally:
        release(sock)
    if end is not None:
        family, (address, port) = end.family, end.local
    elif listener is not None:
        family, (address, port) = listener.family, listener.name
    else:
        program.proceed(call)
        return
    program.write_sized(call, call.a1, call.a2, sockaddr.encode(family, address, port))
    program.reply(call)


def getpeername(worker: Worker, program: Program, call: Call) -> None:
    sock = program.borrow(call, call.a0)
    try:
        cookie = cookie_of(sock)
        end = worker.end_of(cookie, sock)
        if end is None and worker.listeners.of(cookie, sock) is not None:
            raise Failure(errno.ENOTCONN)
        connected = end is None or end.kind == UNIX or _is_connected(sock)
    finally:
        release(sock)
    if end is None:
        program.proceed(call)
        return
    if end.closed or cookie in worker.connecting or not connected:
        raise Failure(errno.ENOTCONN)
    program.write_sized(call, call.a1, call.a2, sockaddr.encode(end.family, *end.peer))
    program.reply(call)


def _is_connected(sock: Borrowed) -> bool:
    """What the kernel would say: one that is connecting, or has failed, has no peer."""
    try:
        sock.getpeername()
    except OSError:
        return False
    return True
