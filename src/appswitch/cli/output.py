"""How lists are shown: aligned plain columns, or JSON."""

from __future__ import annotations

import datetime
import os
import pwd
from collections.abc import Sequence
from functools import partial
from typing import Any

from ..model.documents import indented
from .main import show
from .options import Values

#: Last columns that are never cut.
_TEXTS = ("VALUE", "RULE")
#: Columns that a sentence must have, else it gets lines of its own; how far those are indented.
_LEAST_FOR_TEXT, _INDENT = 16, 4


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
    """Left-aligned columns, two spaces apart. Lines longer than `width`, if given, are cut and end in `…`.

    Where the last column is what the table is there for (`_TEXTS`), it goes on in further lines, and nothing is cut.
    """
    cells = [list(header), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [_aligned(row, widths) for row in cells]
    if width is None or max(map(len, lines)) <= width:
        return "\n".join(lines)
    if header[-1] in _TEXTS:
        return "\n".join(_continued(row, widths, width) for row in cells)
    return "\n".join(line if len(line) <= width else line[: width - 1] + "…" for line in lines)


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(f"{cell:<{size}}" for cell, size in zip(row, widths, strict=True)).rstrip()


def _continued(row: Sequence[str], widths: Sequence[int], width: int) -> str:
    """A row whose last cell goes on below itself, or on lines of its own where there is hardly room beside the rest."""
    import textwrap  # here, for a terminal that is wide enough does without

    *front, last = row
    start = sum(widths[:-1]) + 2 * len(front)
    wrap = partial(textwrap.wrap, break_long_words=False, break_on_hyphens=False)  # paths stay whole
    if width - start >= _LEAST_FOR_TEXT:
        first, *others = wrap(last, width - start) or [""]
        return "\n".join([_aligned([*front, first], widths), *(" " * start + line for line in others)])
    lines = wrap(last, max(width - _INDENT, _LEAST_FOR_TEXT))
    return "\n".join([_aligned(front, widths[:-1]), *(" " * _INDENT + line for line in lines)])


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
