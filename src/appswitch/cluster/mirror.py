"""Between a host's table and its replica of all hosts: its own rows go out, the others' come in.

What comes in is written a batch at a time (`write`), so that neither the router's loop nor the table's writers wait
for long, however much there is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from itertools import islice

from ..model.address import MAPPED, unpack
from ..model.identity import Claim
from ..model.service import Service
from ..table import codec
from ..table.store import AT_ONCE, Table
from . import rows
from .replica import Effects, Replica, first_epoch
from .ring import Ring

log = logging.getLogger("appswitch.router")

_LINK_LOCAL = MAPPED + b"\xa9\xfe"
_VIP_SIZE = 16


class Mirror:
    """`me` is this host's member name; `chance`: 32 random bits; `refused` is called for each row that is none.

    `heard` is called with the cluster's keys as another host has them.
    """

    def __init__(
        self, table: Table, me: str, chance: int, refused: Callable[[], None], heard: Callable[[Ring], None]
    ) -> None:
        self._table, self._refused, self._heard = table, refused, heard
        self._epoch = first_epoch(table.epoch(), chance)
        table.set_epoch(self._epoch)
        table.set_own_name(me)
        self.me = me
        self.replica = Replica(me, self._epoch)
        #: How many programs each other host says it has.
        self.programs: dict[str, int] = {}
        #: The cluster's keys as each host, this one included, has told that it has them; kept for one that is gone.
        self.rings: dict[str, Ring] = {}
        self._pending: dict[str, dict[bytes, bytes | None]] = {}
        # Hosts whose rows in the table are still those that a router before this one wrote.
        self._inherited = table.hosts()

    # this host's rows ----------------------------------------------------------------------------------

    def compare(self) -> list[bytes]:
        """Take up whatever has changed of this host; what everybody is to be told."""
        services = (row for row in self._table.services() if rows.published(row))
        wanted = {rows.service_key(row): rows.service_value(row) for row in services}
        for vip, claims in self._table.claims_of_host("").items():
            if told := _told_claims(claims):
                wanted[rows.claims_key(vip)] = rows.claims_value(told)
        wanted[rows.INFO] = self._info()
        if self.me in self.rings:
            wanted[rows.RING] = rows.ring_value(self.rings[self.me])
        gone = dict.fromkeys(key for key in self.replica.rows(self.me) if key not in wanted)
        return self._take(self.replica.change(gone | wanted))

    def changed(self, keys: Iterable[bytes]) -> list[bytes]:
        """Take up what has changed under these keys of the table (`table.poke`); what everybody is to be told."""
        changes: dict[bytes, bytes | None] = {rows.INFO: self._info()}
        for key in keys:
            if len(key) == codec.KEY_SIZE and codec.host_of_key(key) == codec.OWN:
                row = self._table.service(key)
                told = rows.service_value(row) if row is not None and rows.published(row) else None
                changes[_replicated(key)] = told
            elif len(key) == _VIP_SIZE:
                claims = _told_claims(self._table.own_claims(key))
                changes[rows.claims_key(key)] = rows.claims_value(claims) if claims else None
        known = self.replica.rows(self.me)
        return self._take(self.replica.change({k: v for k, v in changes.items() if v is not None or k in known}))

    def set_ring(self, ring: Ring) -> list[bytes]:
        """This host has these keys in use; what everybody is to be told."""
        self.rings[self.me] = ring
        return self._take(self.replica.change({rows.RING: rows.ring_value(ring)}))

    def _info(self) -> bytes:
        return rows.info_value(self._table.program_count(), self._table.relay(""))

    # the others' -----------------------------------------------------------------------------------------

    def message(self, payload: bytes) -> list[bytes]:
        """A broadcast has come; what to pass on. replica.Malformed when it is none."""
        return self._take(self.replica.message(payload))

    def merge(self, states: bytes) -> list[bytes]:
        """Somebody's states have come. replica.Malformed when they are none."""
        return self._take(self.replica.merge(states))

    def told(self, versions: Mapping[str, bytes]) -> list[bytes]:
        """Somebody has these versions. replica.Malformed when they are none."""
        return self._take(self.replica.told(versions))

    def alive(self, host: str) -> None:
        self._take(self.replica.alive(host))

    def gone(self, host: str) -> None:
        """It has left, or was declared dead: its rows go."""
        self._take(self.replica.gone(host))
        if host in self._inherited:
            self._adopt(host)

    def disinherit(self) -> None:
        """The rows of hosts that have not been heard of since the start go."""
        for host in list(self._inherited):
            self._adopt(host)

    def _take(self, effects: Effects) -> list[bytes]:
        for host, changes in effects.rows.items():
            self._pending.setdefault(host, {}).update(changes)
        for host in [host for host in self._inherited if self.replica.known(host)]:
            self._adopt(host)
        if self.replica.epoch != self._epoch:
            self._epoch = self.replica.epoch
            self._table.set_epoch(self._epoch)
        return effects.broadcasts

    def _adopt(self, host: str) -> None:
        """Have exactly the replica's rows of this host, and none that a router before this one wrote."""
        self._inherited.discard(host)
        known = self.replica.rows(host)
        there = {_replicated(key) for key in self._table.host_keys(host)}
        there |= {rows.claims_key(vip) for vip in self._table.vips_of_host(host)}
        there.add(rows.INFO)
        self._pending.setdefault(host, {}).update(dict.fromkeys(there - known.keys()) | known)

    def write(self) -> bool:
        """Write a batch of others' rows; True when there is more."""
        if not self._pending:
            return False
        host = next(iter(self._pending))
        pending = self._pending[host]
        batch = [(key, pending.pop(key)) for key in list(islice(pending, AT_ONCE))]
        if not pending:
            del self._pending[host]
        services: dict[bytes, Service | None] = {}
        claims: dict[bytes, list[Claim]] = {}
        for key, value in batch:
            try:
                self._sort(host, key, value, services, claims)
            except rows.Malformed as error:
                self._refused()
                log.warning("a row of host %s is refused: %s", host, error)
        if services:
            self._table.apply_host_changes(host, services)
        if claims:
            self._table.apply_host_claims(host, claims)
            for vip in claims:
                self._warn(vip)
        return bool(self._pending)

    def _sort(
        self,
        host: str,
        key: bytes,
        value: bytes | None,
        services: dict[bytes, Service | None],
        claims: dict[bytes, list[Claim]],
    ) -> None:
        if rows.is_service(key):
            table_key = codec.service_key(rows.service_of_key(host, key))
            services[table_key] = None  # also when it is malformed: what was there is no more
            if value is not None:
                services[table_key] = rows.service(host, key, value)
        elif (vip := rows.vip_of_claims(key)) is not None:
            claims[vip] = []
            if value is not None:
                claims[vip] = rows.claims(host, key, value)
        elif key == rows.INFO:
            if value is not None:
                self.programs[host] = rows.programs(value)
            place = None if value is None else rows.relay(value)
            if place != self._table.relay(host):
                self._table.set_relay(host, place)
        elif key == rows.RING and value is not None:
            self.rings[host] = rows.ring(value)
            self._heard(self.rings[host])
        # else of a later version

    def _warn(self, vip: bytes) -> None:
        """A claim of this host's that does not hold is worth a line: its programs are not reached by others."""
        if own := _told_claims(self._table.own_claims(vip)):
            admitted = self._table.claims(vip)
            held = {(claim.name, claim.uid) for claim in admitted if not claim.host}
            holder = next((claim for claim in admitted if claim.host), None)
            for claim in own:
                if (claim.name, claim.uid) not in held and holder is not None:
                    log.warning(
                        "%s of user %d is held by %s of user %d on host %s, which was first: programs of it here are "
                        "not reached by others until they are started under another name or address",
                        claim.name or unpack(vip),
                        claim.uid,
                        holder.name or unpack(vip),
                        holder.uid,
                        holder.host,
                    )


def _replicated(key: bytes) -> bytes:
    """The replica's key of a service's key in the table."""
    return rows.service_key_of(key[:19], key[27:])


def _told_claims(claims: Iterable[Claim]) -> list[Claim]:
    """Without those of link-local clients, which nobody can reach."""
    return [claim for claim in claims if claim.name is not None or not claim.vip.startswith(_LINK_LOCAL)]
