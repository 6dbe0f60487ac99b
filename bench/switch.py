"""One AppSwitch instance of the run's own, driven through its command line only."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from .procs import Procs, Unavailable, brief, until

TAG = "group=bench"


def command() -> str:
    """The `appswitch` command: $APPSWITCH, else the one beside this interpreter."""
    return os.environ.get("APPSWITCH") or str(Path(sys.executable).with_name("appswitch"))


@dataclass
class Switch:
    """A switch in a run directory of its own, up inside `with`; `cpu` pins all its processes to one.

    `without`: features of the kernel to be left out (APPSWITCH_WITHOUT).
    """

    procs: Procs
    run_dir: Path
    cpu: int | None = None
    without: str = ""
    _seen: dict[int, int] = field(default_factory=dict)

    @property
    def env(self) -> Mapping[str, str]:
        """What a command needs in its environment to talk to this switch."""
        return {"APPSWITCH_RUN_DIR": str(self.run_dir), "APPSWITCH_WITHOUT": self.without}

    def __enter__(self) -> Switch:
        log = self.run_dir.with_suffix(".log")
        up = self.procs.spawn([command(), "up"], out=log, err=log, env=self.env, cpu=self.cpu)

        def ready() -> bool:
            if up.poll():
                raise Unavailable(f"`appswitch up` failed: {brief(log.read_text(errors='replace'))}")
            try:
                self.status()
            except Unavailable:
                return False
            return True

        try:
            until(ready, "an answer from the switch", 15.0, pause=0.1)
        except BaseException:
            self._down()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._down()

    def _down(self) -> None:
        try:
            self.procs.run([command(), "down", "--force"], seconds=15.0, env=self.env)
        except Unavailable:
            pass
        # Whatever `down` left: by pid, and only when it is still the process that `status` named.
        for pid, born in self._seen.items():
            if _start_time(pid) == born:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
        self._seen.clear()

    def status(self) -> dict[str, Any]:
        """`appswitch status -o json`. Raises Unavailable when the switch does not answer."""
        text = self.procs.run([command(), "status", "-o", "json"], seconds=10.0, env=self.env)
        try:
            answer = json.loads(text)
            pids = [int(row["pid"]) for row in answer.get("processes", [])]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise Unavailable("`appswitch status -o json` did not print what was expected") from error
        for pid in pids:
            born = _start_time(pid)
            if born is not None:
                self._seen.setdefault(pid, born)
        result: dict[str, Any] = answer
        return result

    def traps(self) -> int:
        """Number of traps answered so far (`traps` in the status)."""
        value = self.status().get("traps")
        if not isinstance(value, int):
            raise Unavailable("`appswitch status` does not tell the number of traps")
        return value

    def pids(self) -> dict[int, str]:
        """pid → role of every process of the switch."""
        rows = self.status().get("processes") or []
        found = {int(row["pid"]): str(row.get("role", "?")) for row in rows}
        if not found:
            raise Unavailable("`appswitch status` does not tell the switch's processes")
        return found

    def run(self, *argv: str, name: str | None = None) -> list[str]:
        """The command line that runs a program under this switch, with a name if others are to find it."""
        identity = ["--name", name] if name else []
        return [command(), "run", *identity, "--tag", TAG, "--", *argv]

    def wait_service(self, name: str, server: subprocess.Popen[bytes]) -> None:
        """Wait until the service table shows that `name` listens; Unavailable when the server ends first."""

        def listed() -> bool:
            if server.poll() is not None:
                raise Unavailable(f"the server {name} ended before it listened")
            text = self.procs.run([command(), "services", "-o", "json"], seconds=10.0, env=self.env)
            return name in text

        until(listed, f"the row of {name} in `appswitch services`", 15.0, pause=0.1)

    def address(self, name: str) -> str:
        """The virtual IP of a service that `wait_service` has seen."""
        text = self.procs.run([command(), "services", "-o", "json"], seconds=10.0, env=self.env)
        for row in json.loads(text):
            if row["name"] == name:
                return str(row["vip"])
        raise Unavailable(f"`appswitch services` does not show {name}")


def _start_time(pid: int) -> int | None:
    """Start time of a process in ticks since boot (proc_pid_stat(5), field 22), or None when it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(text.rpartition(")")[2].split()[19])


def context_switches(pids: Sequence[int]) -> int:
    """Voluntary and involuntary context switches of all threads of these processes since they started.

    Unlike asking the switch, reading /proc does not wake it. Raises Unavailable when one of them is gone.
    """
    total = 0
    for pid in pids:
        try:
            for status in Path(f"/proc/{pid}/task").glob("*/status"):
                for line in status.read_text().splitlines():
                    if line.startswith(("voluntary_ctxt_switches:", "nonvoluntary_ctxt_switches:")):
                        total += int(line.split()[1])
        except OSError as error:
            raise Unavailable(f"process {pid} of the switch ended during the measurement") from error
        if not Path(f"/proc/{pid}").exists():
            raise Unavailable(f"process {pid} of the switch ended during the measurement")
    return total


def pss_kib(pids: Sequence[int]) -> int:
    """Sum of the proportional set sizes of these processes in KiB (/proc/PID/smaps_rollup)."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError as error:
            raise Unavailable(f"the memory of process {pid} cannot be read: {error.strerror}") from error
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total
