"""The section on connect, accept, one byte each way, close."""

from __future__ import annotations

from .. import transactions
from ..lab import Settings
from ..stats import Results, Target, ratio
from .tables import figure, table

TRANSACTION = {"blocking": Target("<=", 1.4), "polling": Target("<=", 1.6)}


def section(results: Results, settings: Settings) -> str:
    case = transactions.CASE
    native, own = transactions.NATIVE, transactions.APPSWITCH
    cells = [
        (server, transactions.cell_name(server, placement))
        for placement in (transactions.PINNED, transactions.UNPINNED)
        for server in transactions.SERVERS
    ]
    rows = []
    for server, cell in cells:
        value = ratio(results.median(case, cell, own), results.median(case, cell, native))
        target = TRANSACTION[server] if cell.endswith(transactions.PINNED) else None
        whole = [
            figure(results.median(which, cell, variant), 0)
            for variant in (native, own)
            for which in (case, f"{case} {transactions.P90}")
        ]
        judged = [str(target), target.verdict(value)] if target else ["none", ""]
        rows.append([cell, *whole, figure(value), *judged])
    blocking = transactions.cell_name(transactions.SERVERS[0], transactions.PINNED)
    bare, careful = (results.median(transactions.BARE, blocking, floor) for floor in transactions.FLOORS)
    bare_ratio, careful_ratio = (ratio(floor, results.median(case, blocking, native)) for floor in (bare, careful))
    head = ["µs a transaction", "native", "its p90", "AppSwitch", "its p90", "ratio", "target", ""]
    kinds = (transactions.CONNECT, transactions.EXCHANGE, transactions.CLOSE)
    parts_head = [
        "µs in each part",
        *(f"{kind}, {name}" for kind in kinds for name in ("native", "AppSwitch")),
    ]
    parts = [
        [
            cell,
            *(figure(results.median(f"{case} {kind}", cell, v), 0) for kind in kinds for v in (native, own)),
        ]
        for _, cell in cells
    ]
    return f"""
## Connect, accept, 1 byte each way, close

{table(head, rows)}

{table(parts_head, parts)}

One client does {settings.transactions} transactions one after another in each run; the figures are medians
over the runs of each run's median and 90th percentile. *connect* is socket() and connect(), *exchange*
write and read of one byte, as the client sees them; the server's accept() falls into one or the other.
*blocking*: the server waits in accept() and read(). *polling*: all its sockets are non-blocking and it
waits in epoll_wait() only. *one core*: client, server and, for AppSwitch, every process of the switch are
pinned to one processor; *unpinned*: the scheduler places them. {results.notes.get("transact", "")}

What any handler in Python costs here: one that only receives the two calls, makes the pair, hands both ends
over and answers (`bench/floor.py`; it reads no address, applies no rule, carries no option, knows no name)
takes {figure(bare, 0)} µs for the first row, {figure(bare_ratio)} times the native path. One that does for this case
alone what none may leave out (the same file: the caller's address and socket, whether its call still waits, the
socket's options, who else has it, the ends' buffers and records) takes {figure(careful, 0)} µs,
{figure(careful_ratio)} times.
"""
