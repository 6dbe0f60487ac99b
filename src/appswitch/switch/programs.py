"""The programs under a switch: from the request for an identity until the last process has ended."""

from __future__ import annotations

import logging
import os
import select
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

from ..model.address import unpack
from ..model.identity import Refusal, resolver_address
from ..table.store import Table
from . import descriptors, exposing, wire
from .beginnings import Beginnings
from .children import Child
from .control import Client, Control
from .forks import Forks
from .keeping import Keeping
from .kept import below
from .loop import Loop
from .paths import RunDir, SwitchError
from .registry import Entry, Registry, Request, check_request
from .staff import Staff

log = logging.getLogger("appswitch.supervisor")

#: Which of a program's sock_diag sockets is the relay's: each has one reader.
_DIAG_OF_RELAY = 2


class Programs:
    """`clustered` tells whether other hosts' claims count. `left` is called when a program has ended or a claim was
    given up, and says whether the run directory is lost.
    """

    def __init__(
        self,
        run_dir: RunDir,
        registry: Registry,
        loop: Loop,
        forks: Forks,
        keeping: Keeping,
        staff: Staff,
        relay: Child,
        workers: list[Child],
        clustered: Callable[[], bool],
        left: Callable[[], bool],
    ) -> None:
        self._run_dir, self._registry, self._loop = run_dir, registry, loop
        self._forks, self._keeping, self._staff = forks, keeping, staff
        self._relay, self._workers = relay, workers
        self._shared = len(workers)
        self._clustered, self._left = clustered, left
        self._uid = os.geteuid()
        self._nameserver = resolver_address(registry.network)
        self.beginnings = Beginnings(relay, self._begin)
        #: Programs that have ended and whose rows are to be removed.
        self._unstruck: list[Entry] = []
        # What each worker wants kept for the one after it: the program's number and descriptors by its own keys.
        self._kept: defaultdict[int, dict[str, tuple[int, list[int]]]] = defaultdict(dict)
        self.control: Control
        #: Where a user's programs must be served, and who is told of a program's end (fences.py).
        self.worker_for: Callable[[int], int | None]
        self.ended: Callable[[Entry], None]

    def resume(self) -> None:
        """Take over those of a supervisor that died."""
        self._registry.resume(self._keeping.kept)
        for key, item in below(self._keeping.kept, "worker/").items():
            index, _, name = key.partition("/")
            self._kept[int(index)][name] = (item.document["number"], item.fds)
        for entry in self._registry.entries.values():
            self._loop.watch(entry.fds["listener"][0], 0, partial(self._on_listener, entry))

    def enter_all(self) -> None:
        """Make the table tell of these programs, and no others: it may have been left in the middle of a change."""
        entries = self._registry.entries
        table = Table(self._run_dir.table)
        try:
            for number in table.programs().keys() - entries.keys():
                table.delete_program(number)
            for entry in entries.values():
                table.put_program(entry.number, entry.record())
            for vip in {*table.claims_of_host(""), *(entry.identity.vip for entry in entries.values())}:
                table.set_claims(vip, self._registry.claims(vip))
        finally:
            table.close()

    # clients ------------------------------------------------------------------------------------------

    def register(self, client: Client, message: wire.Message) -> None:
        if client.entry is not None:
            raise SwitchError("this connection has an identity already: use `appswitch run` of the same version")
        try:
            request = check_request(message)
            uid = self._user(request, client)
            entry = self._claim(request, uid, client.pid)
            self._take_ports(entry, client.uid)
        except Refusal as refusal:
            raise SwitchError(str(refusal)) from None
        client.entry = entry
        self._keeping.put("numbers", {"next": entry.number + 1})
        self.control.renew(client)
        sent = self.control.reply(
            client,
            {
                "ok": True,
                "id": entry.number,
                "vip": unpack(entry.identity.vip),
                "addresses": [unpack(entry.identity.vip)],
                "nameserver": self._nameserver,
                "resolv_conf": self._run_dir.resolv_conf,
                "label": entry.identity.label,
            },
        )
        if not sent:
            self.control.drop(client)

    def _user(self, request: Request, client: Client) -> int:
        """Whose the program is. SwitchError when its client may not say so, or this switch not serve that user."""
        if request.user is not None and client.uid != 0:
            raise SwitchError("only root can run a program as another user: leave --user out")
        uid = client.uid if request.user is None else request.user
        if self._uid not in (0, uid):
            raise SwitchError(
                f"the switch in {self._run_dir} runs as user {self._uid}, who may not serve a program of user "
                f"{uid}: run the program as that user, or under a switch of root's or your own"
            )
        return uid

    def _claim(self, request: Request, uid: int, pid: int) -> Entry:
        """An identity, in view of those on all hosts if this one is in a cluster. Refusal."""
        if not self._clustered():
            return self._registry.claim(request, uid=uid, pid=pid)
        table = Table(self._run_dir.table, readonly=True)
        try:
            return self._registry.claim(request, uid=uid, pid=pid, hosts=table)
        finally:
            table.close()

    def _take_ports(self, entry: Entry, uid: int) -> None:
        """Those of this host that it publishes; Refusal, and it has no identity, when one cannot be had."""
        try:
            for other in exposing.rivals(entry, self._registry.entries.values()):
                if exposing.has_ended(other):
                    self._end_program(other)  # before the kernel's word has come
            exposing.take(entry, self._registry.entries.values(), uid)
        except Refusal:
            self._registry.release(entry.number)
            raise

    def attach(self, client: Client, message: wire.Message, fds: list[int]) -> None:
        """A registered program has become one: hand its descriptors on, and say so when its worker has taken it."""
        entry = client.entry
        if entry is None or entry.attached:
            descriptors.close_all(fds)
            raise SwitchError("there is no identity to attach to: use `appswitch run` of the same version")
        try:
            entry.device = descriptors.device_kind(message)
            entry.fds |= descriptors.sort(message, fds)
        except SwitchError:
            descriptors.close_all(fds)
            raise
        entry.since = time.time()
        fenced = self.worker_for(entry.identity.uid)
        if fenced is None:
            entry.worker = self._idlest_worker()
        else:
            entry.worker, entry.fenced = fenced, "its user's programs have held workers up"
        entry.attached = client.busy = True
        listener = entry.fds["listener"][0]
        self._keep(entry)
        try:
            table = Table(self._run_dir.table)
            try:
                table.put_program(entry.number, entry.record())
                table.set_claims(entry.identity.vip, self._registry.claims(entry.identity.vip))
            finally:
                table.close()
            # Without events: what is left is EPOLLHUP, when the last process under the filter has ended.
            self._loop.watch(listener, 0, partial(self._on_listener, entry))
        except OSError as error:
            log.error("program %d could not be entered: %s", entry.number, error)
            self._end_program(entry)
            raise SwitchError(
                f"the switch cannot write the program down ({error.strerror or error}): make room in {self._run_dir}, "
                "then try again"
            ) from None
        except Exception as error:
            log.exception("program %d could not be entered", entry.number)
            self._end_program(entry)
            raise SwitchError(f"the switch cannot take the program in ({error}): see {self._run_dir.log}") from None
        shared = len(self._registry.sharing(entry.identity.vip)) > 1
        self.beginnings.wait(entry.number, client, shared=shared)
        self._introduce_to_relay(entry)
        self._introduce_to_worker(entry, again=False)
        log.debug("program %d of user %d is %s", entry.number, entry.identity.uid, entry.identity.label)

    def _begin(self, client: Client) -> None:
        self.control.reply(client, {"ok": True})
        self.control.drop(client)

    def late(self, client: Client) -> None:
        entry = client.entry
        if entry is not None and entry.attached:
            log.error("worker-%d did not take over program %d in time", entry.worker, entry.number)
            reason = f"the switch's worker does not answer: see {self._run_dir.log}"
            self.control.reply(client, {"ok": False, "error": reason})

    def gone(self, client: Client) -> None:
        """An identity that no program got is free again."""
        if client.entry is not None:
            self.beginnings.forget(client.entry.number)
            if not client.entry.attached:
                self._registry.release(client.entry.number)
                self._loop.close(exposing.release(client.entry, self._registry.entries.values()))
                self._left()

    # their lives --------------------------------------------------------------------------------------

    def _idlest_worker(self) -> int:
        loads = Counter(entry.worker for entry in self._registry.attached())
        return min(range(self._shared), key=lambda i: (not self._workers[i].alive, loads[i], i))

    def _introduce_to_relay(self, entry: Entry) -> None:
        diags = entry.fds["diags"][_DIAG_OF_RELAY:]  # none of a program that an older version started
        route = entry.fds.get("route", [])  # likewise
        message = {
            "op": "attach",
            "id": str(entry.number),
            "kind": entry.device,
            "vips": [unpack(entry.identity.vip)],
            "name": entry.identity.label,
            "expected": {wanted.name: unpack(wanted.vip) for wanted in entry.options.wait_for},
            "identity": _who(entry),
            "egress": entry.options.egress,
            "balance": entry.options.balance,
            "since": entry.since,
            "diag": bool(diags),
            "route": bool(route),
            "answer": self.beginnings.awaits_relay(entry.number),
        }
        fds = [*entry.fds["device"], *entry.fds["dns"], *diags, *route]
        self._staff.tell(self._relay, entry.number, message, fds)

    def _introduce_to_worker(self, entry: Entry, *, again: bool) -> None:
        message: dict[str, Any] = {
            "op": "attach",
            "number": entry.number,
            "identity": _who(entry),
            "options": entry.options.message(),
            "ports": [list(place) for place in entry.places],
            "traced": bool(entry.fds["trace"]),
        }
        if again:
            message["again"] = True
        ports = entry.fds.get("ports", [])
        fds = [*entry.fds["listener"], entry.fds["diags"][0], *entry.fds["trace"], *ports, *entry.fds["acceptors"]]
        self._staff.tell(self._workers[entry.worker], entry.number, message, fds)

    def _on_listener(self, entry: Entry, events: int) -> None:
        if events & (select.EPOLLHUP | select.EPOLLERR):
            self._end_program(entry)

    def _end_program(self, entry: Entry) -> None:
        """Its last process has ended: nothing of it stays."""
        self._registry.release(entry.number)
        self._loop.close(exposing.release(entry, self._registry.entries.values()))
        for child in (self._relay, *self._workers):
            child.forget_program(entry.number)
        self._staff.tell(self._relay, entry.number, {"op": "detach", "id": str(entry.number)})
        kept = self._kept[entry.worker]
        for key in [key for key, (number, _) in kept.items() if number == entry.number]:
            self._keeping.drop(f"worker/{entry.worker}/{key}")
            self._loop.close(kept.pop(key)[1])
        self.ended(entry)
        if (client := self.beginnings.forget(entry.number)) is not None:
            self.control.drop(client)
        log.debug("program %d (%s) has ended", entry.number, entry.identity.label)
        self._unstruck.append(entry)
        try:
            if not self._left():
                self._strike_out()
        finally:
            self._keeping.drop(f"program/{entry.number}")
            self._loop.close(fd for fds in entry.fds.values() for fd in fds)
            entry.fds = {}

    def _strike_out(self) -> None:
        """Nothing of programs that have ended stays in the table; a full disk keeps it until the next one ends."""
        ended, self._unstruck = self._unstruck, []
        table = Table(self._run_dir.table)
        try:
            for entry in ended:
                try:
                    self._remove_sockets(entry)
                    table.delete_program(entry.number)
                    table.set_claims(entry.identity.vip, self._registry.claims(entry.identity.vip))
                except OSError as error:
                    log.error("the rows of program %d, which has ended, stay for a while: %s", entry.number, error)
                    self._unstruck.append(entry)
        finally:
            table.close()

    def _remove_sockets(self, entry: Entry) -> None:
        """The files of its listeners, which no worker may live to remove."""
        for name in os.listdir(f"{self._run_dir}/l"):
            if int(name, 16) >> 24 == entry.number:  # l/INSTANCE (trap/worker.py, new_instance)
                try:
                    os.unlink(f"{self._run_dir}/l/{name}")
                except FileNotFoundError:
                    pass  # its worker was faster

    # workers and the relay ----------------------------------------------------------------------------

    def greet_relay(self) -> None:
        """It has been started: tell it of all programs."""
        for entry in self._registry.attached():
            self._introduce_to_relay(entry)

    def greet_worker(self, child: Child) -> None:
        """It has been started: tell it of its programs, and give it what the one before had kept."""
        index = self._workers.index(child)
        for key, (number, fds) in self._kept[index].items():
            self._staff.tell(child, number, {"op": "kept", "key": key, "number": number}, fds)
        for entry in self._registry.programs_of(index):
            self._introduce_to_worker(entry, again=True)

    def move(self, entry: Entry, worker: int) -> None:
        """Have a program served by another worker, which is still to be told."""
        kept = self._kept[entry.worker]
        for key in [key for key, (number, _) in kept.items() if number == entry.number]:
            self._kept[worker][key] = number, fds = kept.pop(key)
            self._keeping.drop(f"worker/{entry.worker}/{key}")
            self._keeping.put(f"worker/{worker}/{key}", {"number": number}, fds)
        entry.worker = worker
        self._keep(entry)

    def _keep(self, entry: Entry) -> None:
        """For the supervisor after this one."""
        fds = [fd for fds in entry.fds.values() for fd in fds]
        self._keeping.put(f"program/{entry.number}", entry.document(), fds)

    def introduce_again(self, entry: Entry) -> None:
        """Tell its worker of a program that another served before."""
        child = self._workers[entry.worker]
        for key, (number, fds) in self._kept[entry.worker].items():
            if number == entry.number:
                self._staff.tell(child, number, {"op": "kept", "key": key, "number": number}, fds)
        self._introduce_to_worker(entry, again=True)

    def heard(self, child: Child, message: wire.Message, fds: list[int]) -> None:
        """A worker has said something."""
        operation, number, key = message.get("op"), message.get("number"), message.get("key")
        entry = self._registry.entries.get(number) if isinstance(number, int) else None
        index = self._workers.index(child) if entry is None else entry.worker
        kept = self._kept[index]
        if operation == "attached":
            self.beginnings.taken(number, "worker")
        elif operation == "keep" and entry is not None and isinstance(key, str):
            former = kept.pop(key, None)
            kept[key] = (entry.number, fds)
            self._keeping.put(f"worker/{index}/{key}", {"number": entry.number}, fds)
            self._loop.close(former[1] if former is not None else [])
            return
        elif operation == "forget" and isinstance(key, str) and child.control is not None:
            # If it has died already: its successor will find this left over, and wait for its end.
            self._keeping.drop(f"worker/{index}/{key}", partial(self._forgotten, child, index, key))
        self._loop.close(fds)

    def _forgotten(self, child: Child, index: int, key: str) -> None:
        """The keeper has closed its copies: with ours the last ones go."""
        _, fds = self._kept[index].pop(key, (0, []))
        for fd in fds:
            os.close(fd)  # now; nobody watches it
        self._forks.when_closed(lambda: self._staff.tell(child, 0, {"op": "forgotten", "key": key}))


def _who(entry: Entry) -> dict[str, Any]:
    """Its identity, as the relay and the workers are told it."""
    who = entry.identity
    return {
        "name": who.name,
        "vip": who.vip.hex(),
        "tags": [list(pair) for pair in who.tags],
        "uid": who.uid,
        "named": who.named,
    }
