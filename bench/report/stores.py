"""The section on Redis and PostgreSQL."""

from __future__ import annotations

from .. import stores
from ..lab import Settings
from ..stats import Results, ratio
from .tables import figure, table


def section(results: Results, settings: Settings) -> str:
    rows = []
    for cell in stores.CELLS:
        medians = [results.median(stores.CASE, cell, v) for v in (stores.NATIVE, stores.BRIDGE, stores.APPSWITCH)]
        native, bridge, own = medians
        absolute = [figure(value, 0) for value in medians]
        rows.append([cell, *absolute, figure(ratio(own, native)), figure(ratio(own, bridge))])
    head = ["requests/s", stores.NATIVE, stores.BRIDGE, stores.APPSWITCH, "÷ loopback", "÷ bridge"]
    return f"""
## Requests per second: Redis and PostgreSQL

{table(head, rows)}

redis-benchmark with {stores.CLIENTS} clients; pgbench with {stores.PG_CLIENTS}, select-only, its connections
made before it begins to count, or with `-C` one for each transaction. All are placed by the scheduler.
"""
