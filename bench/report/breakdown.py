"""The section on where the time of a connection goes."""

from __future__ import annotations

from .. import breakdown, transactions
from ..lab import Settings
from ..stats import Results, ratio
from .tables import figure, table

BARE = transactions.BARE


def section(results: Results, settings: Settings) -> str:
    def median(placement: str, what: str) -> float | None:
        return results.median(breakdown.CASE, placement, what)

    rows = []
    for placement in breakdown.CPUS:
        whole, python, kernel = (median(placement, w) for w in (breakdown.WHOLE, breakdown.PYTHON, breakdown.KERNEL))
        rest = None if whole is None or python is None or kernel is None else whole - python - kernel
        rows.append([placement, *(figure(value, 0) for value in (whole, python, kernel, rest))])
    pinned, free = (median(placement, breakdown.WHOLE) for placement in breakdown.CPUS)
    across = None if pinned is None or free is None else free - pinned
    native = results.median(
        transactions.CASE, transactions.cell_name("blocking", transactions.PINNED), transactions.NATIVE
    )
    return f"""
## Where the time of a connection goes

{table(["µs a transaction", "whole", "worker: Python", "worker: kernel", "programs and switching"], rows)}

The transaction of the table above with a blocking server, {figure(ratio(pinned, native))} times the native path on
one core. A connection is two traps, connect() and accept(); for both together the worker makes
{figure(median(breakdown.PINNED, breakdown.CALLS), 0)} system calls. *Python* is what the worker spends in its own
code, *kernel* what these calls take (the exchange of the caller's descriptor and of the server's among them, each of
which also waits for the other process to take it), *programs and switching* the programs' own calls and the scheduler.
Placed by the scheduler it takes {figure(across, 0)} µs more: wake-ups from one core to the other. A handler that does
nothing but these hand-overs would take {figure(results.median(BARE, transactions.cell_name("blocking",
transactions.PINNED), BARE), 0)} µs.
"""
