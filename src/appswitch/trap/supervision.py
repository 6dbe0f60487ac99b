"""A worker's side of the line to its supervisor, which keeps copies of what must survive a worker."""

from __future__ import annotations

import json
import logging
import socket
from typing import Any

log = logging.getLogger("appswitch.worker")

_FDS_MOST = 253  # SCM_MAX_FD (unix(7)): so many come with one message at most


class Supervisor:
    """Messages are JSON, one a datagram, descriptors with them (SCM_RIGHTS). Sending never blocks for long."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control

    def fileno(self) -> int:
        return self._control.fileno()

    def receive(self) -> tuple[dict[str, Any], list[int]] | None:
        """The next message and its descriptors; None when the supervisor has closed the line, or died."""
        try:
            data, fds, _, _ = socket.recv_fds(self._control, 65536, _FDS_MOST)
        except ConnectionResetError:  # with messages of ours unread
            return None
        return (json.loads(data), list(fds)) if data else None

    def tell(self, message: dict[str, Any], fds: list[int] | None = None) -> None:
        try:
            socket.send_fds(self._control, [json.dumps(message).encode()], fds or [])
        except OSError as error:
            log.error("the supervisor does not hear: %s", error)

    def keep(self, key: str, number: int, fds: list[int]) -> None:
        """Have copies of these descriptors of program `number` held for the worker after this one."""
        self.tell({"op": "keep", "key": key, "number": number}, fds)

    def forget(self, key: str) -> None:
        """Have the copies closed; answered by `forgotten` when they are."""
        self.tell({"op": "forget", "key": key})
