"""docs/benchmarks.md: tables, ratios, targets and verdicts, from one run's figures and nothing else. Pure.

A file a case, each with its `section`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .. import breakdown as _breakdown
from .. import footprint as _footprint
from .. import startup as _startup
from .. import stores as _stores
from .. import table as _table
from .. import throughput as _throughput
from .. import transactions as _transactions
from .. import web as _web
from ..lab import Settings
from ..stats import Results
from . import breakdown, footprint, startup, stores, throughput, transactions, web
from . import table as large_table
from .tables import reflow, table

SECTIONS: dict[str, Callable[[Results, Settings], str]] = {
    _throughput.CASE: throughput.section,
    _transactions.CASE: transactions.section,
    _breakdown.CASE: breakdown.section,
    _web.CASE: web.section,
    _stores.CASE: stores.section,
    _startup.CASE: startup.section,
    _footprint.CASE: footprint.section,
    _table.CASE: large_table.section,
}


@dataclass(frozen=True)
class Run:
    """What is to be said of a run besides its figures."""

    date: str
    settings: Settings
    quick: bool
    partial: bool
    machine: Sequence[tuple[str, str]]


def markdown(results: Results, run: Run) -> str:
    """The whole page."""
    parts = [_head(run)]
    parts += [section(results, run.settings) for case, section in SECTIONS.items() if case in results.cases]
    parts.append(_gaps(results))
    parts.append(_raw(results))
    return reflow("\n\n".join(parts)) + "\n"


def _head(run: Run) -> str:
    kind = "A short run (`--quick`): rough figures. " if run.quick else ""
    some = "Only some of the cases were run. " if run.partial else ""
    return f"""
# Benchmarks

Made by `make bench` on {run.date}; not edited by hand. {kind}{some}All figures are of this one run on this
one machine: the compared columns were measured in turn, {run.settings.rounds} times each unless it says
otherwise, and the tables give the medians. Ratios are ratios of medians. Ratios carry over to other
machines better than absolute figures do.

{table(["Machine", ""], run.machine, numbers=False)}
"""


def _gaps(results: Results) -> str:
    gaps: dict[str, list[str]] = {}
    for case, cell, variant, reason in results.gaps():
        gaps.setdefault(f"{case}, {variant}: {reason}", []).append(cell)
    if not gaps:
        return ""
    lines = [f"- {what} ({'; '.join(cells)})" for what, cells in gaps.items()]
    return "## Not measured\n\n" + "\n".join(lines)


def _raw(results: Results) -> str:
    units = {
        _throughput.CASE: "Gbit/s",
        _throughput.TRAPS: "",
        _web.CASE: "requests/s",
        _stores.CASE: "requests/s",
        _startup.CASE: "ms",
    }
    rows = []
    for (case, cell, variant), one in results.figures.items():
        if not one.samples:
            continue
        unit = units.get(case, "µs")
        if case == _footprint.CASE:
            unit = "MiB" if variant == _footprint.PSS else ""
        if case == _table.CASE:
            unit = {_table.SIZE: "MiB", _table.PSS: "MiB", _table.LISTING: "s", _table.OVERTAKEN: ""}.get(cell, "µs")
        digits = 0 if unit in ("", "requests/s") else 2
        runs = " ".join(f"{sample:.{digits}f}" for sample in one.samples)
        rows.append([case, cell, variant, unit, runs])
    if not rows:
        return ""
    return "## Every run\n\n" + table(["case", "what", "variant", "unit", "runs, in order"], rows, numbers=False)
