"""Connect + accept + 1 byte each way + close, blocking and polling server, native loopback and AppSwitch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from .lab import Lab, free_port, wait_listening
from .procs import Procs, Unavailable
from .stats import quantile
from .switch import Switch

CASE = "transactions"
#: Handlers of floor.py, by what it calls them.
BARE, CAREFUL = "bare handler", "careful handler"
FLOORS = {BARE: "bare", CAREFUL: "careful"}
P90, CONNECT, EXCHANGE, CLOSE = "p90", "connect", "exchange", "close"
PINNED, UNPINNED = "one core", "unpinned"
SERVERS = ("blocking", "polling")
NATIVE, APPSWITCH = "native loopback", Lab.APPSWITCH
SERVICE_PORT = 7000
CPU = 0


@dataclass(frozen=True)
class Taken:
    """One run of the client in µs: median and 90th percentile of a transaction, medians of its parts."""

    median: float
    p90: float
    connect: float
    exchange: float
    close: float


def parse(text: str) -> Taken:
    """Read the client's lines, each nanoseconds in connect, exchange and close."""
    rows = [[int(word) / 1000 for word in line.split()] for line in text.splitlines()]
    if not rows or any(len(row) != 3 for row in rows):
        raise Unavailable("the transaction client printed something unexpected")
    totals = [sum(row) for row in rows]
    parts = [quantile(list(part), 0.5) for part in zip(*rows, strict=True)]
    return Taken(quantile(totals, 0.5), quantile(totals, 0.9), *parts)


Measure = Callable[[str], Taken]


def cell_name(server: str, placement: str) -> str:
    """The name of a row: say "polling server, one core"."""
    return f"{server} server, {placement}"


def run(lab: Lab) -> None:
    """Measure each placement with a switch of its own, so that the switch's processes are placed alike."""
    for placement, cpu in ((PINNED, CPU), (UNPINNED, None)):
        cells = [cell_name(server, placement) for server in SERVERS]
        with ExitStack() as stack:
            variants: dict[str, Measure] = {}
            lab.offer(variants, CASE, cells, NATIVE, partial(_native, lab, cpu), stack)
            lab.offer(variants, CASE, cells, APPSWITCH, partial(_appswitch, lab, cpu), stack)
            lab.alternate(CASE, cells, variants, partial(_keep, lab))
        blocking = cell_name(SERVERS[0], placement)
        floors = {name: partial(_floor, lab, cpu, kind) for name, kind in FLOORS.items()}
        lab.alternate(BARE, [blocking], floors, partial(_keep_floor, lab))


def _keep(lab: Lab, cell: str, variant: str, taken: list[Taken]) -> None:
    put = lab.results.put
    put(CASE, cell, variant, [one.median for one in taken])
    put(f"{CASE} {P90}", cell, variant, [one.p90 for one in taken])
    put(f"{CASE} {CONNECT}", cell, variant, [one.connect for one in taken])
    put(f"{CASE} {EXCHANGE}", cell, variant, [one.exchange for one in taken])
    put(f"{CASE} {CLOSE}", cell, variant, [one.close for one in taken])


def _keep_floor(lab: Lab, cell: str, variant: str, taken: list[Taken]) -> None:
    lab.results.put(BARE, cell, variant, [one.median for one in taken])


def _floor(lab: Lab, cpu: int | None, kind: str, _: str) -> Taken:
    """The same transactions with one of the handlers of floor.py."""
    port = str(free_port())
    server = [*lab.transact, "server", "127.0.0.1", port, SERVERS[0]]
    client = [*lab.transact, "client", "127.0.0.1", port, *_counts(lab)]
    floor = [sys.executable, str(Path(__file__).with_name("floor.py")), kind]
    return parse(lab.procs.run([*floor, *server, "--", *client], cpu=cpu))


def _counts(lab: Lab) -> list[str]:
    count = lab.settings.transactions
    return [str(count // 10), str(count)]


def _server(
    procs: Procs, own: ExitStack, argv: Sequence[str], cpu: int | None, switch: Switch | None
) -> subprocess.Popen[bytes]:
    server = procs.spawn(argv, env=switch.env if switch else None, cpu=cpu)
    own.callback(procs.stop, server)
    return server


def _native(lab: Lab, cpu: int | None, own: ExitStack) -> Measure:
    ports: dict[str, str] = {}
    for mode in SERVERS:
        ports[mode] = str(free_port())
        server = _server(lab.procs, own, [*lab.transact, "server", "127.0.0.1", ports[mode], mode], cpu, None)
        wait_listening(server.pid, int(ports[mode]))

    def measure(cell: str) -> Taken:
        argv = [*lab.transact, "client", "127.0.0.1", ports[cell.split()[0]], *_counts(lab)]
        return parse(lab.procs.run(argv, cpu=cpu))

    return measure


def _appswitch(lab: Lab, cpu: int | None, own: ExitStack) -> Measure:
    switch = own.enter_context(lab.switch(cpu))
    ports = {mode: SERVICE_PORT + number for number, mode in enumerate(SERVERS)}
    for mode, port in ports.items():
        name = f"bench-{mode}"
        argv = switch.run(*lab.transact, "server", "0.0.0.0", str(port), mode, name=name)
        server = _server(lab.procs, own, argv, cpu, switch)
        switch.wait_service(name, server)

    def measure(cell: str) -> Taken:
        mode = cell.split()[0]
        argv = switch.run(*lab.transact, "client", f"bench-{mode}", str(ports[mode]), *_counts(lab))
        return parse(lab.procs.run(argv, env=switch.env, cpu=cpu))

    return measure
