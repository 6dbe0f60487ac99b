"""The router: one process that is this host's member of the cluster.

It tells the others what changes in this host's rows of the table (writers poke it at `router.sock`), and writes the
others' rows here. Programs need it for nothing that is known already: it may die and come back.

The supervisor tells it over the control socket (SOCK_SEQPACKET, JSON): first {"op": "cluster", "membership": …,
"seeds": …, "join": whether one of the seeds must take us}, later {"op": "join", "seeds": …}. It answers {"op":
"joined"}, or {"op": "failed", "reason": a sentence}, and tells {"op": "node", "address", "bind"} at each change of the
host's address, {"op": "members", "addresses"} at each change of those, and {"op": "ring", "ring"} at each change of the
cluster's keys; the supervisor says the same back when all of this host goes by them. {"op": "serf", "keys"}
tells that Serf's members have changed theirs. Questions about keys are {"op": "key", "number", "action", "key",
"force"}, answered by {"op": "key", "number", "reply"}. The end of the control socket, and SIGTERM, make it leave the
cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import random
import signal
import socket
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, NoReturn

from .. import __version__
from ..cluster import keys
from ..cluster.mirror import Mirror
from ..cluster.ring import KeyRefused, Ring
from ..gossip import exchange, tags
from ..gossip.member import Event, Member
from ..gossip.node import Node
from ..gossip.refused import GossipRefused
from ..gossip.settings import LAN, LOCAL, WAN, NodeSettings
from ..model.number import whole
from ..table import poke
from ..table.counters import Counters
from ..table.store import Table
from . import membership
from .joining import JOIN, Failure, join, listening
from .locksmith import Locksmith
from .membership import Membership
from .paths import SwitchError
from .replication import Replication
from .roll import SERF, VERSION, Roll
from .serf import PORT_TAG, SerfMember
from .whereabouts import Whereabouts

log = logging.getLogger("appswitch.router")

_TIMINGS = {membership.LAN: LAN, membership.WAN: WAN, membership.LOCAL: LOCAL}
#: Seconds between tries to reach a cluster that this host was in.
REJOIN = 5.0
#: Seconds to tell the others that we go; the supervisor waits a little longer.
_FAREWELL = 2.0
#: Seconds until the rows of hosts that this router has never heard of go: another's before it wrote them.
_INHERITANCE = 30.0
#: Seconds between looks at the members' states.
_LOOK = 1.0
#: Addresses told to the supervisor, to come back by.
_REMEMBERED = 8
_DATAGRAM = 1 << 16


class Router:
    """Everything happens in one asyncio loop."""

    def __init__(self, control: socket.socket, run_dir: str, counters: Counters, message: dict[str, Any]) -> None:
        self._control, self._counters = control, counters
        self._settings = Membership.of(message["membership"])
        self._seeds = [(str(address), int(port)) for address, port in message["seeds"]]
        self._must_join = bool(message["join"])
        self._table = Table(f"{run_dir}/table")
        self._path = f"{run_dir}/{poke.NAME}"
        self._refuse = partial(counters.add, "rows_refused")
        name = self._settings.name
        self._mirror = Mirror(self._table, name, random.getrandbits(32), self._refuse, self._heard_ring)
        self._locksmith = Locksmith(
            self._settings.ring, self._use, self._mirror.rings, lambda: self._node.members()
        )
        self._where = Whereabouts(self._settings)
        self._roll = Roll(self._table, self._settings.name)
        self._serf = self._in_serf()
        self._ending = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._replication = Replication(self._mirror, self._others, self._refuse, self._start, self._member_changed)
        self._told_members: list[tuple[str, int]] = []
        self._node: Node

    # life ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Be a member until told to end."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ending.set)
        loop.add_reader(self._control, self._on_control)
        try:
            await self._begin()
        except (Failure, SwitchError) as error:
            self._tell({"op": "failed", "reason": str(error)})
            log.error("this host cannot be a member of the cluster: %s", error)
            return
        if not self._ending.is_set():
            self._told_node()
            self._tell({"op": "joined"})
            self._serve(loop)
            await self._ending.wait()
        log.info("leaving the cluster")
        await asyncio.gather(*(one.leave(_FAREWELL) for one in (self._node, self._serf) if one is not None))

    async def _begin(self) -> None:
        """Find the address, start the gossip, and join if we must. Failure; SwitchError: there is no address."""
        where, settings = self._where, self._settings
        await where.find(wait=lambda: not self._must_join and not self._ending.is_set())
        address = (where.here.address, settings.gossip_port)
        self._node = Node(
            NodeSettings(
                name=settings.name,
                bind=(where.any, settings.gossip_port),
                advertise=address,
                label=settings.label,
                keys=_gossip_keys(settings.ring),
                meta=self._meta(),
                timings=_TIMINGS[settings.timings],
            ),
            self._replication,
            rng=random.Random(),
            counters=self._counters.add,
            ledger=self._replication,
        )
        self._replication.node = self._node
        self._replication.begin()
        async with contextlib.AsyncExitStack() as undo:
            with listening(address[1], "another switch of this host perhaps: choose one with --gossip-port"):
                await self._node.start()
            undo.push_async_callback(self._node.close)
            if self._serf is not None:
                with listening(self._serf.port, "an agent of this host perhaps: choose one with --serf-port"):
                    await self._serf.start(address[0], where.any)
                undo.push_async_callback(self._serf.close)
            if self._must_join:
                await self.join(self._seeds)
            undo.pop_all()

    def _meta(self) -> bytes:
        serf = {PORT_TAG: str(self._serf.port)} if self._serf else {}
        return tags.pack({VERSION: __version__} | exchange.TAG | serf)

    def _in_serf(self) -> SerfMember | None:
        settings, of = self._settings, self._settings.serf
        if of is None:
            return None

        def rekeyed(found: tuple[bytes, ...]) -> None:
            self._tell({"op": "serf", "keys": [key.hex() for key in found]})

        timings, count, changed = _TIMINGS[settings.timings], self._counters.add, partial(self._roll.changed, kind=SERF)
        return SerfMember(of, settings.name, settings.label, timings, count, rekeyed, changed)

    def _hosts_in_serf(self) -> list[tuple[str, int]]:
        found = ((member, whole(tags.unpack(member.meta).get(PORT_TAG, ""), 1, 65535)) for member in self._others())
        return [(member.address, port) for member, port in found if port is not None]

    async def join(self, seeds: list[tuple[str, int]]) -> None:
        """Get into the cluster by one of these. Failure says why not."""
        if await join(self._node, seeds, self._settings.name):
            self._replication.announce()

    def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        """Attend to the table, the host's addresses and the members from now on."""
        pokes = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            os.unlink(self._path)
        except FileNotFoundError:
            pass
        pokes.bind(self._path)
        loop.add_reader(pokes, self._replication.on_poke, pokes)
        self._where.watch(lambda: self._addresses() or self._seeds, self._moved)
        self._replication.announce()  # what changed while nobody was there to be poked
        self._start(self._look())
        self._start(self._keep_trying())
        if self._serf is not None:
            self._start(self._serf.keep_joined(self._hosts_in_serf))
        loop.call_later(_INHERITANCE, self._replication.disinherit)

    async def _keep_trying(self) -> None:
        """Reach the cluster that we were in; from then on the gossip sees to it."""
        while not self._must_join and self._seeds and not any(self._others()):
            try:
                async with asyncio.timeout(JOIN):
                    await self._node.join(self._seeds)
            except (GossipRefused, TimeoutError) as error:
                log.warning("the cluster does not take us back: %s", error)
            self._replication.announce()
            await asyncio.sleep(REJOIN)

    def _others(self) -> list[Member]:
        own = self._settings.name
        return [member for member in self._node.members() if member.name != own and member.reachable]

    def _addresses(self) -> list[membership.Address]:
        return [(member.address, member.port) for member in self._others()]

    def _start(self, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.get_running_loop().create_task(self._guard(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guard(self, work: Coroutine[Any, Any, object]) -> None:
        try:
            await work
        except Exception:
            self._counters.add("faults")
            log.exception("error in the router; it goes on")

    # the supervisor --------------------------------------------------------------------------------------

    def _tell(self, message: dict[str, Any]) -> None:
        try:
            self._control.send(json.dumps(message).encode(), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError as error:
            log.error("the supervisor does not hear: %s", error)

    def _told_node(self) -> None:
        here = self._where.here
        self._tell({"op": "node", "address": here.address, "bind": here.bind})

    def _moved(self) -> None:
        """This host's address has changed, or has gone."""
        self._told_node()
        if address := self._where.here.address:
            self._node.set_address(address)
            if self._serf is not None:
                self._serf.set_address(address)
            self._replication.announce()

    def _on_control(self) -> None:
        try:
            data = self._control.recv(_DATAGRAM)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._control)
            self._ending.set()
            return
        message = json.loads(data)
        if message["op"] == "join":
            self._start(self._join_more([(str(address), int(port)) for address, port in message["seeds"]]))
        elif message["op"] == "ring":
            self._in_use(Ring.of(message["ring"]))
        elif message["op"] == "key":
            self._start(self._answer_about_keys(message))

    async def _join_more(self, seeds: list[tuple[str, int]]) -> None:
        try:
            await self.join(seeds)
            self._tell({"op": "joined"})
        except Failure as error:
            self._tell({"op": "failed", "reason": str(error)})

    # keys ------------------------------------------------------------------------------------------------

    async def _answer_about_keys(self, message: dict[str, Any]) -> None:
        try:
            rows = await self._locksmith.answer(message["action"], message["key"], force=message["force"])
            reply: dict[str, Any] = {"ok": True, "result": rows}
        except KeyRefused as error:
            reply = {"ok": False, "error": str(error)}
        self._tell({"op": "key", "number": message["number"], "reply": reply})

    def _heard_ring(self, ring: Ring) -> None:
        self._locksmith.heard(ring)

    def _use(self, ring: Ring) -> None:
        """Go by these keys: the gossip at once, the workers by way of the supervisor, which keeps them, too."""
        log.info("the cluster's keys: %s; the first seals", ", ".join(ring.names))
        self._node.set_keys(_gossip_keys(ring))
        self._tell({"op": "ring", "ring": ring.document()})

    def _in_use(self, ring: Ring) -> None:
        """All of this host goes by these keys: others may know."""
        if self._mirror.rings.get(self._settings.name) != ring:
            self._replication.spread(self._mirror.set_ring(ring))
            self._locksmith.look_again()

    # members ---------------------------------------------------------------------------------------------

    def _member_changed(self, member: Member, event: Event) -> None:
        if event is not Event.UPDATED:
            self._roll.changed(member.name)
        self._locksmith.look_again()
        asyncio.get_running_loop().call_soon(self._list)

    async def _look(self) -> None:
        while not self._ending.is_set():
            self._list()
            await asyncio.sleep(_LOOK)

    def _list(self) -> None:
        """Keep the table's list of members, and the addresses to come back by."""
        foreign = self._serf.members() if self._serf is not None else ()
        self._roll.write(self._node.members(), self._mirror.programs, foreign)
        told = self._addresses()[:_REMEMBERED]
        if told and set(told) != set(self._told_members):
            self._told_members = told
            self._tell({"op": "members", "addresses": told})


def _gossip_keys(ring: Ring) -> tuple[bytes, ...]:
    return tuple(keys.derive(secret, keys.GOSSIP) for secret in ring.secrets)


def run(control: socket.socket, run_dir: str, counters: Counters) -> NoReturn:
    """Be the router, in this process, which ends with it."""
    control.setblocking(True)
    data = control.recv(_DATAGRAM)
    if not data:
        raise SystemExit(0)
    control.setblocking(False)
    router: Callable[[], Router] = partial(Router, control, run_dir, counters, json.loads(data))

    async def main() -> None:
        await router().run()

    asyncio.run(main())
    raise SystemExit(0)
