"""docs/udp-benchmarks.md: tables and ratios from one run's figures and nothing else. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from ..lab import Lab, Settings
from ..stats import Results, ratio
from .tables import figure, reflow, table

NATIVE, BRIDGE, RELAYED, APPSWITCH = "native loopback", "bridge", "by the relay", Lab.APPSWITCH
EXCHANGE, ONE_WAY, SENT, TRAP, CPU_TIME = "exchange", "one way", "sent", "trap", "relay"
PINNED, UNPINNED = "one core", "unpinned"
RELAY = "relay"
#: sockperf's latency, and its throughput and iperf's: what came, and what was sent.
PERF, PERF_CAME, PERF_SENT, IPERF = "sockperf", "sockperf came", "sockperf sent", " iperf"
PERF_SIZES, IPERF_SIZE = (100, 1400), 1400
SIZES = (100, 1400, 8000)


def cell(size: int, placement: str) -> str:
    """The name of a row."""
    return f"{size} bytes, {placement}"


def markdown(results: Results, machine: Sequence[tuple[str, str]], date: str, settings: Settings) -> str:
    """The whole page."""
    cells = [cell(size, placement) for placement in (PINNED, UNPINNED) for size in SIZES]

    def median(case: str, what: str, name: str) -> float | None:
        return results.median(case, what, name)

    exchanges, ways = [], []
    columns = (NATIVE, BRIDGE, RELAYED, APPSWITCH)
    for what in cells:
        taken = [median(EXCHANGE, what, name) for name in columns]
        exchanges.append([what, *(figure(value, 1) for value in taken), figure(ratio(taken[-1], taken[0]))])
        came = [median(ONE_WAY, what, name) for name in columns]
        sent = [median(SENT, what, name) for name in columns]
        both = [f"{figure(a, 0)} of {figure(b, 0)}" for a, b in zip(came, sent, strict=True)]
        ways.append([what, *both, figure(ratio(came[-1], came[0]))])
    latencies, flows = [], []
    for what in (cell(size, PINNED) for size in PERF_SIZES):
        taken = [median(PERF, what, name) for name in columns]
        latencies.append([what, *(figure(value, 1) for value in taken), figure(ratio(taken[-1], taken[0]))])
    for tool, case, sent_case, sizes in (
        ("sockperf", PERF_CAME, PERF_SENT, PERF_SIZES),
        ("iperf 2", IPERF, PERF_SENT + IPERF, (IPERF_SIZE,)),
    ):
        for what in (cell(size, PINNED) for size in sizes):
            came = [median(case, what, name) for name in columns]
            sent = [median(sent_case, what, name) for name in columns]
            both = [f"{figure(a, 0)} of {figure(b, 0)}" for a, b in zip(came, sent, strict=True)]
            flows.append([f"{tool}, {what}", *both, figure(ratio(came[-1], came[0]))])
    traps = []
    for placement in (PINNED, UNPINNED):
        native, own = (median(TRAP, placement, name) for name in (NATIVE, APPSWITCH))
        both = (4 * own) if own is not None else None
        traps.append(
            [
                placement,
                figure(median(CPU_TIME, placement, RELAYED), 1),
                figure(native, 1),
                figure(own, 1),
                figure(both, 0),
            ]
        )
    head = ["", *columns, "AppSwitch / native"]
    parts = [
        f"""
# Benchmarks of UDP

Made by `make bench-udp` on {date}; not edited by hand. One host; client and server are C programs (`bench/udp.c`).
Medians of {settings.rounds} runs in turn. *AppSwitch*: under root, whose established conversations the kernel carries
on; *by the relay*: as an ordinary user's are (APPSWITCH_WITHOUT=udp-offload). *One core*: all processes, the switch's
too, on the same one. *Unpinned*: the kernel places them; each exchange then wakes processes on other cores, three times
as many with the relay between.

{table(["Machine", ""], machine, numbers=False)}
""",
        f"""
## An exchange: a datagram and its answer, µs

{table(head, exchanges)}

{settings.transactions} exchanges a run over one connected socket, after twice as many, the median of a run's.
""",
        f"""
## One way: datagrams a second that came, of those sent

{table(head, ways)}

A client sends as fast as it can. On loopback what the server does not read in time is lost at its socket; by the relay
also what that does not read in time, at the device, which holds 500 packets.
""",
        f"""
## sockperf's ping-pong: median latency, µs

{table(head, latencies)}

As sockperf prints it (`pp -t 1`): half of an exchange. One run each.

## sockperf's throughput mode, and iperf 2 -u: datagrams a second that came, of those sent

{table(head, flows)}

Runs of a second, as fast as the tool can send (`sockperf tp`, `iperf -u -b 100g`), once each. What was sent is
what the client says, what came is what the server says.
""",
        f"""
## What a datagram costs, and what a trap would, µs

{table(["", "relay's time", "a call, native", "trapped", "an exchange of 4 traps"], traps)}

*Relay's time*: processor time of the relay for each datagram that it carries. *A call*: getsockname() on a UDP socket,
which AppSwitch traps and leaves to the kernel. An exchange has four calls that move data; none of them is trapped. If
they were, their traps alone would take as long as the last column says.
""",
    ]
    return reflow("\n\n".join(parts)) + "\n"
