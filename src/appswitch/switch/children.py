"""The supervisor's child processes: forked without exec, so that they share the memory of what is loaded already.

A child is bound to its supervisor by a SOCK_SEQPACKET pair: when the supervisor shuts that, the child exits by itself.
When the supervisor dies it gets a signal (PR_SET_PDEATHSIG, prctl(2)).
"""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

from ..linux.storage import reserve
from . import wire
from .forks import Forks
from .processes import reap

log = logging.getLogger("appswitch.supervisor")

_PID = struct.Struct("=Q")
_PIDS = 4096

#: Read at one go before others get their turn.
_BATCH = 64
#: Seconds until another try to start a process that cannot be had.
AGAIN = 1.0
#: So many deaths within so many seconds, then a pause before the next start, in seconds.
_DEATHS, _WITHIN, _PAUSE = 10, 10.0, 1.0


class PidRing:
    """The process ids of the workers in a shared file: 4,096 numbers of 8 bytes, the newest in place of the oldest.

    They know by it which connections to a listener come from the switch itself (SO_PEERCRED). An old one stays:
    a listener that its process made, and the client's end of each connection to it, have its number for life.
    """

    def __init__(self, path: str, count: int = 0) -> None:
        """`count`: how many were entered before."""
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        reserve(self._fd, _PIDS * _PID.size)
        self.count = count

    def add(self, pid: int) -> None:
        os.pwrite(self._fd, _PID.pack(pid), self.count % _PIDS * _PID.size)
        self.count += 1


class Deaths:
    """Of the processes that filled one place, the last few: what keeps dying is not started in a spin."""

    def __init__(self) -> None:
        self._moments: deque[float] = deque(maxlen=_DEATHS)

    def note(self) -> None:
        """One has died just now."""
        self._moments.append(time.monotonic())

    def pause(self) -> float:
        """Seconds to wait before it is started again: none, unless it keeps dying."""
        often = len(self._moments) == _DEATHS and time.monotonic() - self._moments[0] < _WITHIN
        return _PAUSE if often else 0.0


class Child:
    """One place for a process (the relay, a worker): who fills it now, and what is still to be sent to it.

    `orphaned` ends it when its supervisor dies.
    """

    def __init__(
        self,
        role: str,
        name: str,
        body: Callable[[socket.socket], NoReturn],
        orphaned: signal.Signals = signal.SIGTERM,
    ) -> None:
        self.role, self.name = role, name
        self._body, self._orphaned = body, orphaned
        self.pid = 0
        self.pidfd = -1
        self.killed = False
        self.control: socket.socket | None = None
        self.deaths = Deaths()
        self._queue: deque[tuple[int, bytes, list[int]]] = deque()

    @property
    def alive(self) -> bool:
        return self.pid != 0

    def start(self, forks: Forks) -> None:
        """Fill the place; OSError when no process can be had."""
        ours, theirs = socket.socketpair(
            socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC, 0
        )
        with theirs:
            ours.setblocking(False)
            try:
                self.pid = forks.fork(self.name, lambda: self._body(theirs), [theirs.fileno()], self._orphaned)
            except BaseException:
                ours.close()
                raise
        self.pidfd = os.pidfd_open(self.pid)
        self.control = ours

    def ended(self) -> str | None:
        """How it ended, in words; None when it has not."""
        if os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return None
        return reap(self.pid)

    def vacate(self) -> list[int]:
        """After its end: the place is free; returns the descriptors to close."""
        fds = [self.pidfd, *self.hang_up()]
        self.pid, self.pidfd, self.killed = 0, -1, False
        self.deaths.note()
        return fds

    def kill(self) -> None:
        if self.alive:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            self.killed = True

    def orphan(self) -> None:
        """End it as the supervisor's death would."""
        if self.alive:
            signal.pidfd_send_signal(self.pidfd, self._orphaned)

    def hang_up(self) -> list[int]:
        """Part from the control socket, whose descriptor is returned to be closed: the child exits."""
        self._queue.clear()
        if self.control is None:
            return []
        try:
            self.control.shutdown(socket.SHUT_RDWR)  # for the keeper has a copy
        except OSError:
            pass  # the child has gone
        fd = self.control.detach()
        self.control = None
        return [fd]

    def abandon(self) -> None:
        """Let go of the descriptors without closing them, in a process forked from ours."""
        if self.control is not None:
            self.control.detach()
            self.control = None

    # messages -------------------------------------------------------------------------------------

    def tell(self, number: int, message: dict[str, Any], fds: Iterable[int] = ()) -> bool:
        """Send, or queue when the child is slow; True when something is queued now. `fds` must stay open till then."""
        if self.control is None:
            return False
        self._queue.append((number, json.dumps(message, separators=(",", ":")).encode(), list(fds)))
        return self.flush()

    def forget_program(self, number: int) -> None:
        """Drop what is queued about a program, whose descriptors are about to be closed."""
        self._queue = deque(item for item in self._queue if item[0] != number)

    def flush(self) -> bool:
        """Send what is queued; True when something is left."""
        while self._queue and self.control is not None:
            _, data, fds = self._queue[0]
            try:
                wire.send_with_fds(self.control, data, fds)
            except (BlockingIOError, InterruptedError):
                return True
            except OSError as error:
                # ETOOMANYREFS: too many descriptors in flight until the child reads; it will.
                if error.errno in (errno.ENOBUFS, errno.ETOOMANYREFS, errno.ENOMEM):
                    return True
                self._queue.clear()  # it is dying; its successor is told everything
                return False
            self._queue.popleft()
        return False

    def receive(self) -> Iterator[tuple[dict[str, Any], list[int]]]:
        """What the child has said; wire.Closed at the end of its control socket."""
        return receive(self.control, self.role) if self.control is not None else iter(())


def receive(control: socket.socket, role: str) -> Iterator[tuple[dict[str, Any], list[int]]]:
    """What a child has said. Each message leaves the socket when the next is asked for, so that it is not lost with
    this process; it may then be heard twice. wire.Closed at the end of the control socket.
    """
    for _ in range(_BATCH):
        try:
            data, fds = wire.receive_with_fds(control, socket.MSG_DONTWAIT | socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            raise wire.Closed(str(error)) from None
        if not data:
            raise wire.Closed("the control socket was closed")
        try:
            message = wire.decode(data)
        except wire.Malformed as error:
            log.error("%s said something unintelligible: %s", role, error)
            for fd in fds:
                os.close(fd)
            wire.skip(control)
            continue
        try:
            yield message, fds
        finally:
            if control.fileno() >= 0:
                wire.skip(control)


def receive_last(control: socket.socket, role: str) -> Iterator[tuple[dict[str, Any], list[int]]]:
    """All that a child said before it ended."""
    said = True
    try:
        while said:
            said = False
            for item in receive(control, role):
                said = True
                yield item
    except wire.Closed:
        pass
