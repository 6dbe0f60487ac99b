"""Programs under a switch that do what a test tells them, step by step (src/actor.py)."""

import json
import select
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from support.modes import Person
from support.program import DEADLINE, Program
from support.switch import Switch

SOURCES = Path(__file__).with_name("src")


class Actor:
    """One program. What it is told is Python; the functions of src/actor.py are at hand in it."""

    def __init__(self, program: Program) -> None:
        self.program = program
        assert program.process.stdout is not None
        self._answers = program.process.stdout
        self._waiting = False

    @property
    def pid(self) -> int:
        return self.program.pid

    def begin(self, code: str) -> None:
        """Tell it, and do not wait for the end."""
        assert not self._waiting, "it has not answered yet"
        self._waiting = True
        self.program.stdin.write(json.dumps(code).encode() + b"\n")
        self.program.stdin.flush()

    def answer(self, timeout: float = DEADLINE) -> dict[str, Any]:
        """The answer to what it was told."""
        ready, _, _ = select.select([self._answers], [], [], timeout)
        line = self._answers.readline() if ready else b""
        assert line, f"no answer from {self.program}"
        self._waiting = False
        found: dict[str, Any] = json.loads(line)
        assert "error" not in found, f"{found['error']}\n{self.program}"
        return found

    def end(self, timeout: float = DEADLINE) -> Any:
        """The value of what it was told."""
        found = self.answer(timeout)
        assert "errno" not in found, f"{found['text']}: {self.program}"
        return found["value"]

    def still_busy(self, seconds: float) -> bool:
        """Whether it says nothing for so long."""
        return not select.select([self._answers], [], [], seconds)[0]

    def is_free(self) -> bool:
        """Whether it runs and waits to be told something."""
        return not self._waiting and self.program.returncode is None

    def close(self) -> None:
        """End it."""
        self.program.stop()
        self._answers.close()

    def __call__(self, code: str) -> Any:
        """Tell it and wait; the value of an expression, None of statements."""
        self.begin(code)
        return self.end()

    def errno(self, code: str) -> str | None:
        """The name of the error that it fails with; None when it does not."""
        self.begin(code)
        error: str | None = self.answer().get("errno")
        return error


def start_actor(
    switch: Switch,
    public: Path,
    python: str,
    name: str | None = None,
    *,
    ip: str | None = None,
    tags: Sequence[str] = (),
    options: Sequence[str] = (),
    user: Person | None = None,
    env: Mapping[str, str] | None = None,
) -> Actor:
    """Start an actor under the switch."""
    program = switch.run(
        [python, "-S", public / "actor.py"],
        name=name,
        ip=ip,
        tags=tags,
        options=options,
        user=user,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    return Actor(program)
