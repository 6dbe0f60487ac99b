"""The table's names and virtual IPs: what each host claims, and what follows from all claims together.

What follows (names under an address, addresses of a name, who is barred) is worked out when claims change, by
`model.claims.settle`, so that readers look up one value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..model.claims import settle
from ..model.identity import Claim
from .codec import OWN, host_id, pack, unpack
from .generations import Generations
from .writing import Writer

#: Virtual IPs of other hosts written in one transaction.
AT_ONCE = 10
_VIP = 16
_STAMP, _SELF, _SETTLED, _EPOCH = b"stamp", b"self", b"settled", b"epoch"

#: How the value begins of a virtual IP where all are admitted: looked at by every lookup.
_NONE_BARRED = pack([[], []])[:2]

Barred = list[tuple[bytes, str | None, int]]
"""Whose rows under a virtual IP nobody reaches: host id, name, user."""


class Claims:
    """On the environment of a `Table`."""

    def __init__(self, env: Any, writer: Writer, generations: Generations, *, make: bool) -> None:
        self._writer, self._generations = writer, generations
        self._claims = env.open_db(b"claims", create=make)
        #: Virtual IPs that this host claims: few among many.
        self._own = env.open_db(b"own claims", create=make)
        self._owners = env.open_db(b"owners", create=make)
        self._names = env.open_db(b"names", create=make)
        self._meta = env.open_db(b"meta", create=make)
        self.databases = (self._claims, self._own, self._owners, self._names, self._meta)

    # readers -----------------------------------------------------------------------------------------

    def names(self, vip: bytes, txn: Any) -> list[str] | None:
        """The names under a virtual IP; None when nobody has it."""
        value = txn.get(vip, db=self._owners)
        return None if value is None else list(unpack(value)[1])

    def barred(self, vip: bytes, txn: Any) -> Barred | None:
        """Who is barred under a virtual IP; None when nobody has it."""
        value = txn.get(vip, db=self._owners)
        if value is None or value.startswith(_NONE_BARRED):
            return None if value is None else []
        return [(host, name, uid) for host, name, uid in unpack(value)[0]]

    def vip_of(self, name: str, txn: Any) -> bytes | None:
        value = txn.get(_name_key(name), db=self._names) if 0 < len(name) < 400 else None
        return None if value is None else bytes(unpack(value)[0][2])

    def has_below(self, name: str, txn: Any) -> bool:
        """Whether anybody has a name that ends in this one after a dot."""
        begin = _name_key(name) + b"."
        cursor = txn.cursor(self._names)
        return len(begin) < 400 and cursor.set_range(begin) and bytes(cursor.key()).startswith(begin)

    def admitted(self, vip: bytes, txn: Any) -> list[Claim]:
        """The claims of all hosts that hold this virtual IP; this host's are of host ""."""
        own = self._own_name(txn)
        found = settle(self._all(vip, own, txn)).admitted
        return [replace(claim, host="") if claim.host == own else claim for claim in found]

    def of_host(self, host: str, txn: Any) -> dict[bytes, list[Claim]]:
        """All that one host claims ("": this one), by virtual IP."""
        found = ((vip, txn.get(vip + host_id(host), db=self._claims)) for vip in self.vips_of(host, txn))
        return {vip: _decode(vip, value) for vip, value in found if value is not None}

    def vips_of(self, host: str, txn: Any) -> list[bytes]:
        """The virtual IPs that one host claims."""
        if not host:
            return [bytes(key) for key in txn.cursor(self._own).iternext(keys=True, values=False)]
        wanted = host_id(host)
        keys = txn.cursor(self._claims).iternext(keys=True, values=False)
        return [bytes(key[:_VIP]) for key in keys if key[_VIP:] == wanted]

    def own(self, vip: bytes, txn: Any) -> list[Claim]:
        """This host's claims to a virtual IP."""
        value = txn.get(vip + OWN, db=self._claims)
        return [] if value is None else _decode(vip, value)

    def hosts(self, txn: Any) -> set[str]:
        """Who claims anything; "" is this host."""
        return {unpack(value)[0] for value in one_of_each_host(txn.cursor(self._claims), lambda key: key[_VIP:])}

    def epoch(self, txn: Any) -> int:
        value = txn.get(_EPOCH, db=self._meta)
        return 0 if value is None else int(unpack(value))

    def set_epoch(self, epoch: int, txn: Any) -> None:
        txn.put(_EPOCH, pack(epoch), db=self._meta)

    # writers -----------------------------------------------------------------------------------------

    def set_own(self, vip: bytes, claims: Sequence[Claim], txn: Any) -> None:
        """This host's claims to a virtual IP, and their stamps: a new one is later than all that are known."""
        stamps = {(claim.name, claim.uid, claim.derived): claim.stamp for claim in self.own(vip, txn)}
        now = self._stamp(txn) + 1
        stamped = {
            replace(claim, host="", stamp=stamps.get((claim.name, claim.uid, claim.derived), now)) for claim in claims
        }
        if any(claim.stamp == now for claim in stamped):
            txn.put(_STAMP, pack(now), db=self._meta)
        self._write("", vip, sorted(stamped, key=lambda claim: (claim.stamp, claim.name or "", claim.uid)), txn)

    def apply(self, host: str, changes: Mapping[bytes, Sequence[Claim]]) -> None:
        """Write another host's claims to virtual IPs (none: they are given up), a few at a time."""
        if host_id(host) == OWN or any(claim.host != host for claims in changes.values() for claim in claims):
            raise ValueError(f"claims that are not of host {host!r}")
        items = list(changes.items())
        for batch in self._writer.batches(items, AT_ONCE):
            with self._writer.transaction() as txn:
                latest = before = self._stamp(txn)
                for vip, claims in batch:
                    latest = max([latest, *(claim.stamp for claim in claims)])
                    self._write(host, vip, claims, txn)
                if latest > before:
                    txn.put(_STAMP, pack(latest), db=self._meta)

    def set_own_name(self, name: str) -> None:
        """This host's member name, by which ties are decided ("": it is in no cluster)."""
        with self._writer.transaction() as txn:
            if bytes(txn.get(_SETTLED, b"", db=self._meta)).decode() == name:
                return
            txn.put(_SELF, name.encode(), db=self._meta)
            vips = self.vips_of("", txn)  # under others it decides nothing
        for batch in self._writer.batches(vips, AT_ONCE):
            with self._writer.transaction() as txn:
                for vip in batch:
                    self._settle(vip, txn)
        with self._writer.transaction() as txn:  # last, so that who died on the way begins again
            txn.put(_SETTLED, name.encode(), db=self._meta)

    # ---------------------------------------------------------------------------------------------------

    def _write(self, host: str, vip: bytes, claims: Sequence[Claim], txn: Any) -> None:
        key = vip + host_id(host)
        if claims:
            fields = [[claim.name, claim.uid, claim.derived, claim.open, claim.stamp] for claim in claims]
            txn.put(key, pack([host, fields]), db=self._claims)
        else:
            txn.delete(key, db=self._claims)
        if not host and claims:
            txn.put(vip, b"", db=self._own)
        elif not host:
            txn.delete(vip, db=self._own)
        self._settle(vip, txn)

    def _settle(self, vip: bytes, txn: Any) -> None:
        """Work out what readers find."""
        self._generations.changed(vip, txn)
        known = self.names(vip, txn)
        own = self._own_name(txn)
        admitted, barred = settle(self._all(vip, own, txn))
        firsts: dict[str, Claim] = {}
        for claim in admitted:
            if claim.name:
                firsts.setdefault(claim.name, claim)
        for name in {*firsts, *(known or ())}:
            self._set_address(name, vip, firsts.get(name), txn)
        if admitted:
            ids = [[OWN if claim.host == own else host_id(claim.host), claim.name, claim.uid] for claim in barred]
            txn.put(vip, pack([ids, sorted(firsts)]), db=self._owners)
        elif known is not None:
            txn.delete(vip, db=self._owners)

    def _set_address(self, name: str, vip: bytes, claim: Claim | None, txn: Any) -> None:
        """Enter (or, for None, strike out) a virtual IP of a name; of several the earliest claimed is the name's."""
        key = _name_key(name)
        value = txn.get(key, db=self._names)
        addresses = [item for item in (unpack(value) if value is not None else []) if item[2] != vip]
        if claim is not None:
            addresses.append([claim.stamp, claim.host, vip])
        if addresses:
            txn.put(key, pack(sorted(addresses)), db=self._names)
        elif value is not None:
            txn.delete(key, db=self._names)

    def _all(self, vip: bytes, own: str, txn: Any) -> list[Claim]:
        """Every host's claims to a virtual IP, this host's under its member name."""
        found: list[Claim] = []
        cursor = txn.cursor(self._claims)
        if cursor.set_range(vip):
            for key, value in cursor:
                if key[:_VIP] != vip:
                    break
                found += _decode(vip, value)
        return [replace(claim, host=own) if claim.host == "" else claim for claim in found]

    def _own_name(self, txn: Any) -> str:
        return bytes(txn.get(_SELF, b"", db=self._meta)).decode()

    def _stamp(self, txn: Any) -> int:
        value = txn.get(_STAMP, db=self._meta)
        return 0 if value is None else int(unpack(value))


def one_of_each_host(cursor: Any, host_of: Callable[[bytes], bytes]) -> list[bytes]:
    """The value under the first key of each host's."""
    found: dict[bytes, bytes] = {}
    for key in cursor.iternext(keys=True, values=False):
        if (host := host_of(key)) not in found:
            found[host] = bytes(cursor.value())
    return list(found.values())


def _name_key(name: str) -> bytes:
    """A name with its labels in reverse, so that those below a name come after it."""
    return ".".join(reversed(name.split("."))).encode()


def _decode(vip: bytes, value: bytes) -> list[Claim]:
    host, fields = unpack(value)
    return [Claim(name, vip, uid, derived, open_, stamp, host) for name, uid, derived, open_, stamp in fields]


def allowed(rows: Iterable[Any], barred: Barred, client: tuple[bytes, str | None, int] | None) -> list[Any]:
    """The rows that a client (its virtual IP, name and user) finds where some are barred: theirs find each other."""
    whose = {(name, uid) for _, name, uid in barred}
    rows = list(rows)
    mine = [row for row in rows if (host_id(row.host), row.name, row.uid) in set(barred)]
    if client is not None and mine and client[0] == mine[0].vip and client[1:] in whose:
        return [row for row in mine if (row.name, row.uid) == client[1:]]
    return [row for row in rows if row not in mine]
