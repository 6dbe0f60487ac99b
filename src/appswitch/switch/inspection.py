"""`appswitch inspect`: all that the switch knows of one service, program or instance."""

from __future__ import annotations

from typing import Any

from ..model.address import pack, unpack
from ..model.identity import Refusal, check_name
from ..table.store import Table
from .registry import Entry
from .resolution import known_names, unknown

Row = dict[str, Any]

#: Denials that are shown.
_DENIALS = 20


def select(
    text: str, entries: list[Entry], services: list[Row], table: Table, own: str | None
) -> tuple[list[Entry], list[Row]]:
    """The programs of this host, and the services of all, that a name, virtual IP, program id, pid or instance means.

    SwitchError when it means nothing. `own`: this host's name in a cluster.
    """
    if text.isascii() and text.isdecimal():
        number = int(text)
        for entry in entries:
            if number in (entry.number, entry.pid):
                return [entry], [row for row in services if row["host"] == own and row["program"] == entry.number]
        rows = [row for row in services if row["instance"] == number]
        programs = {row["program"] for row in rows if row["host"] == own}
        if rows:
            return [entry for entry in entries if entry.number in programs], rows
    vip = name = None
    try:
        vip = pack(text)
    except ValueError:
        try:
            name = check_name(text)
        except Refusal:
            name = text
        vip = table.vip_of(name)
    found = [entry for entry in entries if entry.identity.vip == vip and name in (None, entry.identity.name)]
    shown = unpack(vip) if vip is not None else None
    rows = [row for row in services if row["vip"] == shown and name in (None, row["name"])]
    if not found and not rows:
        raise unknown(text, known_names(table, entries))
    return found, rows


def compose(
    entries: list[Entry], programs: list[Row], services: list[Row], connections: list[Row], denials: list[Row]
) -> Row:
    """The document, of rows of the other listings that concern what was selected."""
    first: Row = programs[0] if programs else services[0]
    numbers = {entry.number for entry in entries}
    name, vip = first["name"], first["vip"]
    owners = sorted({row["uid"] for row in [*programs, *services]})
    return {
        "name": name,
        "vip": vip,
        "owners": owners,
        "tags": sorted({tag for row in [*programs, *services] for tag in row["tags"]}),
        "programs": [row | {"options": _options(entry)} for row, entry in zip(programs, entries, strict=True)],
        "services": services,
        "connections": [row for row in connections if row["program"] in numbers],
        "denials": [
            row for row in denials if row["program"] in numbers or row["service"] in _names(name, services)
        ][-_DENIALS:],
    }


def _options(entry: Entry) -> Row:
    """As they were given to `run`."""
    given = entry.options
    return {
        "transport": given.transport,
        "balance": given.balance,
        "egress": given.egress,
        "wait_for": [f"{name}:{port}" if port else name for name, port, _ in given.wait_for],
        "wait_timeout": given.wait_timeout,
        "expose": [f"{place}:{place.port}" for exposure in given.expose for place in exposure.places()],
    }


def _names(name: str | None, services: list[Row]) -> set[str]:
    """What denials call the services by."""
    unnamed = {
        f"[{row['vip']}]:{row['port']}" if ":" in row["vip"] else f"{row['vip']}:{row['port']}" for row in services
    }
    return {name} if name else unnamed
