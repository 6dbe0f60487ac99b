"""When each virtual IP's services or claims last changed, so that what was decided of one outlives others' changes."""

from __future__ import annotations

from typing import Any
from zlib import crc32

#: Virtual IPs share so many places: the record stays small, and a change seldom speaks for another's address.
PLACES = 4096


class Generations:
    """On the environment of a `Table`."""

    def __init__(self, env: Any, *, make: bool) -> None:
        self._places = env.open_db(b"generations", create=make)
        self.database = self._places

    def of(self, vip: bytes, txn: Any) -> int:
        """The number of a write since which nothing under this virtual IP has changed; 0 when nothing ever did."""
        return int.from_bytes(txn.get(_place(vip), b"", db=self._places), "big")

    def changed(self, vip: bytes, txn: Any) -> None:
        """This write changes something under the virtual IP."""
        txn.put(_place(vip), int(txn.id()).to_bytes(8, "big"), db=self._places)


def _place(vip: bytes) -> bytes:
    return (crc32(vip) % PLACES).to_bytes(2, "big")
