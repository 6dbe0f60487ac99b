"""Where a part of the tests is run: as whom, and natively or under a switch over one of the transports."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from support.modes import Mode, Person
from support.program import Program
from support.switch import Switch

from .modules import PYTHON, Part
from .outcomes import Outcome, read

NATIVE = "natively"
VIP = "10.77.0.1"
TEST_LIMIT = 240.0
"""Seconds that a test may take before it is taken for hung; the slowest needs 30 on an idle machine."""
MODULE_LIMIT = 3600.0
ROUNDS = 20
"""How often a module is begun again behind a test that hung."""

_RUNNER = Path(__file__).with_name("runner.py")


def are_there() -> bool:
    """Is the interpreter there, and its tests?"""
    if not os.access(PYTHON, os.X_OK):
        return False
    return subprocess.run([PYTHON, "-c", "import test.test_socket"], stderr=subprocess.DEVNULL).returncode == 0


@dataclass(frozen=True)
class Lane:
    """`transport`: `NATIVE`, or what --transport is given."""

    mode: Mode
    transport: str

    def __str__(self) -> str:
        return f"{self.mode} {self.transport}"


class Stopped(Exception):
    """`Place.stop` was called."""


class Place:
    """A switch of a mode, and the runs of tests by its people. Close it at the end."""

    def __init__(self, mode: Mode, command: Callable[[Person], Path]) -> None:
        self.mode = mode
        self._switch = Switch(mode, command)
        self._runner = self._switch.base / _RUNNER.name
        shutil.copyfile(_RUNNER, self._runner)
        self._runner.chmod(0o644)
        self._count = itertools.count()
        self._lock = threading.Lock()
        self._running: set[Program] = set()
        self._stopped = False
        self._switch.up()

    def play(self, part: Part, transport: str, limit: float = TEST_LIMIT) -> dict[str, Outcome]:
        """Run it to its end; what became of each test. Goes on behind tests that hang or end the process."""
        results = self._switch.work / f"{next(self._count)}-{part.module}.jsonl"
        argv = [PYTHON, str(self._runner), part.module, str(results), str(limit), *part.words]
        for _ in range(ROUNDS):
            program = self._start(argv, transport)
            try:
                program.wait(MODULE_LIMIT)
            finally:
                self._end(program)
            outcomes, over = read(results)
            if over:
                return outcomes
        raise AssertionError(f"{part.module} came to no end: {program}")

    def again(self, module: str, tests: Sequence[str], transport: str) -> dict[str, Outcome]:
        """Tests of a module once more."""
        return self.play(Part(module, only=tuple(tests)), transport)

    def stop(self) -> None:
        """End what runs, and have nothing begin any more: for one who does not want to wait for `play`."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for program in running:
            program.stop()

    def close(self) -> None:
        self._switch.close()

    def _start(self, argv: Sequence[str], transport: str) -> Program:
        with self._lock:
            if self._stopped:
                raise Stopped
            if transport == NATIVE:
                program = self._switch.start(argv, NATIVE, self.mode.program_owner)
            else:
                program = self._switch.run(argv, ip=VIP, options=("--transport", transport))
            self._running.add(program)
            return program

    def _end(self, program: Program) -> None:
        with self._lock:
            self._running.discard(program)
        program.stop()
