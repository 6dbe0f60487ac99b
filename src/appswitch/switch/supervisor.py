"""The supervisor: owns the control socket, holds a duplicate of every program's descriptors, starts the others again.

One thread, one epoll loop, no timer while nothing is pending: an idle switch never wakes up. What might be slow
(queries) happens in processes of its own; a client that is slow waits by itself.

When it dies its children do. The keeper starts another supervisor, which starts them again from what was kept.
"""

from __future__ import annotations

import fcntl
import logging
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from functools import partial

from .. import __version__
from ..model.identity import DOMAIN
from ..relay.resolver_file import ResolverFile
from ..table import store
from ..table.counters import Counters
from ..trap import loop as trap_loop
from . import clustering, control, descriptors, paths, queries, vigil, wire
from .asking import Asking
from .children import Child, PidRing
from .clustering import Clustering
from .control import Client, Control
from .ending import Ending
from .fences import Fences
from .forks import Forks
from .keeping import Keeping
from .kept import Kept, Line
from .loop import Loop
from .orphans import await_orphans
from .paths import SwitchError
from .programs import Programs
from .registry import Registry
from .roles import Roles
from .settings import Settings
from .staff import Staff
from .view import View
from .watchdog import Watchdog

log = logging.getLogger("appswitch.supervisor")


class Supervisor:
    """`kept`: what the keeper at the other end of `line` gave it, the switch of a supervisor that died or not much
    more than the lock. `keep` is the keeper's work, in a process of its own.
    """

    def __init__(self, settings: Settings, kept: Kept, line: Line, keep: Callable[[Kept, Line], None]) -> None:
        self._settings = settings
        self._run_dir = settings.run_dir
        self._lock = kept["lock"].fds[0]
        self._started: float = kept["staff"].document["started"] if "staff" in kept else time.monotonic()
        self._registry = Registry(settings.network, settings.shared, settings.per_user)
        self._loop = Loop()
        self._forks = Forks(self._loop, self._let_go)
        self._keeping = Keeping(self._loop, kept, line, keep, self._forks, lambda why: self._ending.succeeded(why))
        self._staff = Staff(
            self._loop, self._greet, self._heard, self._ended, self._forks, self._keeping, self._started
        )
        self._ending = Ending(self._run_dir, self._registry, self._keeping, self._staff)
        self._roles = Roles(settings)
        self._relay, self._workers = self._roles.relay, self._roles.workers
        self._clustering = Clustering(
            settings.run_dir,
            settings.memory or f"{settings.run_dir}.cluster",
            self._roles.router,
            self._keeping,
            self._staff,
            self._workers,
            self._relay,
        )
        self._programs = Programs(
            settings.run_dir,
            self._registry,
            self._loop,
            self._forks,
            self._keeping,
            self._staff,
            self._relay,
            self._workers,
            lambda: self._clustering.on,
            self._ending.end_if_lost,
        )
        self._fences = Fences(self._workers, self._add_worker, self._registry, self._programs, self._staff)
        self._programs.worker_for, self._programs.ended = self._fences.worker_for, self._fences.left
        self._watchdog = Watchdog(self._loop, self._staff, self._pending_of, self._fences.held_up)
        self._wake_r, self._wake_w = socket.socketpair()
        for sock in (self._wake_r, self._wake_w):
            sock.setblocking(False)
        self._control = Control(self._loop, self._handle, self._programs.late, self._programs.gone)
        self._programs.control = self._ending.control = self._control
        self._asking = Asking(self._loop, self._control, self._view, self._forks)

    # the beginning --------------------------------------------------------------------------------

    def open(self) -> None:
        """Make everything, or take it over, and start the others. SwitchError when something cannot be had."""
        os.umask(0o077)
        os.chdir(self._run_dir.path)
        # As a program should find them, whatever the caller had ignored or blocked.
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.set_wakeup_fd(self._wake_w.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self._loop.watch(self._wake_r.fileno(), select.EPOLLIN, self._on_signal)
        if "control" in self._keeping.kept:
            self._resume()
        else:
            self._begin()
        self._guard_directory()

    def _begin(self) -> None:
        try:
            self._furnish()
        except OSError as error:
            raise SwitchError(
                f"cannot furnish the run directory {self._run_dir} ({error.strerror or error}): make room there, "
                "a few MiB, or choose another with --run-dir"
            ) from None
        for child in (self._relay, *self._workers):
            self._staff.start(child)
        self._join_first()
        listener = control.listen(self._run_dir.control, self._settings.socket_mode, self._settings.socket_gid)
        self._keeping.put("control", {}, [listener.fileno()])
        self._control.open(listener)
        log.info("the switch is up: %d workers, names in %s", len(self._workers), self._settings.network)

    def _resume(self) -> None:
        """Take over from a supervisor that died."""
        kept = self._keeping.kept
        self._sign()
        self._staff.pids = PidRing(self._run_dir.pids, kept["staff"].document["pids"])
        if "way" in kept:
            self._keeping.drop("way")
        else:
            self._keeping.count_restart()
        self._programs.resume()
        self._fences.resume()
        await_orphans(self._keeping, self._workers, self._programs.heard)
        for child in (*filter(self._fences.wanted, self._workers), self._relay):
            self._staff.start(child)
        self._clustering.resume()
        self._programs.enter_all()
        self._control.open(socket.socket(fileno=kept["control"].fds[0]))
        log.info("the switch goes on: version %s, %d programs", __version__, len(self._registry.entries))

    def finish(self) -> None:
        """Take the switch down in place of a supervisor that died over it."""
        await_orphans(self._keeping, self._workers, self._programs.heard)
        self._remove()

    def _remove(self) -> None:
        log.info("the switch is down")
        paths.remove(self._run_dir, self._lock)
        self._keeping.say("over")

    def _sign(self) -> None:
        """Write our number into the lock file, for people."""
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def _furnish(self) -> None:
        """Make what is in the run directory, with all the room that a switch must have to live on a full disk."""
        paths.furnish(self._run_dir)
        self._sign()
        store.make(self._run_dir.table)
        for role in ("relay", "router"):
            Counters(f"{self._run_dir.stats}/{role}")
        for index in range(len(self._workers)):
            trap_loop.reserve_files(self._roles.worker_settings(index))
        self._write_resolv_conf()
        self._staff.pids = PidRing(self._run_dir.pids)

    def _join_first(self) -> None:
        """Become a member of a cluster before anybody can reach the switch. SwitchError when that fails."""
        wanted = self._settings.cluster
        if wanted is None:
            return
        self._clustering.begin(wanted, must_join=self._settings.must_join)
        while self._clustering.pending and not self._ending.begun:
            self._turn()
        failure = self._clustering.failure
        if failure is not None or self._ending.begun:
            self._ending.begin("the cluster did not take it")
            while self._staff.alive():
                self._turn()
            raise SwitchError(failure or "the switch was told to end before it was up")

    def _guard_directory(self) -> None:
        """Keep cleaners of /tmp away (tmpfiles.d(5): they respect a lock), and notice others' removals."""
        try:
            fcntl.flock(os.open(self._run_dir.path, os.O_RDONLY | os.O_CLOEXEC), fcntl.LOCK_EX | fcntl.LOCK_NB)
            vigil_fd = vigil.watch(self._run_dir)
        except OSError as error:
            log.warning("the run directory cannot be watched: %s", error)
            return
        self._loop.watch(vigil_fd, select.EPOLLIN, partial(self._ending.on_removal, vigil_fd))

    def _write_resolv_conf(self) -> None:
        ResolverFile(self._run_dir.path, DOMAIN, str(self._settings.network)).follow()

    def fail(self, reason: str) -> None:
        """It cannot come up: have whoever started it told why."""
        self._keeping.say("failed", reason=reason)

    def run(self) -> None:
        """Serve until told to end; everything of the run directory is gone then."""
        self._keeping.say("up")
        while not (self._ending.begun and not self._staff.alive()):
            self._turn()
        if self._ending.making_way:
            return
        self._remove()

    def _turn(self) -> None:
        self._loop.guard(self._do_what_is_due)
        self._loop.turn(self._timeout())

    # what is due ---------------------------------------------------------------------------------

    def _do_what_is_due(self) -> None:
        now = time.monotonic()
        self._programs.beginnings.due(now)
        self._control.due(now)
        self._keeping.due(now)
        self._clustering.due(now)
        self._staff.due(now)
        self._ending.due(now)

    def _timeout(self) -> float | None:
        """Seconds until something is due; None when nothing is."""
        moments = [*self._staff.moments(), *self._control.moments(), *self._keeping.moments()]
        moments += [*self._programs.beginnings.moments(), *self._ending.moments()]
        if self._clustering.deadline is not None:
            moments.append(self._clustering.deadline)
        return max(0.0, min(moments) - time.monotonic()) if moments else None

    def _on_signal(self, _: int) -> None:
        try:
            self._wake_r.recv(64)
        except BlockingIOError:
            return
        self._ending.begin("a signal")

    # clients --------------------------------------------------------------------------------------

    def _handle(self, client: Client, message: wire.Message, fds: list[int]) -> None:
        operation = message.get("op")
        if operation == "attach":
            self._programs.attach(client, message, fds)
            return
        descriptors.close_all(fds)
        if operation == "register":
            self._programs.register(client, message)
        elif operation == "down":
            self._ending.down(client, message)
        elif operation == "upgrade":
            self._ending.upgrade(client, message)
        elif isinstance(operation, str) and operation in queries.OPERATIONS:
            self._asking.ask(client, message)
        elif isinstance(operation, str) and operation in clustering.OPERATIONS:
            self._clustering.handle(self._control, client, message)
        else:
            raise SwitchError("the switch does not know this request: use the `appswitch` that started it")

    # children -------------------------------------------------------------------------------------

    def _greet(self, child: Child) -> None:
        """A child has been started: tell it what is its concern."""
        if child is self._relay:
            self._clustering.greet_worker(child)
            self._programs.greet_relay()
        elif child is self._clustering.router:
            self._clustering.introduce()
        else:
            self._clustering.greet_worker(child)
            self._programs.greet_worker(child)

    def _heard(self, child: Child, message: wire.Message, fds: list[int]) -> None:
        if child in self._workers:
            if message.get("op") == "alarm" and len(fds) == 1 and self._fences.shared(child):
                self._watchdog.watch(child, *fds)
                return
            if message.get("op") == "node":
                self._clustering.worker_heard(child)
            self._programs.heard(child, message, fds)
            return
        self._loop.close(fds)
        if child is self._clustering.router:
            self._clustering.heard(message)
        elif message.get("op") == "node":
            self._clustering.worker_heard(child)
        elif message.get("op") == "attached":
            self._programs.beginnings.taken(message.get("number"), "relay")

    def _ended(self, child: Child) -> bool:
        """Whether it is to be started again."""
        self._watchdog.forget(child)
        if child in self._workers or child is self._relay:
            self._clustering.worker_ended(child)
        if self._ending.begun:
            return False
        if child in self._workers:
            return self._fences.wanted(child)
        return child is not self._clustering.router or self._clustering.ended()

    def _add_worker(self) -> None:
        """One more, of which the others must know: programs pass each other their sockets."""
        self._roles.add_worker()
        for child in self._workers:
            self._staff.tell(child, 0, {"op": "workers", "count": len(self._workers)})

    def _pending_of(self, child: Child) -> str:
        return self._roles.worker_settings(self._workers.index(child)).pending

    def _let_go(self) -> None:
        """In a forked process: make nothing here close a descriptor, for the numbers will be other files'."""
        self._keeping.abandon()
        self._staff.abandon()
        self._clustering.abandon()
        self._control.abandon()
        self._ending.abandon()
        self._wake_r.detach()
        self._wake_w.detach()
        self._loop.abandon()

    def _view(self) -> View:
        others = [(child.role, child.pid) for child in self._staff.alive()]
        if self._keeping.pid:
            others.append(("keeper", self._keeping.pid))
        return View(
            self._run_dir,
            self._started,
            [("supervisor", os.getpid()), *others],
            self._keeping.restarts,
            len(self._workers),
            self._registry.attached(),
            self._clustering.summary(),
            self._settings.network,
            self._settings.missing,
        )
