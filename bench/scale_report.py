"""docs/scale.md: tables, figures to compare with and verdicts, from one run's figures and nothing else. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from .report.tables import figure, reflow, table

Figures = dict[str, Any]
SHARES = (0.5, 0.9, 0.99, 0.9999)
ROUND, FANOUT = 0.2, 3
PERIOD, DETECTION = 1.0, 1.6
SUSPICION_MULT, SUSPICION_MAX = 4, 6
CURED = 10
FLAT = 1.1
JOINING = 250


class Results:
    """The cells of one run."""

    def __init__(
        self,
        cells: Sequence[tuple[tuple[str, Figures], Figures]],
        date: str,
        missing: Sequence[tuple[str, Figures]] = (),
    ) -> None:
        """`missing`: cells that the run was not given the time for."""
        self.cells = cells
        self.date = date
        self.missing = missing

    def all(self, scene: str, **wanted: object) -> list[tuple[Figures, Figures]]:
        """(arguments, figures) of a scene's cells, the smallest clusters first."""
        found = [
            (arguments, figures)
            for (name, arguments), figures in self.cells
            if name == scene and all(arguments.get(key, False) == value for key, value in wanted.items())
        ]
        return sorted(found, key=lambda item: (item[0].get("size", 0), item[0].get("loss", 0)))

    @property
    def seconds(self) -> float:
        return math.fsum(figures["seconds"] for _, figures in self.cells)


def serf(size: int, loss: float, part: float) -> float:
    """Serf's convergence simulator: seconds until so large a part knows."""
    c = FANOUT / size * (1 - loss) * 0.5
    rounds = 1
    while 1 / (1 + (size + 1) * math.exp(-c * size * rounds)) < part:
        rounds += 1
    return rounds * ROUND


def suspicion(size: int) -> tuple[float, float]:
    """Serf's shortest and longest suspicion, in seconds."""
    least = SUSPICION_MULT * max(1.0, math.log10(size)) * PERIOD
    return least, least * SUSPICION_MAX


def columns(times: Sequence[Sequence[float | None]]) -> list[list[float]]:
    """The times of each share, `inf` for those that never knew."""
    return [[math.inf if time is None else time for time in column] for column in zip(*times, strict=True)]


def hosts(size: int) -> str:
    return f"{size:,}"


def percent(loss: float) -> str:
    return f"{loss:.0%}".replace("%", " %")


def verdict(met: bool) -> str:
    return "met" if met else "**missed**"


def markdown(results: Results) -> str:
    """The whole page."""
    parts = [
        _head(results),
        _rows(results),
        _deaths(results),
        _loss(results),
        _slow(results),
        _idle(results),
        _joining(results),
        _load(results),
        _LEFT_OUT,
    ]
    return "\n\n".join(reflow(part) for part in parts) + "\n"


def _head(results: Results) -> str:
    sizes = sorted({arguments["size"] for (_, arguments), _ in results.cells})
    missing = ", ".join(
        f"{name} ({', '.join(f'{key} {value}' for key, value in arguments.items())})"
        for name, arguments in results.missing
    )
    gaps = f"**Not simulated in this run, which was cut short:** {missing}.\n\n" if missing else ""
    return f"""# Scale: the gossip with up to {hosts(sizes[-1])} hosts, simulated

Written by `make sim` on {results.date}; {results.seconds / 60:.0f} minutes of CPU time. The gossip's core and
the replica of the service table run as they do in the router, with the timings for a LAN; the network and the
clock are simulated (`tests/gossip/simulator.py`): 0.2 to 2 ms from host to host, and datagrams that get lost
where it says so. All that is random comes from seeds, so another run gives the same figures, except for CPU times.

{gaps}![Time until all know, and octets per host, by the number of hosts](scale.svg)"""


def _rows(results: Results) -> str:
    lines, met = [], True
    for arguments, figures in results.all("rows"):
        size, loss = arguments["size"], arguments["loss"]
        found = columns(figures["times"])
        theirs = [serf(size, loss, part) for part in SHARES]
        means = [statistics.fmean(column) for column in found]
        met = met and all(ours <= their for ours, their in zip(means, theirs, strict=True))
        cells = [f"{figure(ours)} ({their:.1f})" for ours, their in zip(means, theirs, strict=True)]
        lines.append([hosts(size), percent(loss), str(arguments["count"]), *cells, figure(max(found[-1]))])
    head = ["hosts", "loss", "rows", "50 %", "90 %", "99 %", "99.99 %", "worst row"]
    return f"""## A new row, until the others have it

Seconds from `listen()` on one host until so many of the others have the row, mean of all rows; in brackets what
Serf's convergence simulator tells of Serf (fan-out 3, rounds of 0.2 s). The last column is the slowest row's 99.99 %.

{table(head, lines)}

On or below Serf's figure in each cell: {verdict(met)}. The reason is that a change leaves at once, to eight
hosts, and that each host that hears it passes it on at once, to three; only what is lost waits for the gossip's
ticks."""


def _deaths(results: Results) -> str:
    lines, met = [], True
    for arguments, figures in results.all("detection"):
        took = figures["took"]
        mean = statistics.fmean(took)
        error = statistics.stdev(took) / math.sqrt(len(took)) if len(took) > 1 else 0.0
        met = met and mean <= DETECTION * PERIOD
        lines.append(
            [
                hosts(arguments["size"]),
                percent(arguments["loss"]),
                str(len(took)),
                f"{figure(mean)} ± {figure(error)}",
                figure(max(took)),
            ]
        )
    know, within = [], True
    for arguments, figures in results.all("everybody"):
        size, loss = arguments["size"], arguments["loss"]
        least, most = suspicion(size)
        spread = max(columns(figures["spread"])[-1])
        first = figures["suspicion"]
        their = serf(size, loss, SHARES[-1])
        within = within and max(first) <= most and spread <= their and not figures["false"]
        know.append(
            [
                hosts(size),
                percent(loss),
                str(len(first)),
                f"{figure(statistics.fmean(first), 1)} ({least:.1f} to {most:.0f})",
                f"{figure(spread)} ({their:.1f})",
                figure(max(figures["whole"]), 1),
                str(figures["false"]),
            ]
        )
    return f"""## A host dies

Seconds from its death until the first of the others has had no answer and suspects it; the mean with its
standard error. A protocol period is {PERIOD:g} s.

{table(["hosts", "loss", "deaths", "first suspicion", "longest"], lines)}

At most {DETECTION} periods on average, whatever is lost: {verdict(met)}. Until somebody asks the dead host
one period passes on average, whatever the cluster's size; then half a period: it is asked again for 0.25 s,
three others are asked to try, and 0.2 s later they say that they hear nothing either. Where the question or
their word gets lost they are asked again every 50 ms.

Then it has time to say that it lives. Seconds from the first suspicion to the first verdict (Serf's shortest
and longest in brackets), from there until 99.99 % know it (the slowest death; Serf's figure in brackets), and
from the death until they know; and how many living hosts were taken for dead meanwhile.

{table(["hosts", "loss", "deaths", "to the verdict", "until all know", "from its death", "wrongly dead"], know)}

Within Serf's figures: {verdict(within)}."""


def _loss(results: Results) -> str:
    lines = [
        [
            percent(arguments["loss"]),
            "every 50 ms" if arguments.get("repeated", True) else "never",
            figure(figures["hours"], 1),
            str(figures["suspected"]),
            str(figures["false"]),
            figure(figures["datagram_octets"], 0),
        ]
        for arguments, figures in results.all("lossy")
    ]
    return f"""## Datagrams get lost, and nobody dies

100 hosts.

{table(["loss", "repeated", "host hours", "suspicions", "wrongly dead", "octets/s per host"], lines)}

A ping without an answer is repeated every 50 ms, by the one who asks and by those who help. With one ping only, as in
SWIM, suspicions and refutations would fill all datagrams of a large cluster."""


def _slow(results: Results) -> str:
    lines, met = [], True
    for arguments, figures in results.all("slow", lifeguard=True):
        lag, paused = arguments["lag"], arguments.get("paused", False)
        ((_, without),) = (
            cell for cell in results.all("slow", lifeguard=False, lag=lag) if cell[0].get("paused", False) == paused
        )
        ours, theirs = figures["false"], without["false"]
        if not paused:
            met = met and theirs >= CURED * max(1, ours)
        lines.append(
            [
                f"stand still for 0 to {lag:g} s" if paused else f"late by 0 to {lag:g} s",
                str(theirs),
                str(ours),
                str(without["accused"]),
                str(figures["accused"]),
            ]
        )
    head = ["they", "wrongly dead without", "with", "accusations without", "with"]
    return f"""## Slow members

50 hosts, 80 s; five of them hear everything late, or stand still again and again. How often a healthy member was taken
for dead, without Lifeguard (local health, time-outs that confirmations shorten, telling the suspect with the ping) and
with it; and how often the slow ones had no answer from others.

{table(head, lines)}

At least {CURED} times fewer where they hear late: {verdict(met)}. Those who stand still (a stopped process, a busy
machine) do little harm in either case: what came in meanwhile is read, 64 datagrams at a time, before a time-out is
believed, and those whom they ask for help have their full time."""


def _idle(results: Results) -> str:
    found = results.all("idle", whole=False)
    whole = {arguments["size"]: figures["stream_octets"] for arguments, figures in results.all("idle", whole=True)}
    lines = [
        [
            hosts(arguments["size"]),
            figure(figures["datagrams"], 1),
            figure(figures["datagram_octets"], 0),
            figure(figures["stream_octets"], 1),
            figure(figures["datagram_octets"] + figures["stream_octets"], 0),
            figure(whole.get(arguments["size"], math.nan), 0),
        ]
        for arguments, figures in found
    ]
    octets = [figures["datagram_octets"] + figures["stream_octets"] for _, figures in found]
    flat = max(octets) <= FLAT * min(octets)
    head = ["hosts", "datagrams", "octets in datagrams", "in streams", "all octets", "in streams, if whole states"]
    return f"""## Traffic of a cluster at rest

Sent by each host per second, with the headers of IP, UDP and TCP; one service a host.

{table(head, lines)}

Flat as hosts grow (all octets, the most at most {FLAT} times the least): {verdict(flat)}. Streams are what every
memberlist exchanges with a random member every 30 s (less often above 32 members: every 270 s with 5,000): whole
states, which grow with the members and the rows. Hosts of AppSwitch compare digests instead and tell only what
differs; the last column is what whole states would cost, as they do in a Serf cluster, and without digests."""


def _joining(results: Results) -> str:
    found = results.all("joining")
    lines = []
    for arguments, figures in found:
        times = [math.inf if time is None else time for time in figures["times"]]
        lines.append(
            [
                hosts(arguments["size"]),
                *(figure(time) for time in (times[0], times[-1])),
                figure(figures["others"], 0),
                figure(figures["most"], 0),
                figure(figures["new"] / 1000, 1),
                figure(figures["seed"] / 1000, 1),
            ]
        )
    others = [figures["others"] for _, figures in found]
    head = ["hosts", "50 % know", "99.99 %", "octets, mean", "most", "newcomer, kB", "who let it in, kB"]
    return f"""## A host joins

A newcomer with one service: seconds until so many of the hosts have its row, and what was sent in streams for it in
the ten seconds from then: by each of the other hosts, by the newcomer, and by the host that let it in, which tells it
the whole state.

{table(head, lines)}

What it costs the others in streams does not grow with their number (at most {JOINING} octets each on average):
{verdict(max(others) <= JOINING)}. A newcomer's first rows go round as news do; only who has not heard any asks it."""


def _load(results: Results) -> str:
    lines = [
        [
            hosts(arguments["size"]),
            figure(figures["datagrams"], 0),
            figure(figures["datagram_octets"] / 1000, 1),
            figure(figures["stream_octets"], 1),
            figure(figures["cpu"] * 100, 1),
            figure(figures["exchange"]["octets"] / 1e6),
            figure(figures["exchange"]["cpu"] * 1000, 0),
        ]
        for arguments, figures in results.all("load")
    ]
    head = ["hosts", "datagrams/s", "kB/s in datagrams", "octets/s in streams", "CPU %"]
    head += ["whole state, MB", "taking it in, ms"]
    return f"""## 10,000 services and 10 changes a second

Each host; the services are spread evenly. CPU: for what one host hears in datagrams, opened, decoded, applied
and passed on as the router does it, in per cent of one core, without the kernel's share; and for one exchange
of whole states, which is what a host that joins has once. With 10 hosts, each has 1,000 services.

{table(head, lines)}

Datagrams grow with the logarithm of the hosts, for news are repeated so often: 4 times for each of its digits. In
streams are comparisons, which find changes that are still on their way; only what does not come within a moment is
fetched."""


_LEFT_OUT = """## What was not simulated

- The kernel, its buffers and bandwidth: a datagram is delayed by 0.2 to 2 ms whatever else is sent. TCP is a
  delay, with retransmissions after 1 s for the handshake and 0.2 s, doubled, for the rest.
- Writing the table (LMDB) and what a Python process takes to do all that: each host's computing takes no
  simulated time.
- From 1,000 hosts on, members exchange nothing in streams where rows, deaths and joining are measured: it could only
  help.
- For 5,000 hosts, 64 orders of probing are drawn, and each host begins somewhere in one of them.
- Encryption is replaced by boxes of the same length, except where CPU time is measured.
- All hosts start as members already. One more joins where that is measured; thousands joining at a time are not
  simulated.
- At rest and under load, from 1,000 hosts on, a few seconds are simulated: a few dozen exchanges in all.
- First suspicions of many deaths are taken from the same run, with nobody told of them."""
