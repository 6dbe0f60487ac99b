"""The section on memory and on idle switches."""

from __future__ import annotations

from .. import footprint
from ..lab import Settings
from ..stats import Results, Target
from .tables import figure, table

PSS = {1: Target("<=", 60, "MiB"), 100: Target("<=", 100, "MiB")}
NONE_AT_ALL = Target("<=", 0)


def section(results: Results, settings: Settings) -> str:
    rows = []
    for count in footprint.COUNTS:
        cell = footprint.cell_name(count)
        processes, pss, switches = (
            results.median(footprint.CASE, cell, what)
            for what in (footprint.PROCESSES, footprint.PSS, footprint.SWITCHES)
        )
        rows.append(
            [
                cell,
                figure(processes, 0),
                figure(pss, 1, "MiB"),
                str(PSS[count]),
                PSS[count].verdict(pss),
                figure(switches, 0),
                "0",
                NONE_AT_ALL.verdict(switches),
            ]
        )
    roles = [
        f"With {cell}: {results.notes[f'{footprint.CASE} {cell}']}."
        for cell in map(footprint.cell_name, footprint.COUNTS)
        if f"{footprint.CASE} {cell}" in results.notes
    ]
    head = [
        "the whole switch",
        "processes",
        "PSS",
        "target",
        "",
        f"context switches in {settings.idle_s:g} s idle",
        "target",
        "",
    ]
    return f"""
## Footprint

{table(head, rows)}

Measured once. The programs are `appswitch run -- sleep`. PSS is summed over all processes of the switch
(`/proc/PID/smaps_rollup`), context switches, voluntary and not, over all their threads
(`/proc/PID/task/*/status`); reading these does not wake them. {" ".join(roles)}
"""
