"""Real members on loopback, and waiting for what they come to know."""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from typing import TypeVar

from appswitch.gossip.member import Event, Member, State
from appswitch.gossip.node import Node
from appswitch.gossip.settings import LOCAL, NodeSettings

KEY = bytes(range(32))
DEADLINE = 60.0


class Notes:
    """A delegate that writes down what it is told."""

    def __init__(self) -> None:
        self.state = b""
        self.messages: list[bytes] = []
        self.merged: list[tuple[bytes, bool]] = []
        self.events: list[tuple[str, Event]] = []
        self.counts: Counter[str] = Counter()
        self.held: dict[str, bytes] = {}
        self.heard: list[dict[str, bytes]] = []

        self.pass_on: Callable[[bytes], None] = lambda payload: None

    def user_message(self, payload: bytes) -> None:
        new = payload not in self.messages
        self.messages.append(payload)
        if new:
            self.pass_on(payload)

    def local_state(self, join: bool) -> bytes:
        return self.state

    def merge_state(self, state: bytes, join: bool) -> None:
        self.merged.append((state, join))

    def versions(self) -> Mapping[str, bytes]:
        return self.held

    def part(self, wanted: Mapping[str, bytes]) -> bytes:
        return b"".join(name.encode() for name in wanted if self.held.get(name, b"") > wanted[name])

    def told(self, versions: Mapping[str, bytes]) -> None:
        self.heard.append(dict(versions))

    def member_changed(self, member: Member, event: Event) -> None:
        self.events.append((member.name, event))

    def count(self, name: str, n: int) -> None:
        self.counts[name] += n


class Peer(Node):
    """A member with its notes."""

    def __init__(self, settings: NodeSettings) -> None:
        self.notes = Notes()
        notes = self.notes
        super().__init__(settings, notes, rng=random.Random(settings.name), counters=notes.count, ledger=notes)

    @property
    def where(self) -> tuple[str, int]:
        return (self.local.address, self.local.port)

    def states(self) -> dict[str, State]:
        return {member.name: member.state for member in self.members()}


def settings(name: str, address: str = "127.0.0.1", **others: object) -> NodeSettings:
    base = NodeSettings(name=name, bind=(address, 0), label="test", keys=(KEY,), timings=LOCAL)
    return replace(base, **others)  # type: ignore[arg-type]


P = TypeVar("P", bound=Peer)


@contextlib.asynccontextmanager
async def started(*wanted: NodeSettings, kind: type[P] = Peer) -> AsyncIterator[list[P]]:  # type: ignore[assignment]
    peers = [kind(one) for one in wanted]
    running: list[P] = []
    try:
        for peer in peers:
            await peer.start()
            running.append(peer)
        yield peers
    finally:
        for peer in running:
            await peer.close()


async def until(look: Callable[[], object], what: str, *seen: Peer) -> None:
    """AssertionError naming `what`, and what these members see, if it does not become true."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + DEADLINE
    while not look():
        views = [(peer.local.name, peer.states(), peer.notes.events, peer.notes.counts) for peer in seen]
        assert loop.time() < deadline, f"after {DEADLINE:g} s still waiting for {what}: {views}"
        await asyncio.sleep(0.01)


def alive(peer: Node) -> set[str]:
    return {member.name for member in peer.members() if member.state == State.ALIVE}
