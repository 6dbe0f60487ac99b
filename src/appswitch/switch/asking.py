"""Queries, each answered by a process of its own: it may be slow, and wait for a slow client, without harm."""

from __future__ import annotations

import gc
import logging
import os
import select
import signal
import socket
from collections import Counter, deque
from collections.abc import Callable
from functools import partial

from ..model.documents import indented
from . import queries, wire
from .control import PATIENCE, Client, Control
from .forks import Forks
from .loop import Loop
from .paths import SwitchError
from .view import View

log = logging.getLogger("appswitch.supervisor")

#: Answered at a time, the others wait: in all; for users but root and the switch's own together; for one of them. Who
#: does not read a long answer holds a place for `PATIENCE` seconds.
_AT_ONCE, _OF_OTHERS, _OF_USER = 8, 6, 2


class Asking:
    """`view` shows the supervisor's state."""

    def __init__(self, loop: Loop, control: Control, view: Callable[[], View], forks: Forks) -> None:
        self._loop, self._control, self._view, self._forks = loop, control, view, forks
        self._uid = os.geteuid()
        self._running: Counter[int] = Counter()
        self._queued: deque[tuple[Client, wire.Message]] = deque()

    def ask(self, client: Client, message: wire.Message) -> None:
        """See to the answer; SwitchError when no process can be had for it."""
        client.busy = True
        if not self._admits(client.uid):
            self._queued.append((client, message))
            return
        view, fd = self._view(), client.sock.fileno()
        keep = [fd, *(entry.fds["diags"][1] for entry in view.entries)]
        try:
            pid = self._forks.fork("appswitch-ask", partial(_answer, fd, view, message), keep, signal.SIGTERM)
        except OSError as error:
            raise SwitchError(f"the switch cannot start a process for the answer ({error}): try again") from None
        self._control.drop(client)
        self._running[client.uid] += 1
        pidfd = os.pidfd_open(pid)
        self._loop.watch(pidfd, select.EPOLLIN, partial(self._on_answered, pidfd, client.uid))

    def _admits(self, uid: int) -> bool:
        running = self._running
        if running.total() >= _AT_ONCE:
            return False
        ours = (0, self._uid)
        others = sum(count for user, count in running.items() if user not in ours)
        return uid in ours or (others < _OF_OTHERS and running[uid] < _OF_USER)

    def _on_answered(self, pidfd: int, uid: int, _: int) -> None:
        if os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG) is None:
            return
        self._running[uid] -= 1
        if not self._running[uid]:
            del self._running[uid]
        self._loop.close([pidfd])
        queued, self._queued = self._queued, deque()
        for client, message in queued:
            if client in self._control:
                try:
                    self.ask(client, message)  # or back into the queue
                except SwitchError as error:
                    self._control.refuse(client, str(error))


def _answer(fd: int, view: View, message: wire.Message) -> None:
    """In a process of its own: work out the answer and send it."""
    gc.disable()  # it ends soon, and each of a hundred thousand rows would be looked at again and again
    with socket.socket(fileno=fd) as sock:
        data = _reply(view, message)
        sock.settimeout(PATIENCE)
        try:
            sock.sendall(data, socket.MSG_NOSIGNAL)
        except OSError:
            pass  # the client has gone, or does not read


def _reply(view: View, message: wire.Message) -> bytes:
    try:
        result = queries.answer(view, str(message["op"]), message)
        if message.get("indented"):
            return wire.granted(indented(result))
        return wire.encode({"ok": True, "result": result}, wire.REPLY_LIMIT)
    except SwitchError as error:
        return wire.encode({"ok": False, "error": str(error)})
    except wire.Malformed as error:
        return wire.encode({"ok": False, "error": f"the switch has too much to tell: {error}"})
    except Exception:
        log.exception("a query failed")
        return wire.encode({"ok": False, "error": f"the switch cannot answer: see {view.run_dir.log}"})
