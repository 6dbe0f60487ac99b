"""Connecting to instances on other hosts, one after the other, until one has the connection or all have failed.

All of it happens on one socket of the host's network, so that a program which has that socket already need not be
told; it may be a blocking one, for nothing here waits. The caller's header goes out with the SYN (RFC 7413's interface,
without its cookie), so that it costs no round trip; where it cannot, it goes out before anything of the program's.
"""

from __future__ import annotations

import _socket
import errno
import fcntl
import os
import socket
import struct
import time
from collections.abc import Callable, Sequence
from socket import AF_INET6, IPPROTO_TCP, SOL_SOCKET
from typing import Protocol

from ..linux import libc
from ..model.identity import Tags
from ..model.service import Service
from ..table.counters import Counters
from .events import Events
from .hosts import Hosts, Peer

#: Seconds after which an instance that does not answer is given up while others are left: a SYN that the network lost
#: has been sent again by then (after 1 s: RFC 6298, 2.1), and answered.
PATIENCE = 1.5
#: So often a connect() that nobody waits for is looked at before it is forgotten.
_LOOKS = 20

_SYN_SENT, _CLOSE = 2, 7
_TOTAL_RETRANS_AT = 100  # tcpi_total_retrans of struct tcp_info
_U32 = struct.Struct("=I")
_MSG_FASTOPEN = 0x20000000
_WITH_SYN = int(_MSG_FASTOPEN | socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
_AT_ONCE = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
_UNSPEC = bytes(16)

Address = tuple[bytes, int]


class Waiting(Protocol):
    """A call that waits for a trial's outcome."""

    def is_made(self) -> bool:
        """Still: it was not cancelled."""
        ...

    def leave(self) -> None:
        """Let the trial go on without it."""
        ...


class Trial:
    """One connect(): `client` and `server` are the virtual addresses, `rows` the instances in their order.

    `code` is the error of the last instance that failed.
    """

    def __init__(
        self,
        hosts: Hosts,
        counters: Counters,
        family: int,
        rows: Sequence[Service],
        client: Address,
        server: Address,
        tags: Tags,
    ) -> None:
        self._hosts = hosts
        self._counters = counters
        self._rows = [row for row in rows if hosts.reaches(row)]
        self._client, self._server, self._tags = client, server, tags
        #: What the host's socket is to be: of the program's family unless an instance can only be reached otherwise.
        self.family = AF_INET6 if any(":" in row.real[0] for row in self._rows) else family
        self.code = errno.ECONNREFUSED
        self.began = 0.0
        #: The program has the socket: whatever goes out next may be its own.
        self.given = False
        #: Another instance than the first is being tried on it.
        self.passed = False
        #: The socket was made non-blocking here.
        self.set_nonblocking = False
        #: All have failed, and the socket itself does not tell the error any more.
        self.spent = False
        self.waiting: Waiting | None = None
        self._rest = b""
        self._early = False
        self._peer: Peer | None = None
        self._address = ""

    @property
    def more(self) -> bool:
        """Are others left?"""
        return bool(self._rows)

    @property
    def header_waits(self) -> bool:
        """Must the header still go out, or a part of it, before anything else does?"""
        return bool(self._rest)

    @property
    def target(self) -> Address:
        return self._server

    def is_free(self) -> bool:
        """Does no call wait for it? One that was cancelled waits no more."""
        if self.waiting is not None:
            if self.waiting.is_made():
                return False
            self.waiting.leave()
        return True

    def to_be_looked_at(self) -> bool:
        """Is it worth knowing how this fares, though nobody waits for it?"""
        return self._peer is not None and self._early and self._peer.to_be_looked_at(self.began)

    def next(self, sock: _socket.socket) -> bool:
        """Begin with the next instance that does not fail at once; False when none is left."""
        while self._rows:
            row = self._rows.pop(0)
            if not self._hosts.reaches(row):
                continue  # the cluster was left meanwhile
            if self._peer is not None:
                self._counters.add("passed_over")
                self.passed = True
            self.began = time.monotonic()
            self._address = row.real[0]
            self._peer = self._hosts.peer(self._address)
            try:
                self._begin(sock, row, self._peer)
                state = state_of(sock)
                if state == _CLOSE:
                    raise _pending_error(sock)
                if state != _SYN_SENT:
                    self.established(sock)
            except OSError as error:
                self.code = error.errno or errno.ECONNREFUSED
                _reset(sock)
                continue
            return True
        return False

    def _begin(self, sock: _socket.socket, row: Service, peer: Peer) -> None:
        host, port = row.real
        address = (f"::ffff:{host}" if self.family == AF_INET6 and ":" not in host else host, port)
        header = self._hosts.header(row, self._client, self._server, self._tags)
        if self.given or peer.takes_early_data(self.began):
            try:
                sent = sock.sendto(header, _WITH_SYN, address)
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP or self.given:
                    raise
            else:
                self._early, self._rest = True, header[sent:]  # a small MSS takes a part of it
                return
        # net.ipv4.tcp_fastopen lacks its bit 0, or the network lets no such SYN pass
        self._early, self._rest = False, header
        fcntl.fcntl(sock.fileno(), fcntl.F_SETFL, os.O_NONBLOCK)
        self.set_nonblocking = True
        code = sock.connect_ex(address)
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, "connect")

    def established(self, sock: _socket.socket) -> None:
        """It is connected. OSError when it is not any more."""
        assert self._peer is not None
        rest, self._rest = self._rest, b""
        if rest and sock.send(rest, _AT_ONCE) < len(rest):
            raise OSError(errno.ENOBUFS, "no room for the header")
        now = time.monotonic()
        self._hosts.has_answered(self._address)
        if self._early and now - self.began > PATIENCE / 2 and _retransmissions(sock) > 1:
            # one is what did not go with the SYN, or was not taken from it
            self._peer.early_data_was_lost(now)
            self._counters.add("early_data_lost")

    def look(self, sock: _socket.socket, *, bounded: bool = False) -> int | None:
        """0 when it is connected, the error when all instances have failed, None while it is under way.

        One that has failed is passed over; so is a silent one after a time. The last may be silent for as long as the
        kernel tries, unless it is `bounded` too.
        """
        state = state_of(sock)
        try:
            if state == _CLOSE:
                raise _pending_error(sock)
            if state != _SYN_SENT:
                self.established(sock)
                return 0
            if time.monotonic() - self.began < PATIENCE or not (self._rows or bounded):
                return None
            self._hosts.was_silent(self._address, time.monotonic())
            raise TimeoutError(errno.ETIMEDOUT, "no answer")
        except OSError as error:
            self.code = error.errno or errno.ECONNREFUSED
        _reset(sock)
        if not self.next(sock):
            self.spent = True
            return self.code
        return None if state_of(sock) == _SYN_SENT else 0


def state_of(sock: _socket.socket) -> int:
    """Its TCP state (linux/tcp_states.h)."""
    found: int = sock.getsockopt(IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    return found


def is_under_way(sock: _socket.socket) -> bool:
    return state_of(sock) == _SYN_SENT


def has_failed(sock: _socket.socket) -> bool:
    return state_of(sock) == _CLOSE


def _pending_error(sock: _socket.socket) -> OSError:
    return OSError(sock.getsockopt(SOL_SOCKET, socket.SO_ERROR) or errno.ECONNREFUSED, "connect")


def _reset(sock: _socket.socket) -> None:
    """Make a socket that failed, or is connecting, one that can be connected again."""
    try:
        libc.call("connect", sock.fileno(), _UNSPEC, len(_UNSPEC))
    except OSError:
        pass  # what comes next says why
    sock.getsockopt(SOL_SOCKET, socket.SO_ERROR)


def _retransmissions(sock: _socket.socket) -> int:
    info: bytes = sock.getsockopt(IPPROTO_TCP, socket.TCP_INFO, _TOTAL_RETRANS_AT + 4)
    return int(_U32.unpack_from(info, _TOTAL_RETRANS_AT)[0]) if len(info) >= _TOTAL_RETRANS_AT + 4 else 0


class Trials:
    """Those on sockets that programs have, by the socket's cookie, as long as there is something to do about them.

    Looked at now and then, so that a silent instance is passed over even when no call waits. What has failed is left
    as it is until the program asks.
    """

    def __init__(self, events: Events) -> None:
        self._events = events
        self._by_cookie: dict[int, tuple[Trial, Callable[[], int]]] = {}

    def __bool__(self) -> bool:
        return bool(self._by_cookie)

    def get(self, cookie: int) -> Trial | None:
        found = self._by_cookie.get(cookie)
        return None if found is None else found[0]

    def add(self, cookie: int, trial: Trial, copy: Callable[[], int]) -> None:
        """`copy` gives a descriptor of the program's socket, -1 when the program has it no more."""
        self._by_cookie[cookie] = trial, copy
        self._look_later(cookie, trial, _LOOKS)

    def forget(self, cookie: int) -> None:
        self._by_cookie.pop(cookie, None)

    def _look_later(self, cookie: int, trial: Trial, looks: int) -> None:
        self._events.after(time.monotonic() + PATIENCE, lambda: self._look(cookie, trial, looks))

    def _look(self, cookie: int, trial: Trial, looks: int) -> None:
        if self.get(cookie) is not trial:
            return
        if trial.waiting is not None and trial.waiting.is_made():
            self._look_later(cookie, trial, looks)
            return
        fd = self._by_cookie[cookie][1]()
        done = fd < 0 or looks == 0
        if fd >= 0:
            sock = _socket.socket(trial.family, socket.SOCK_STREAM, 0, fd)
            try:
                if not has_failed(sock):
                    outcome = trial.look(sock)
                    # one that is being tried after another's failure: the program may have heard of that, and ask
                    done = done or outcome == 0 or (outcome is None and not trial.more and not trial.passed)
            finally:
                sock.close()
        if done:
            self.forget(cookie)
        else:
            self._look_later(cookie, trial, looks - 1)
