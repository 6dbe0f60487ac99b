"""listen(2): the program's socket is replaced by a Unix listener that only the switch connects to.

The kernel then supplies readiness, backlog, refusal after close and wake-up, and no stranger can wake the program.
The native socket stays bound and listening in the worker's hands, so that the program's namespace refuses the same
port as natively. The row is in the table before listen() returns: a connect() that starts afterwards finds it.
"""

from __future__ import annotations

import _socket
import errno
import fcntl
import os
import socket
import struct
import time
from socket import AF_INET, AF_INET6, SO_DOMAIN, SO_TYPE, SOCK_STREAM, SOL_SOCKET

from ...linux import pidfd, sockaddr
from ...linux.seccomp import Call
from ...linux.view import release, view
from ...model.address import pack
from ...model.service import Service
from .. import delivery
from .. import options as options_of
from ..filter import SO_PRIORITY
from ..program import Borrowed, Failure, Program, as_int, cookie_of, is_of_host
from ..sockets import KEPT_BY_UNIX, Listener
from ..worker import Worker
from .bind import bind_ephemeral

_IPV6_V6ONLY = 26
_INHERITED = (
    (SOL_SOCKET, socket.SO_KEEPALIVE, 4),
    (SOL_SOCKET, socket.SO_LINGER, 8),
    (SOL_SOCKET, socket.SO_RCVTIMEO, 16),
    (SOL_SOCKET, socket.SO_SNDTIMEO, 16),
)


#: What accepted sockets have from this listener, their close() as a reset: only TCP can do that.
_RESETS = (SOL_SOCKET, socket.SO_LINGER, delivery.RESET_AT_CLOSE)
#: A negative backlog, which the kernel takes for as much as net.core.somaxconn allows.
_UNLIMITED = 0x7FFFFFFF


def _shortest() -> bytes:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.setsockopt(SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("qq", 0, 1))
        return sock.getsockopt(SOL_SOCKET, socket.SO_RCVTIMEO, 16)


#: SO_RCVTIMEO of one tick, on every listener that has none of its program's: should somebody else empty its queue
#: between the worker's poll() and accept(), the worker waits no longer than that.
SHORTEST = _shortest()


def listen(worker: Worker, program: Program, call: Call) -> None:
    backlog = as_int(call.a1)
    if backlog < 0:
        backlog = _UNLIMITED
    sock = program.borrow(call, call.a0)
    try:
        cookie = cookie_of(sock)
        family = sock.getsockopt(SOL_SOCKET, SO_DOMAIN)
        replacing = worker.listeners.in_place_of(cookie)
        if replacing is None and (
            family not in (AF_INET, AF_INET6) or sock.getsockopt(SOL_SOCKET, SO_TYPE) != SOCK_STREAM
        ):
            known = worker.listeners.get(cookie)
            if known is not None and known.native >= 0 and delivery.poll_now(sock.fileno()) & delivery.SHUT:
                _begin_again(worker, program, call, sock, known, backlog)
                return
            # done here, never continued: the descriptor could be exchanged for a host's socket meanwhile
            _listen(sock, backlog)
            program.reply(call)
        elif replacing is not None:
            try:
                stand_in = adopt(program, call, sock, replacing)
            except Failure:
                if family not in (AF_INET, AF_INET6):
                    raise
                worker.listeners.drop(replacing)
                _begin(worker, program, call, sock, sock, family, backlog)
                return
            stand_in.listen(backlog)
            release(stand_in)
            program.reply(call)
        elif is_of_host(sock):
            raise Failure(errno.EINVAL)  # never: it would open a port of the host
        elif worker.ends.get(cookie) is not None:
            _listen(sock, backlog)  # connected: the kernel's own EINVAL
            program.reply(call)
        else:
            _begin(worker, program, call, sock, sock, family, backlog)
    finally:
        release(sock)


def _begin_again(worker: Worker, program: Program, call: Call, held: Borrowed, known: Listener, backlog: int) -> None:
    """A TCP listener that was shut down can listen again; a Unix one cannot: it gets a successor."""
    native = view(os.dup(known.native))
    try:
        options, inherited = known.options, known.inherited
        worker.listeners.drop(known)
        _begin(worker, program, call, native, held, known.family, backlog)
        successor = worker.listeners.in_place_of(cookie_of(native))
        if successor is not None:
            worker.listeners.succeed(successor, known.cookie)
            successor.options, successor.inherited = options, inherited
    finally:
        release(native)


def _begin(
    worker: Worker, program: Program, call: Call, sock: Borrowed, held: Borrowed, family: int, backlog: int
) -> None:
    """Begin to listen on the native socket `sock`, in whose place the program has `held`: the same as a rule."""
    worker.listeners.check_room(program)
    number = as_int(call.a0)
    address, port = _name(sock)
    if port == 0:
        bind_ephemeral(worker, program, sock, sockaddr.encode(family, address, 0))
        address, port = _name(sock)
    try:
        _listen(sock, 1)  # natively first: EADDRINUSE and EINVAL are the kernel's to find
    except Failure as failure:
        if failure.errno != errno.EADDRINUSE or not worker.listeners.drop_closed(program, port):
            raise
        worker.listeners.natives.when_free(program, port, call, lambda: worker.handle(listen, program, call))
        return
    flags = program.status_flags(call, number)
    identity = program.identity
    instance = worker.new_instance(program)
    path = f"l/{instance:x}"
    stand_in = _socket.socket(socket.AF_UNIX, SOCK_STREAM | socket.SOCK_CLOEXEC, 0)
    native = -1
    try:
        stand_in.bind(path)
        stand_in.listen(backlog)
        if flags & os.O_NONBLOCK:
            fcntl.fcntl(stand_in.fileno(), fcntl.F_SETFL, os.O_NONBLOCK)
        options = program.touched_options(cookie_of(sock), sock)
        inherited = _inherited(sock) + [(*key, options.pop(key)) for key in KEPT_BY_UNIX.intersection(options)]
        inherited = [item for item in inherited if _takes(stand_in, *item) and item[1] != SO_PRIORITY]
        timeout: bytes = sock.getsockopt(SOL_SOCKET, socket.SO_RCVTIMEO, 16)
        stand_in.setsockopt(SOL_SOCKET, socket.SO_RCVTIMEO, timeout if any(timeout) else SHORTEST)
        row = Service(
            vip=identity.vip,
            port=port,
            instance=instance,
            program=program.number,
            name=identity.name,
            tags=identity.tags,
            bound=address,
            dual=family == AF_INET6 and not sock.getsockopt(socket.IPPROTO_IPV6, _IPV6_V6ONLY),
            listener=path,
            real=("", 0),
            balance=program.options.balance,
            transport=options_of.TCP if _RESETS in inherited else program.options.transport,
            since=time.time(),
            uid=identity.uid,
            cookie=cookie_of(stand_in),
            alone=not identity.named,
        )
        native = os.dup(sock.fileno())
        listener = Listener(
            cookie=row.cookie,
            native_cookie=cookie_of(sock),
            program=program.number,
            family=family,
            name=(address, port),
            row=row,
            native=native,
            real=-1,
            holder=(program.group(call.tid), number),
            options=options,
            inherited=inherited,
        )
        worker.listeners.check_balance(row)
        try:
            worker.listeners.add(listener)
            worker.listeners.natives.keep(program, listener)
            worker.table.put_service(listener.row)
            program.exchange(call, number, held.fileno(), stand_in.fileno())
            worker.listeners.changed(listener.row)
        except BaseException:
            worker.listeners.drop(listener)
            raise
    finally:
        stand_in.close()
    program.reply(call)


def _listen(sock: Borrowed, backlog: int) -> None:
    """Natively; its error is the program's."""
    try:
        sock.listen(backlog)
    except OSError as error:
        raise Failure(error.errno or errno.EINVAL) from None


def _takes(sock: _socket.socket, level: int, name: int, value: bytes) -> bool:
    """Set an option; False when this process may not."""
    try:
        sock.setsockopt(level, name, value)
    except OSError:
        return False
    return True


def adopt(program: Program, call: Call, native: Borrowed, listener: Listener) -> Borrowed:
    """A descriptor of a socket that another process's listen() replaced: replace this one too.

    Returns a copy of the Unix listener; Failure EBADF when its first holder has it no more.
    """
    tid, number = listener.holder
    try:
        handle = pidfd.open_thread(tid)
        try:
            sock = view(pidfd.copy_descriptor(handle, number))
        finally:
            os.close(handle)
        if cookie_of(sock) != listener.cookie:
            release(sock)
            raise ProcessLookupError
    except OSError:
        raise Failure(errno.EBADF) from None
    ours = as_int(call.a0)
    program.exchange(call, ours, native.fileno(), sock.fileno())
    listener.holder = program.group(call.tid), ours
    return sock


def _name(sock: Borrowed) -> tuple[bytes, int]:
    """Our own getsockname(), which is native: this process is not trapped."""
    host, port = sock.getsockname()[:2]
    return pack(host.split("%")[0]), port


def _inherited(sock: Borrowed) -> list[tuple[int, int, bytes]]:
    """What an accepted socket has from its listener (tcp(7)), as far as it is not the default."""
    found = []
    for level, name, size in _INHERITED:
        value: bytes = sock.getsockopt(level, name, size)
        if any(value):
            found.append((level, name, value))
    return found
