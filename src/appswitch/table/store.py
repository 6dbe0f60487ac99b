"""The service table: an LMDB environment in the run directory, mapped by every process of the switch.

Workers write the rows of their programs, the supervisor the programs and names, the router the rows of other hosts;
anyone reads, without a lock. A host is the only author of its rows: what is written here of other hosts' rows comes
from them. Nothing is synced to disk: the run directory dies with the host, and so do the programs.
"""

from __future__ import annotations

import errno
import os
import struct
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import lmdb

from ..linux.storage import reserve
from ..model.identity import Claim, Identity, Tags
from ..model.service import TCP, Place, Service
from .claims import Claims, allowed, one_of_each_host
from .codec import (
    OWN,
    decode_service,
    encode_service,
    host_id,
    host_of_key,
    pack,
    read_service,
    service_key,
    service_prefix,
    unpack,
    vip_of_key,
)
from .generations import Generations
from .poke import NAME, Poke
from .writing import Writer, no_room

MAP_SIZE = 1 << 30  # address space, not memory: LMDB touches only what is used
DENIALS_KEPT = 1000
#: Rows of other hosts written in one transaction: so long others wait for the write lock, a millisecond of work.
AT_ONCE = 64

#: Bytes on disk that a table begins with; and so many of its lock file: enough for the readers below.
RESERVED, _LOCK_FILE = 1 << 20, 40 << 10
_ID = struct.Struct("!Q")


def make(path: str) -> None:
    """Make an empty table in this directory, with room for some thousand rows that nobody else can take. OSError.

    Otherwise a full disk would keep rows from being removed, too, and end who touches LMDB's lock file by SIGBUS.
    """
    reserve(os.path.join(path, "lock.mdb"), _LOCK_FILE)
    try:
        Table(path).close()
    except lmdb.Error as error:
        raise no_room(error) from None
    reserve(os.path.join(path, "data.mdb"), RESERVED)


class Table:
    """One process's handle on the table. Not to be carried over fork(): open another in the child."""

    def __init__(self, path: str, *, readonly: bool = False) -> None:
        self._env = lmdb.open(
            path,
            map_size=MAP_SIZE,
            max_dbs=16,
            max_readers=512,
            subdir=True,
            sync=False,
            metasync=False,
            readahead=False,
            readonly=readonly,
            max_spare_txns=4,
            mode=0o600,
        )
        self._env.reader_check()  # places of readers that were killed
        make = not readonly
        # pages, half of all: what changes is written anew before the old is free
        self._full_at = self._env.info()["map_size"] // self._env.stat()["psize"] // 2
        self._services = self._env.open_db(b"services", create=make)
        #: Keys of this host's services after their programs' numbers: few among many.
        self._own = self._env.open_db(b"own", create=make)
        self._programs = self._env.open_db(b"programs", create=make)
        self._generations = Generations(self._env, make=make)
        self._writer = Writer(self._env, path, readonly=readonly)
        self._claims = Claims(self._env, self._writer, self._generations, make=make)
        self._denials = self._env.open_db(b"denials", create=make)
        self._members = self._env.open_db(b"members", create=make)
        self._relays = self._env.open_db(b"relays", create=make)
        self._poke = Poke(os.path.join(os.path.dirname(os.path.abspath(path)), NAME))

    def close(self) -> None:
        self._env.close()
        self._writer.close()
        self._poke.close()

    def version(self) -> int:
        """The number of the last write: what was read under the same number is still so."""
        with self._env.begin() as txn:
            return int(txn.id())

    def generation(self, vip: bytes) -> int:
        """The number of a write since which no service or claim under this virtual IP has changed."""
        with self._env.begin() as txn:
            return self._generations.of(vip, txn)

    # services -------------------------------------------------------------------------------------

    def lookup(
        self,
        vip: bytes,
        port: int,
        proto: int = TCP,
        client: Identity | None = None,
        more: Iterable[Service] = (),
    ) -> tuple[list[Service], bool]:
        """Every instance under (virtual IP, port) on any host, this one's first, and whether anybody has that IP.

        Left out are those whose claim to the virtual IP is barred (model.claims), unless the client is of theirs.
        `more`: instances of this host that have no rows, to be taken as if they had.
        """
        prefix = service_prefix(vip, port, proto)
        rows = list(more)
        with self._env.begin() as txn:
            cursor = txn.cursor(self._services)
            if cursor.set_range(prefix):
                for key, value in cursor:
                    if not key.startswith(prefix):
                        break
                    rows.append(decode_service(value))
            barred = self._claims.barred(vip, txn)
        if barred:
            rows = allowed(rows, barred, None if client is None else (client.vip, client.name, client.uid))
        return rows, bool(rows) or barred is not None

    def _check_room(self) -> None:
        """OSError when only so much is left as it takes to delete something."""
        last = self._full_at
        if self._env.info()["last_pgno"] < last:
            return
        with self._env.begin() as txn:
            own = (self._services, self._own, self._programs, self._denials, self._members, self._relays)
            stats = [txn.stat(database) for database in (*own, *self._claims.databases, self._generations.database)]
        if sum(stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"] for stat in stats) >= last:
            raise OSError(errno.ENOSPC, "it is full")

    def put_service(self, row: Service) -> None:
        """Write a row of this host. OSError when there is no room for it."""
        self._check_room()
        key = service_key(row)
        value = encode_service(row)
        with self._writer.transaction() as txn:
            txn.put(key, value, db=self._services)
            txn.put(_ID.pack(row.program) + key, b"", db=self._own)
            self._generations.changed(row.vip, txn)
        self._poke([key])

    def delete_services(self, rows: list[Service]) -> int:
        """How many of these rows were still there; this host's are gone afterwards, others' stay."""
        keys = [service_key(row) for row in rows if not row.remote]
        if not keys:
            return 0
        deleted = 0
        for start in range(0, len(keys), AT_ONCE):
            with self._writer.transaction() as txn:
                deleted += sum(self._delete(key, txn) for key in keys[start : start + AT_ONCE])
        self._poke(keys)
        return deleted

    def _delete(self, key: bytes, txn: Any) -> bool:
        self._generations.changed(vip_of_key(key), txn)
        value = txn.pop(key, db=self._services)
        if value is not None and host_of_key(key) == OWN:
            txn.delete(_ID.pack(read_service(value).program) + key, db=self._own)
        return value is not None

    def services(self, program: int | None = None, proto: int | None = None) -> list[Service]:
        """This host's rows, all or those of one program, of all protocols or one."""
        with self._env.begin() as txn:
            values = (txn.get(key, db=self._services) for key in self._own_keys(program, txn))
            rows = [decode_service(value) for value in values if value is not None]
        return [row for row in rows if proto in (None, row.proto)]

    def _own_keys(self, program: int | None, txn: Any) -> list[bytes]:
        prefix = b"" if program is None else _ID.pack(program)
        cursor = txn.cursor(self._own)
        keys = []
        if cursor.set_range(prefix):
            for key in cursor.iternext(keys=True, values=False):
                if not key.startswith(prefix):
                    break
                keys.append(bytes(key[_ID.size :]))
        return keys

    def service(self, key: bytes) -> Service | None:
        """The row under a key, on whatever host."""
        with self._env.begin() as txn:
            value = txn.get(key, db=self._services)
            return None if value is None else decode_service(value)

    def all_services(self) -> Iterator[Service]:
        """The rows of all hosts."""
        with self._env.begin() as txn:
            for value in txn.cursor(self._services).iternext(keys=False):
                yield read_service(value)

    def under(self, vip: bytes) -> list[Service]:
        """The rows under a virtual IP, of all ports and hosts."""
        with self._env.begin() as txn:
            cursor = txn.cursor(self._services)
            found = []
            if cursor.set_range(vip):
                for key, value in cursor:
                    if vip_of_key(key) != vip:
                        break
                    found.append(decode_service(value))
        return found

    # rows of other hosts, for the router ------------------------------------------------------------

    def host_keys(self, host: str) -> list[bytes]:
        """The keys of one host's rows ("": this host's)."""
        wanted = host_id(host)
        with self._env.begin() as txn:
            keys = txn.cursor(self._services).iternext(keys=True, values=False)
            return [bytes(key) for key in keys if host_of_key(key) == wanted]

    def replace_host_rows(self, host: str, rows: Iterable[Service]) -> None:
        """Have exactly these rows of another host; the others of that host go."""
        new: dict[bytes, Service | None] = {service_key(row): row for row in rows}
        gone = dict.fromkeys(key for key in self.host_keys(host) if key not in new)
        self.apply_host_changes(host, gone | new)

    def apply_host_changes(self, host: str, changes: Mapping[bytes, Service | None]) -> None:
        """Write (or, for None, delete) rows of another host by their keys, a few at a time.

        ValueError when a key or row is not of that host, which is never this one.
        """
        wanted = host_id(host)
        items = list(changes.items())
        if wanted == OWN or not all(
            host_of_key(key) == wanted and (row is None or (row.host == host and service_key(row) == key))
            for key, row in items
        ):
            raise ValueError(f"rows that are not of host {host!r}")
        for batch in self._writer.batches(items, AT_ONCE):
            values = [None if row is None else encode_service(row) for _, row in batch]
            with self._writer.transaction() as txn:
                for (key, _), value in zip(batch, values, strict=True):
                    if value is None:
                        self._delete(key, txn)
                    else:
                        txn.put(key, value, db=self._services)
                        self._generations.changed(vip_of_key(key), txn)

    def relay(self, host: str) -> Place | None:
        """Where the relay of a host ("": this one) takes others' datagrams; None when there is no such place."""
        with self._env.begin() as txn:
            value = txn.get(host_id(host), db=self._relays)
        if value is None:
            return None
        _, address, port, life = unpack(value)
        return Place((address, port), life)

    def set_relay(self, host: str, place: Place | None) -> None:
        """Write (or, for None, delete) it. OSError when there is no room for it."""
        with self._writer.transaction() as txn:
            if place is None:
                txn.delete(host_id(host), db=self._relays)
            else:
                txn.put(host_id(host), pack([host, *place.address, place.life]), db=self._relays)
        if not host:
            self._poke([])

    def hosts(self) -> set[str]:
        """The other hosts of which there is anything."""
        with self._env.begin() as txn:
            found = self._claims.hosts(txn)
            found |= {str(unpack(value)[0]) for value in txn.cursor(self._relays).iternext(keys=False)}
            for value in one_of_each_host(txn.cursor(self._services), host_of_key):
                found.add(read_service(value).host)
        return found - {""}

    def counts(self) -> Counter[str]:
        """How many rows each other host has."""
        with self._env.begin() as txn:
            keys = txn.cursor(self._services).iternext(keys=True, values=False)
            count = Counter(map(host_of_key, keys))
        return Counter({host: count[host_id(host)] for host in self.hosts()})

    def members(self) -> dict[str, dict[str, Any]]:
        """What the router knows of the members of the cluster, by name; empty outside a cluster."""
        with self._env.begin() as txn:
            return {bytes(key).decode(): unpack(value) for key, value in txn.cursor(self._members)}

    def set_members(self, changes: Mapping[str, dict[str, Any] | None]) -> None:
        """Write (or, for None, delete) what is known of members."""
        for batch in self._writer.batches(list(changes.items()), AT_ONCE):
            with self._writer.transaction() as txn:
                for name, record in batch:
                    if record is None:
                        txn.delete(name.encode(), db=self._members)
                    else:
                        txn.put(name.encode(), pack(record), db=self._members)

    def forget_cluster(self) -> None:
        """This host is in no cluster any more: what is known of others goes."""
        for host in self.hosts():
            self.replace_host_rows(host, [])
            self.apply_host_claims(host, dict.fromkeys(self.vips_of_host(host), ()))
            self.set_relay(host, None)
        self.set_members(dict.fromkeys(self.members()))
        self.set_own_name("")

    # programs and names ---------------------------------------------------------------------------

    def put_program(self, number: int, record: dict[str, Any]) -> None:
        with self._writer.transaction() as txn:
            txn.put(_ID.pack(number), pack(record), db=self._programs)

    def delete_program(self, number: int) -> None:
        """The program's record and whatever rows of its are left."""
        with self._env.begin() as txn:
            many = self._own_keys(number, txn)[AT_ONCE:]
        for batch in self._writer.batches(many, AT_ONCE):
            with self._writer.transaction() as txn:
                for key in batch:
                    self._delete(key, txn)
        with self._writer.transaction() as txn:
            txn.delete(_ID.pack(number), db=self._programs)
            left = self._own_keys(number, txn)
            for key in left:
                self._delete(key, txn)
        if left:
            self._poke([*left, *many])

    def programs(self) -> dict[int, dict[str, Any]]:
        with self._env.begin() as txn:
            return {_ID.unpack(key)[0]: unpack(value) for key, value in txn.cursor(self._programs)}

    def program(self, number: int) -> dict[str, Any] | None:
        """The record of one program of this host."""
        with self._env.begin() as txn:
            value = txn.get(_ID.pack(number), db=self._programs)
            return None if value is None else unpack(value)

    def program_count(self) -> int:
        """How many programs there are on this host."""
        with self._env.begin() as txn:
            return int(txn.stat(self._programs)["entries"])

    def set_claims(self, vip: bytes, claims: list[Claim]) -> None:
        """Who lives under a virtual IP on this host now; an empty list frees it."""
        with self._writer.transaction() as txn:
            self._claims.set_own(vip, claims, txn)
        self._poke([vip])

    def apply_host_claims(self, host: str, changes: Mapping[bytes, Sequence[Claim]]) -> None:
        """Write what another host claims, by virtual IP; an empty list frees it. ValueError when it is not its own."""
        self._claims.apply(host, changes)

    def claims_of_host(self, host: str) -> dict[bytes, list[Claim]]:
        """All that one host claims ("": this one), by virtual IP."""
        with self._env.begin() as txn:
            return self._claims.of_host(host, txn)

    def vips_of_host(self, host: str) -> list[bytes]:
        """The virtual IPs that one host claims."""
        with self._env.begin() as txn:
            return self._claims.vips_of(host, txn)

    def own_claims(self, vip: bytes) -> list[Claim]:
        """What this host claims of a virtual IP."""
        with self._env.begin() as txn:
            return self._claims.own(vip, txn)

    def claims(self, vip: bytes) -> list[Claim]:
        """The claims of all hosts that hold a virtual IP; barred ones are not among them."""
        with self._env.begin() as txn:
            return self._claims.admitted(vip, txn)

    def set_own_name(self, name: str) -> None:
        """This host's member name, by which ties between claims are decided; "" outside a cluster."""
        self._claims.set_own_name(name)

    def epoch(self) -> int:
        """The router's epoch, kept over its restarts (cluster.replica); 0 when there was none."""
        with self._env.begin() as txn:
            return self._claims.epoch(txn)

    def set_epoch(self, epoch: int) -> None:
        """Keep the router's epoch."""
        with self._writer.transaction() as txn:
            self._claims.set_epoch(epoch, txn)

    def vip_of(self, name: str) -> bytes | None:
        with self._env.begin() as txn:
            return self._claims.vip_of(name, txn)

    def has_below(self, name: str) -> bool:
        """Whether anybody has a name that ends in this one after a dot."""
        with self._env.begin() as txn:
            return self._claims.has_below(name, txn)

    def names_of(self, vip: bytes) -> list[str] | None:
        """The names under a virtual IP; None when nobody has it."""
        with self._env.begin() as txn:
            return self._claims.names(vip, txn)

    # denials --------------------------------------------------------------------------------------

    def add_denial(
        self, *, client: str, program: int, tags: Tags, service: str, destination: str, port: int, rule: str
    ) -> None:
        """One refused connection, for `appswitch denials`; the last thousand are kept. Left out if there is no room."""
        record = {
            "time": time.time(),
            "client": client,
            "program": program,
            "tags": [f"{key}={value}" for key, value in tags],
            "service": service,
            "destination": destination,
            "port": port,
            "rule": rule,
        }
        with suppress(OSError), self._writer.transaction() as txn:
            cursor = txn.cursor(self._denials)
            last = _ID.unpack(cursor.key())[0] if cursor.last() else 0
            txn.put(_ID.pack(last + 1), pack(record), db=self._denials)
            if last >= DENIALS_KEPT:
                txn.delete(_ID.pack(last + 1 - DENIALS_KEPT), db=self._denials)

    def denials(self) -> list[dict[str, Any]]:
        """Oldest first."""
        with self._env.begin() as txn:
            return [unpack(value) for _, value in txn.cursor(self._denials)]
