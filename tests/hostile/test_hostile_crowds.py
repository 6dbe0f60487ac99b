"""Very many threads in accept(): all served, or cancelled as natively; nothing of them stays."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from service.acting import Actor
from support.modes import MODES
from support.program import Program, wait_until
from support.switch import Switch

Start = Callable[..., Actor]
COUNT = int(os.environ.get("CROWD", "2000"))
"""Threads. The kernel goes through a list of all of a program's calls at each step: ten times as many take a hundred
times as long."""
SERVICE = ("10.99.0.1", 80)


@pytest.fixture
def crowd(switch: Switch, hostile: Callable[[str], Path]) -> Callable[[int], tuple[Program, int]]:
    """Starts so many threads, or as many as the system allows; the program, and how many wait in accept()."""

    def start(count: int) -> tuple[Program, int]:
        line = [hostile("crowd"), str(count), str(SERVICE[1])]
        program = switch.run(line, ip=SERVICE[0], stdin=subprocess.PIPE)
        there = int(program.wait_output(r"waiting (\d+)").group(1))
        wait_until(lambda: switch.parked() >= there, lambda: f"{there} threads in accept()")
        return program, there

    return start


def worker(switch: Switch) -> int:
    found: dict[str, int] = {p["role"]: p["pid"] for p in switch.cli("status", "-o", "json")["processes"]}
    return found["worker-0"]


def resident(pid: int) -> int:
    """Kilobytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


def say(program: Program, word: str) -> None:
    program.stdin.write(f"{word}\n".encode())
    program.stdin.flush()


@pytest.mark.parametrize("mode", [MODES[1]], ids=str)
def test_many_threads_in_accept(
    switch: Switch, acting: Start, crowd: Callable[[int], tuple[Program, int]]
) -> None:
    client = acting(switch)
    assert client("1") == 1  # it is there, and the worker has what belongs to it
    pid = worker(switch)
    before, memory = len(os.listdir(f"/proc/{pid}/fd")), resident(pid)
    program, count = crowd(COUNT)
    assert client(f"[hear{SERVICE} for _ in range(100)]") == ["hello"] * 100
    say(program, "how many")
    program.wait_output("served 100\n")
    # all of them call again, and wait
    wait_until(lambda: switch.parked() >= count, lambda: f"{count} threads in accept()")
    assert resident(pid) - memory < 50_000

    program.kill()
    wait_until(lambda: not switch.parked(), lambda: "nobody waiting")
    wait_until(lambda: not switch.services(), lambda: "its service's end")
    wait_until(lambda: len(os.listdir(f"/proc/{pid}/fd")) <= before + 4, lambda: "its descriptors' end")
    status = switch.cli("status", "-o", "json")
    assert (status["restarts"], status["counters"]["faults"], status["services"]) == (0, 0, 0)


@pytest.mark.parametrize("mode", [MODES[1]], ids=str)
def test_a_shutdown_ends_them_all(switch: Switch, crowd: Callable[[int], tuple[Program, int]]) -> None:
    program, count = crowd(COUNT // 4)
    say(program, "shut")
    program.wait_output(f"shut {count} 0\n")
    wait_until(lambda: not switch.parked(), lambda: "nobody waiting")
