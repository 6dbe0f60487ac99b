"""A trap worker's process: one thread, one loop, nothing but traps (design, section 2).

It receives the trapped calls of its programs and has them answered by the handlers in `calls`. What must wait is
parked and resumed by an event.
"""

from __future__ import annotations

import errno
import gc
import logging
import os
import select
import signal
import socket
import time
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

from ..linux import procfs, ptrace, seccomp, signalfd
from ..linux.arch import NUMBERS
from ..linux.seccomp import Call
from ..linux.storage import reserve
from ..model.exposure import Place
from ..model.identity import Identity
from ..table.counters import Counters
from . import parked, sockets
from .arrivals import Arrivals
from .calls import HANDLERS, accept
from .ingress import Ingress
from .options import Node, ProgramOptions, WorkerSettings
from .program import Program
from .supervision import Supervisor
from .tracing.program import TracedProgram
from .tracing.sink import Sink
from .worker import Worker

log = logging.getLogger("appswitch.worker")

#: Seconds that threads have to leave their calls, and between two looks at those that do not.
_RESTARTING, _LET_GO_EVERY = 0.05, 0.2
_BY_NUMBER = {NUMBERS[name]: handler for name, handler in HANDLERS.items() if name in NUMBERS}


def _unknown(_: Worker, program: Program, call: Call) -> None:
    program.fail(call, errno.ENOSYS)


class Loop:
    """The worker's programs come and go by messages of the supervisor's; their calls by their listeners."""

    def __init__(self, control: socket.socket, settings: WorkerSettings) -> None:
        self._supervisor = Supervisor(control)
        self._ingress = Ingress()
        self._worker = Worker(
            self._supervisor, settings, accept.resume, Arrivals().admit, self._ingress.changed, accept.announced_late
        )
        self._events = self._worker.events
        self._by_fd: dict[int, Program] = {}
        self._kept: dict[int, dict[str, list[int]]] = {}
        self._events.watch(control.fileno(), self._on_message)
        self._supervisor.tell({"op": "alarm"}, [self._events.alarm])

    def end_at(self, fd: int) -> None:
        """Exit as soon as this descriptor is readable."""
        self._events.watch(fd, lambda _: os._exit(0))

    def run(self) -> NoReturn:
        wait = self._events.wait
        by_fd = self._by_fd
        while True:
            for fd, events in wait():
                program = by_fd.get(fd)
                if program is None:
                    continue  # it had a callback
                if events & select.EPOLLIN:
                    self._trap(program)
                elif events & select.EPOLLHUP:
                    self._events.guard(self._detach, program)
                # else POLLOUT alone: a call of a predecessor that died; it comes again by itself

    def _trap(self, program: Program) -> None:
        try:
            call = seccomp.receive(program.listener)
        except OSError:
            return
        if call is None:
            return
        worker = self._worker
        worker.pending.begin(call.tid, program.number)
        worker.counters.add("traps")
        worker.listeners.sweep_soon()
        handler = _BY_NUMBER.get(call.nr)
        if handler is not None:
            worker.handle(handler, program, call)
        else:
            program.fail(call, errno.ENOSYS)  # the filter is not ours: somebody else's client of the control socket
        worker.pending.end()

    # programs come and go ---------------------------------------------------------------------------

    def _on_message(self, _: int) -> None:
        received = self._supervisor.receive()
        if received is None:
            os._exit(0)
        message, fds = received
        if message["op"] == "kept":
            self._kept.setdefault(message["number"], {})[message["key"]] = fds
        elif message["op"] == "attach":
            self._attach(message, fds)
        elif message["op"] == "workers":
            self._worker.know_others(message["count"])
        elif message["op"] == "node":
            self._join(Node.of(message))
            self._supervisor.tell({"op": "node"})
        elif message["op"] == "forgotten":
            self._worker.listeners.natives.forgotten(message["key"])

    def _join(self, node: Node) -> None:
        """This host's place in its cluster, at the worker's start and whenever it changes."""
        hosts = self._worker.hosts
        before = hosts.node
        hosts.join(node)
        if replace(node, keys=()) != replace(before, keys=()):
            self._worker.listeners.reopen()

    def _attach(self, message: dict[str, Any], fds: list[int]) -> None:
        who = message["identity"]
        identity = Identity(
            who["name"],
            bytes.fromhex(who["vip"]),
            tuple((key, value) for key, value in who["tags"]),
            who["uid"],
            who["named"],
        )
        places = [Place(*place) for place in message["ports"]]
        if len(fds) < 3 + len(places) + bool(message["traced"]):  # for the rest there is no room: recvmsg(2)
            self._worker.is_short(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
            for fd in fds:
                os.close(fd)
            return
        listener, diag, *rest = fds
        trace = rest.pop(0) if message["traced"] else -1
        ports, acceptors = rest[: len(places)], rest[len(places) :]
        what = message["number"], identity, ProgramOptions.of(message["options"]), listener, diag, acceptors
        program = Program(*what) if trace < 0 else self._traced(what, trace)
        seccomp.prefer_sync_wake_up(listener)
        self._worker.programs[program.number] = program
        if not isinstance(program, TracedProgram):
            self._by_fd[listener] = program
        if message.get("again"):
            self._recover(program)
        self._ingress.publish(self._worker, program, places, ports)
        if isinstance(program, TracedProgram):
            program.handle = self._events.watch(listener, partial(self._on_traced, program))
        else:
            self._events.add_listener(listener)
        self._supervisor.tell({"op": "attached", "number": program.number})

    def _recover(self, program: Program) -> None:
        """After a predecessor's death: its listeners from the table, and its unanswered calls made again."""
        kept = self._kept.pop(program.number, {})
        self._worker.listeners.recover(program, kept)
        self._make_again(self._worker.pending.left_over())
        if seccomp.any_received(program.listener):
            # one that could not even be listed any more
            self._make_again(program.threads())

    def _make_again(self, tids: list[int]) -> None:
        """Have threads make their trapped calls again; one may have been answered, and be at something else."""
        left = [tid for tid in tids if procfs.system_call(tid) in _BY_NUMBER and ptrace.interrupt(tid)]
        until = time.monotonic() + _RESTARTING
        while (left := [tid for tid in left if not ptrace.let_go(tid)]) and time.monotonic() < until:
            time.sleep(0.001)
        self._let_go(left)

    def _let_go(self, left: list[int]) -> None:
        """These threads are natively in a call, and wait there for memory of their program's own making."""
        left = [tid for tid in left if not ptrace.let_go(tid)]
        if left:
            self._events.after(time.monotonic() + _LET_GO_EVERY, lambda: self._let_go(left))

    def _traced(self, what: Any, trace: int) -> Program:
        """One whose calls are shown; like any other when that cannot be."""
        try:
            return TracedProgram(*what, worker=self._worker, sink=Sink(trace))
        except OSError as error:
            log.error("program %d cannot be traced: %s", what[0], error)
            return Program(*what)

    def _on_traced(self, program: TracedProgram, events: int) -> None:
        """What `run` and `_trap` do for others, who are not to wait for the question whether they are traced."""
        if events & select.EPOLLIN:
            try:
                call = seccomp.receive(program.listener)
            except OSError:
                return
            if call is not None:
                self._worker.pending.begin(call.tid, program.number)
                self._worker.counters.add("traps")
                self._worker.listeners.sweep_soon()
                program.begin(call)
                self._worker.handle(_BY_NUMBER.get(call.nr, _unknown), program, call)
                self._worker.pending.end()
        elif events & select.EPOLLHUP:
            self._detach(program)

    def _detach(self, program: Program) -> None:
        """The program's last process has ended."""
        self._events.remove_listener(program.listener)
        self._by_fd.pop(program.listener, None)
        if isinstance(program, TracedProgram):
            self._events.forget(program.handle)
        self._worker.forget_program(program)
        self._ingress.forget(self._worker, program)
        program.close()


def reserve_files(settings: WorkerSettings) -> None:
    """Make the files that a worker maps, with room on disk, before there is one. OSError."""
    Counters(settings.counters)
    reserve(settings.pending, parked.RESERVED)
    reserve(settings.ends, sockets.RESERVED)


def run(control: socket.socket, settings: WorkerSettings) -> NoReturn:
    """Serve traps until the supervisor closes `control`, or SIGTERM."""
    # Never in the middle of a trap: what handed a socket over would be interrupted (docs/transparency.md).
    terminated = signalfd.block_all(signal.SIGTERM)
    loop = Loop(control, settings)
    loop.end_at(terminated)
    # Nothing on the way of a trap makes reference cycles: look for them seldom, and never among what is there now.
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)
    loop.run()
