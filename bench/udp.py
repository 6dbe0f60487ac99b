"""UDP: exchanges and one-way rates, native loopback, a bridge and AppSwitch: `python -m bench.udp`.

Writes docs/udp-benchmarks.md; `--quick` prints rough figures instead.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from . import page, sockperf
from .bridge import SERVER_ADDRESS, Bridge
from .lab import HERE, Lab
from .procs import Unavailable, until
from .report import udp as report
from .report.udp import (
    APPSWITCH,
    BRIDGE,
    CPU_TIME,
    EXCHANGE,
    NATIVE,
    ONE_WAY,
    PINNED,
    RELAY,
    RELAYED,
    SENT,
    SIZES,
    TRAP,
    UNPINNED,
    cell,
)
from .stats import quantile
from .switch import Switch

MARKDOWN = "udp-benchmarks.md"
ECHO, SINK = "7000", "7001"
_SECONDS, _QUICK_SECONDS = 1.0, 0.3


class Ends:
    """An echo and a sink, and what a client's command begins with. `host`: where it finds them."""

    def __init__(self, lab: Lab, own: ExitStack, server: Sequence[str], client: Sequence[str], host: str) -> None:
        self._lab, self._client, self._host = lab, client, host
        self._log = lab.folder / f"sink-{len(list(lab.folder.iterdir()))}"
        self.cpu: int | None = None
        self.switch: Switch | None = None
        self._server, self._own = server, own

    def begin(self, listen: str = "0.0.0.0", names: tuple[str, str] | None = None) -> Ends:
        """Start the two."""
        for kind, port in (("echo", ECHO), ("sink", SINK)):
            out = self._log if kind == "sink" else None
            self.serve(kind, [*self._lab.udp, kind, listen, port], port, out)
        return self

    def serve(self, kind: str, argv: list[str], port: str, out: Path | None = None) -> subprocess.Popen[bytes]:
        """Start a server; it has its port when this returns. It ends with the others."""
        env = None
        if self.switch is not None:
            argv, env = self.switch.run(*argv, name=f"bench-{kind}"), self.switch.env
        proc = self._lab.procs.spawn([*self._server, *argv], env=env, cpu=self.cpu, out=out)
        self._own.callback(self._lab.procs.stop, proc)
        if self.switch is not None:
            self.switch.wait_service(f"bench-{kind}", proc)
        else:
            until(lambda: _is_bound(proc.pid, int(port)), f"UDP port {port}")
        return proc

    def call(self, *argv: str) -> str:
        """What a client prints."""
        words, env = list(argv), None
        if self.switch is not None:
            words, env = self.switch.run(*argv), self.switch.env
        return self._lab.procs.run([*self._client, *words], env=env, cpu=self.cpu, seconds=60.0)

    def address(self, kind: str) -> str:
        """Where a client finds this server, as a number."""
        return self._host if self.switch is None else self.switch.address(f"bench-{kind}")

    def _run(self, *words: str) -> str:
        return self.call(*self._lab.udp, *words)

    def _at(self, kind: str) -> str:
        return f"bench-{kind}" if self.switch is not None else self._host

    def ask(self, size: int) -> float:
        """Median microseconds of an exchange, when enough have been made for the kernel to carry the others on."""
        count = self._lab.settings.transactions
        return _median(self._run("ask", self._at("echo"), ECHO, str(2 * count), str(count), str(size)))

    def flood(self, size: int, seconds: float) -> tuple[float, float]:
        """Datagrams a second that came, and that were sent."""
        before = len(self._log.read_text().splitlines())
        sent = int(self._run("flood", self._at("sink"), SINK, str(seconds), str(size)))
        lines = until(lambda: self._log.read_text().splitlines()[before:], "the sink's count")
        count, taken = map(int, lines[0].split())
        return 1e9 * count / max(1, taken), sent / seconds

    def trap(self) -> float:
        """Median microseconds of a getsockname()."""
        return _median(self._run("trap", str(self._lab.settings.transactions)))


def _median(text: str) -> float:
    return quantile([int(line) / 1000 for line in text.splitlines()], 0.5)


def _is_bound(pid: int, port: int) -> bool:
    """Whether somebody in the process's network namespace has the UDP port (proc_net_udp, column 1)."""
    rows = Path(f"/proc/{pid}/net/udp").read_text().splitlines()[1:]
    return any(int(row.split()[1].rpartition(":")[2], 16) == port for row in rows)


def _native(lab: Lab, cpu: int | None, own: ExitStack) -> Ends:
    ends = Ends(lab, own, (), (), "127.0.0.1")
    ends.cpu = cpu
    return ends.begin("127.0.0.1")


def _bridge(lab: Lab, cpu: int | None, own: ExitStack) -> Ends:
    bridge = Bridge(lab.procs)
    ends = Ends(lab, own, bridge.server, bridge.client, SERVER_ADDRESS)
    ends.cpu = cpu
    return ends.begin()


def _appswitch(lab: Lab, cpu: int | None, own: ExitStack, without: str = "") -> Ends:
    ends = Ends(lab, own, (), (), "")
    ends.cpu, ends.switch = cpu, own.enter_context(lab.switch(cpu, without))
    return ends.begin()


def _relayed(lab: Lab, cpu: int | None, own: ExitStack) -> Ends:
    return _appswitch(lab, cpu, own, "udp-offload")


def measure(lab: Lab, seconds: float) -> None:
    """All figures, each placement with servers and a switch of its own."""
    put = lab.results.put
    for placement, cpu in ((PINNED, 0), (UNPINNED, None)):
        with ExitStack() as stack:
            made: dict[str, Ends] = {}
            for name, make in (
                (NATIVE, _native),
                (BRIDGE, _bridge),
                (RELAYED, _relayed),
                (APPSWITCH, _appswitch),
            ):
                try:
                    made[name] = partial(make, lab, cpu)(stack)
                except Unavailable as error:
                    lab.skip(EXCHANGE, [cell(size, placement) for size in SIZES], name, str(error))
            _alternate(lab, EXCHANGE, placement, made, lambda ends, size: (ends.ask(size),), (EXCHANGE,))
            _alternate(lab, ONE_WAY, placement, made, lambda ends, size: ends.flood(size, seconds), (ONE_WAY, SENT))
            if placement == PINNED:
                sockperf.measure(lab, placement, made)
            for name, ends in made.items():
                if name in (NATIVE, APPSWITCH):
                    put(TRAP, placement, name, [ends.trap() for _ in range(lab.settings.rounds)])
            if RELAYED in made:
                put(CPU_TIME, placement, RELAYED, [_relay_time(lab, made[RELAYED]) for _ in range(3)])


def _alternate(
    lab: Lab,
    what: str,
    placement: str,
    made: dict[str, Ends],
    do: Callable[[Ends, int], tuple[float, ...]],
    cases: tuple[str, ...],
) -> None:
    taken: dict[tuple[str, int, str], list[float]] = {}
    for number in range(1, lab.settings.rounds + 1):
        lab.say(f"{what}, {placement}: round {number} of {lab.settings.rounds}")
        for size in SIZES:
            for name, ends in made.items():
                for case, value in zip(cases, do(ends, size), strict=True):
                    taken.setdefault((case, size, name), []).append(value)
    for (case, size, name), samples in taken.items():
        lab.results.put(case, cell(size, placement), name, samples)


def _relay_time(lab: Lab, ends: Ends) -> float:
    """Processor time of the relay in µs for each datagram that it carries, in exchanges of 100 bytes."""
    assert ends.switch is not None
    [relay] = [pid for pid, role in ends.switch.pids().items() if role == RELAY]
    before, carried = _ticks(relay), _carried(ends.switch)
    for _ in range(5):
        ends.ask(SIZES[0])
    ticks, count = _ticks(relay) - before, _carried(ends.switch) - carried
    return 1e6 * ticks / os.sysconf("SC_CLK_TCK") / max(1, count)


def _carried(switch: Switch) -> int:
    return int(switch.status()["counters"]["datagrams"])


def _ticks(pid: int) -> int:
    """User and system time so far (proc_pid_stat(5), fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def main(argv: list[str] | None = None) -> int:
    """Measure, and write or print the report; exit code 1 when something could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m bench.udp", description="Benchmarks of UDP.")
    parser.add_argument("--quick", action="store_true", help="a short, rough run; printed")
    parser.add_argument("--write", type=Path, metavar="DIR", help=f"where {MARKDOWN} goes (a full run: docs)")
    args = parser.parse_args(argv)
    target: Path | None = args.write or (None if args.quick else HERE.parent / "docs")

    def measured(lab: Lab) -> None:
        measure(lab, _QUICK_SECONDS if args.quick else _SECONDS)

    return page.make(MARKDOWN, target, args.quick, measured, report.markdown)


if __name__ == "__main__":
    sys.exit(main())
