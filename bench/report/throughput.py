"""The section on throughput."""

from __future__ import annotations

from .. import throughput
from ..lab import Settings
from ..stats import NOT_MEASURED, Results, Target, ratio
from .tables import figure, table

REFERENCE = Target(">=", 0.95)
BRIDGE = {size: Target(">=", 4) if count <= 8 << 10 else Target(">=", 1.8) for size, count in throughput.SIZES.items()}
NONE_AT_ALL = Target("<=", 0)


def section(results: Results, settings: Settings) -> str:
    parts: list[str] = []
    times: list[float] = []
    for placement, words in (
        (throughput.FREE, "client and server placed by the scheduler"),
        (throughput.PINNED, "client and server on one core"),
    ):
        absolute, ratios, found = _stream_tables(results, placement)
        times += found
        parts.append(f"### iperf 2, {words}\n\n{absolute}\n\n{ratios}\n\n{_spread(results, placement)}")
    cells = len(throughput.SIZES) * len(throughput.PLACEMENTS)
    if times:
        rows = "all" if len(times) == cells else f"{len(times)} of {cells}"
        least, most = figure(min(times), 1), figure(max(times), 1)
        here = f"Measured here, in {rows} rows: {least} to {most} times the bridge."
    else:
        here = f"Here: {NOT_MEASURED}."
    head = f"""
## Throughput of a stream

![Throughput by write size](benchmarks.svg)

The paper (section 6, Figure 3) says of throughput that "it was several times higher with APPSWITCH compared
to Linux bridge". {here}
"""
    traps = table(
        [
            "in the middle of a transfer",
            "traps",
            "target",
            "",
            "context switches of the switch",
            "MiB written",
        ],
        [_trap_row(results, size) for size in throughput.SIZES],
    )
    parts.append(f"""
Each transfer lasts {settings.transfer_s:g} s and is taken from the server's report, so only what arrived
counts. *veth + bridge*: two network namespaces, each with one end of a veth pair whose other end is a port
of a Linux bridge (MTU 1500, offloads as the kernel sets them). *Unix pair*: the reference, the very same
iperf with a preloaded shim that makes its sockets AF_UNIX streams with a send buffer of 4 MiB (as far as
net.core.wmem_max or privilege lets) at connect and accept and stays out of the way afterwards;
*Unix pair ÷ bridge* is thus about the most that AppSwitch can reach here with these sockets.
{results.notes.get("unix pair", "")}

### Traps between connect and close

{traps}

Counted for about a second of a running transfer by `appswitch status`. A trap wakes a process of the
switch, so the context switches that the kernel counts for these processes are a second witness.
""")
    return "\n\n".join([head, *parts])


def _stream_tables(results: Results, placement: str) -> tuple[str, str, list[float]]:
    """The absolute and the relative table of a placement, and the ratios to the bridge that there are."""
    variants = (throughput.BRIDGE, throughput.LOOPBACK, throughput.APPSWITCH, throughput.UNIX)
    absolute, relative, times = [], [], []
    for size in throughput.SIZES:
        cell = throughput.cell_name(size, placement)
        medians = {v: results.median(throughput.CASE, cell, v) for v in variants}
        own = medians[throughput.APPSWITCH]
        bridge, unix, loopback = (
            ratio(own, medians[v]) for v in (throughput.BRIDGE, throughput.UNIX, throughput.LOOPBACK)
        )
        ceiling = ratio(medians[throughput.UNIX], medians[throughput.BRIDGE])
        times += [] if bridge is None else [bridge]
        absolute.append([size, *(figure(medians[v]) for v in variants)])
        relative.append(
            [
                size,
                figure(bridge),
                str(BRIDGE[size]),
                BRIDGE[size].verdict(bridge),
                figure(unix),
                str(REFERENCE),
                REFERENCE.verdict(unix),
                figure(loopback),
                figure(ceiling),
            ]
        )
    return (
        table(["Gbit/s by write size", *variants], absolute),
        table(
            [
                "AppSwitch ÷",
                "bridge",
                "target",
                "",
                "Unix pair",
                "target",
                "",
                "loopback",
                "Unix pair ÷ bridge",
            ],
            relative,
        ),
        times,
    )


def _spread(results: Results, placement: str) -> str:
    """How far the runs of a cell lie apart: what a verdict near its limit is worth."""
    spreads = sorted(
        (max(one.samples) - min(one.samples)) / one.median
        for (case, cell, _), one in results.figures.items()
        if case == throughput.CASE and cell.endswith(placement) and one.median
    )
    if not spreads:
        return ""
    middle, most = spreads[len(spreads) // 2], spreads[-1]
    return (
        f"Noise: lowest and highest run of a cell lie {middle:.0%} of its median apart in the middling cell, "
        f"{most:.0%} in the worst."
    )


def _trap_row(results: Results, size: str) -> list[str]:
    traps = results.median(throughput.TRAPS, size, throughput.TRAPS)
    moved = results.median(throughput.TRAPS, size, throughput.BYTES)
    return [
        size,
        figure(traps, 0),
        "0",
        NONE_AT_ALL.verdict(traps),
        figure(results.median(throughput.TRAPS, size, throughput.SWITCHES), 0),
        figure(moved / 2**20 if moved is not None else None, 0),
    ]
