"""The other hosts: one UDP socket of this host's for all datagrams to and from their relays, and their proofs."""

from __future__ import annotations

import logging
import os
import random
import select
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from appswitch.dns.forward import Poller, Stats
from appswitch.header import datagram
from appswitch.header.datagram import Datagram, Sender
from appswitch.header.keys import KeyRing
from appswitch.header.parts import Parts, cut, goes_whole
from appswitch.header.refused import Refused
from appswitch.header.window import Windows
from appswitch.model.identity import Tags
from appswitch.model.service import Place

#: Datagrams taken at a time: programs of this host must have their turns.
_AT_ONCE = 64
_BUFFER = 4 << 20
_MTU_DISCOVER, _DONT = 10, 0  # IP_MTU_DISCOVER, IP_PMTUDISC_DONT
_V6_MTU_DISCOVER, _SO_RCVBUFFORCE = 23, 33

log = logging.getLogger("appswitch.relay")


@dataclass(frozen=True, slots=True)
class Here:
    """This host as a member, as the supervisor tells it (trap.options.Node); `host` "": it is in no cluster."""

    host: str = ""
    address: str = ""
    bind: str = ""
    port_range: tuple[int, int] | None = None
    keys: tuple[bytes, ...] = ()

    @classmethod
    def of(cls, message: dict[str, Any]) -> Here:
        """From what was told. KeyError, TypeError or ValueError."""
        ports = message["port_range"]
        return cls(
            str(message["host"]),
            str(message["address"]),
            str(message["bind"]),
            (int(ports[0]), int(ports[1])) if ports else None,
            tuple(bytes.fromhex(key) for key in message["keys"]),
        )


@dataclass(slots=True)
class Away:
    """The other end of a conversation on another host, and what its datagrams say there.

    `address`: of its relay, as sendto() takes it; `life`: that relay's. `row`: the key of the service's row in the
    table; or, when it has none, `host`: whose relay that is. `version` of the table as of which it was there. What
    comes back there has `kind` ANSWER.
    """

    address: tuple[str, int]
    life: bytes
    kind: int
    instance: int
    source: bytes
    source_port: int
    destination: bytes
    port: int
    tags: Tags
    row: bytes = b""
    host: str = ""
    version: int = 0


class Hosts:
    """`arrived` is given what hosts of the cluster send, with the address that it came from."""

    def __init__(
        self, poller: Poller, stats: Stats, arrived: Callable[[Datagram, tuple[str, int]], None]
    ) -> None:
        self._poller, self._stats, self._arrived = poller, stats, arrived
        self._here = Here()
        self._ring: KeyRing | None = None
        self._socket: socket.socket | None = None
        self._sender = Sender(os.urandom)
        self._windows = Windows()
        self._parts = Parts(lambda: stats.add("udp_incomplete"))
        #: Called when a new life has begun.
        self.renewed: Callable[[], None] = lambda: None

    @property
    def life(self) -> bytes:
        """This relay's, by which others' datagrams are fresh; with `real` part of every row."""
        return self._sender.life if self.real[0] else b""

    @property
    def real(self) -> tuple[str, int]:
        """Where other hosts send what is for programs of this one; ("", 0) when there is nowhere."""
        if self._socket is None or not self._here.address:
            return "", 0
        return self._here.address, self._socket.getsockname()[1]

    @property
    def place(self) -> Place | None:
        """Both."""
        return Place(self.real, self.life) if self.real[0] else None

    def join(self, here: Here) -> None:
        """This host's place in the cluster, at the start and whenever it changes."""
        moved = (here.bind, here.port_range, bool(here.host)) != (
            self._here.bind,
            self._here.port_range,
            bool(self._here.host),
        )
        self._here = here
        self._ring = KeyRing(here.keys) if here.host and here.keys else None
        if moved or (self._socket is None and here.address):
            self.close()
            if self._ring is not None and (here.bind or here.address):
                self._open()

    def _open(self) -> None:
        own = self._here.bind or self._here.address
        family = socket.AF_INET6 if ":" in own else socket.AF_INET
        made = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            _bind(made, own, self._here.port_range)
        except OSError as error:
            made.close()
            log.error("no port on %s for datagrams of other hosts: %s", own, error.strerror)
            return
        try:
            made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        except OSError:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)  # as much as net.core.rmem_max allows
        # What is longer than the network takes goes in fragments.
        if family == socket.AF_INET:
            made.setsockopt(socket.IPPROTO_IP, _MTU_DISCOVER, _DONT)
        else:
            made.setsockopt(socket.IPPROTO_IPV6, _V6_MTU_DISCOVER, _DONT)
        self._socket = made
        self._poller.watch(made.fileno(), select.EPOLLIN, self._ready)

    def close(self) -> None:
        """Give the socket back; what is on its way is lost."""
        if self._socket is not None:
            self._poller.forget(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def send(self, away: Away, payload: bytes, traffic_class: int = 0, kind: int | None = None) -> None:
        """Send to the other end of a conversation, in two parts where one has no room for it."""
        if self._socket is None or self._ring is None:
            return  # lost, as on a network that is down
        whole = Datagram(
            away.kind if kind is None else kind,
            traffic_class,
            away.life,
            self._sender.life,
            self._sender.next(away.life),
            away.instance,
            away.source,
            away.destination,
            away.source_port,
            away.port,
            away.tags,
            payload,
        )
        parts = (whole,) if goes_whole(whole) else cut(whole, self._sender.next(away.life))
        with suppress(OSError):  # lost: the queue is full, or the network is down
            for part in parts:
                self._socket.sendto(datagram.encode(part, self._ring), socket.MSG_DONTWAIT, away.address)
        self._stats.add("udp_sent")

    def timeout(self) -> float | None:
        """Seconds until `expire` must be called; None when nothing waits."""
        return self._parts.timeout(time.monotonic())

    def expire(self) -> None:
        """Do what is due."""
        self._parts.expire(time.monotonic())

    def _ready(self, _events: int) -> None:
        for _ in range(_AT_ONCE):
            if self._socket is None:
                return
            try:
                data, address = self._socket.recvfrom(1 << 16)
            except BlockingIOError:
                return
            except OSError:
                continue
            if self._ring is None:
                continue
            try:
                found = datagram.verify(data, self._ring, self._sender.life, self._windows)
            except Refused as refused:
                self._stats.add(f"udp_{refused.reason}")
                continue
            if self._windows.full:  # of no sender may it be forgotten what came: begin anew, and tell others so
                self._sender, self._windows = Sender(os.urandom), Windows()
                self.renewed()
            whole: Datagram | None = found
            if found.kind & (datagram.FIRST | datagram.REST):
                whole = self._parts.join(found, time.monotonic())
            if whole is None:
                continue
            self._stats.add("udp_arrived")
            self._arrived(whole, (address[0], address[1]))


def _bind(made: socket.socket, address: str, port_range: tuple[int, int] | None) -> None:
    """To any port, or the first free one at or after a random one of the range. OSError."""
    if port_range is None:
        made.bind((address, 0))
        return
    low, high = port_range
    start = random.randrange(high - low + 1)
    for step in range(high - low + 1):
        try:
            made.bind((address, low + (start + step) % (high - low + 1)))
            return
        except OSError as error:
            last = error
    raise last
