"""docs/cluster-benchmarks.md: tables, ratios, targets and verdicts, from one run's figures and nothing else. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from ..lab import Lab, Settings
from ..stats import Results, Target, quantile, ratio
from .tables import figure, reflow, table

NATIVE, APPSWITCH = "native", Lab.APPSWITCH
PLACEMENTS = ("one core", "unpinned")
PROPAGATION = Target("<=", 300, "ms")
CONNECT = Target("<=", 1.25)
SAME = 1.0


def markdown(results: Results, machine: Sequence[tuple[str, str]], date: str, settings: Settings) -> str:
    """The whole page."""
    parts = [
        f"""
# Benchmarks of a cluster

Made by `make bench-cluster` on {date}; not edited by hand. Five hosts: network namespaces of one machine, each with
one end of a veth pair whose other end is a port of one Linux bridge. All processes of all hosts share the machine's
processors, and no wire has a delay: what the network itself takes comes on top, for native TCP as for AppSwitch.

{table(["Machine", ""], machine, numbers=False)}
""",
        _propagation(results),
        _between(results, settings),
        _failure(results),
        _idle(results),
        _gaps(results),
    ]
    return reflow("\n\n".join(parts)) + "\n"


def _propagation(results: Results) -> str:
    rows = []
    for cell in ("new listener", "closed listener", "killed program"):
        samples = results.get("propagation", cell, APPSWITCH).samples
        p99 = quantile(samples, 0.99) if samples else None
        verdict = PROPAGATION.verdict(p99) if cell == "new listener" else ""
        target = str(PROPAGATION) if cell == "new listener" else "none"
        shown = [figure(quantile(samples, share) if samples else None, 1) for share in (0.5, 0.99, 1.0)]
        rows.append([cell, *shown, target, verdict, str(len(samples))])
    return f"""
## News of a service

{table(["ms until all five hosts know", "p50", "p99", "max", "target of p99", "", "samples"], rows)}

From before the program calls listen() or close(), or is killed (SIGKILL), until the service table of the last of the
five hosts says so; the tables are read directly, about every 0.3 ms. One change after the other.
"""


def _between(results: Results, settings: Settings) -> str:
    def row(case: str, cell: str, digits: int, target: Target | None) -> list[str]:
        native, ours = (results.median(case, cell, variant) for variant in (NATIVE, APPSWITCH))
        found = ratio(ours, native)
        verdict = target.verdict(found) if target else ""
        shown = [figure(native, digits), figure(ours, digits), figure(found)]
        return [cell, *shown, str(target) if target else "none", verdict]

    def rows(case: str, cells: Sequence[str], digits: int = 1, target: Target | None = None) -> list[list[str]]:
        return [row(case, f"{cell}, {place}", digits, target) for place in PLACEMENTS for cell in cells]

    servers = ("blocking server", "polling server")
    head = ["native", "AppSwitch", "ratio", "target", ""]
    return f"""
## From one host to another

{table(["µs in connect", *head], rows("connect", servers, 1, CONNECT))}

{table(["µs a transaction", *head], rows("transaction", servers, 1))}

{table(["µs on the established connection", *head], rows("exchange", ["1 byte each way"], 1))}

{table(["Gbit/s by write size", *head], rows("throughput", ("8 KiB", "128 KiB"), 2))}

*native*: TCP between the same two namespaces, without AppSwitch, measured in turn, {settings.rounds} times each;
medians. *connect* is socket() and connect() of a blocking client; a *transaction* is connect, accept, 1 byte each way
and close, {settings.transactions} of them in each run. *one core*: client, server and every process of both switches
are pinned to one processor; *unpinned*: the scheduler places them. On the established connection nothing of
AppSwitch is in the path: it is the program's own TCP socket, so {SAME:.1f} is what is to be expected.
"""


def _failure(results: Results) -> str:
    samples = results.get("failure", "killed host", APPSWITCH).samples
    rows = [
        [
            "host killed",
            *(figure(quantile(samples, share) if samples else None, 1) for share in (0.0, 0.5, 1.0)),
            str(len(samples)),
        ]
    ]
    return f"""
## A host that dies

{table(["s until the other four have dropped its services", "least", "median", "most", "samples"], rows)}

Every process of its switch is killed (SIGKILL) at once. The gossip suspects a host that does not answer, and gives
it up when the time for it to object is over.
"""


def _idle(results: Results) -> str:
    cpu, sent = (results.get("idle", cell, APPSWITCH).samples for cell in ("CPU", "sent"))

    def spread(samples: Sequence[float], digits: int) -> list[str]:
        return [figure(quantile(samples, share) if samples else None, digits) for share in (0.0, 0.5, 1.0)]

    rows = [["processor, ms/s", *spread(cpu, 2)], ["sent, bytes/s", *spread(sent, 0)]]
    return f"""
## A cluster with nothing to do

{table(["each of the five hosts", "least", "median", "most"], rows)}

Processor time of all processes of a host's switch (`/proc/PID/stat`), and bytes on its wire, headers included.
"""


def _gaps(results: Results) -> str:
    gaps = [f"- {case}, {cell}: {reason}" for case, cell, _, reason in results.gaps()]
    return "## Not measured\n\n" + "\n".join(gaps) if gaps else ""
