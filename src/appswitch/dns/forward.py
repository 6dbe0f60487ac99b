"""Asking the host's resolvers on a program's behalf, inside the relay's loop: nothing blocks, there are no
threads, and no timer while nothing is in flight. What is asked when is decided in `dns.inquiries`.

Each question goes out from a socket of its own: connected, so that only the asked server's datagrams arrive and
a refusal is heard at once; from a port that the kernel picks; under an id of our own (RFC 5452, 9.2).
"""

from __future__ import annotations

import dataclasses
import secrets
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Hashable
from typing import Protocol

from appswitch.dns import message as m
from appswitch.dns.cache import Cache
from appswitch.dns.inquiries import LIMIT, SHARE, Abandon, Deliver, Effect, Inquiries, Send
from appswitch.dns.resolv_conf import Followed, ResolvConf, parse_server

_DRAIN = 16  # datagrams of one socket in a turn of the loop: a shower of wrong answers must not hold it up

Answer = Callable[[bytes], None]


class Poller(Protocol):
    """What is wanted of the loop: it calls `ready` with the epoll events when `fd` has some of `events`."""

    def watch(self, fd: int, events: int, ready: Callable[[int], None]) -> None: ...

    def change(self, fd: int, events: int) -> None: ...

    def forget(self, fd: int) -> None: ...


class Stats(Protocol):
    """Counters by their names in `table.counters`: those of DNS, `datagrams_refused`, `spoofed` and `faults`."""

    def add(self, name: str, n: int = 1) -> None: ...


class Forwarder:
    """Takes queries and gives for each exactly one answer, under the query's id, possibly from its cache.

    `upstreams` (see `parse_server`) replaces the servers of the host's resolv.conf, which is else followed.
    """

    def __init__(
        self,
        poller: Poller,
        stats: Stats,
        upstreams: list[str] | None = None,
        *,
        host: Callable[[], ResolvConf] | None = None,
        limit: int = LIMIT,
        share: int = SHARE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._poller, self._stats, self._clock = poller, stats, clock
        self._fixed = None if upstreams is None else tuple(parse_server(text) for text in upstreams)
        self._host = host or Followed().now
        self._seen: ResolvConf | None = None
        self._asked = self._host()
        self._inquiries = Inquiries(lambda: secrets.randbits(16), Cache(), limit, share)
        self._sockets: dict[int, _Socket] = {}

    def __len__(self) -> int:
        """Queries in flight."""
        return len(self._inquiries)

    def submit(self, query: bytes, owner: Hashable, over_tcp: bool, deliver: Answer) -> None:
        """Ask. `deliver` is called once with the answer, possibly before this returns.

        `query` must be well formed. `over_tcp`: the client takes an answer of any size.
        """
        waiting = len(self._inquiries)
        effects = self._inquiries.ask(query, owner, deliver, over_tcp, self._resolvers(), self._clock())
        self._stats.add("dns_forwarded", len(self._inquiries) - waiting)
        self._do(effects)

    def forget(self, owner: Hashable) -> None:
        """The owner is gone: nothing is delivered to it any more."""
        self._do(self._inquiries.forget(owner))

    def timeout(self) -> float | None:
        """Seconds until `expire` must be called; None when nothing is in flight."""
        due = self._inquiries.next_due()
        return None if due is None else max(0.0, due - self._clock())

    def expire(self) -> None:
        """Go on where servers have been silent for too long."""
        self._do(self._inquiries.due(self._clock()))

    def close(self) -> None:
        """Drop everything in flight without an answer."""
        for sock in list(self._sockets.values()):
            sock.close()
        self._sockets.clear()

    def _resolvers(self) -> ResolvConf:
        """Whom to ask, and how. What other servers said is not theirs: it goes when they change."""
        host = self._host()
        if host is not self._seen:
            self._seen = host
            self._asked = host if self._fixed is None else dataclasses.replace(host, servers=self._fixed)
            self._inquiries.cache.clear()
        return self._asked

    def _do(self, effects: list[Effect]) -> None:
        left = deque(effects)
        while left:
            effect = left.popleft()
            if isinstance(effect, Send):
                left.extend(self._send(effect))
            elif isinstance(effect, Abandon):
                sock = self._sockets.pop(effect.attempt, None)
                if sock is not None:
                    sock.close()
            else:
                self._deliver(effect)

    def _deliver(self, effect: Deliver) -> None:
        if effect.counted is not None:
            self._stats.add(effect.counted)
        effect.client(effect.message)

    def _send(self, send: Send) -> list[Effect]:
        def heard(message: bytes | None) -> bool:
            now = self._clock()
            if message is None:
                self._do(self._inquiries.failed(send.attempt, now))
            else:
                self._do(self._inquiries.heard(send.attempt, message, now))
            return send.attempt in self._sockets

        try:
            self._sockets[send.attempt] = (_Stream if send.over_tcp else _Datagram)(self._poller, send, heard)
        except OSError:  # nobody there, out of descriptors, or a family that this host has not
            return self._inquiries.failed(send.attempt, self._clock())
        return []


class _Socket:
    """One attempt's. `heard` takes a message, or None when none will come; it says whether to go on."""

    kind: int

    def __init__(self, poller: Poller, send: Send, heard: Callable[[bytes | None], bool]) -> None:
        """Raises OSError when the question cannot be sent."""
        self._poller, self._heard = poller, heard
        family, address = send.server
        self.sock = socket.socket(family, self.kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            self.start(address, send.wire)
        except OSError:
            self.sock.close()
            raise

    def start(self, address: tuple[object, ...], wire: bytes) -> None:
        """Send, or begin to, and watch."""
        raise NotImplementedError

    def close(self) -> None:
        self._poller.forget(self.sock.fileno())
        self.sock.close()


class _Datagram(_Socket):
    kind = socket.SOCK_DGRAM

    def start(self, address: tuple[object, ...], wire: bytes) -> None:
        self.sock.connect(address)
        self.sock.send(wire)
        self._poller.watch(self.sock.fileno(), select.EPOLLIN, self._ready)

    def _ready(self, _events: int) -> None:
        for _ in range(_DRAIN):
            try:
                message = self.sock.recv(m.LIMIT)
            except BlockingIOError:
                return
            except OSError:  # ECONNREFUSED, EHOSTUNREACH, ...: nobody is there
                self._heard(None)
                return
            if not self._heard(message):
                return


class _Stream(_Socket):
    kind = socket.SOCK_STREAM

    def start(self, address: tuple[object, ...], wire: bytes) -> None:
        self._unsent, self._received = len(wire).to_bytes(2, "big") + wire, b""
        try:
            self.sock.connect(address)
        except BlockingIOError:
            pass
        self._poller.watch(self.sock.fileno(), select.EPOLLOUT, self._ready)

    def _ready(self, _events: int) -> None:
        try:
            if self._unsent:
                self._unsent = self._unsent[self.sock.send(self._unsent) :]
                if not self._unsent:
                    self._poller.change(self.sock.fileno(), select.EPOLLIN)
                return
            chunk = self.sock.recv(m.LIMIT + 2)
        except BlockingIOError:
            return
        except OSError:
            self._heard(None)
            return
        self._received += chunk
        length = int.from_bytes(self._received[:2], "big")
        if len(self._received) >= 2 + length and length:
            self._heard(self._received[2 : 2 + length])
        elif not chunk or (len(self._received) >= 2 and not length):
            self._heard(None)
