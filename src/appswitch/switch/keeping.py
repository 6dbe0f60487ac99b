"""The supervisor's side of the line to its keeper: what is put here outlives both, one at a time.

What was put is in the kernel's hands when `put` returns, and the keeper's as soon as it looks. A keeper that dies,
takes nothing for a second or does not answer is replaced by one forked from here, which has inherited all of it.
"""

from __future__ import annotations

import json
import logging
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from . import keeper, wire
from .children import AGAIN, Deaths
from .forks import Forks
from .kept import Item, Kept, Line, descriptors
from .loop import Loop
from .processes import kill, reap

log = logging.getLogger("appswitch.supervisor")

#: Seconds (and microseconds) that the keeper may take to make room for a message (SO_SNDTIMEO).
_PATIENCE = struct.pack("@ll", 1, 0)
#: Seconds for it to close copies when somebody waits for that.
_ANSWERED = 3.0
#: Seconds for a keeper of another version to begin: fewer than its client waits (client.TIMEOUT).
_REPLACED = 15.0


class Keeping:
    """`keep` is the keeper's work, in a process of its own."""

    def __init__(
        self,
        loop: Loop,
        kept: Kept,
        line: Line,
        keep: Callable[[Kept, Line], None],
        forks: Forks,
        succeeded: Callable[[str | None], None],
    ) -> None:
        """`succeeded` is told the outcome of `replace`: None, or why not."""
        self._loop, self._keep, self._forks, self._succeeded = loop, keep, forks, succeeded
        self.kept = kept
        self._line: Line | None = None
        self._dropping: dict[str, list[Callable[[], None]]] = {}
        self._deaths = Deaths()
        self._start_at: float | None = None
        self._replace_by: float | None = None
        self._replacing = False
        self._answer_by: float | None = None
        self._adopt(line)

    @property
    def pid(self) -> int:
        """The keeper's; 0 when there is none just now."""
        return self._line.pid if self._line is not None else 0

    @property
    def restarts(self) -> int:
        """How often a process of the switch was started again."""
        item = self.kept.get("restarts")
        return item.document["count"] if item is not None else 0

    def count_restart(self) -> None:
        self.put("restarts", {"count": self.restarts + 1})

    def put(self, key: str, document: dict[str, Any], fds: Iterable[int] = ()) -> None:
        """Keep copies of these descriptors, which stay the caller's to close: not before `drop`, or another `put`."""
        item = self.kept[key] = Item(document, list(fds))
        self._tell({"op": "put", "key": key, "document": document}, item.fds)

    def drop(self, key: str, then: Callable[[], None] | None = None) -> None:
        """Keep it no more; `then` is called when the copies are closed."""
        self.kept.pop(key, None)
        if then is not None and self._line is not None:
            self._dropping.setdefault(key, []).append(then)
            if self._answer_by is None:
                self._answer_by = time.monotonic() + _ANSWERED
        elif then is not None:
            then()
        self._tell({"op": "drop", "key": key, "answer": then is not None})

    def say(self, operation: str, **words: str) -> None:
        """`up`, `over`, `failed`."""
        self._tell({"op": operation} | words)

    def replace(self, python: str, path: str) -> None:
        """Have the keeper become that of the version of AppSwitch installed at `path`."""
        self._replacing, self._replace_by = True, time.monotonic() + _REPLACED
        self._tell({"op": "become", "python": python, "path": path})
        if self._line is None:
            self._settle("its keeper has just died: try again")

    def moments(self) -> list[float]:
        """When something will be due; empty as a rule."""
        moments = (self._start_at, self._replace_by, self._answer_by)
        return [moment for moment in moments if moment is not None]

    def due(self, now: float) -> None:
        """Do what is due at this time of the monotonic clock."""
        if self._start_at is not None and self._start_at <= now:
            self._start()
        if self._replace_by is not None and self._replace_by <= now:
            self._replace_by = None
            self._kill()
        if self._answer_by is not None and self._answer_by <= now:
            self._answer_by = None
            if not self._replacing:
                self._kill()

    def abandon(self) -> None:
        """In a forked process: let go of every descriptor without closing it."""
        if self._line is not None:
            self._line.sock.detach()

    def _tell(self, message: dict[str, Any], fds: list[int] | None = None) -> None:
        if self._line is not None and not keeper.tell(self._line, message, fds):
            self._kill()

    def _kill(self) -> None:
        """It is of no more use; another will take its place."""
        if self._line is not None:
            kill(self._line.pidfd)

    def _adopt(self, line: Line) -> None:
        self._line = line
        line.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _PATIENCE)
        self._loop.watch(line.sock.fileno(), select.EPOLLIN, partial(self._on_word, line))
        self._loop.watch(line.pidfd, select.EPOLLIN, partial(self._on_death, line))

    def _on_word(self, line: Line, _: int) -> None:
        if not self._hear(line):
            self._loop.unwatch(line.sock.fileno())
            self._kill()

    def _hear(self, line: Line) -> bool:
        """Copies have been closed, or another version's keeper has begun or not; False at the end of its words."""
        while True:
            try:
                data, _ = wire.receive_with_fds(line.sock, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not data:
                return False
            message = json.loads(data)
            if message["op"] == "dropped":
                self._dropped(message["key"])
            elif message["op"] == "succeeded":
                self._settle(None)
            else:
                self._settle(str(message["reason"]))

    def _on_death(self, line: Line, _: int) -> None:
        self._hear(line)  # what it said last
        log.error("the keeper %s; it is started again", reap(line.pid))
        self._loop.close([line.sock.detach(), line.pidfd])
        self._line = None
        if self._replacing:
            self._settle("its keeper did not start: see the switch's log")
        for key in list(self._dropping):
            self._dropped(key)
        self.count_restart()
        self._deaths.note()
        delay = self._deaths.pause()
        if delay:
            self._start_at = time.monotonic() + delay
        else:
            self._start()

    def _dropped(self, key: str) -> None:
        """No keeper has copies any more."""
        for then in self._dropping.pop(key, ()):
            then()
        if not self._dropping:
            self._answer_by = None

    def _settle(self, refusal: str | None) -> None:
        if self._replacing:
            self._replacing, self._replace_by = False, None
            self._succeeded(refusal)

    def _start(self) -> None:
        """Start another keeper, which inherits what is kept."""
        self._start_at = None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        own = os.pidfd_open(os.getpid())
        body = partial(self._keep, self.kept, Line(theirs, os.getpid(), own))
        try:
            with theirs:
                pid = self._forks.fork(keeper.NAME, body, [*descriptors(self.kept), theirs.fileno(), own])
        except OSError as error:
            ours.close()
            log.error("the keeper cannot be started: %s", error)
            self._start_at = time.monotonic() + AGAIN
            return
        finally:
            os.close(own)
        self._adopt(Line(ours, pid, os.pidfd_open(pid)))
