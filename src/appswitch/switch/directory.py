"""The service table's names, as the resolver wants them (dns.answers.Directory)."""

from __future__ import annotations

from ..model.address import pack, unpack
from ..model.identity import behind
from ..table.store import Table


class TableDirectory:
    """On a table that the process which asks has open."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def addresses(self, name: str) -> list[str] | None:
        vip = self._table.vip_of(name)
        return None if vip is None else [unpack(vip)]

    def names(self, address: str) -> list[str]:
        try:
            return self._table.names_of(behind(pack(address))) or []
        except ValueError:
            return []

    def below(self, name: str) -> bool:
        return self._table.has_below(name)

    def serves(self, name: str, protocol: int, port: int) -> bool:
        vip = self._table.vip_of(name)
        if vip is None:
            return False
        rows, _ = self._table.lookup(vip, port, protocol)
        return any(row.state == "up" and not row.own_only for row in rows)
