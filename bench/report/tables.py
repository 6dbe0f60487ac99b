"""Numbers, tables and prose of a report, as Markdown. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from ..stats import NOT_MEASURED

WIDTH = 110


def figure(value: float | None, digits: int = 2, unit: str = "") -> str:
    """A number for a table, or `not measured`."""
    if value is None:
        return NOT_MEASURED
    return f"{value:,.{digits}f}".replace(",", " ") + (f" {unit}" if unit else "")


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool = True) -> str:
    """A Markdown table, aligned in its source too; `numbers` puts all columns but the first to the right."""
    cells = [list(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(head))]
    right = [numbers and i > 0 for i in range(len(head))]
    rule = ["-" * (w - 1) + ":" if r else "-" * w for w, r in zip(widths, right, strict=True)]

    def line(row: Sequence[str]) -> str:
        padded = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)]
        return "| " + " | ".join(padded) + " |"

    return "\n".join([line(cells[0]), line(rule), *map(line, cells[1:])])


def reflow(text: str) -> str:
    """Fill paragraphs of prose to the page's width; tables, headings, lists and pictures stay as they are."""
    parts = [part.strip() for part in text.split("\n\n")]
    return "\n\n".join(
        part
        if part[0] in "|#!-"
        else textwrap.fill(" ".join(part.split()), WIDTH, break_long_words=False, break_on_hyphens=False)
        for part in parts
        if part
    )
