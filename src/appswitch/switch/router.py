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
import errno
import json
import logging
import math
import os
import random
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator, Mapping
from functools import partial
from typing import Any, NoReturn

from .. import __version__
from ..cluster import keys, replica
from ..cluster.mirror import Mirror
from ..cluster.repair import Repair
from ..cluster.ring import KeyRefused, Ring
from ..gossip import exchange, tags
from ..gossip.member import Event, Member
from ..gossip.node import Node
from ..gossip.refused import GossipRefused, NameTaken
from ..gossip.settings import LAN, LOCAL, WAN, NodeSettings
from ..model.number import whole
from ..table import poke
from ..table.counters import Counters
from ..table.store import Table
from . import membership
from .locksmith import Locksmith
from .membership import Membership
from .paths import SwitchError
from .roll import SERF, VERSION, Roll
from .serf import PORT_TAG, SerfMember
from .whereabouts import Whereabouts

log = logging.getLogger("appswitch.router")

_TIMINGS = {membership.LAN: LAN, membership.WAN: WAN, membership.LOCAL: LOCAL}
#: Seconds for a join that somebody waits for.
JOIN = 8.0
#: Seconds between tries to reach a cluster that this host was in.
REJOIN = 5.0
#: Seconds to tell the others that we go; the supervisor waits a little longer.
_FAREWELL = 2.0
#: Seconds after a poke until everything is compared, for what other pokes may have failed to tell.
_COMPARE = 1.0
#: Seconds until the rows of hosts that this router has never heard of go: another's before it wrote them.
_INHERITANCE = 30.0
#: Seconds between looks at the members' states.
_LOOK = 1.0
#: Addresses told to the supervisor, to come back by.
_REMEMBERED = 8
_DATAGRAM = 1 << 16


class Failure(Exception):
    """The cluster cannot be joined; one sentence."""


class Router:
    """The gossip's delegate. Everything happens in one asyncio loop."""

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
        self._writing = self._comparing = False
        self._repair = Repair(self._mirror.replica, random.Random(), lambda: [m.name for m in self._others()])
        self._repair_timer: asyncio.TimerHandle | None = None
        self._first_news: list[bytes] = []  # what was told to nobody yet
        self._first_epoch = 0
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
            self,
            rng=random.Random(),
            counters=self._counters.add,
            ledger=self,
        )
        self._first_news, self._first_epoch = self._mirror.compare(), self._mirror.replica.epoch
        async with contextlib.AsyncExitStack() as undo:
            with _listening(address[1], "another switch of this host perhaps: choose one with --gossip-port"):
                await self._node.start()
            undo.push_async_callback(self._node.close)
            if self._serf is not None:
                with _listening(self._serf.port, "an agent of this host perhaps: choose one with --serf-port"):
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
        own = (self._node.local.address, self._node.local.port)
        others = [seed for seed in seeds if seed != own]
        if not others:
            return  # our own token: we are the first
        where = " or ".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in others)
        try:
            async with asyncio.timeout(JOIN):
                answered = await self._node.join(others)
        except NameTaken as taken:
            name = self._settings.name
            raise Failure(
                f"the name {name} is taken by the host at {taken.address}: choose another with --node-name"
            ) from None
        except GossipRefused as refused:
            raise Failure(
                f"the cluster would not take this host: {refused.reason}; "
                "have a new token printed there by `appswitch token`"
            ) from None
        except TimeoutError:
            answered = 0
        if not answered:
            raise Failure(
                f"no member of the cluster can be reached at {where}: see that a switch of it is up there, and that "
                "TCP and UDP to that port are let through"
            )
        self._announce()

    def _announce(self) -> None:
        """Have everybody know our rows, or ask for those that are missing there."""
        if self._mirror.replica.epoch == self._first_epoch:
            self._spread(self._first_news)  # to those who know nothing of this host it is all they need
        if self._others():
            self._first_news = []
        self._spread(self._mirror.compare() or [self._mirror.replica.head()])

    def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        """Attend to the table, the host's addresses and the members from now on."""
        pokes = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            os.unlink(self._path)
        except FileNotFoundError:
            pass
        pokes.bind(self._path)
        loop.add_reader(pokes, self._on_poke, pokes)
        self._where.watch(lambda: self._addresses() or self._seeds, self._moved)
        self._announce()  # what changed while nobody was there to be poked
        self._start(self._look())
        self._start(self._keep_trying())
        if self._serf is not None:
            self._start(self._serf.keep_joined(self._hosts_in_serf))
        loop.call_later(_INHERITANCE, self._disinherit)

    async def _keep_trying(self) -> None:
        """Reach the cluster that we were in; from then on the gossip sees to it."""
        while not self._must_join and self._seeds and not any(self._others()):
            try:
                async with asyncio.timeout(JOIN):
                    await self._node.join(self._seeds)
            except (GossipRefused, TimeoutError) as error:
                log.warning("the cluster does not take us back: %s", error)
            self._announce()
            await asyncio.sleep(REJOIN)

    def _others(self) -> list[Member]:
        own = self._settings.name
        return [member for member in self._node.members() if member.name != own and member.reachable]

    def _addresses(self) -> list[membership.Address]:
        return [(member.address, member.port) for member in self._others()]

    def _disinherit(self) -> None:
        self._mirror.disinherit()
        self._write()

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
            self._announce()

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
            self._spread(self._mirror.set_ring(ring))
            self._locksmith.look_again()

    # the table -------------------------------------------------------------------------------------------

    def _on_poke(self, pokes: socket.socket) -> None:
        """What was changed is told at once; in a moment everything is compared, for a poke may have been lost."""
        found: list[bytes] = []
        try:
            while len(found) < poke.KEYS:
                found += poke.read(pokes.recv(_DATAGRAM))
        except BlockingIOError:
            pass
        except ValueError:
            self._refuse()
        self._spread(self._mirror.changed(dict.fromkeys(found)))
        if not self._comparing:
            self._comparing = True
            asyncio.get_running_loop().call_later(_COMPARE, self._compare)

    def _compare(self) -> None:
        self._comparing = False
        self._spread(self._mirror.compare())

    def _write(self) -> None:
        if not self._writing:
            self._writing = True
            self._start(self._write_all())

    async def _write_all(self) -> None:
        try:
            while self._mirror.write():
                await asyncio.sleep(0)
        finally:
            self._writing = False

    # the gossip's delegate -------------------------------------------------------------------------------

    def user_message(self, payload: bytes) -> None:
        try:
            self._spread(self._mirror.message(payload), relay=True)
        except replica.Malformed as error:
            self._malformed(error)
        self._follow()

    def local_state(self, join: bool) -> bytes:
        return self._mirror.replica.states()

    def merge_state(self, state: bytes, join: bool) -> None:
        try:
            self._spread(self._mirror.merge(state))
        except replica.Malformed as error:
            self._malformed(error)
        self._follow()

    def versions(self) -> Mapping[str, bytes]:
        return self._mirror.replica.versions()

    def part(self, wanted: Mapping[str, bytes]) -> bytes:
        return self._mirror.replica.part(wanted)

    def told(self, versions: Mapping[str, bytes]) -> None:
        try:
            self._spread(self._mirror.told(versions))
        except replica.Malformed as error:
            self._malformed(error)
        self._follow()

    def member_changed(self, member: Member, event: Event) -> None:
        log.info("member %s (%s) %s", member.name, member.address, event.value)
        if event is Event.JOINED:
            self._mirror.alive(member.name)
            if exchange.understood(member.meta):  # else it has no rows
                self._repair.joined(member.name, asyncio.get_running_loop().time())
        elif event in (Event.LEFT, Event.FAILED):
            self._mirror.gone(member.name)
            self._repair.gone(member.name)
        if event is not Event.UPDATED:
            self._roll.changed(member.name)
        self._follow()
        self._locksmith.look_again()
        asyncio.get_running_loop().call_soon(self._list)

    def _malformed(self, error: Exception) -> None:
        self._refuse()
        log.warning("what a member told is refused: %s", error)

    def _spread(self, broadcasts: list[bytes], *, relay: bool = False) -> None:
        for payload in broadcasts:
            try:
                self._node.broadcast(payload, relay=relay)
            except ValueError as error:
                self._malformed(error)

    def _follow(self) -> None:
        """After whatever came in: write it, and see to what is missing."""
        self._write()
        self._repair.look(asyncio.get_running_loop().time())
        self._arm_repair()

    def _arm_repair(self) -> None:
        due, timer = self._repair.due(), self._repair_timer
        if due == math.inf or (timer is not None and timer.when() <= due):
            return
        if timer is not None:
            timer.cancel()
        self._repair_timer = asyncio.get_running_loop().call_at(due, self._on_repair)

    def _on_repair(self) -> None:
        self._repair_timer = None
        for ask in self._repair.tick(asyncio.get_running_loop().time()):
            self._start(self._node.fetch(ask.whom, ask.wanted) if ask.wanted else self._node.sync(ask.whom))
        self._arm_repair()

    # members ---------------------------------------------------------------------------------------------

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


@contextlib.contextmanager
def _listening(port: int, user: str) -> Iterator[None]:
    """Failure in the place of an OSError; `user`: who may have the port already, and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise Failure(f"the gossip cannot use port {port}: {error.strerror}") from None
        raise Failure(f"port {port} is in use, by {user}") from None


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
