"""The supervisor's part in a cluster: whether this switch is a member, its router, and what others are told of it."""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any

from ..cluster import keys
from ..cluster.ring import KeyRefused, Ring, parse
from ..table.store import Table
from ..trap.options import Node
from . import membership, wire
from .children import Child
from .control import Client, Control
from .keeping import Keeping
from .membership import Membership, Wish
from .paths import RunDir, SwitchError
from .staff import Staff

log = logging.getLogger("appswitch.supervisor")

#: Seconds for a router to say whether it has joined, and to leave.
_PATIENCE = 20.0
OPERATIONS = frozenset({"join", "leave", "token", "key"})
_OTHER_VERSION = "the request is not as this switch knows it: use `appswitch` of the same version"
_NOT_IN_A_CLUSTER = (
    "this switch is in no cluster: begin one with `appswitch up --node-interface eth0`, or with the address at which "
    "other hosts reach this one"
)


class Clustering:
    """`router` is the child, one of the `staff` while this switch is a member, as the `workers` always are.

    `memory`: the file that keeps the membership over the switch's end.
    """

    def __init__(
        self,
        run_dir: RunDir,
        memory: str,
        router: Child,
        keeping: Keeping,
        staff: Staff,
        workers: Sequence[Child],
        relay: Child,
    ) -> None:
        self._run_dir, self._memory = run_dir, memory
        self.router = router
        self._keeping, self._staff, self._workers, self._relay = keeping, staff, workers, relay
        #: How many words about this host each worker, and the relay, has not answered yet.
        self._unanswered: Counter[Child] = Counter()
        self.membership: Membership | None = None
        self._node = Node()
        self._must_join = False
        self._join_seeds: list[membership.Address] = []
        self._leaving = False
        #: Until when the router may take for what somebody waits for; None: nobody waits.
        self.deadline: float | None = None
        self._waiting: list[tuple[Control, Client]] = []
        self._asked: dict[int, tuple[Control, Client]] = {}  # about keys, by number
        self._number = itertools.count()
        #: Why it could not join.
        self.failure: str | None = None

    @property
    def on(self) -> bool:
        return self.membership is not None

    @property
    def pending(self) -> bool:
        return self.deadline is not None

    # turning it on and off -------------------------------------------------------------------------------

    def begin(self, settings: Membership, *, must_join: bool) -> None:
        """Become a member: start the router. `must_join`: one of the seeds must take us."""
        self.membership, self._must_join, self.failure, self._leaving = settings, must_join, None, False
        self._join_seeds = list(settings.seeds)
        self.deadline = time.monotonic() + _PATIENCE
        self._staff.start(self.router)

    def resume(self) -> None:
        """Be the member that a supervisor before this one was, if it was."""
        item = self._keeping.kept.get("cluster")
        if item is not None:
            self.membership = Membership.of(item.document["membership"])
            self._node = Node.of(item.document["node"])
            self._join_seeds = list(self.membership.seeds)
            self._tell_workers()
            self._staff.start(self.router)

    def handle(self, control: Control, client: Client, message: wire.Message) -> None:
        """`join`, `leave`, `token` or `key`, of root or the switch's user. SwitchError."""
        if client.uid not in (0, os.geteuid()):
            raise SwitchError(
                f"the switch in {self._run_dir} is user {os.geteuid()}'s: only that user and root may do this"
            )
        operation = message.get("op")
        if operation == "token":
            control.reply(client, {"ok": True, "result": self._token()})
            control.drop(client)
            return
        if self.pending or self._leaving:
            raise SwitchError("the switch is joining or leaving a cluster just now: try again in a moment")
        if operation == "key":
            self._asked[self._ask_about_keys(message)] = (control, client)
        else:
            if operation == "join":
                self._join(_wish(message))
            else:
                self._leave()
            self._waiting.append((control, client))
        control.release(client)  # it may take longer than clients are given
        client.busy = True

    def _join(self, wish: Wish) -> None:
        if self.membership is None:
            remembered = membership.recall(self._memory)
            settings = membership.resolve(wish, remembered, partial(membership.default_name, self._run_dir))
            self.begin(settings, must_join=wish.token is not None)
            return
        settings = membership.resolve(wish, self.membership, lambda: "")
        if settings.label != self.membership.label:
            raise SwitchError("this switch is in another cluster: take it out of that first, with `appswitch leave`")
        if settings.ring != self.membership.ring:
            raise SwitchError(
                "the token's key is none that this switch has: if the cluster's key was changed meanwhile, take the "
                "switch out with `appswitch leave`, then join again"
            )
        if replace(settings, seeds=()) != replace(self.membership, seeds=()):
            raise SwitchError(
                "this switch is a member with other settings: take it out with `appswitch leave`, then join again"
            )
        self.failure, self.deadline = None, time.monotonic() + _PATIENCE
        seeds = settings.seeds if wish.token is not None else ()
        self._staff.tell(self.router, 0, {"op": "join", "seeds": seeds})

    def _leave(self) -> None:
        if self.membership is None:
            if membership.forget(self._memory):
                raise SwitchError("this switch is in no cluster; the one that it was in before is forgotten")
            raise SwitchError("this switch is in no cluster")
        self._leaving, self.deadline = True, time.monotonic() + (_PATIENCE if self.router.alive else 0.0)
        self.stop()

    def stop(self) -> None:
        """Have the router leave the cluster, and end."""
        self._staff.dismiss(self.router)

    def _token(self) -> str:
        if self.membership is None:
            raise SwitchError(_NOT_IN_A_CLUSTER)
        if not self._node.address:
            raise SwitchError("this host has no address at which others reach it just now: see to its network")
        return self.membership.token((self._node.address, self.membership.gossip_port), self.membership.seeds)

    def _ask_about_keys(self, message: wire.Message) -> int:
        """Have the router see to it; the number of the question. SwitchError."""
        if self.membership is None or not self._node.host:
            raise SwitchError(_NOT_IN_A_CLUSTER)
        if not self.router.alive:
            raise SwitchError("the router is being started again: try again in a moment")
        action, key = message.get("action"), message.get("key")
        if action not in ("list", "add", "use", "remove") or not isinstance(key, str | None):
            raise SwitchError(_OTHER_VERSION)
        if action == "add":
            try:
                key = (parse(key) if key is not None else keys.new_secret()).hex()
            except KeyRefused as error:
                raise SwitchError(str(error)) from None
        number = next(self._number)
        force = message.get("force") is True
        question = {"op": "key", "number": number, "action": action, "key": key or "", "force": force}
        self._staff.tell(self.router, 0, question)
        return number

    # the router ------------------------------------------------------------------------------------------

    def introduce(self) -> None:
        """A router has been started: tell it what it is for."""
        assert self.membership is not None
        self._staff.tell(
            self.router,
            0,
            {
                "op": "cluster",
                "membership": self.membership.document(),
                "seeds": self._join_seeds,
                "join": self._must_join and self.pending,
            },
        )

    def heard(self, message: wire.Message) -> None:
        """The router has said something."""
        operation = message.get("op")
        if operation == "joined":
            if self.pending and not self._leaving:
                self._remember()
                self._settle(None)
        elif operation == "failed":
            log.error("the cluster: %s", message["reason"])
            if self.pending:
                self._fail(str(message["reason"]))
        elif operation == "node" and self.membership is not None and not self._leaving:
            self._place(message["address"], message["bind"])
            self._confirm()
        elif operation == "ring" and self.membership is not None and not self._leaving:
            self.membership = replace(self.membership, ring=Ring.of(message["ring"]))
            if not self.pending:
                self._remember()
            if self._node.host:
                self._place(self._node.address, self._node.bind)
            self._confirm()
        elif operation == "serf" and self.membership is not None and self.membership.serf is not None:
            changed = tuple(bytes.fromhex(key) for key in message["keys"])
            self.membership = replace(self.membership, serf=replace(self.membership.serf, keys=changed))
            if not self.pending:
                self._remember()
        elif operation == "key":
            self._answer(int(message["number"]), message["reply"])
        elif operation == "members" and self.membership is not None:
            seeds = tuple((str(address), int(port)) for address, port in message["addresses"])
            self.membership = replace(self.membership, seeds=seeds)
            self._join_seeds = list(seeds)
            self._remember()

    def _place(self, address: str, bind: str) -> None:
        """This host is there, and has these keys."""
        assert self.membership is not None
        settings = self.membership
        header_keys = tuple(keys.derive(secret, keys.HEADER) for secret in settings.ring.secrets)
        node = Node(settings.name, address, bind, settings.port_range, header_keys)
        if node != self._node:
            self._node = node
            if not self.pending:
                self._put()
            self._tell_workers()

    def _tell_workers(self) -> None:
        for child in (*self._workers, self._relay):
            self._tell_worker(child)

    def _tell_worker(self, child: Child) -> None:
        if child.control is not None:
            self._unanswered[child] += 1
            self._staff.tell(child, 0, self._node.message())

    def greet_worker(self, child: Child) -> None:
        """A worker, or the relay, has been started: tell it what this host is."""
        if self._node.host:
            self._tell_worker(child)

    def worker_heard(self, child: Child) -> None:
        """A worker, or the relay, goes by what it was told."""
        self._unanswered[child] = max(0, self._unanswered[child] - 1)
        self._confirm()

    def worker_ended(self, child: Child) -> None:
        """It hears nothing any more; its successor is told at its start."""
        del self._unanswered[child]
        self._confirm()

    def _confirm(self) -> None:
        """Tell the router once the cluster's keys are in use all over this host."""
        if self.membership is not None and not any(self._unanswered.values()):
            self._staff.tell(self.router, 0, {"op": "ring", "ring": self.membership.ring.document()})

    def _answer(self, number: int, reply: wire.Message) -> None:
        control, client = self._asked.pop(number)
        control.reply(client, reply)
        client.sock.close()

    def ended(self) -> bool:
        """The router has ended; whether it is to be started again."""
        for number in list(self._asked):
            self._answer(number, {"ok": False, "error": "the router ended: see the switch's log, and try again"})
        if self._leaving:
            self._left()
        elif self.pending and self._must_join:
            self._fail("the router ended: see the switch's log")
        return self.on

    def due(self, now: float) -> None:
        """Do what is due."""
        if self.deadline is not None and self.deadline <= now:
            if not self._leaving:
                self._fail("the router does not answer: see the switch's log")
            elif self.router.alive:
                self.router.kill()
                self.deadline = now + _PATIENCE
            else:
                self._left()

    def _fail(self, reason: str) -> None:
        first = not self._node.host  # else it was a member already
        if first:
            self.membership = None
            self.stop()
        self._settle(reason)

    def _left(self) -> None:
        self.membership, self._leaving = None, False
        self._keeping.drop("cluster")
        table = Table(self._run_dir.table)
        try:
            table.forget_cluster()
        finally:
            table.close()
        membership.forget(self._memory)
        self._node = Node()
        self._tell_workers()
        log.info("this switch is in no cluster any more")
        self._settle(None)

    def _put(self) -> None:
        assert self.membership is not None
        document = {"membership": self.membership.document(), "node": self._node.message()}
        self._keeping.put("cluster", document)

    def _remember(self) -> None:
        assert self.membership is not None
        self._put()
        try:
            membership.remember(self._memory, self.membership)
        except OSError as error:
            log.warning("the cluster will be forgotten when the switch ends, for %s: %s", self._memory, error.strerror)

    def _settle(self, failure: str | None) -> None:
        """What was waited for has happened, or failed."""
        self.failure, self.deadline = failure, None
        waiting, self._waiting = self._waiting, []
        for control, client in waiting:
            if failure is not None:
                control.reply(client, {"ok": False, "error": failure})
            else:
                control.reply(client, {"ok": True, "result": self.summary()})
            client.sock.close()

    def summary(self) -> dict[str, Any] | None:
        """For `status`; None outside a cluster."""
        if self.membership is None:
            return None
        serf = self.membership.serf
        return {
            "label": self.membership.label,
            "name": self.membership.name,
            "address": self._node.address,
            "serf": serf and {"port": serf.port, "encrypted": bool(serf.keys)},
        }

    def abandon(self) -> None:
        """In a forked process: let go of every descriptor without closing it."""
        for _, client in [*self._waiting, *self._asked.values()]:
            client.sock.detach()


def _wish(message: Mapping[str, Any]) -> Wish:
    """A client's wish, which may be anything; SwitchError."""
    found = message.get("cluster")
    names = {item.name for item in fields(Wish)}
    if not isinstance(found, dict) or not all(
        key in names and (value is None or isinstance(value, str)) for key, value in found.items()
    ):
        raise SwitchError(_OTHER_VERSION)
    return Wish(**found)
