"""The cluster's keys, changed on this host or another: merged, put to use here, and told when that is done.

A change is made here, spreads as a row of each host's (cluster.rows), and is answered once all hosts that live have
told that they go by it: so a key seals only after every host opens it. Hosts that missed it are named.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from ..cluster.ring import KeyRefused, Ring
from ..gossip.member import Member, State

#: Seconds for all hosts that live to tell that they go by a change.
SPREAD = 10.0


class Locksmith:
    """`use` has a ring used on this host; `rings`: what each host has told that it goes by, this one included.

    `members`: everybody whom the gossip knows.
    """

    def __init__(
        self,
        ring: Ring,
        use: Callable[[Ring], None],
        rings: Mapping[str, Ring],
        members: Callable[[], Iterable[Member]],
    ) -> None:
        self.ring = ring
        self._use, self._rings, self._members = use, rings, members
        self._news = asyncio.Event()

    def heard(self, ring: Ring) -> None:
        """Another host has this ring."""
        self._set(self.ring.merge(ring))
        self.look_again()

    def look_again(self) -> None:
        """What hosts have, or which hosts there are, may have changed."""
        self._news.set()

    def _set(self, ring: Ring) -> None:
        if ring != self.ring:
            self.ring = ring
            self._use(ring)

    async def answer(self, action: str, key: str, *, force: bool) -> list[dict[str, Any]]:
        """Make the change, wait until it has spread, and list all keys as `rows`.

        `key`: the secret in hex to `add`; the name of the key to `use` or `remove`. KeyRefused: nothing was changed.
        """
        if action == "add":
            self._set(self.ring.add(bytes.fromhex(key)))
        elif action == "use":
            changed = self.ring.use(key)
            if not force:
                self._must_have("do not have the key yet", self._without(lambda ring: ring.has(key), alive=True))
            self._set(changed)
        elif action == "remove":
            changed = self.ring.remove(key)
            primary = self.ring.primary
            if not force:
                late = self._without(lambda ring: ring.primary == primary)
                self._must_have(f"do not seal with key {primary} yet, and could not come back", late)
            self._set(changed)
        wanted = self.ring
        try:
            async with asyncio.timeout(SPREAD):
                while action != "list" and self._without(lambda ring: ring.merge(wanted) == ring, alive=True):
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            pass  # the rows name those that did not hear
        return self.rows()

    @staticmethod
    def _must_have(what: str, late: list[Member]) -> None:
        if late:
            names = ", ".join(f"{member.name} ({_STATES[member.state]})" for member in late[:5])
            more = f" and {len(late) - 5} more" if len(late) > 5 else ""
            raise KeyRefused(f"hosts {what}: {names}{more}; have them back first, or leave them out with --force")

    def rows(self) -> list[dict[str, Any]]:
        """Each key: its name, whether it is the primary, how many hosts have it, and which of how many do not."""
        hosts = sum(member.state != State.LEFT for member in self._members())
        rows = []
        for name in self.ring.names:
            missing = self._without(partial(Ring.has, name=name))
            rows.append(
                {
                    "key": name,
                    "primary": name == self.ring.primary,
                    "hosts": hosts - len(missing),
                    "of": hosts,
                    "missing": [{"host": member.name, "state": _STATES[member.state]} for member in missing],
                }
            )
        return rows

    def _without(self, right: Callable[[Ring], bool], *, alive: bool = False) -> list[Member]:
        """The hosts whose ring is not right, or not known; of those that live, or of all that have not left."""
        return [
            member
            for member in self._members()
            if (member.reachable if alive else member.state != State.LEFT)
            and not ((ring := self._rings.get(member.name)) is not None and right(ring))
        ]


_STATES = {State.ALIVE: "alive", State.SUSPECT: "suspect", State.DEAD: "failed"}
