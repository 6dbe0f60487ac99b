"""The service table with 100,000 services in it: look-ups, connects, listen() beside a bulk write, size, memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from . import transactions
from .lab import Lab
from .procs import Unavailable
from .stats import quantile
from .switch import Switch, command, pss_kib

CASE = "table"
COUNTS = {"10 services": 10, "100 000 services": 100_000}
FEW, MANY = COUNTS
LOOK, LOOK_P99, NAME, NAME_P99 = "look-up", "look-up, p99", "name", "name, p99"
CONNECT, STIRRED = "connect", "connect, table changing"
LISTEN, LISTEN_MOST, OVERTAKEN = "listen", "listen, longest", "listen, overtaken"
IDLE, BULK = "alone", "beside a bulk write"
WRITE_IDLE, WRITE_BULK = "one row, alone", "one row, beside a bulk write"
SIZE, PSS, LISTING = "table", "PSS", "services -o json"
HOST = "elsewhere"
LOOKS = 20_000
SECONDS_IDLE = 2.0
CPU = transactions.CPU

Measure = Callable[[str], float]


def run(lab: Lab) -> None:
    """Two switches, one with few rows of another host and one with many, measured in turn."""
    with ExitStack() as stack:
        variants: dict[str, Measure] = {}
        switches: dict[str, Switch] = {}
        for variant in COUNTS:
            lab.offer(variants, CASE, [CONNECT, STIRRED], variant, partial(_ready, lab, variant, switches), stack)
        for variant, switch in switches.items():
            _in_part(lab, variant, [LOOK, NAME], partial(_look, lab, switch))
        lab.alternate(CASE, [CONNECT, STIRRED], variants, partial(lab.results.put, CASE))
        for variant, switch in switches.items():
            _in_part(lab, variant, [PSS, LISTING], partial(_size, lab, switch))
    cells = [LISTEN, LISTEN_MOST, OVERTAKEN]
    with ExitStack() as stack:
        try:
            switch = stack.enter_context(lab.switch())
        except Unavailable as error:
            lab.skip(CASE, cells, BULK, str(error))
        else:
            argv = partial(switch.run, *_rows("listen", _table(switch)))
            _in_part(lab, BULK, cells, partial(_waits, lab, argv, switch.env, _table(switch), IDLE))
    alone = lab.folder / "table"
    alone.mkdir()
    argv = partial(_rows, "write", alone)
    _in_part(lab, WRITE_BULK, cells, partial(_waits, lab, argv, {}, alone, WRITE_IDLE))


def _in_part(lab: Lab, variant: str, cells: list[str], measure: Callable[[str], None]) -> None:
    """What cannot be measured is said, and the rest goes on."""
    try:
        measure(variant)
    except Unavailable as error:
        lab.skip(CASE, cells, variant, str(error))


def _rows(*words: object) -> list[str]:
    return [sys.executable, "-m", "bench.rows", *map(str, words)]


def _table(switch: Switch) -> Path:
    return switch.run_dir / "table"


def _ready(lab: Lab, variant: str, switches: dict[str, Switch], own: ExitStack) -> Measure:
    """A switch with that many rows and a server of its own; connects to it are measured on one core."""
    switch = own.enter_context(lab.switch(CPU))
    lab.say(f"{CASE}: {variant}")
    port = str(transactions.SERVICE_PORT)
    argv = switch.run(*lab.transact, "server", "0.0.0.0", port, "blocking", name="bench-table")
    server = lab.procs.spawn(argv, env=switch.env, cpu=CPU)
    own.callback(lab.procs.stop, server)
    switch.wait_service("bench-table", server)  # before the rest: the listing grows with it
    lab.procs.run(_rows("fill", _table(switch), HOST, COUNTS[variant]), seconds=120.0)
    switches[variant] = switch

    def measure(cell: str) -> float:
        count = lab.settings.transactions
        client = switch.run(*lab.transact, "client", "bench-table", port, str(count // 10), str(count))
        stir: subprocess.Popen[bytes] | None = None
        if cell == STIRRED:
            stir = lab.procs.spawn(_rows("stir", _table(switch), 60))
        try:
            return transactions.parse(lab.procs.run(client, env=switch.env, cpu=CPU)).connect
        finally:
            if stir is not None:
                lab.procs.stop(stir)

    return measure


def _look(lab: Lab, switch: Switch, variant: str) -> None:
    found: dict[str, list[float]] = {LOOK: [], LOOK_P99: [], NAME: [], NAME_P99: []}
    for _ in range(lab.settings.rounds):
        text = lab.procs.run(_rows("look", _table(switch), HOST, COUNTS[variant], LOOKS), seconds=60.0)
        pairs = [[int(word) / 1000 for word in line.split()] for line in text.splitlines()]
        for column, median, most in ((0, LOOK, LOOK_P99), (1, NAME, NAME_P99)):
            samples = [pair[column] for pair in pairs]
            found[median].append(quantile(samples, 0.5))
            found[most].append(quantile(samples, 0.99))
    for cell, figures in found.items():
        lab.results.put(CASE, cell, variant, figures)


def _size(lab: Lab, switch: Switch, variant: str) -> None:
    lab.results.put(CASE, SIZE, variant, [(_table(switch) / "data.mdb").stat().st_size / 2**20])
    lab.results.put(CASE, PSS, variant, [pss_kib(list(switch.pids())) / 1024])
    text = lab.procs.run([*_TIMED, command(), "services", "-o", "json"], seconds=60.0, env=switch.env)
    lab.results.put(CASE, LISTING, variant, [float(text)])


#: Runs a command and prints how many seconds that took.
_TIMED = [
    sys.executable,
    "-c",
    "import subprocess, sys, time; begin = time.monotonic(); "
    "subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True); print(time.monotonic() - begin)",
]


def _waits(
    lab: Lab, argv: Callable[[str], list[str]], env: Mapping[str, str], table: Path, idle: str, variant: str
) -> None:
    """What writes to the table again and again until a file is there, alone at first, then beside a bulk write."""
    for name, beside in (
        (idle, [sys.executable, "-c", f"import time; time.sleep({SECONDS_IDLE})"]),
        (variant, _rows("fill", table, "bulk", COUNTS[MANY])),
    ):
        lab.say(f"{CASE}: {name}")
        end, out = lab.folder / f"{CASE} end {name}", lab.folder / f"{CASE} waits {name}"
        program = lab.procs.spawn(argv(str(end)), out=out, env=env)
        try:
            lab.procs.run(beside, seconds=120.0)
            end.touch()
            program.wait(30.0)
        except subprocess.TimeoutExpired:
            raise Unavailable("the program that writes to the table did not end") from None
        finally:
            lab.procs.stop(program)
        pairs = [[int(word) for word in line.split()] for line in out.read_text().splitlines()]
        if not pairs:
            raise Unavailable("the program that writes to the table measured nothing")
        samples = [taken / 1000 for taken, _ in pairs]
        lab.results.put(CASE, OVERTAKEN, name, [max(others for _, others in pairs)])
        lab.results.put(CASE, LISTEN, name, [quantile(samples, 0.5)])
        lab.results.put(CASE, LISTEN_MOST, name, [max(samples)])
