"""setsockopt(2) and getsockopt(2) where a Unix socket would answer otherwise than TCP.

The kernel is asked, not imitated: a real TCP connection on loopback (the "reference") takes each option and gives
the error or the value that the program gets; what was set is remembered with the end. Native sockets are left to
the kernel; that an option was set on one is noted, so that connect() can carry it over.
"""

from __future__ import annotations

import errno
import select
from socket import (
    AF_INET,
    AF_INET6,
    IP_TOS,
    IPPROTO_IP,
    IPPROTO_IPV6,
    IPPROTO_TCP,
    SO_DOMAIN,
    SO_TYPE,
    SOCK_STREAM,
    SOL_SOCKET,
    TCP_INFO,
    TCP_NODELAY,
)

from ...linux import sockaddr
from ...linux.seccomp import Call
from ...linux.view import release
from .. import delivery
from ..filter import (
    SO_BINDTOIFINDEX,
    SO_BUF_LOCK,
    SO_ERROR,
    SO_PEERNAME,
    SO_PRIORITY,
    SO_RCVBUF,
    SO_RCVTIMEO,
    SO_RCVTIMEO_NEW,
    SO_SNDBUF,
)
from ..program import Failure, Program, as_int, cookie_of
from ..references import LARGEST
from ..sockets import INGRESS, KEPT_BY_UNIX, OF_HOST, REMOTE, UNIX, Options
from ..surroundings import DEVICE
from ..transports import remote
from ..worker import Worker
from . import waiting
from .connect import connect_to
from .listen import SHORTEST

_BINDTODEVICE = (SOL_SOCKET, 25)
_BINDING = (_BINDTODEVICE, (SOL_SOCKET, SO_BINDTOIFINDEX))
_TCP_ULP, _TCP_REPAIR, _TCP_MD5SIG, _TCP_MD5SIG_EXT, _TCP_AO_FIRST, _TCP_AO_LAST = 31, 19, 14, 32, 38, 43
_TOS, _UNSET = (IPPROTO_IP, IP_TOS), bytes(4)
#: The priority that goes with each (ip(7)): by the bits that say which (net/ipv4/route.c, ip_tos2prio).
_PRIORITY_OF_TOS = (0, 0, 0, 0, 2, 2, 2, 2, 6, 6, 6, 6, 4, 4, 4, 4)
_NODELAY = (IPPROTO_TCP, TCP_NODELAY)
_RCVTIMEO = ((SOL_SOCKET, SO_RCVTIMEO), (SOL_SOCKET, SO_RCVTIMEO_NEW))
_PEERNAME, _BUF_LOCK = (SOL_SOCKET, SO_PEERNAME), (SOL_SOCKET, SO_BUF_LOCK)
_INFO, _TCP_CLOSE_WAIT = (IPPROTO_TCP, TCP_INFO), b"\x08"
_ERROR = (SOL_SOCKET, SO_ERROR)
_DOMAIN = (SOL_SOCKET, SO_DOMAIN)
_DEVICES = (b"", b"lo", DEVICE.encode())
#: Where the options of netfilter and IPVS begin (linux/netfilter*/ip*_tables.h): they would change this host's rules.
_NETFILTER_IP = 64
_NETFILTER_IPV6 = {64, 65, 68, 69, 80}
#: What a Unix end cannot do, with the error that makes programs do without (kTLS falls back on ENOENT).
_CANNOT = {
    (IPPROTO_TCP, _TCP_ULP): errno.ENOENT,
    (IPPROTO_TCP, _TCP_REPAIR): errno.EPERM,
    (IPPROTO_TCP, _TCP_MD5SIG): errno.ENOPROTOOPT,
    (IPPROTO_TCP, _TCP_MD5SIG_EXT): errno.ENOPROTOOPT,
    **{(IPPROTO_TCP, name): errno.ENOPROTOOPT for name in range(_TCP_AO_FIRST, _TCP_AO_LAST + 1)},
}


def _is_netfilter(level: int, name: int) -> bool:
    return (level == IPPROTO_IP and name >= _NETFILTER_IP) or (level == IPPROTO_IPV6 and name in _NETFILTER_IPV6)


def setsockopt(worker: Worker, program: Program, call: Call) -> None:
    level, name, length = as_int(call.a1), as_int(call.a2), as_int(call.a4)
    subject = _subject(worker, program, call, level, name)
    if subject is None:
        program.proceed(call)
        return
    family, listening, options, cookie = subject
    if (level, name) in _CANNOT:
        raise Failure(_CANNOT[level, name])
    if _is_netfilter(level, name):
        raise Failure(errno.EPERM)
    if length < 0:
        raise Failure(errno.EINVAL)
    value = program.read(call, call.a3, min(length, LARGEST))
    if (level, name) in KEPT_BY_UNIX:
        listener = worker.listeners.known(cookie)
        if listener is not None and name != SO_PRIORITY:
            listener.inherited.append((level, name, value))
        program.proceed(call)
        return
    if (level, name) == _NODELAY and length >= 4:
        options[_NODELAY] = int(any(value[:4])).to_bytes(4, "little")
        program.reply(call)
        return
    if (level, name) == _BINDTODEVICE:
        if value.rstrip(b"\0") not in _DEVICES:
            raise Failure(errno.ENODEV)  # whether the host has such a device is not to be told
        options[_BINDTODEVICE] = value
        program.reply(call)
        return
    try:
        taken = worker.references.set(family, listening, level, name, value, program.identity.uid)
    except OSError as error:
        raise Failure(error.errno or errno.ENOPROTOOPT) from None
    if taken is not None:
        if (level, name) == _TOS and options.get(_TOS, _UNSET) != taken:
            _set_priority(program, call, taken[0])
        options[level, name] = taken
    program.reply(call)


def getsockopt(worker: Worker, program: Program, call: Call) -> None:
    level, name = as_int(call.a1), as_int(call.a2)
    if (level, name) == _ERROR:
        _pending_error(worker, program, call)
        return
    subject = _subject(worker, program, call, level, name, setting=False)
    if subject is None:
        program.proceed(call)
        return
    family, listening, options, _ = subject
    if (level, name) == _DOMAIN:
        _answer_int(program, call, family)
        return
    if (level, name) in _RCVTIMEO and not (listening and _is_untimed(program, call)):
        program.proceed(call)
        return
    if level == IPPROTO_IPV6 and family == AF_INET:
        raise Failure(errno.EOPNOTSUPP)
    length = as_int(int.from_bytes(program.read(call, call.a4, 4), "little"))
    if length < 0:
        if level != IPPROTO_IPV6:
            raise Failure(errno.EINVAL)
        length = LARGEST  # there it is unsigned
    if _is_netfilter(level, name):
        raise Failure(errno.ENOPROTOOPT)
    value = options.get((level, name))
    if (level, name) == _PEERNAME:
        value = _peer(worker, program, call)
        if len(value) < length:
            raise Failure(errno.EINVAL)
    elif (level, name) == _BUF_LOCK and value is None:
        value = (((SOL_SOCKET, SO_SNDBUF) in options) | ((SOL_SOCKET, SO_RCVBUF) in options) << 1).to_bytes(4, "little")
    if value is None:
        try:
            value = worker.references.get(family, listening).getsockopt(level, name, min(length, LARGEST))
        except OSError as error:
            raise Failure(error.errno or errno.ENOPROTOOPT) from None
        if isinstance(value, int):  # a length of 0 was asked for
            value = b""
    value = value[:length]
    if (level, name) == _INFO and value and not listening and _has_ended(program, call):
        value = _TCP_CLOSE_WAIT + value[1:]
    program.write_two(call, call.a3, value, call.a4, len(value).to_bytes(4, "little"))
    program.reply(call)


def _set_priority(program: Program, call: Call, tos: int) -> None:
    sock = program.borrow(call, call.a0)
    try:
        sock.setsockopt(SOL_SOCKET, SO_PRIORITY, _PRIORITY_OF_TOS[(tos & 0x1E) >> 1])
    finally:
        release(sock)


def _pending_error(worker: Worker, program: Program, call: Call) -> None:
    """SO_ERROR: the kernel's, unless a connect() has instances of other hosts left to try, or waits for its service."""
    if worker.waits.held and (raw := waiting.interrupted(worker, program, call)) is not None:
        _write_int(program, call, 0)

        def go_on(worker: Worker, program: Program, call: Call) -> None:
            connect_to(worker, program, call, raw, go_on)

        go_on(worker, program, call)
        return
    if worker.trials:
        sock = program.borrow(call, call.a0)
        try:
            if remote.answer_error(worker, program, call, sock, lambda code: _answer_int(program, call, code)):
                return
        finally:
            release(sock)
    program.proceed(call)


def _answer_int(program: Program, call: Call, number: int) -> None:
    _write_int(program, call, number)
    program.reply(call)


def _write_int(program: Program, call: Call, number: int) -> None:
    length = as_int(int.from_bytes(program.read(call, call.a4, 4), "little"))
    if length < 0:
        raise Failure(errno.EINVAL)
    value = number.to_bytes(4, "little")[:length]
    program.write_two(call, call.a3, value, call.a4, len(value).to_bytes(4, "little"))


def _has_ended(program: Program, call: Call) -> bool:
    """Does the other side send no more? Servers ask TCP_INFO for that, to spare themselves an answer to nobody."""
    sock = program.borrow(call, call.a0)
    try:
        return bool(delivery.poll_now(sock.fileno()) & select.POLLRDHUP)
    finally:
        release(sock)


def _peer(worker: Worker, program: Program, call: Call) -> bytes:
    """The address of the other side, as getpeername() writes it."""
    sock = program.borrow(call, call.a0)
    try:
        end = worker.end_of(cookie_of(sock), sock)
    finally:
        release(sock)
    if end is None or end.closed:
        raise Failure(errno.ENOTCONN)
    return sockaddr.encode(end.family, *end.peer)


def _is_untimed(program: Program, call: Call) -> bool:
    """Has the listener no time-out but ours?"""
    sock = program.borrow(call, call.a0)
    try:
        return bool(sock.getsockopt(SOL_SOCKET, SO_RCVTIMEO, len(SHORTEST)) == SHORTEST)
    finally:
        release(sock)


def _subject(
    worker: Worker, program: Program, call: Call, level: int, name: int, *, setting: bool = True
) -> tuple[int, bool, Options, int] | None:
    """(family, listening, remembered options, cookie) of a Unix socket that stands for TCP; None: the kernel's own."""
    sock = program.borrow(call, call.a0)
    try:
        cookie = cookie_of(sock)
        end = worker.end_of(cookie, sock)
        if end is not None:
            if end.kind in OF_HOST and (_is_netfilter(level, name) or (level, name) in _BINDING):
                raise Failure(errno.EPERM)  # those are the host's
            stands_in = end.kind == UNIX or (
                end.kind in (REMOTE, INGRESS) and (level, name) == _DOMAIN and not setting
            )
            return (end.family, False, end.options, cookie) if stands_in else None
        listener = worker.listeners.of(cookie, sock)
        if listener is not None:
            return listener.family, True, listener.options, cookie
        if (
            setting
            and sock.getsockopt(SOL_SOCKET, SO_DOMAIN) in (AF_INET, AF_INET6)
            and sock.getsockopt(SOL_SOCKET, SO_TYPE) == SOCK_STREAM
        ):
            if (level, name) != _INFO:
                program.touch(cookie, level, name)
            if (level, name) == _TOS:
                program.touch(cookie, SOL_SOCKET, SO_PRIORITY)
        return None
    finally:
        release(sock)
