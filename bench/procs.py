"""Child processes that never outlive the run, and commands with a time limit."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TypeVar

PR_SET_PDEATHSIG = 1  # prctl(2)
_libc = ctypes.CDLL(None)

T = TypeVar("T")


class Unavailable(Exception):
    """Something could not be measured; the text says why, in one sentence."""


def until(probe: Callable[[], T | None], what: str, seconds: float = 10.0, pause: float = 0.01) -> T:
    """Ask `probe` until it gives something true; after `seconds` Unavailable: `what` did not happen."""
    deadline = time.monotonic() + seconds
    while True:
        found = probe()
        if found:
            return found
        if time.monotonic() > deadline:
            raise Unavailable(f"{what} did not happen within {seconds:g} s")
        time.sleep(pause)


def brief(text: str) -> str:
    """The last line of a program's complaint that says anything, for a one-sentence reason."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


@dataclass
class Procs:
    """Starts processes in sessions of their own (Ctrl-C reaches us alone) and ends them all at the exit."""

    _live: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __enter__(self) -> Procs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        # All at once first, so that the waiting overlaps.
        for proc in self._live:
            _signal_group(proc, signal.SIGTERM)
        for proc in reversed(self._live[:]):
            self.stop(proc)

    def spawn(
        self,
        argv: Sequence[str],
        *,
        out: Path | None = None,
        err: Path | None = None,
        env: Mapping[str, str] | None = None,
        cpu: int | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a program with nothing to read, writing to files (or nowhere), pinned to `cpu` if given.

        Raises Unavailable when it cannot be started.
        """

        def prepare() -> None:
            # The kernel ends the child even if this process is killed outright.
            _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if cpu is not None:
                os.sched_setaffinity(0, {cpu})

        with (
            open(out or os.devnull, "ab") as stdout,
            open(err or os.devnull, "ab") as stderr,
        ):
            try:
                proc = subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=stdout,
                    stderr=stderr,
                    env={**os.environ, **(env or {})},
                    start_new_session=True,
                    preexec_fn=prepare,
                )
            except OSError as error:
                raise Unavailable(f"{Path(argv[0]).name} could not be started: {error.strerror}") from error
        self._live.append(proc)
        return proc

    def stop(self, proc: subprocess.Popen[bytes], grace: float = 0.3) -> None:
        """End a started process and its group: asked first, killed after `grace` seconds."""
        _signal_group(proc, signal.SIGTERM)
        try:
            proc.wait(grace)
        except subprocess.TimeoutExpired:
            _signal_group(proc, signal.SIGKILL)
            proc.wait()
        if proc in self._live:
            self._live.remove(proc)

    def run(
        self,
        argv: Sequence[str],
        *,
        seconds: float = 30.0,
        env: Mapping[str, str] | None = None,
        cpu: int | None = None,
        must_print: bool = False,
    ) -> str:
        """Run a program to its end and return what it printed.

        Raises Unavailable when it fails, cannot be started or takes longer than `seconds`, and, with
        `must_print`, when it prints nothing (iperf 2 exits with 0 even if it could not connect).
        """
        name = " ".join([Path(argv[0]).name, *argv[1:2]])
        # Files, not pipes: a background child that keeps a pipe open would hold us here for ever.
        with tempfile.TemporaryDirectory(prefix="appswitch-bench-") as folder:
            out, err = Path(folder, "out"), Path(folder, "err")
            proc = self.spawn(argv, out=out, err=err, env=env, cpu=cpu)
            try:
                code = proc.wait(seconds)
            except subprocess.TimeoutExpired:
                raise Unavailable(f"`{name}` took longer than {seconds:g} s") from None
            finally:
                self.stop(proc)
            if code:
                raise Unavailable(f"`{name}` failed ({_ending(code)}): {brief(err.read_text(errors='replace'))}")
            text = out.read_text(errors="replace")
            if must_print and not text.strip():
                raise Unavailable(f"`{name}` failed: {brief(err.read_text(errors='replace'))}")
            return text


def _ending(code: int) -> str:
    return f"exit code {code}" if code > 0 else signal.Signals(-code).name


def _signal_group(proc: subprocess.Popen[bytes], number: int) -> None:
    # Only while the leader is not reaped: until then its number cannot belong to anybody else.
    if proc.poll() is None:
        try:
            os.killpg(proc.pid, number)
        except ProcessLookupError:
            pass
