"""The children of a supervisor that died, and what they said last."""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable, Iterable

from . import wire
from .children import Child, receive_last
from .keeping import Keeping
from .kept import below
from .processes import kill

#: Seconds until one that does not go by itself is killed: calls wait for their successors.
FAREWELL = 0.3
#: Seconds until one that was killed is waited for no longer: what it waits for itself cannot be interrupted.
KILLED = 1.0

Heard = Callable[[Child, wire.Message, list[int]], None]


def await_orphans(keeping: Keeping, workers: Iterable[Child], heard: Heard) -> None:
    """Have the children of the supervisor before this one end, and hear what they said last."""
    orphans = below(keeping.kept, "child/")
    poll = select.poll()
    for item in orphans.values():
        poll.register(item.fds[0], select.POLLIN)
    until, killed = time.monotonic() + FAREWELL, False
    waiting = {item.fds[0] for item in orphans.values()}
    while waiting:
        for fd, _ in poll.poll(max(0.0, until - time.monotonic()) * 1000):
            poll.unregister(fd)
            waiting.discard(fd)
        if until <= time.monotonic():
            if killed:
                break
            until, killed = until + KILLED, True
            for item in orphans.values():
                kill(item.fds[0])
    by_role = {child.role: child for child in workers}
    for role, item in orphans.items():
        pidfd, *line = item.fds
        if line:
            with socket.socket(fileno=line[0]) as sock:
                if role in by_role and pidfd not in waiting:
                    for message, fds in receive_last(sock, role):
                        heard(by_role[role], message, fds)
        keeping.drop(f"child/{role}")
        os.close(pidfd)
