"""Telling the router at once what a writer of the table has changed: a datagram with the keys, or none.

It costs a writer microseconds, never blocks it and never fails it. The router makes up for what was lost, by
comparing when the table's version has moved.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence

from .codec import pack, unpack

NAME = "router.sock"
#: More keys than this are not listed: the router compares everything then.
KEYS = 200
_FLAGS = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


class Poke:
    """Sends to the router whose socket is `path`; there may be none. `answered`: it can be answered, at `socket`."""

    def __init__(self, path: str, *, answered: bool = False) -> None:
        self._path, self._answered = path, answered
        self.socket: socket.socket | None = None

    def __call__(self, keys: Sequence[bytes]) -> None:
        """These keys of services, or virtual IPs of claims, have new values or none."""
        try:
            if self.socket is None:
                self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
                if self._answered:
                    self.socket.bind("")  # an abstract name that the kernel chooses (unix(7), autobind)
            self.socket.sendto(pack(keys if len(keys) <= KEYS else []), _FLAGS, self._path)
        except OSError:
            pass  # no router, or a busy one: it compares

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()


def read(datagram: bytes) -> list[bytes]:
    """The keys in a datagram; empty: compare everything."""
    return [bytes(key) for key in unpack(datagram)]
