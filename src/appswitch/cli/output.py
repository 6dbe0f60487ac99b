"""How lists are shown: aligned plain columns, or JSON."""

from __future__ import annotations

import datetime
import os
import pwd
from collections.abc import Sequence
from typing import Any

from ..model.documents import indented
from .main import show
from .options import Values


def report(values: Values, document: Any, header: Sequence[str], rows: Sequence[Sequence[object]]) -> int:
    """Print the document as JSON if that was asked for, else the table."""
    if values.one("--output") == "json":
        return show(indented(document))
    return show(table(header, rows, _width()))


def report_all(
    values: Values, document: Any, tables: Sequence[tuple[Sequence[str], Sequence[Sequence[object]]]]
) -> int:
    """The document as JSON if that was asked for, else tables with a line between them; empty ones are left out."""
    if values.one("--output") == "json":
        return show(indented(document))
    return show("\n\n".join(table(header, rows, _width()) for header, rows in tables if rows))


def table(header: Sequence[str], rows: Sequence[Sequence[object]], width: int | None = None) -> str:
    """Left-aligned columns, two spaces apart; lines are cut at `width` if given."""
    cells = [list(header), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(f"{cell:<{size}}" for cell, size in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join(line[:width] for line in lines)


def printable(value: object) -> str:
    """One cell: `-` for nothing, and no control characters (a terminal would obey them)."""
    if value is None or value == "" or value == []:
        return "-"
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _width() -> int | None:
    """Of the terminal; None when the output goes elsewhere."""
    try:
        return os.get_terminal_size(1).columns or None
    except (OSError, ValueError):
        return None


def age(seconds: float) -> str:
    """A length of time in its largest unit or two: 45s, 3m20s, 2h5m, 4d3h."""
    left = int(seconds)
    for size, unit, smaller, small_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if left >= size:
            rest = left % size // smaller
            return f"{left // size}{unit}{rest}{small_unit}" if rest else f"{left // size}{unit}"
    return f"{left}s"


def age_since(moment: str) -> str:
    """How long an ISO 8601 time is ago."""
    ago = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(moment)
    return age(max(0.0, ago.total_seconds()))


def local_time(moment: str) -> str:
    """An ISO 8601 time as this place's clocks show it."""
    return datetime.datetime.fromisoformat(moment).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def user_name(uid: int) -> str:
    """The user's name; the number for one who has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
