"""docs/udp-benchmarks.md: tables and ratios from one run's figures and nothing else. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from ..lab import Lab, Settings
from ..stats import Results, ratio
from .tables import figure, reflow, table

NATIVE, BRIDGE, APPSWITCH = "native loopback", "bridge", Lab.APPSWITCH
EXCHANGE, ONE_WAY, SENT, TRAP, CPU_TIME = "exchange", "one way", "sent", "trap", "relay"
PINNED, UNPINNED = "one core", "unpinned"
RELAY = "relay"
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
    for what in cells:
        native, bridge, own = (median(EXCHANGE, what, name) for name in (NATIVE, BRIDGE, APPSWITCH))
        exchanges.append([what, figure(native, 1), figure(bridge, 1), figure(own, 1), figure(ratio(own, native))])
        native, bridge, own = (median(ONE_WAY, what, name) for name in (NATIVE, BRIDGE, APPSWITCH))
        offered = (median(SENT, what, name) for name in (NATIVE, BRIDGE, APPSWITCH))
        came = [figure(value, 0) for value in (native, bridge, own)]
        sent = [figure(value, 0) for value in offered]
        ways.append([what, *(f"{a} of {b}" for a, b in zip(came, sent, strict=True)), figure(ratio(own, native))])
    traps = []
    for placement in (PINNED, UNPINNED):
        native, own = (median(TRAP, placement, name) for name in (NATIVE, APPSWITCH))
        both = (4 * own) if own is not None else None
        traps.append(
            [
                placement,
                figure(median(CPU_TIME, placement, APPSWITCH), 1),
                figure(native, 1),
                figure(own, 1),
                figure(both, 0),
            ]
        )
    head = ["", NATIVE, BRIDGE, APPSWITCH, "AppSwitch / native"]
    parts = [
        f"""
# Benchmarks of UDP

Made by `make bench-udp` on {date}; not edited by hand. One host; client and server are C programs (`bench/udp.c`).
Medians of {settings.rounds} runs in turn. *One core*: all processes, the switch's too, on the same one. *Unpinned*: the
kernel places them; each exchange then wakes processes on other cores, three times as many with the relay between.

{table(["Machine", ""], machine, numbers=False)}
""",
        f"""
## An exchange: a datagram and its answer, µs

{table(head, exchanges)}

{settings.transactions} exchanges a run over one connected socket, the median of a run's.
""",
        f"""
## One way: datagrams a second that came, of those sent

{table(head, ways)}

A client sends as fast as it can. On loopback what the server does not read in time is lost at its socket; here also
what the relay does not read in time, at the device, which holds 500 packets.
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
