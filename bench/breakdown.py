"""Where the microseconds of a connection go: Python, the kernel for the worker, the programs, wake-ups across cores."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

from .lab import Lab, need
from .procs import Unavailable, until
from .switch import Switch
from .transactions import PINNED, UNPINNED, parse

CASE = "breakdown"
WHOLE, PYTHON, KERNEL = "whole", "Python", "kernel"
CALLS = "calls"
SERVICE, PORT = "bench-breakdown", 7000
CPUS = {PINNED: 0, UNPINNED: None}
#: So many transactions that the kernel's ticks (10 ms) measure a worker well.
AT_LEAST = 5000
_TRACED = 500


def run(lab: Lab) -> None:
    """Transactions with a blocking server, the worker's time taken from /proc."""
    for placement, cpu in CPUS.items():
        with ExitStack() as own:
            switch = own.enter_context(lab.switch(cpu))
            argv = switch.run(*lab.transact, "server", "0.0.0.0", str(PORT), "blocking", name=SERVICE)
            server = lab.procs.spawn(argv, env=switch.env, cpu=cpu)
            own.callback(lab.procs.stop, server)
            switch.wait_service(SERVICE, server)
            lab.say(f"{CASE}: {placement}")
            _measure(lab, switch, placement, cpu)
            if placement == PINNED:
                try:
                    _count_calls(lab, switch)
                except Unavailable as error:
                    lab.results.put(CASE, PINNED, CALLS, reason=str(error))


def _client(lab: Lab, switch: Switch, count: int, cpu: int | None) -> str:
    argv = switch.run(*lab.transact, "client", SERVICE, str(PORT), "0", str(count))
    return lab.procs.run(argv, env=switch.env, cpu=cpu, seconds=120)


def _measure(lab: Lab, switch: Switch, placement: str, cpu: int | None) -> None:
    count = max(AT_LEAST, lab.settings.transactions)
    workers = [pid for pid, role in switch.pids().items() if role.startswith("worker")]
    whole, python, kernel = [], [], []
    for _ in range(lab.settings.rounds):
        before = _times(workers)
        whole.append(parse(_client(lab, switch, count, cpu)).median)
        user, system = (after - then for after, then in zip(_times(workers), before, strict=True))
        python.append(user / count)
        kernel.append(system / count)
    for what, samples in ((WHOLE, whole), (PYTHON, python), (KERNEL, kernel)):
        lab.results.put(CASE, placement, what, samples)


def _times(pids: list[int]) -> tuple[float, float]:
    """µs that these processes have spent in user and in system mode (proc_pid_stat(5), fields 14 and 15)."""
    tick = 1e6 / os.sysconf("SC_CLK_TCK")
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(row[11]) for row in fields) * tick, sum(int(row[12]) for row in fields) * tick


def _count_calls(lab: Lab, switch: Switch) -> None:
    """System calls of the worker for one transaction, as strace counts them."""
    need("strace")
    [worker] = [pid for pid, role in switch.pids().items() if role.startswith("worker")]
    report = lab.folder / "strace"
    tracer = lab.procs.spawn(["strace", "-c", "-p", str(worker), "-o", str(report)])
    try:
        status = Path(f"/proc/{worker}/status")
        until(lambda: f"TracerPid:\t{tracer.pid}\n" in status.read_text(), "strace's attachment")
        _client(lab, switch, _TRACED, None)
    finally:
        # so asked, strace lets go of the worker and writes its report
        lab.procs.stop(tracer, grace=10.0)
    # the last line: % of time, seconds, µs a call, calls, errors if there were any, "total"
    words = report.read_text().splitlines()[-1].split() if report.exists() else []
    if len(words) < 5 or words[-1] != "total":
        raise Unavailable("strace reported something unexpected")
    lab.results.put(CASE, PINNED, CALLS, [int(words[3]) / _TRACED])
