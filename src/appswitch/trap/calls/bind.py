"""bind(2): native, in the program's own namespace, whose `lo` carries the virtual IP.

Of TCP only port 0 is answered here: the ephemeral port must be one that no other program of the same virtual IP serves,
or the two would be taken for instances of one service. UDP has no listen(): its bind() is when a service begins.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from socket import AF_INET, AF_INET6, IPPROTO_UDP, SO_DOMAIN, SO_TYPE, SOCK_STREAM, SOL_SOCKET

from ...linux import libc, seccomp, sockaddr
from ...linux.seccomp import Call
from ...linux.view import release
from ..filter import SO_PROTOCOL
from ..parked import Waiter
from ..program import Borrowed, Failure, Program, as_int, cookie_of, is_of_host
from ..worker import Worker

_TRIES = 64
#: relay.sharing's directory, below the current one.
_SHARED = "shared"
#: Seconds that the relay has to prepare a bind(2): it may have died. A busy machine keeps it waiting, too.
_PATIENCE = 2.0
#: Interrupted or unfinished calls of a program that are remembered.
_KEPT = 4096
_FIRST, _LAST = 32768, 60999  # ip_local_port_range
#: Ports that are not given again until so many others were: a peer on another host might still know the one before.
_LATELY = 1024


def bind(worker: Worker, program: Program, call: Call) -> None:
    length = as_int(call.a2)
    sock = program.borrow(call, call.a0)
    try:
        family = sock.getsockopt(SOL_SOCKET, SO_DOMAIN)
        if family not in (AF_INET, AF_INET6) or sock.getsockopt(SOL_SOCKET, SO_TYPE) != SOCK_STREAM:
            if family in (AF_INET, AF_INET6) and sock.getsockopt(SOL_SOCKET, SO_PROTOCOL) == IPPROTO_UDP:
                _bind_udp(worker, program, call, sock)
            else:
                program.proceed(call)
            return
        if is_of_host(sock):
            raise Failure(errno.EINVAL)  # never: it would take a port of the host
        minimum = sockaddr.IN_SIZE if family == AF_INET else sockaddr.IN6_MINIMUM
        if not minimum <= length <= sockaddr.LARGEST:
            program.proceed(call)
            return
        raw = program.read(call, call.a1, length)
        port = int.from_bytes(raw[2:4], "big")
        if port:
            worker.listeners.drop_closed(program, port)
            worker.listeners.natives.when_free(program, port, call, lambda: program.proceed(call))
            return
        cookie = cookie_of(sock)
        if not _is_done(worker, program, sock, cookie):
            with _noted(worker, sock, cookie):
                bind_ephemeral(worker, program, sock, raw)
        _reply(worker, program, call, cookie)
    finally:
        release(sock)


def _bind_udp(worker: Worker, program: Program, call: Call, sock: Borrowed) -> None:
    """As the kernel would, and the relay hears of it before the program does: other hosts are to know, too."""
    length = as_int(call.a2)
    if is_of_host(sock):
        raise Failure(errno.EINVAL)  # never: it would take a port of the host
    if not 2 <= length <= sockaddr.LARGEST:
        program.proceed(call)
        return
    raw = program.read(call, call.a1, length)
    cookie = cookie_of(sock)
    port = int.from_bytes(raw[2:4], "big")
    if _is_done(worker, program, sock, cookie):
        if port:
            worker.udp_bound(program, cookie, port)  # a worker that died may not have told
    else:
        announced = cookie in program.announced
        if port and not announced and _is_shared(program.identity.vip):
            _announce(worker, program, call, cookie, port)
            return
        program.announced.discard(cookie)
        program.announcing.pop(cookie, None)
        with _noted(worker, sock, cookie):
            code = raw_bind(sock.fileno(), raw)
            if port and (announced or not code):
                worker.udp_bound(program, cookie, port if announced else 0)
            if code:
                raise Failure(code)
    _reply(worker, program, call, cookie)


def _is_shared(vip: bytes) -> bool:
    """Have several programs of this host the virtual IP, which are to reach each other by UDP (relay.sharing)?"""
    return os.path.exists(f"{_SHARED}/{vip.hex()}")


def _announce(worker: Worker, program: Program, call: Call, cookie: int, port: int) -> None:
    """Hold the call until the relay has led the others' datagrams to this port."""
    waiter = Waiter(program, call, 0, 0)

    def go_on(_: bool = True) -> None:
        if not waiter.done:
            worker.unpark(waiter)
            if worker.programs.get(program.number) is program and seccomp.valid(program.listener, call.id):
                if len(program.announced) >= _KEPT:  # of sockets that were replaced meanwhile
                    program.announced.clear()
                program.announced.add(cookie)
                worker.handle(bind, program, call)
            else:
                worker.udp_bound(program, cookie, port)  # interrupted

    if len(program.announcing) >= _KEPT:
        program.announcing.clear()
    # A call that signals interrupt again and again waits no longer than any other.
    waiter.deadline = program.announcing.setdefault(cookie, time.monotonic() + _PATIENCE)
    waiter.expire = go_on
    worker.park(waiter)
    worker.news.announce(program.number, port, go_on)


def _is_done(worker: Worker, program: Program, sock: Borrowed, cookie: int) -> bool:
    """Was the socket bound when this very call was made before, and nobody lived to answer it, or to hear of it?"""
    return cookie in program.bound_unheard or (worker.binding.is_begun(cookie) and _is_bound(sock))


def _is_bound(sock: Borrowed) -> bool:
    return bool(sock.getsockname()[1])


@contextmanager
def _noted(worker: Worker, sock: Borrowed, cookie: int) -> Iterator[None]:
    """For a worker after this one; but what is bound before its call is refused, as ever."""
    if not _is_bound(sock):
        worker.binding.begin(cookie)
    try:
        yield
    except Failure:
        worker.binding.end(cookie)
        raise


def _reply(worker: Worker, program: Program, call: Call, cookie: int) -> None:
    program.bound_unheard.discard(cookie)
    if program.reply(call):
        worker.binding.end(cookie)
    else:
        if len(program.bound_unheard) >= _KEPT:
            program.bound_unheard.clear()
        program.bound_unheard.add(cookie)  # interrupted: the call comes again


def bind_ephemeral(worker: Worker, program: Program, sock: Borrowed, raw: bytes) -> None:
    """Bind to a port that nobody known serves under the program's virtual IP."""
    fd = sock.fileno()
    vip = program.identity.vip
    code = errno.EADDRINUSE
    for _ in range(_TRIES):
        port = worker.random.randint(_FIRST, _LAST)
        if (vip, port) in worker.ephemeral or worker.table.lookup(vip, port)[0]:
            continue
        code = raw_bind(fd, raw[:2] + port.to_bytes(2, "big") + raw[4:])
        if code != errno.EADDRINUSE:
            break
    if code:
        raise Failure(code)
    if len(worker.ephemeral) >= _LATELY:
        del worker.ephemeral[next(iter(worker.ephemeral))]
    worker.ephemeral[vip, port] = None


def raw_bind(fd: int, address: bytes) -> int:
    """bind() with the bytes as they are; returns the errno, 0 when done."""
    try:
        libc.call("bind", fd, address, len(address))
    except OSError as error:
        return error.errno or errno.EINVAL
    return 0
