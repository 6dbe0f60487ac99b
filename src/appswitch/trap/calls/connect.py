"""connect(2): resolve → policy → pick, then one of the transports.

A refusal is a native connect() to a port where nothing listens, in the program's own namespace: so the kernel plays
the rest of the scene (EINPROGRESS, poll events, SO_ERROR) as it always does.
"""

from __future__ import annotations

import _socket
import errno
import fcntl
import json
import os
import socket
from collections.abc import Sequence
from functools import partial
from socket import AF_INET, AF_INET6, IPPROTO_TCP, SOL_SOCKET

from ...linux import sockaddr
from ...linux.seccomp import Call
from ...linux.view import release
from ...model import balance
from ...model.address import is_loopback, is_v4, unpack
from ...model.egress import Nobody, leave
from ...model.resolve import Deny, Reach, Refuse
from ...model.service import Service
from .. import delivery, options
from ..delivery import Note
from ..epolls import release_items
from ..filter import SO_ERROR, SO_PROTOCOL, SO_RCVBUF
from ..program import Borrowed, Failure, Program, as_int, cookie_of
from ..sockets import TCP, UNIX, End, Listener
from ..transports import egress, queue, remote, tcp, unix
from ..transports.attempt import Attempt, inside, raw_connect
from ..worker import Handler, Worker
from . import waiting
from .accept import bring

_DNS = 53
_NOBODY_PORT = 0  # nothing can listen there
_TCP_SYN_SENT, _TCP_CLOSE = 2, 7
# plain numbers: comparing with the enumerations of `socket` costs
_INET, _INET6 = int(AF_INET), int(AF_INET6)
_UNSPEC = bytes(2)
#: What a native socket's state makes of a connect(); EINVAL: it was shut down while one was in progress.
_ITS_OWN_STATE = (errno.EINPROGRESS, errno.EISCONN, errno.EINVAL)


def connect(worker: Worker, program: Program, call: Call) -> None:
    connect_to(worker, program, call, _read_address(program, call, as_int(call.a2)), connect)


def connect_to(worker: Worker, program: Program, call: Call, raw: bytes | None, again: Handler) -> None:
    """Connect the socket of a call's first argument to these bytes of an address; `again` does so anew."""
    number = as_int(call.a0)
    sock = program.borrow(call, number)
    closed = False
    try:
        cookie = cookie_of(sock)
        end = worker.end_of(cookie, sock)
        bound, bound_to = 0, ""
        if end is not None:
            family = end.family
        elif sock.getsockopt(SOL_SOCKET, SO_PROTOCOL) == IPPROTO_TCP:
            name = sock.getsockname()
            family, bound = (_INET if len(name) == 2 else _INET6), name[1]
            if bound:
                bound_to = name[0]
        elif worker.listeners.of(cookie, sock) is not None:
            _names_family(raw)
            raise Failure(errno.EISCONN)
        else:
            program.proceed(call)
            return
        connects = _names_family(raw)
        if end is None and cookie in program.refused:
            program.refused.discard(cookie)
            if connects:
                _tell_of_refusal(sock, family)
        if not connects:
            _disconnect(worker, program, call, sock, end)
            return
        if end is not None and not end.closed and _connected_before(worker, program, call, sock, end):
            return
        destination, port = _destination(raw or b"", family)
        if family == _INET6 and end is None and is_v4(destination) and _v6_only(sock):
            raise Failure(errno.ENETUNREACH)
        attempt = Attempt(worker, program, call, sock, number, cookie, family, bound, end)
        attempt.bound_to = bound_to
        try:
            if program.options.wait_for or worker.hosts.ring is not None:
                destination = waiting.meant(attempt, destination, port)
                if waiting.hold(attempt, destination, port, raw or b"", again):
                    return
            _go(attempt, destination, port)
        finally:
            sock, closed = attempt.sock, attempt.closed
            if attempt.registered:
                release_items(attempt.registered)
    finally:
        if not closed:
            release(sock)


def _read_address(program: Program, call: Call, length: int) -> bytes | None:
    """The bytes of the address; None where the memory is not there (an error only if the socket is ours)."""
    if not 0 < length <= sockaddr.LARGEST:
        return b""
    try:
        return program.read(call, call.a1, length)
    except OSError:
        return None


def _names_family(raw: bytes | None) -> bool:
    """Whether it does; an address of AF_UNSPEC disconnects. All that is asked of it when the socket is connected."""
    if raw is None:
        raise Failure(errno.EFAULT)
    if len(raw) < 2:
        raise Failure(errno.EINVAL)
    return raw[:2] != _UNSPEC


def _destination(raw: bytes, family: int) -> tuple[bytes, int]:
    given = int.from_bytes(raw[:2], "little")
    if len(raw) < (sockaddr.IN_SIZE if family == _INET else sockaddr.IN6_MINIMUM):
        raise Failure(errno.EINVAL)
    if given != family:
        raise Failure(errno.EAFNOSUPPORT)
    return sockaddr.decode(raw)


def _v6_only(sock: Borrowed) -> bool:
    return bool(sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY))


def _tell_of_refusal(sock: Borrowed, family: int) -> None:
    """One that was in progress and refused: the next connect() gives that error, once, which the kernel knows."""
    code = raw_connect(sock.fileno(), inside(family, _NOBODY_PORT, v4=family == _INET))
    if code:
        raise Failure(code)


# sockets that have been through connect() before ----------------------------------------------------------


def _connected_before(worker: Worker, program: Program, call: Call, sock: Borrowed, end: End) -> bool:
    """Answer 0 once after EINPROGRESS, then EISCONN, as TCP does; False when the socket may be connected anew."""
    if end.kind == UNIX:
        if not end.in_progress:
            raise Failure(errno.EISCONN)
        waiting = worker.connecting.get(end.cookie)
        if waiting is not None:
            if fcntl.fcntl(sock.fileno(), fcntl.F_GETFL) & os.O_NONBLOCK:
                raise Failure(errno.EALREADY)
            waiting.park(program, call, queue.timeout(sock))
            return True
        code = sock.getsockopt(SOL_SOCKET, SO_ERROR)
        if code:  # reset meanwhile, and not asked for: TCP tells of it here, and may then be connected anew
            end.closed = True
            worker.ends.note_closed(end.cookie)
            raise Failure(code)
        end.in_progress = not program.reply(call)
        return True
    if end.in_progress:
        end.in_progress = not program.reply(call)
        return True
    if worker.trials and remote.connect_again(worker, program, call, sock, end):
        return True
    # a TCP socket knows its own state
    state = sock.getsockopt(IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    if state == _TCP_CLOSE and end.kind != TCP:
        return False
    if state == _TCP_SYN_SENT:
        if fcntl.fcntl(sock.fileno(), fcntl.F_GETFL) & os.O_NONBLOCK:
            raise Failure(errno.EALREADY)
        egress.wait_established(worker, program, call, os.dup(sock.fileno()))
        return True
    code = raw_connect(sock.fileno(), inside(end.family, _NOBODY_PORT, v4=end.family == _INET))
    if state == _TCP_CLOSE and code in (errno.EINPROGRESS, errno.ECONNREFUSED):
        worker.ends.forget(end.cookie)  # it is over, its error was told: the kernel has begun a new connection
        return False
    if code:
        raise Failure(code)
    program.reply(call)
    return True


def _disconnect(worker: Worker, program: Program, call: Call, sock: Borrowed, end: End | None) -> None:
    """connect(AF_UNSPEC). Never native on a host's socket: that would set it free to be connected elsewhere."""
    if end is None or end.kind == TCP:
        code = raw_connect(sock.fileno(), bytes(16))
        if end is not None:
            worker.ends.forget(end.cookie)
        if code:
            raise Failure(code)
    else:
        try:
            sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it was not connected
        end.closed = True
        worker.ends.note_closed(end.cookie)
    program.reply(call)


# what becomes of it --------------------------------------------------------------------------------------


def _go(attempt: Attempt, destination: bytes, port: int) -> None:
    if port == _DNS:
        _ask_switch(attempt, destination, port)
        return
    decision = attempt.worker.decide(attempt.program, destination, port)
    if isinstance(decision, Reach):
        _reach(attempt, decision, port)
    elif isinstance(decision, Refuse):
        _refuse(attempt, destination)
    elif isinstance(decision, Deny):
        _deny(attempt, decision.service, destination, port, decision.rule)
    else:
        _leave(attempt, destination, port)


def _leave(attempt: Attempt, destination: bytes, port: int) -> None:
    denied = attempt.program.options.egress == options.DENY
    decision = leave(destination, attempt.worker.virtual, denied=denied)
    if isinstance(decision, Deny):
        _deny(attempt, decision.service, destination, port, decision.rule)
    elif isinstance(decision, Nobody):
        raise Failure(errno.EHOSTUNREACH)
    else:
        egress.join(attempt, destination, port)


def _refuse(attempt: Attempt, destination: bytes) -> None:
    attempt.worker.counters.add("refused")
    code = attempt.connect_native(_NOBODY_PORT, v4=is_v4(destination)) if attempt.is_native else errno.ECONNREFUSED
    if code == errno.EINPROGRESS:
        attempt.program.note_refused(attempt.cookie)
    raise Failure(code if code in _ITS_OWN_STATE else errno.ECONNREFUSED)


def _deny(attempt: Attempt, service: str, destination: bytes, port: int, rule: str) -> None:
    worker, identity = attempt.worker, attempt.program.identity
    worker.counters.add("denied")
    try:
        worker.table.add_denial(
            client=identity.label,
            program=attempt.program.number,
            tags=identity.tags,
            service=service,
            destination=unpack(destination),
            port=port,
            rule=rule,
        )
    except OSError as error:
        worker.table_failed(error)
    raise Failure(errno.EACCES)


def _reach(attempt: Attempt, reach: Reach, port: int) -> None:
    """The picked instance, or the next one when it refuses; the error only when all have failed."""
    worker = attempt.worker
    ordered = reach.instances
    if len(ordered) > 1:
        turn = worker.turn(ordered[0].vip, port)
        ordered = balance.order(ordered, turn, worker.random, worker.hosts.silent())
    source = attempt.bound_source(reach.destination) if attempt.bound_to else reach.source
    note = Note(UNIX, *attempt.source_name(source or reach.source), reach.destination, port)
    full: Service | None = None
    code = errno.ECONNREFUSED
    for index, row in enumerate(ordered):
        if row.remote:
            code = _go_remote(attempt, ordered[index:], note)
            if code == 0:
                return
            break
        listener = _note_server(attempt, row)
        if listener is not None and listener.waiting and worker.listeners.accepting.still_waited_for(listener):
            _join(attempt, row.transport, _Parked(worker, listener), note)
            return
        try:
            carrier = delivery.open_carrier(row.listener)
        except BlockingIOError:
            full = full or row
        except (ConnectionRefusedError, FileNotFoundError):
            worker.listeners.refused(row)
            worker.counters.add("passed_over")
        else:
            try:
                if unix.fits(attempt, row.transport):
                    unix.join_queue(attempt, carrier, note, partial(_instead, worker, row, carrier))
                else:
                    tcp.join(attempt, partial(_by_carrier, carrier), note)
            finally:
                carrier.close()
            return
    if full is not None:
        program, call = attempt.program, attempt.call
        _note_server(attempt, full)
        queue.wait(attempt, full, note, lambda: worker.handle(connect, program, call))
    elif code == errno.ECONNREFUSED:
        _refuse(attempt, reach.destination)
    else:
        raise Failure(code)


def _note_server(attempt: Attempt, row: Service) -> Listener | None:
    """Have the attempt know of whom it goes to what a TCP connection takes; the listener, if it is this worker's."""
    listener = attempt.worker.listeners.get(row.cookie)
    attempt.dual = row.dual
    attempt.window = listener.options.get((SOL_SOCKET, SO_RCVBUF)) if listener is not None else None
    return listener


def _go_remote(attempt: Attempt, rows: Sequence[Service], note: Note) -> int:
    """The first of these that can be had, the rest when it fails; the error of the last when none can, else 0.

    This host's own instances among them are reached as others are, at their real ports.
    """
    try:
        remote.join(attempt, rows, note)
    except Failure as failure:
        return failure.errno
    return 0


def _join(attempt: Attempt, asked_by_service: str, deliver: unix.Deliver, note: Note) -> None:
    if unix.fits(attempt, asked_by_service):
        unix.join(attempt, deliver, note)
    else:
        tcp.join(attempt, deliver, note)


def _by_carrier(carrier: _socket.socket, end: int, note: Note) -> None:
    """Deliver through the place in the listener's queue that a carrier has taken."""
    try:
        delivery.send(carrier, end, note)
    except OSError:
        pass  # closed in this very moment: the caller sees a connection that ends at once


def _instead(worker: Worker, row: Service, carrier: _socket.socket, end: int, note: Note) -> None:
    """Deliver an end where an announced carrier was withdrawn: in its place, if whoever accepts will know of that.

    That is us, unless the listener was passed to another worker's program, which resets it.
    """
    if worker.buffers.pass_rights and worker.listeners.get(row.cookie) is not None:
        _by_carrier(carrier, end, note)
    else:
        queue.put(worker, row, end, note)


class _Parked:
    """Deliver straight to a thread parked in accept()."""

    def __init__(self, worker: Worker, listener: Listener) -> None:
        self._worker = worker
        self._listener = listener

    def __call__(self, end: int, note: Note) -> None:
        try:
            bring(self._worker, self._listener, end, note)
        except BlockingIOError:
            queue.put(self._worker, self._listener.row, end, note)
        except OSError:
            pass  # closed in this very moment: the caller sees a connection that ends at once


def _ask_switch(attempt: Attempt, destination: bytes, port: int) -> None:
    """A DNS query over TCP, whatever the address: the relay answers it (design, section 8)."""
    identity = attempt.program.identity
    source = destination if is_loopback(destination) else identity.source_for(destination)
    note = Note(UNIX, *attempt.source_name(source), destination, port)
    relay = _socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        relay.connect("dns.sock")
    except OSError:
        relay.close()
        raise Failure(errno.ECONNREFUSED) from None
    text = json.dumps({"program": attempt.program.number}).encode()

    def deliver(end: int, _: Note) -> None:
        relay.sendmsg([text], [(SOL_SOCKET, socket.SCM_RIGHTS, end.to_bytes(4, "little"))])

    try:
        _join(attempt, options.AUTO, deliver, note)
    finally:
        relay.close()
