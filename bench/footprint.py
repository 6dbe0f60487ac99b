"""Memory of the whole switch, and its context switches while the programs are idle."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from .lab import Lab
from .procs import Unavailable, until
from .switch import Switch, context_switches, pss_kib

CASE = "footprint"
COUNTS = (1, 100)
PSS, SWITCHES, PROCESSES = "PSS", "context switches", "processes"
BATCH = 10
SETTLE_S = 2.0


def cell_name(count: int) -> str:
    """The name of a row."""
    return "1 idle program" if count == 1 else f"{count} idle programs"


def run(lab: Lab) -> None:
    """Start idle programs, let the switch settle, and watch it through /proc, which does not wake it."""
    left = list(COUNTS)
    programs: list[subprocess.Popen[bytes]] = []
    try:
        with lab.switch() as switch:
            try:
                for count in COUNTS:
                    while len(programs) < count:
                        programs += _start(lab, switch, min(BATCH, count - len(programs)))
                    _watch(lab, switch, count)
                    left.remove(count)
            finally:
                for program in programs:
                    lab.procs.stop(program)
    except Unavailable as error:
        lab.say(f"{CASE}: {error}")
        for count in left:
            for what in (PSS, SWITCHES):
                lab.results.put(CASE, cell_name(count), what, reason=str(error))


def _watch(lab: Lab, switch: Switch, count: int) -> None:
    roles = switch.pids()
    pids = list(roles)
    lab.say(f"{CASE}: {cell_name(count)}, {lab.settings.idle_s:g} s idle")
    time.sleep(SETTLE_S)
    before = context_switches(pids)
    time.sleep(lab.settings.idle_s)
    after = context_switches(pids)
    cell = cell_name(count)
    lab.results.put(CASE, cell, SWITCHES, [after - before])
    lab.results.put(CASE, cell, PSS, [pss_kib(pids) / 1024])
    lab.results.put(CASE, cell, PROCESSES, [len(pids)])
    lab.results.notes[f"{CASE} {cell}"] = ", ".join(sorted(roles.values()))


def _start(lab: Lab, switch: Switch, count: int) -> list[subprocess.Popen[bytes]]:
    errors = lab.folder / "idle.err"
    started = [lab.procs.spawn(switch.run("sleep", "1000"), err=errors, env=switch.env) for _ in range(count)]
    for program in started:

        def became(program: subprocess.Popen[bytes] = program) -> bool:
            if program.poll() is not None:
                raise Unavailable(f"`appswitch run -- sleep` ended with code {program.returncode}")
            return Path(f"/proc/{program.pid}/comm").read_text().strip() == "sleep"

        until(became, "the start of an idle program", 30.0)
    return started
