"""A switch of a test's own, and the programs under it."""

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .modes import Mode, Person
from .program import DEADLINE, Program, wait_until

Row = dict[str, Any]

open_switches: list["Switch"] = []
"""Those that have not been closed."""

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Switch:
    """One switch in a run directory of its own, as one mode has it.

    `base` (short, below /tmp: socket paths are limited to 108 bytes, unix(7)) belongs to the switch's owner;
    `work` inside it is the programs' current directory and belongs to their owner.
    """

    virtual = True
    """Whether programs have virtual identities; False in the native stand-in."""

    def __init__(self, mode: Mode, command: Callable[[Person], Path], env: Mapping[str, str] | None = None) -> None:
        self.mode = mode
        self.programs: list[Program] = []
        self._command = command
        self._extra_env = dict(env or {})
        self._names: dict[str, list[Program]] = {}
        self._count = 0
        self.base = Path(tempfile.mkdtemp(prefix="as-", dir="/tmp"))
        self.base.chmod(0o755)
        self.run_dir = self.base / "run"
        self.work = self.base / "work"
        self.work.mkdir()
        mode.switch_owner.give(self.base)
        mode.program_owner.give(self.work)
        self._output = self.base / "output"
        self._output.mkdir()
        open_switches.append(self)

    # The switch itself.

    def up(self, *options: str) -> None:
        """Start it; returns when it serves."""
        self.control("up", *self.mode.up_options, *options, status=0)

    def control(
        self, *words: str, user: Person | None = None, status: int | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run `appswitch WORDS` to its end as the switch's owner; with `status`, check the exit code."""
        person = user or self.mode.switch_owner
        # Not through pipes: a switch started by the command could hold them open.
        program = self.start([str(self._command(person)), *words], words[0], person)
        program.wait()
        assert status is None or program.returncode == status, f"expected exit code {status}: {program}"
        return subprocess.CompletedProcess(program.argv, program.returncode or 0, program.output(), program.errors())

    def cli(self, *words: str, user: Person | None = None) -> Any:
        """What `appswitch WORDS` says, which must succeed: parsed if JSON was asked for, else its text."""
        text = self.control(*words, user=user, status=0).stdout
        return json.loads(text) if "json" in words else text

    def services(self, who: str | None = None, port: int | None = None) -> list[Row]:
        """Rows of `appswitch services`, all or those of a name or virtual IP and a port."""
        return [
            row
            for row in self.cli("services", "-o", "json")
            if (who is None or who in (row["name"], row["vip"])) and (port is None or row["port"] == port)
        ]

    def wait_service(self, who: str, port: int | None = None, count: int = 1) -> list[Row]:
        """Rows of a name or virtual IP, once there are `count`; fails early if its programs have ended."""

        def look() -> list[Row] | None:
            started = self._names.get(who, [])
            ended = bool(started) and all(program.returncode is not None for program in started)
            rows = self.services(who, port) if self._is_up() else []
            assert len(rows) >= count or not ended, f"ended before it served: {started[-1]}"
            return rows if len(rows) >= count else None

        return wait_until(look, lambda: f"{count} rows of {who} port {port or 'any'}:\n{self._describe()}")

    def _is_up(self) -> bool:
        """False while the first program is still about to start it; its socket has a name before it listens."""
        with socket.socket(socket.AF_UNIX) as sock:
            return sock.connect_ex(str(self.run_dir / "control.sock")) == 0

    def processes(self) -> list[int]:
        """Pids of the switch's own processes, by its `status`."""
        return [process["pid"] for process in self.cli("status", "-o", "json")["processes"]]

    def parked(self) -> int:
        """How many calls its workers have taken that wait, such as accept(); the first place is the call in hand's."""
        places = (path.read_bytes()[8:] for path in (self.run_dir / "state").glob("pending-*"))
        return sum(sum(map(bool, memoryview(data).cast("Q"))) for data in places)

    # Programs.

    def environment(self) -> dict[str, str]:
        """The whole environment of everything that is started here: nothing of the caller's own gets in."""
        return {
            "PATH": PATH,
            "HOME": str(self.work),
            "LANG": "C.UTF-8",
            "APPSWITCH_RUN_DIR": str(self.run_dir),
        } | self._extra_env

    def command_line(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        name: str | None = None,
        ip: str | None = None,
        tags: Sequence[str] = (),
        options: Sequence[str] = (),
        user: Person | None = None,
    ) -> list[str]:
        """The whole `appswitch run` command, for tests that start it in a way of their own."""
        words = [str(self._command(user or self.mode.program_owner)), "run"]
        words += ["--name", name] if name else []
        words += ["--ip", ip] if ip else []
        for tag in tags:
            words += ["--tag", tag]
        return [*words, *options, "--", *(os.fspath(word) for word in argv)]

    def run(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        name: str | None = None,
        ip: str | None = None,
        tags: Sequence[str] = (),
        options: Sequence[str] = (),
        user: Person | None = None,
        env: Mapping[str, str] | None = None,
        **popen: Any,
    ) -> Program:
        """Start a program under the switch, in `work`; `popen` goes to subprocess.Popen."""
        line = self.command_line(argv, name=name, ip=ip, tags=tags, options=options, user=user)
        label = name or Path(os.fspath(argv[0])).name
        program = self.start(line, label, user or self.mode.program_owner, env, **popen)
        self.programs.append(program)
        for key in (name, ip):
            if key:
                self._names.setdefault(key, []).append(program)
        return program

    def check(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        status: int | None = None,
        timeout: float = DEADLINE,
        **run: Any,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program under the switch to its end; with `status`, check its exit code. Rest as in `run`."""
        program = self.run(argv, **run)
        program.wait(timeout)
        assert status is None or program.returncode == status, f"expected exit code {status}: {program}"
        return subprocess.CompletedProcess(program.argv, program.returncode or 0, program.output(), program.errors())

    def start(
        self,
        argv: Sequence[str],
        label: str,
        person: Person,
        env: Mapping[str, str] | None = None,
        **popen: Any,
    ) -> Program:
        """Start a command as it stands, not under the switch; `label` names its files of output."""
        self._count += 1
        return Program(
            argv,
            directory=self._output,
            label=f"{self._count}-{label}",
            person=person,
            env=self.environment() | dict(env or {}),
            **({"cwd": self.work} | popen),
        )

    # The end.

    def close(self) -> None:
        """Stop all programs and the switch; AssertionError if anything stays, or a log has a traceback."""
        open_switches.remove(self)
        problems = []
        try:
            for program in reversed(self.programs):
                program.stop()
            told = self.describe()
            problems += [
                f"traceback in {name}:\n{text[text.index('Traceback') :][:3000]}"
                for name, text in self._logs().items()
                if "Traceback" in text
            ]
            problems += self._down()
        finally:
            problems += self._remove_leftovers()
            shutil.rmtree(self.base)
        assert not problems, "\n".join([*problems, told])

    def describe(self) -> str:
        """The ends of its logs, and what its programs said: for messages of failed tests."""
        logs = (f"--- {name} ---\n{text[-10000:]}" for name, text in self._logs().items())
        return "\n".join([*logs, *map(str, self.programs[-10:])])

    def _down(self) -> list[str]:
        """Take the switch down, if it is up, and see that all of its processes end."""
        if not self.run_dir.exists():
            return []
        try:
            status = self.control("status", "-o", "json")
        except AssertionError as error:
            return [str(error)]
        if status.returncode != 0:
            return [f"status says that no switch is up, yet there is {self.run_dir}:\n{status.stderr}"]
        pids = [process["pid"] for process in json.loads(status.stdout)["processes"]]
        problems = [] if pids else ["status lists no process of the switch"]
        watched = watch(pids)
        try:
            down = self.control("down", "--force")
        except AssertionError as error:
            return [*problems, str(error)]
        if down.returncode != 0:
            problems.append(f"appswitch down --force: exit code {down.returncode}\n{down.stderr}")
        problems += [f"process {pid} of the switch outlived `down`" for pid in _unended(watched)]
        if self.run_dir.exists():
            problems.append(f"`down` left {sorted(map(str, self.run_dir.rglob('*'))) or self.run_dir}")
        return problems

    def _remove_leftovers(self) -> list[str]:
        """Kill whatever still runs with this switch's run directory in its environment, and name it."""
        unended = _unended(watch(pids_with_environment(f"APPSWITCH_RUN_DIR={self.run_dir}")))
        told = [f"process {pid} was still running at the end of the test: {_what_it_is(pid)}" for pid in unended]
        for pid in unended:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        return told

    def _logs(self) -> dict[str, str]:
        """Texts by path; none when it is not up, or goes down just now."""
        found = {}
        with contextlib.suppress(FileNotFoundError):
            for path in self.run_dir.glob("*.log"):
                found[str(path)] = path.read_text(errors="replace")
        return found

    def _describe(self) -> str:
        return "\n".join(str(program) for program in self.programs)


def watch(pids: Sequence[int]) -> dict[int, int]:
    """A pidfd for each process that is there, by pid."""
    watched = {}
    for pid in pids:
        try:
            watched[pid] = os.pidfd_open(pid)
        except ProcessLookupError:
            pass
    return watched


def _unended(watched: dict[int, int]) -> list[int]:
    """Those of the watched processes that have not ended within DEADLINE; closes the pidfds."""
    left, deadline = [], time.monotonic() + DEADLINE
    for pid, pidfd in watched.items():
        # A pidfd becomes readable when its process ends (pidfd_open(2)).
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(1000 * max(0.0, deadline - time.monotonic())):
            left.append(pid)
        os.close(pidfd)
    return left


def _what_it_is(pid: int) -> str:
    """Its command, state and where in the kernel it waits, as far as it can be told."""
    words = []
    for name in ("cmdline", "stat", "wchan"):
        try:
            words.append(Path(f"/proc/{pid}/{name}").read_text(errors="replace").replace("\0", " ")[:200])
        except OSError as error:
            words.append(str(error))
    return ", ".join(words)


def pids_with_environment(entry: str) -> list[int]:
    """All processes that have this entry in their environment."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if entry.encode() in environ.read_bytes().split(b"\0"):
                found.append(int(environ.parent.name))
        except OSError:
            pass
    return found
