"""Which way the datagrams of a conversation go, and back: pure, the clock is handed in.

UDP knows no connections, but one instance must serve a whole conversation, and its answers must find back (the paper
balances connections; RFC 4787 and RFC 7857 are about the same table in a translator). A conversation is forgotten
when it has been silent, or when its program has too many.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable
from random import Random
from typing import Any, NamedTuple

#: Seconds of silence after which a conversation is forgotten: RFC 4787, 4.3, wants two minutes at least.
IDLE = 180.0
#: Conversations that one side may have begun at a time.
MOST = 1024

_PORTS = 32768, 60999  # ip_local_port_range
_TRIES = 64

Owner = Hashable
Key = bytes
"""Source, destination, source's port, destination's port: as a program sends them (see `packets.key`)."""


class Change(NamedTuple):
    """The (packed) addresses and ports that a datagram goes on with, where they are not those that it came with."""

    source: bytes
    source_port: int
    destination: bytes
    port: int


class Flow:
    """A conversation. `until`: when it is forgotten; `idle`: seconds that each datagram adds, 0 for none.

    `owner`: who began it; `keys`: under which it is found, by whose datagrams these are. `peer`: whatever the caller
    wants to know of its other end. `due`: datagrams until `offload` is told of it, 0 for never.
    """

    __slots__ = ("due", "idle", "keys", "owner", "peer", "until")

    def __init__(self, owner: Owner, until: float, idle: float) -> None:
        self.owner, self.until, self.idle = owner, until, idle
        self.keys: list[tuple[Owner, Key]] = []
        self.peer: Any = None
        self.due = 0


class Hop:
    """Where datagrams with one key of one program's go: `to` means something to the caller alone."""

    __slots__ = ("change", "flow", "to")

    def __init__(self, flow: Flow, to: Any, change: Change | None) -> None:
        self.flow, self.to, self.change = flow, to, change


class Flows:
    """All conversations. `ended` is given the `to` of each hop that is forgotten.

    `last_seen` tells when datagrams that do not come here went by last, `forgotten` is given each conversation.
    """

    def __init__(
        self,
        ended: Callable[[Any], None],
        *,
        idle: float = IDLE,
        most: int = MOST,
        last_seen: Callable[[Flow], float] = lambda _: 0.0,
        forgotten: Callable[[Flow], None] = lambda _: None,
    ) -> None:
        self._ended, self._idle, self._most = ended, idle, most
        self._last_seen, self._forgotten = last_seen, forgotten
        self._hops: defaultdict[Owner, dict[Key, Hop]] = defaultdict(dict)
        self._begun: defaultdict[Owner, dict[Flow, None]] = defaultdict(dict)

    def __len__(self) -> int:
        return sum(map(len, self._begun.values()))

    def hops(self, owner: Owner) -> dict[Key, Hop]:
        """The hops of one program's datagrams: to be looked at only, and not to be kept after `leave`."""
        return self._hops[owner]

    def find(self, owner: Owner, key: Key, now: float) -> Hop | None:
        """Where this datagram goes; its conversation goes on."""
        hop = self._hops[owner].get(key)
        if hop is None:
            return None
        flow = hop.flow
        if flow.until <= now:
            self._refresh(flow)
            if flow.until <= now:
                self.drop(flow)
                return None
        if flow.idle:
            flow.until = now + flow.idle
        return hop

    def begin(self, owner: Owner, now: float, lasting: float | None = None, most: int | None = None) -> Flow:
        """A new conversation of this owner's, for `lasting` seconds, or as long as it is not silent.

        The longest silent ones go if there are too many: more than `most`, if that is given.
        """
        begun = self._begun[owner]
        most = most or self._most
        if len(begun) >= most:
            for flow in begun:
                self._refresh(flow)
            oldest = sorted(begun, key=lambda flow: flow.until)
            for flow in oldest[: most // 8 + 1]:
                self.drop(flow)
        flow = Flow(owner, now + (self._idle if lasting is None else lasting), self._idle if lasting is None else 0.0)
        self._begun[owner][flow] = None
        return flow

    def lead(self, flow: Flow, owner: Owner, key: Key, to: Any, change: Change | None = None) -> Hop:
        """Have the datagrams of `owner` with this key go there as part of the conversation."""
        hops = self._hops[owner]
        old = hops.get(key)
        if old is not None:
            self.drop(old.flow)
        hop = hops[key] = Hop(flow, to, change)
        flow.keys.append((owner, key))
        return hop

    def drop(self, flow: Flow) -> None:
        """Forget a conversation; the next datagram of it begins another."""
        begun = self._begun[flow.owner]
        begun.pop(flow, None)
        if not begun:
            del self._begun[flow.owner]
        self._forgotten(flow)
        for owner, key in flow.keys:
            hop = self._hops[owner].pop(key, None)
            if hop is not None:
                self._ended(hop.to)
        flow.keys = []

    def _refresh(self, flow: Flow) -> None:
        if flow.due and flow.idle:
            flow.until = max(flow.until, self._last_seen(flow) + flow.idle)

    def leave(self, owner: Owner) -> None:
        """Whose datagrams these are has gone, and every conversation with it."""
        for flow in {hop.flow for hop in self._hops[owner].values()} | set(self._begun[owner]):
            self.drop(flow)
        self._hops.pop(owner, None)
        self._begun.pop(owner, None)

    def port_closed(self, owner: Owner, port: int) -> None:
        """Nobody answers from this port of theirs any more: whoever they talked with is free to go elsewhere."""
        ending = port.to_bytes(2, "big")
        for flow in {hop.flow for key, hop in self._hops[owner].items() if key[-4:-2] == ending}:
            self.drop(flow)


def free_port(wanted: int, taken: Callable[[int], bool], random: Random) -> int:
    """The port under which a client is shown: its own, or another if a twin of it is shown with that already."""
    port = wanted
    for _ in range(_TRIES):
        if not taken(port):
            break
        port = random.randint(*_PORTS)
    return port
