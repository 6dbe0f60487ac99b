"""The keeper: a process that does nothing but hold copies of what must survive the supervisor, and start it again.

It is the supervisor's parent, and a supervisor that dies has its successor forked here, which inherits all that is
kept. When the keeper dies, the supervisor forks another, which then holds the same (`keeping`).

Over the line between them the supervisor says {"op": "put", "key", "document"} with descriptors; {"op": "drop", "key",
"answer"}, with "answer" answered by {"op": "dropped", "key"} when the copies are closed; {"op": "up"} when it serves;
{"op": "failed", "reason"} when it cannot come up; {"op": "over"} when the switch is down; and {"op": "become",
"python", "path"} to have the keeper become that of another installed version, by execve(2), which then says {"op":
"succeeded"}, or {"op": "refused", "reason"} and ends.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from . import wire
from .children import AGAIN, Deaths
from .kept import Item, Kept, Line, descriptors
from .paths import SwitchError
from .processes import fork, kill, reap, set_process_name

log = logging.getLogger("appswitch.supervisor")

NAME = "appswitch-keep"
#: SCM_MAX_FD (unix(7)): so many come with one message at most.
_FDS_MOST = 253
#: What becomes the keeper of the version installed at argv[1].
_SUCCEED = (
    "import sys; sys.path.insert(0, sys.argv[1]); from appswitch.switch import daemon; daemon.succeed(int(sys.argv[2]))"
)


class Keeper:
    """`supervise` is the supervisor, to be run in a process of its own. `kept` is what it begins with."""

    def __init__(self, supervise: Callable[[Kept, Line], None], kept: Kept) -> None:
        self._supervise, self._kept = supervise, kept
        self._ready: Callable[[], None] | None = None
        self._failure = "the switch ended before it was up: see its log"
        self._over = False
        self._deaths = Deaths()
        self._line: Line | None = None
        self._wake_r, self._wake_w = socket.socketpair()

    def begin(self, ready: Callable[[], None]) -> None:
        """Start the switch, and serve until it is down. SwitchError when it does not come up; `ready`: it has."""
        self._ready = ready
        self._serve()

    def go_on(self, line: Line) -> None:
        """Serve in a dead keeper's place, until the switch is down."""
        self._line = line
        self._serve()

    def _serve(self) -> None:
        set_process_name(NAME)
        gc.collect()
        gc.freeze()  # what is there now stays: a supervisor is to be forked without delay
        for sock in (self._wake_r, self._wake_w):
            sock.setblocking(False)
        signal.set_wakeup_fd(self._wake_w.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        while not self._over:
            if self._line is None:
                self._start()
            else:
                self._attend(self._line)

    def _start(self) -> None:
        """Start the supervisor, as soon as a process can be had."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        own = os.pidfd_open(os.getpid())
        body = partial(self._supervise, self._kept, Line(theirs, os.getpid(), own))
        try:
            with theirs:
                pid = fork("appswitch-sup", body, [*descriptors(self._kept), theirs.fileno(), own], self._let_go)
        except OSError as error:
            ours.close()
            log.error("the supervisor cannot be started: %s", error)
            time.sleep(AGAIN)
            return
        finally:
            os.close(own)
        self._line = Line(ours, pid, os.pidfd_open(pid))

    def _let_go(self) -> None:
        """In a forked process: make nothing here close a descriptor, for the numbers will be other files'."""
        self._wake_r.detach()
        self._wake_w.detach()

    def _attend(self, line: Line) -> None:
        """Wait for a word of the supervisor's, its end, or a signal."""
        poll = select.poll()
        for fd in (line.pidfd, line.sock.fileno(), self._wake_r.fileno()):
            poll.register(fd, select.POLLIN)
        while not self._over and self._line is not None:
            ready = {fd for fd, _ in poll.poll()}
            if self._wake_r.fileno() in ready:
                self._on_signal(line)
            if line.pidfd in ready:
                self._hear(line)  # what it said last
                self._bury(line)
            elif line.sock.fileno() in ready and not self._hear(line):
                # It says nothing any more: it is dying; should it not be, it is of no more use.
                poll.unregister(line.sock)
                kill(line.pidfd)

    def _on_signal(self, line: Line) -> None:
        """SIGTERM or SIGINT: take the switch down, even if the supervisor has just died."""
        self._kept["end"] = Item()
        try:
            self._wake_r.recv(64)
            signal.pidfd_send_signal(line.pidfd, signal.SIGTERM)
        except (BlockingIOError, ProcessLookupError):
            pass

    def _hear(self, line: Line) -> bool:
        """Do what it has said; False when it will say nothing more."""
        while not self._over:
            try:
                data, fds = wire.receive_with_fds(line.sock, socket.MSG_DONTWAIT, _FDS_MOST)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not data:
                return False
            self._obey(line, json.loads(data), fds)
        return True

    def _obey(self, line: Line, message: dict[str, Any], fds: list[int]) -> None:
        operation = message["op"]
        if operation == "put":
            self._close(message["key"])
            self._kept[message["key"]] = Item(message["document"], fds)
        elif operation == "drop":
            self._close(message["key"])
            if message["answer"]:
                tell(line, {"op": "dropped", "key": message["key"]})
        elif operation == "up":
            if self._ready is not None:
                self._ready()
            self._ready = None
        elif operation == "failed":
            self._failure = message["reason"]
        elif operation == "become":
            self._become(line, message["python"], message["path"])
        elif operation == "over":
            self._over = True

    def _become(self, line: Line, python: str, path: str) -> None:
        """Let the version of AppSwitch that is installed at `path` take this place, with all that is kept."""
        fds = [*descriptors(self._kept), line.sock.fileno(), line.pidfd]
        try:
            memory = os.memfd_create("appswitch-kept", 0)
            with open(memory, "w", encoding="ascii", closefd=False) as file:
                document = {key: [item.document, item.fds] for key, item in self._kept.items()}
                json.dump({"kept": document, "line": [line.sock.fileno(), line.pid, line.pidfd]}, file)
            for fd in fds:
                os.set_inheritable(fd, True)
            os.execv(python, [python, "-P", "-c", _SUCCEED, path, str(memory)])
        except OSError as error:
            log.error("%s cannot be executed: %s", python, error)
            tell(line, {"op": "refused", "reason": f"{python} cannot be executed: {error.strerror}"})
            for fd in fds:
                os.set_inheritable(fd, False)

    def _close(self, key: str) -> None:
        for fd in self._kept.pop(key, Item()).fds:
            os.close(fd)

    def _bury(self, line: Line) -> None:
        """The supervisor has ended: another is to take its place, unless it has never been up."""
        how = reap(line.pid)
        line.sock.close()
        os.close(line.pidfd)
        self._line = None
        if self._over:
            return
        if self._ready is not None:
            raise SwitchError(self._failure)
        if "way" in self._kept:
            return
        log.error("the supervisor %s; it is started again", how)
        self._deaths.note()
        time.sleep(self._deaths.pause())


def inherited(memory: int) -> tuple[Kept, Line]:
    """What a keeper of another version left in this file, whose process this is now."""
    with open(memory, "r+", encoding="ascii") as file:
        file.seek(0)
        found = json.load(file)
    kept = {key: Item(document, fds) for key, (document, fds) in found["kept"].items()}
    sock, pid, pidfd = found["line"]
    for fd in [*descriptors(kept), sock, pidfd]:
        os.set_inheritable(fd, False)
    return kept, Line(socket.socket(fileno=sock), pid, pidfd)


def tell(line: Line, message: dict[str, Any], fds: list[int] | None = None) -> bool:
    """Whether it was sent; the other side need not live for it, if somebody will have its descriptors."""
    try:
        text = json.dumps(message, separators=(",", ":"), ensure_ascii=False)
        wire.send_with_fds(line.sock, text.encode(errors="surrogatepass"), fds or [])
    except OSError:
        return False
    return True
