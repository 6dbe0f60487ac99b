"""The host's own UDP sockets, one for each conversation with an address outside the table.

Each is connected: it hears that address and nobody else, and the kernel tells it when nobody listens there.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress

from appswitch.dns.forward import Poller

#: Seconds of silence after which one is closed (RFC 4787, 4.3), and how many a program may have at a time.
IDLE, SHARE = 180.0, 256
_AT_ONCE = 64
_LARGEST = 65535
#: Errors that say that nobody is there, or that the network does not lead there.
_NOBODY = (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EACCES, errno.EPERM)


class Outlet:
    """`heard` is given what comes in; None: the address cannot be reached, and says why by the errno."""

    def __init__(self, sock: socket.socket, owner: str, heard: Callable[[bytes | None, int], None]) -> None:
        self.sock, self.owner, self.heard = sock, owner, heard
        self.used = 0.0
        self.tos = 0


class Outlets:
    """All of them."""

    def __init__(self, poller: Poller, silent: Callable[[Outlet], None]) -> None:
        """`silent` is given one that is to be closed: it has been silent, or its program has too many."""
        self._poller, self._silent = poller, silent
        # By the moment from which they were last known to be in use, the earliest first.
        self._open: dict[Outlet, float] = {}
        self._of: defaultdict[str, dict[Outlet, None]] = defaultdict(dict)

    def __len__(self) -> int:
        return len(self._open)

    def open(
        self, owner: str, uid: int, address: str, port: int, heard: Callable[[bytes | None, int], None]
    ) -> Outlet:
        """A socket connected to this address, as the user's for the host's rules. OSError when it cannot be had."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            if uid != os.geteuid():
                os.fchown(sock.fileno(), uid, -1)
            sock.connect((address, port))
        except BaseException:
            sock.close()
            raise
        own = self._of[owner]
        if len(own) >= SHARE:
            self._silent(min(own, key=lambda outlet: outlet.used))
        outlet = Outlet(sock, owner, heard)
        outlet.used = time.monotonic()
        own[outlet] = None
        self._open[outlet] = outlet.used
        self._poller.watch(sock.fileno(), select.EPOLLIN, lambda _: self._ready(outlet))
        return outlet

    def send(self, outlet: Outlet, payload: bytes, tos: int, now: float) -> int:
        """Send; an errno when the address cannot be reached, or the datagram is too long, else 0."""
        outlet.used = now
        try:
            if tos != outlet.tos:
                outlet.tos = tos
                if outlet.sock.family == socket.AF_INET:
                    outlet.sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, tos)
                else:
                    outlet.sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, tos)
            outlet.sock.send(payload)
        except OSError as error:
            # What a full queue loses is lost without a word, as anywhere.
            return error.errno if error.errno in (*_NOBODY, errno.EMSGSIZE) else 0
        return 0

    def _ready(self, outlet: Outlet) -> None:
        outlet.used = time.monotonic()
        for _ in range(_AT_ONCE):
            if outlet.sock.fileno() < 0:
                return
            try:
                data = outlet.sock.recv(_LARGEST)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _NOBODY:
                    outlet.heard(None, error.errno)
                continue
            outlet.heard(data, 0)

    def close(self, outlet: Outlet) -> None:
        """It is over; may be called again."""
        if self._open.pop(outlet, None) is not None:
            self._of[outlet.owner].pop(outlet, None)
            if not self._of[outlet.owner]:
                del self._of[outlet.owner]
            with suppress(OSError, ValueError):
                self._poller.forget(outlet.sock.fileno())
            outlet.sock.close()

    def timeout(self) -> float | None:
        """Seconds until `expire` must be called; None while there are none."""
        first = next(iter(self._open.values()), None)
        return None if first is None else max(0.0, first + IDLE - time.monotonic())

    def expire(self) -> None:
        """Close those that have been silent for too long."""
        now = time.monotonic()
        while self._open:
            outlet, known = next(iter(self._open.items()))
            if known + IDLE > now:
                return
            del self._open[outlet]
            self._open[outlet] = outlet.used  # to the end, by what it has done since
            if outlet.used + IDLE <= now:
                self._silent(outlet)
                self.close(outlet)
