"""The section on a large service table."""

from __future__ import annotations

from .. import table as case
from ..lab import Settings
from ..stats import Results, Target, ratio
from .tables import figure, table

LOOK_UP = Target("<=", 10, "µs")
CONNECTS = Target("<=", 1.05)
DELAY = Target("<=", 10, "ms")


def section(results: Results, settings: Settings) -> str:
    def median(cell: str, variant: str) -> float | None:
        return results.median(case.CASE, cell, variant)

    rows = []
    for cell in (case.LOOK, case.LOOK_P99, case.NAME, case.NAME_P99):
        target = LOOK_UP if cell in (case.LOOK, case.NAME) else None
        many = median(cell, case.MANY)
        judged = [str(target), target.verdict(many)] if target else ["none", ""]
        rows.append([f"{cell}, µs", figure(median(cell, case.FEW), 1), figure(many, 1), *judged])
    for cell in (case.CONNECT, case.STIRRED):
        few, many = median(cell, case.FEW), median(cell, case.MANY)
        rows.append(
            [f"{cell}, µs", figure(few, 1), figure(many, 1), f"ratio {CONNECTS}", CONNECTS.verdict(ratio(many, few))]
        )
    for cell, unit in ((case.SIZE, "MiB"), (case.PSS, "MiB"), (case.LISTING, "s")):
        both = (figure(median(cell, variant), 1) for variant in case.COUNTS)
        rows.append([f"{cell}, {unit}", *both, "none", ""])
    usual, most = (median(case.LISTEN_MOST, name) for name in (case.IDLE, case.BULK))
    delay = max(0.0, most - usual) / 1000 if most is not None and usual is not None else None
    listens = [
        [name, *(figure(median(cell, name), 0) for cell in (case.LISTEN, case.LISTEN_MOST, case.OVERTAKEN))]
        for name in (case.IDLE, case.BULK, case.WRITE_IDLE, case.WRITE_BULK)
    ]
    return f"""
## A table of 100 000 services

{table(["", case.FEW, case.MANY, "target", ""], rows)}

*look-up*: one of the services by address and port, as a connect() finds it; *name*: its address by its name, as
DNS does; {case.LOOKS} each, of random ones, in one process. *connect*: the client of the transactions, on one core
with the switch, to a service of this host beside those of another; then the same while a row of a third is changed
ten times a second. *table* is the file that all processes map, PSS is summed over the switch's processes. Measured
once, but for look-ups and connects.

{table(["listen(), µs", "median", "longest", "overtaken, most"], listens)}

A program binds, listens and closes; meanwhile services and names of another host are written,
{case.COUNTS[case.MANY]} of each. *one row*: a process that does to the table what a worker does in listen(), no
more. The longest call is longer than the longest alone by {figure(delay, 1, "ms")}
(target {DELAY}: {DELAY.verdict(delay)}). *overtaken*: how many transactions of others the table saw during one
call. Each takes less than 1 ms of processor time: where *one row* is overtaken by few, what takes longer waits for a
processor, not for the table.
"""
