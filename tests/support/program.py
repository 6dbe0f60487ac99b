"""A program that a test started: its output goes to files, so that it never blocks on us nor we on it."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

from .modes import Person

DEADLINE = 90.0
"""Seconds that anything may take before the test fails; far more than it needs on a slow and busy machine."""

GRACE = 10.0
"""Seconds that a program is given to end by itself at the end of a test, before it is killed."""

POLL = 0.02
"""Seconds between two looks at something that announces itself in no other way."""

T = TypeVar("T")


def wait_until(look: Callable[[], T | None], what: Callable[[], str], timeout: float = DEADLINE) -> T:
    """The first true value that `look` returns; AssertionError that says `what` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"after {timeout:g} s still waiting for {what()}")
        time.sleep(POLL)


class Program:
    """A running program with its own process group.

    `stdin` is empty unless the caller passes a file or subprocess.PIPE.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        directory: Path,
        label: str,
        person: Person,
        env: Mapping[str, str],
        stdin: int | IO[Any] | None = subprocess.DEVNULL,
        **popen: Any,
    ) -> None:
        self.argv = list(argv)
        self.label = label
        self.stdout_path = directory / f"{label}.out"
        self.stderr_path = directory / f"{label}.err"
        with self.stdout_path.open("xb") as out, self.stderr_path.open("xb") as err:
            # Owned by the program's user: some programs open /dev/stderr again by name.
            person.give(self.stdout_path)
            person.give(self.stderr_path)
            arguments: dict[str, Any] = {"stdin": stdin, "stdout": out, "stderr": err, "process_group": 0}
            arguments |= {"env": dict(env)} | person.popen_arguments() | popen
            self.process: subprocess.Popen[bytes] = subprocess.Popen(self.argv, **arguments)
        #: Were there others of its group when it had ended?
        self._group_left: bool | None = None

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def stdin(self) -> IO[bytes]:
        """The writing end of its standard input, when started with stdin=subprocess.PIPE."""
        stdin: IO[bytes] | None = self.process.stdin
        assert stdin is not None, "start it with stdin=subprocess.PIPE"
        return stdin

    @property
    def returncode(self) -> int | None:
        """Its exit code, or the negative number of the signal that ended it; None while it runs."""
        code = self.process.poll()
        if code is not None and self._group_left is None:
            self._group_left = _is_group(self.pid)
        return code

    def output_bytes(self) -> bytes:
        """What it has written to standard output so far."""
        return self.stdout_path.read_bytes()

    def output(self) -> str:
        return self.output_bytes().decode(errors="replace")

    def errors(self) -> str:
        """What it has written to standard error so far."""
        return self.stderr_path.read_text(errors="replace")

    def wait(self, timeout: float = DEADLINE) -> int:
        """Its exit code, awaited; AssertionError with its output when it does not end."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout:g} s: {self}") from None
        assert self.returncode == code
        return code

    def wait_output(self, pattern: str, timeout: float = DEADLINE) -> re.Match[str]:
        """The first match of a regular expression in what it says; fails when it ends without."""

        def look() -> re.Match[str] | None:
            ended = self.returncode is not None
            match = re.search(pattern, self.output()) or re.search(pattern, self.errors())
            assert match or not ended, f"ended without saying {pattern!r}: {self}"
            return match

        return wait_until(look, lambda: f"{pattern!r} from {self}", timeout)

    def send_signal(self, number: int) -> None:
        self.process.send_signal(number)

    def terminate(self, timeout: float = DEADLINE) -> int:
        """SIGTERM to it alone; its exit code."""
        self.process.terminate()
        return self.wait(timeout)

    def kill(self, timeout: float = DEADLINE) -> int:
        """SIGKILL to it alone; its exit code."""
        self.process.kill()
        return self.wait(timeout)

    def stop(self) -> None:
        """End it and its children, by force if asking does not help; for the end of a test."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        if self.returncode is None:
            self._signal_group(signal.SIGTERM)
            self._signal_group(signal.SIGCONT)
            try:
                self.process.wait(GRACE)
            except subprocess.TimeoutExpired:
                pass
        self._signal_group(signal.SIGKILL)
        self.process.wait(DEADLINE)

    def _signal_group(self, number: int) -> None:
        # The group may outlive it, and keeps its number. One that ended with it may be a stranger's by now, its leader
        # ended like that of a switch's processes; so is one whose number is a process's again.
        if self.returncode is not None and (not self._group_left or Path(f"/proc/{self.pid}").exists()):
            return
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):
            # Not a group leader (the caller asked for a session of its own, or the group is gone).
            if self.returncode is None:
                self.process.send_signal(number)

    def __str__(self) -> str:
        """The command, how it stands and the end of what it said: for messages of failed tests."""
        said = "".join(
            f"\n--- {name} ---\n" + (text[-3000:] if "\ufffd" not in text else f"{len(text)} characters, not text")
            for name, text in (("standard output", self.output()), ("standard error", self.errors()))
            if text
        )
        return f"{' '.join(self.argv)} (exit code {self.returncode}){said}"


def _is_group(number: int) -> bool:
    try:
        os.killpg(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
