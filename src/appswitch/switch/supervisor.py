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
from typing import NoReturn

from .. import __version__
from ..model.identity import DOMAIN
from ..relay import relay
from ..relay.resolver_file import ResolverFile
from ..table import store
from ..table.counters import Counters
from ..table.store import Table
from ..trap import loop as trap_loop
from ..trap.options import WorkerSettings
from . import clustering, control, descriptors, paths, queries, vigil, wire
from .asking import Asking
from .children import Child, PidRing, receive_last
from .clustering import Clustering
from .control import Client, Control
from .directory import TableDirectory
from .fences import Fences
from .forks import Forks
from .keeping import Keeping
from .kept import FORMAT, Kept, Line, below
from .loop import Loop
from .paths import SwitchError
from .processes import kill
from .programs import Programs
from .registry import LISTENERS_EACH, Registry
from .settings import Settings
from .staff import Staff
from .view import View
from .watchdog import Watchdog

log = logging.getLogger("appswitch.supervisor")

#: Seconds until a child that does not go by itself is killed.
FAREWELL = 3.0
#: The same for children of a supervisor that died: calls wait for their successors.
_FAREWELL_OF_ORPHANS = 0.3
#: Seconds until one that was killed is waited for no longer: what it waits for itself cannot be interrupted.
_KILLED = 1.0


class Supervisor:
    """`kept`: what the keeper at the other end of `line` gave it, the switch of a supervisor that died or not much
    more than the lock. `keep` is the keeper's work, in a process of its own.
    """

    def __init__(self, settings: Settings, kept: Kept, line: Line, keep: Callable[[Kept, Line], None]) -> None:
        self._settings = settings
        self._run_dir = settings.run_dir
        self._lock = kept["lock"].fds[0]
        self._uid = os.geteuid()
        self._started: float = kept["staff"].document["started"] if "staff" in kept else time.monotonic()
        self._registry = Registry(settings.network, settings.shared, settings.per_user)
        self._loop = Loop()
        self._forks = Forks(self._loop, self._let_go)
        self._keeping = Keeping(self._loop, kept, line, keep, self._forks, self._succeeded)
        self._staff = Staff(
            self._loop, self._greet, self._heard, self._ended, self._forks, self._keeping, self._started
        )
        self._stopping = False
        self._kill_at: float | None = None
        self._farewell: list[Client] = []
        #: Who waits for another version's taking over; whether it has begun to.
        self._upgrading: Client | None = None
        self._making_way = False
        self._lost = False
        self._relay = Child("relay", "appswitch-relay", self._be_relay)
        self._workers = [self._new_worker(index) for index in range(settings.workers)]
        self._clustering = Clustering(
            settings.run_dir,
            settings.memory or f"{settings.run_dir}.cluster",
            # It says farewell to the cluster at a SIGTERM, but it is to stay a member.
            Child("router", "appswitch-rtr", self._be_router, orphaned=signal.SIGKILL),
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
            self._end_if_lost,
        )
        self._fences = Fences(self._workers, self._add_worker, self._registry, self._programs, self._staff)
        self._programs.worker_for, self._programs.ended = self._fences.worker_for, self._fences.left
        self._watchdog = Watchdog(self._loop, self._staff, self._pending_of, self._fences.held_up)
        self._wake_r, self._wake_w = socket.socketpair()
        for sock in (self._wake_r, self._wake_w):
            sock.setblocking(False)
        self._control = Control(self._loop, self._handle, self._programs.late, self._programs.gone)
        self._programs.control = self._control
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
        self._await_orphans()
        for child in (*filter(self._fences.wanted, self._workers), self._relay):
            self._staff.start(child)
        self._clustering.resume()
        self._programs.enter_all()
        self._control.open(socket.socket(fileno=kept["control"].fds[0]))
        log.info("the switch goes on: version %s, %d programs", __version__, len(self._registry.entries))

    def finish(self) -> None:
        """Take the switch down in place of a supervisor that died over it."""
        self._await_orphans()
        self._remove()

    def _remove(self) -> None:
        log.info("the switch is down")
        paths.remove(self._run_dir, self._lock)
        self._keeping.say("over")

    def _await_orphans(self) -> None:
        """Have the children of the supervisor before this one end, and hear what they said last."""
        kept = self._keeping.kept
        orphans = below(kept, "child/")
        poll = select.poll()
        for item in orphans.values():
            poll.register(item.fds[0], select.POLLIN)
        until, killed = time.monotonic() + _FAREWELL_OF_ORPHANS, False
        waiting = {item.fds[0] for item in orphans.values()}
        while waiting:
            for fd, _ in poll.poll(max(0.0, until - time.monotonic()) * 1000):
                poll.unregister(fd)
                waiting.discard(fd)
            if until <= time.monotonic():
                if killed:
                    break
                until, killed = until + _KILLED, True
                for item in orphans.values():
                    kill(item.fds[0])
        by_role = {child.role: child for child in self._workers}
        for role, item in orphans.items():
            pidfd, *line = item.fds
            if line:
                with socket.socket(fileno=line[0]) as sock:
                    if role in by_role and pidfd not in waiting:
                        for message, fds in receive_last(sock, role):
                            self._programs.heard(by_role[role], message, fds)
            self._keeping.drop(f"child/{role}")
            os.close(pidfd)

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
            trap_loop.reserve_files(self._worker_settings(index))
        self._write_resolv_conf()
        self._staff.pids = PidRing(self._run_dir.pids)

    def _join_first(self) -> None:
        """Become a member of a cluster before anybody can reach the switch. SwitchError when that fails."""
        wanted = self._settings.cluster
        if wanted is None:
            return
        self._clustering.begin(wanted, must_join=self._settings.must_join)
        while self._clustering.pending and not self._stopping:
            self._turn()
        failure = self._clustering.failure
        if failure is not None or self._stopping:
            self._stop("the cluster did not take it")
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
        self._loop.watch(vigil_fd, select.EPOLLIN, partial(self._on_removal, vigil_fd))

    def _write_resolv_conf(self) -> None:
        ResolverFile(self._run_dir.path, DOMAIN, str(self._settings.network)).follow()

    def fail(self, reason: str) -> None:
        """It cannot come up: have whoever started it told why."""
        self._keeping.say("failed", reason=reason)

    def run(self) -> None:
        """Serve until told to end; everything of the run directory is gone then."""
        self._keeping.say("up")
        while not (self._stopping and not self._staff.alive()):
            self._turn()
        if self._making_way:
            return
        self._remove()

    def _turn(self) -> None:
        self._loop.guard(self._do_what_is_due)
        self._loop.turn(self._timeout())

    def _on_removal(self, fd: int, _: int) -> None:
        if not self._lost and not self._stopping and vigil.lost(fd, self._run_dir):
            log.error("%s was removed: the switch ends with its last program", self._run_dir.control)
            self._lost = True
            self._end_if_lost()

    def _end_if_lost(self) -> bool:
        """Whether the run directory is lost; the switch ends then with its last program."""
        if self._lost and not self._registry.entries:
            self._stop("nobody can reach it")
        return self._lost

    # what is due ---------------------------------------------------------------------------------

    def _do_what_is_due(self) -> None:
        now = time.monotonic()
        self._control.due(now)
        self._keeping.due(now)
        self._clustering.due(now)
        self._staff.due(now)
        if self._kill_at is not None and self._kill_at <= now:
            self._kill_at = None
            for child in self._staff.alive():
                if child.killed:
                    self._staff.replace(child)  # by nobody: it ends when the kernel lets it
                    continue
                log.error("%s does not end: killed", child.role)
                child.kill()
                self._kill_at = now + _KILLED

    def _timeout(self) -> float | None:
        """Seconds until something is due; None when nothing is."""
        moments = [*self._staff.moments(), *self._control.moments(), *self._keeping.moments()]
        moments += [moment for moment in (self._kill_at, self._clustering.deadline) if moment is not None]
        return max(0.0, min(moments) - time.monotonic()) if moments else None

    def _on_signal(self, _: int) -> None:
        try:
            self._wake_r.recv(64)
        except BlockingIOError:
            return
        self._stop("a signal")

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
            self._down(client, message)
        elif operation == "upgrade":
            self._upgrade(client, message)
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

    def _ended(self, child: Child) -> bool:
        """Whether it is to be started again."""
        self._watchdog.forget(child)
        if child in self._workers or child is self._relay:
            self._clustering.worker_ended(child)
        if self._stopping:
            return False
        if child in self._workers:
            return self._fences.wanted(child)
        return child is not self._clustering.router or self._clustering.ended()

    def _new_worker(self, index: int) -> Child:
        return Child(f"worker-{index}", f"appswitch-wrk{index}", partial(self._be_worker, index))

    def _add_worker(self) -> None:
        """One more, of which the others must know: programs pass each other their sockets."""
        self._workers.append(self._new_worker(len(self._workers)))
        for child in self._workers:
            self._staff.tell(child, 0, {"op": "workers", "count": len(self._workers)})

    def _pending_of(self, child: Child) -> str:
        return self._worker_settings(self._workers.index(child)).pending

    def _let_go(self) -> None:
        """In a forked process: make nothing here close a descriptor, for the numbers will be other files'."""
        self._keeping.abandon()
        self._staff.abandon()
        self._clustering.abandon()
        self._control.abandon()
        for client in self._farewell:
            client.sock.detach()
        self._wake_r.detach()
        self._wake_w.detach()
        self._loop.abandon()

    def _be_worker(self, index: int, ours: socket.socket) -> NoReturn:
        trap_loop.run(ours, self._worker_settings(index))

    def _worker_settings(self, index: int) -> WorkerSettings:
        return WorkerSettings(
            self._run_dir.path,
            index,
            len(self._workers),
            virtual_range=str(self._settings.network),
            listeners_per_user=LISTENERS_EACH * self._settings.per_user,
        )

    def _be_relay(self, ours: socket.socket) -> NoReturn:
        relay.run(
            ours,
            self._open_table,
            domain=DOMAIN,
            virtual_range=str(self._settings.network),
            run_dir=self._run_dir.path,
            upstreams=list(self._settings.upstreams) or None,
            stats=Counters(f"{self._run_dir.stats}/relay"),
        )

    def _open_table(self) -> tuple[TableDirectory, Table]:
        table = Table(self._run_dir.table)  # one in a process
        return TableDirectory(table), table

    def _be_router(self, ours: socket.socket) -> NoReturn:
        os.umask(0o022)  # compiled modules that Python keeps beside the sources are for every user
        from . import router  # here, for asyncio and cryptography are nobody else's

        os.umask(0o077)
        router.run(ours, self._run_dir.path, Counters(f"{self._run_dir.stats}/router"))

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

    # another version ------------------------------------------------------------------------------

    def _upgrade(self, client: Client, message: wire.Message) -> None:
        """Have the version that asks replace this one. SwitchError."""
        self._check_owner(client, "upgrade it")
        python, path, formats = message.get("python"), message.get("path"), message.get("formats")
        if not isinstance(python, str) or not isinstance(path, str) or not isinstance(formats, list):
            raise SwitchError("the request is not as this switch knows it: use `appswitch` of the same version")
        if FORMAT not in formats:
            raise SwitchError(
                f"what runs under version {__version__} cannot be taken over by version {message.get('version')}: "
                "end the programs, then take the switch down and start it again"
            )
        if self._upgrading is not None:
            raise SwitchError("the switch is being upgraded already: try again in a moment")
        log.info("user %d has %s take over", client.uid, path)
        self._control.release(client)  # it may take longer than clients are given
        self._upgrading = client
        self._keeping.replace(python, path)

    def _succeeded(self, refusal: str | None) -> None:
        """Another version's keeper has begun: end with all others, and have it start them again. Or it has not."""
        client, self._upgrading = self._upgrading, None
        assert client is not None
        if refusal is not None or self._stopping:
            reason = f"the new version did not take over ({refusal or 'the switch is going down'})"
            self._control.reply(client, {"ok": False, "error": f"{reason}; the switch goes on as before"})
            client.sock.close()
            return
        self._control.reply(client, {"ok": True})
        self._farewell.append(client)
        self._stopping = self._making_way = True
        self._keeping.put("way", {})
        self._staff.orphan_all()
        self._kill_at = time.monotonic() + _FAREWELL_OF_ORPHANS

    # the end --------------------------------------------------------------------------------------

    def _down(self, client: Client, message: wire.Message) -> None:
        self._check_owner(client, "take it down")
        live = self._registry.attached()
        if live and message.get("force") is not True:
            names = list(dict.fromkeys(entry.identity.label for entry in live))
            which = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
            count = "1 program runs" if len(live) == 1 else f"{len(live)} programs run"
            raise SwitchError(
                f"{count} under this switch ({which}): end them first, or use --force, "
                "which leaves them running but without network"
            )
        self._control.reply(client, {"ok": True, "programs": len(live)})
        # The connection stays open until everything is gone: its end tells the client.
        self._control.release(client)
        self._farewell.append(client)
        self._stop(f"`appswitch down` of user {client.uid}")

    def _check_owner(self, client: Client, what: str) -> None:
        if client.uid not in (0, self._uid):
            raise SwitchError(
                f"the switch in {self._run_dir} is user {self._uid}'s: only that user and root can {what}"
            )

    def _stop(self, why: str) -> None:
        if self._stopping:
            return
        log.info("going down: %s", why)
        self._stopping = True
        self._keeping.put("end", {})
        self._control.close("the switch is going down: start it again with `appswitch up`")
        self._staff.dismiss_all()
        self._kill_at = time.monotonic() + FAREWELL
