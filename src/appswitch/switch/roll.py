"""The list of members as the table keeps it, for `appswitch members`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from ..gossip import tags
from ..gossip.member import Member, State
from ..table.store import Table

#: The tag that has a member's version of AppSwitch.
VERSION = "appswitch"
#: Kinds of members: hosts of the cluster, and others that Serf shows.
SWITCH, SERF = "switch", "serf"
_STATES = {State.ALIVE: "alive", State.SUSPECT: "suspect", State.DEAD: "failed", State.LEFT: "left"}


class Roll:
    """Written whenever something has changed; `own` is this host's name."""

    def __init__(self, table: Table, own: str) -> None:
        self._table, self._own = table, own
        self._since: dict[tuple[str, str], float] = {}
        self._listed: dict[str, dict[str, Any]] = table.members()

    def changed(self, name: str, kind: str = SWITCH) -> None:
        """Its state has changed just now."""
        self._since[kind, name] = time.time()

    def write(self, members: Iterable[Member], programs: Mapping[str, int], foreign: Iterable[Member] = ()) -> None:
        """Keep the list; `programs`: how many each other host has. `foreign`: Serf's members, hosts among them."""
        found = {member.name: self._record(member, SERF) | {"tags": tags.unpack(member.meta)} for member in foreign}
        found |= {member.name: self._record(member, SWITCH) | self._hosted(member, programs) for member in members}
        changes: dict[str, dict[str, Any] | None] = {
            name: record for name, record in found.items() if self._listed.get(name) != record
        }
        changes |= dict.fromkeys(self._listed.keys() - found.keys())
        if changes:
            self._table.set_members(changes)
        self._listed = found

    def _record(self, member: Member, kind: str) -> dict[str, Any]:
        return {
            "address": member.address,
            "port": member.port,
            "state": _STATES[member.state],
            "since": self._since.setdefault((kind, member.name), time.time()),
            "own": False,
            "version": "",
            "programs": 0,
            "kind": kind,
            "tags": {},
        }

    def _hosted(self, member: Member, programs: Mapping[str, int]) -> dict[str, Any]:
        own = member.name == self._own
        return {
            "own": own,
            "version": tags.unpack(member.meta).get(VERSION, ""),
            "programs": self._table.program_count() if own else programs.get(member.name, 0),
        }
