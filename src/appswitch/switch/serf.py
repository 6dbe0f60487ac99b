"""This host as a member of a Serf cluster, beside its own: by a gossip of its own, at a port of its own.

Serf's agents see the host alive, failed or gone, and `appswitch members` shows them. Nothing that is said there has
any weight in the cluster of switches, whose gossip, keys and rows are never sent there: so it may run unencrypted, or
under a key that others know.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from functools import partial

from .. import __version__
from ..cluster.serf import SerfSettings
from ..gossip import tags
from ..gossip.member import Event, Member
from ..gossip.node import Node
from ..gossip.refused import GossipRefused, Refused
from ..gossip.serf import VERSIONS, Action, Rekey, Respond, Spread, Talk
from ..gossip.settings import Address, Limits, NodeSettings, Timings

log = logging.getLogger("appswitch.router")

#: The tag by which a host of the cluster tells the others its port for Serf.
PORT_TAG = "serf"
#: Seconds between tries to reach agents, and for one.
_RETRY, _JOIN = 3.0, 8.0
#: Hosts of the cluster that are asked for the way to Serf's members at a time.
_HOSTS = 3
#: Members that are asked what they know, once the way to them is found.
_OTHERS = 5
#: Serf's members, dead ones included: they may be anybody, and are looked at every second.
_MEMBERS = 4096
#: The gossip's counters as they are called here; "": not counted. Others are `serf_refused`.
_COUNTERS = {
    "gossip_sent": "serf_sent",
    "gossip_received": "serf_received",
    "gossip_wrong_key": "serf_wrong_key",
    "gossip_unsealed": "serf_unsealed",
    "gossip_probe_failed": "serf_probe_failed",
    "gossip_udp_lost": "",
    "gossip_stream_failed": "",
    "gossip_send_failed": "",
    "gossip_refuted": "serf_refuted",
    "gossip_whole": "",
}


class SerfMember:
    """The delegate of that gossip. `rekeyed` is called when `serf keys` has changed the keys.

    `changed` is called with the name of a member that joined, left or failed.
    """

    def __init__(
        self,
        settings: SerfSettings,
        name: str,
        label: str,
        timings: Timings,
        count: Callable[[str, int], None],
        rekeyed: Callable[[tuple[bytes, ...]], None],
        changed: Callable[[str], None],
    ) -> None:
        self._settings, self._name, self._timings, self._add = settings, name, timings, count
        self._rekeyed, self._changed = rekeyed, changed
        self._tags = {"role": "appswitch", "appswitch": __version__, "cluster": label}
        self._talk = Talk(name, self._tags, settings.keys)
        self._reached: set[Address] = set()
        self._at: dict[Address, str] = {}  # names of members that live
        self._told = ""  # why agents were not reached, lest the log repeats it
        self._node: Node

    @property
    def port(self) -> int:
        return self._settings.port

    async def start(self, address: str, wildcard: str) -> None:
        """Listen, and be found. OSError when the port cannot be had."""
        self._node = Node(
            NodeSettings(
                name=self._name,
                bind=(wildcard, self.port),
                advertise=(address, self.port),
                keys=self._settings.keys,
                meta=tags.pack(self._tags),
                versions=VERSIONS,
                timings=self._timings,
                limits=Limits(members=_MEMBERS),
            ),
            self,
            rng=random.Random(),
            counters=self._count,
        )
        await self._node.start()
        if not self._settings.keys:
            log.warning(
                "port %d is open to Serf's members, neither encrypted nor authenticated: whoever reaches it gets in",
                self.port,
            )

    async def close(self) -> None:
        await self._node.close()

    async def leave(self, timeout: float) -> None:
        """Say that this host goes, in Serf's words and the gossip's."""
        self._do([self._talk.leave()])
        await self._node.leave(timeout)

    def members(self) -> list[Member]:
        """Serf's members, this host and others of its cluster among them."""
        return self._node.members()

    def set_address(self, address: str) -> None:
        self._node.set_address(address)

    async def keep_joined(self, hosts: Callable[[], list[Address]]) -> None:
        """Reach the agents that were named, each once, and one of the cluster's hosts that are in Serf.

        From then on the gossip sees to it.
        """
        while True:
            there = hosts()
            known = {(member.address, member.port) for member in self.members() if member.reachable}
            wanted = [seed for seed in self._settings.seeds if seed not in self._reached | known]
            if known.isdisjoint(there):
                wanted += random.sample(there, min(_HOSTS, len(there)))
            found = [await self._join(seed) for seed in dict.fromkeys(wanted)]
            if any(found):
                # Who answered may not know that this host has lived before, and left: others may hold it for gone.
                others = [member.name for member in self.members() if member.reachable and member.name != self._name]
                for name in random.sample(others, min(_OTHERS, len(others))):
                    await self._node.sync(name)
            await asyncio.sleep(_RETRY)

    async def _join(self, seed: Address) -> bool:
        """Whether it answered."""
        reason = "nobody answers there: see that TCP and UDP to that port are let through"
        try:
            async with asyncio.timeout(_JOIN):
                if await self._node.join([seed]):
                    self._reached.add(seed)
                    self._do([self._talk.join()])
                    return True
        except GossipRefused as refused:
            reason = refused.reason
        except TimeoutError:
            pass
        told = f"Serf's members cannot be reached by {seed[0]}:{seed[1]}; tried again: {reason}"
        log.log(logging.WARNING if told != self._told else logging.DEBUG, told)
        self._told = told
        return False

    # the gossip's delegate -------------------------------------------------------------------------------

    def user_message(self, payload: bytes) -> None:
        self._count("serf_messages", 1)
        self._read(partial(self._talk.hear, payload, asyncio.get_running_loop().time()))

    def local_state(self, join: bool) -> bytes:
        return self._talk.state()

    def merge_state(self, state: bytes, join: bool) -> None:
        self._read(partial(self._talk.merge, state))

    def member_changed(self, member: Member, event: Event) -> None:
        log.debug("member %s (%s) of Serf's %s", member.name, member.address, event.value)
        self._at = {where: name for where, name in self._at.items() if name != member.name}
        if member.reachable:
            self._at[member.address, member.port] = member.name
        if event is not Event.UPDATED:
            self._changed(member.name)

    def _read(self, read: Callable[[], list[Action]]) -> None:
        try:
            self._do(read())
        except Refused:
            self._count("serf_refused", 1)

    def _do(self, actions: list[Action] | list[Spread]) -> None:
        for action in actions:
            try:
                match action:
                    case Spread(payload, relay):
                        self._node.broadcast(payload, about=None if relay else self._name, relay=relay)
                    case Respond(to, payload):
                        if (name := self._at.get(to)) is not None:
                            self._node.send(name, payload)
                    case Rekey(keys):
                        log.info("Serf's members have changed their keys; there are %d", len(keys))
                        self._node.set_keys(keys)
                        self._rekeyed(keys)
            except ValueError:  # larger than a datagram
                self._count("serf_refused", 1)

    def _count(self, name: str, n: int) -> None:
        if found := name if name.startswith("serf_") else _COUNTERS.get(name, "serf_refused"):
            self._add(found, n)
