"""Programs that do all that programs do (src/load.py), while something is done to their switch."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from appswitch.switch import wire
from service.acting import SOURCES
from support.ports import quiet_ports
from support.program import DEADLINE, Program, wait_until
from support.switch import Switch


def status(switch: Switch) -> dict[str, Any]:
    """Asked without the time that a command takes; again when the supervisor ended before it could answer."""
    while True:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(DEADLINE)
            sock.connect(str(switch.run_dir / "control.sock"))
            try:
                wire.send(sock, {"op": "status"})
                found: dict[str, Any] = wire.receive(sock)["result"]
                return found
            except ConnectionError:
                pass


def roles(switch: Switch) -> dict[str, int]:
    return {process["role"]: process["pid"] for process in status(switch)["processes"]}


def cluster_of_one() -> list[str]:
    """Options of `up`, for there to be a router. Its port is none that the kernel gives away while it is dead."""
    for port in quiet_ports():
        tcp, udp = socket.socket(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with tcp, udp, contextlib.suppress(OSError):
            for probe in (tcp, udp):
                probe.bind(("127.0.0.1", port))
            return ["--node-interface", "127.0.0.1", "--gossip-port", str(port), "--timings", "local"]
    raise AssertionError("no port is free")


class Loads:
    """They run from the start on; `finish` ends them and looks what they have seen. To be closed."""

    def __init__(self, switch: Switch, python: str, public: Path) -> None:
        self._switch, self._python = switch, python
        self._file = Path(shutil.copyfile(SOURCES / "load.py", public / "load.py"))
        self._file.chmod(0o644)
        # The fewest: asking takes some for a moment.
        looks = [self._open_files() for _ in range(5)]
        self._files_before = {role: min(look[role] for look in looks) for role in looks[0]}
        self._servers = [
            self._start("serve", name="web"),
            self._start("serve", name="tcp", options=("--transport", "tcp")),
        ]
        self._clients = [
            self._start("call", "web"),
            self._start("call", "tcp"),
            self._start("churn", name="churn"),
        ]
        self._served = self._rows()
        assert len(self._served) == 8
        self._passers = Passers(switch, [python, "-S", self._file, "pass"])

    def close(self) -> None:
        self._passers.stop()

    def finish(self, within: float | None = None) -> str:
        """What has happened, in words; AssertionError when anything was lost or is left over.

        `within`: the seconds that a call may take more than the machine itself let programs wait.
        """
        self.close()
        # The clients first: they are not to see their servers end.
        results = [_result(program) for program in self._clients]
        assert self._rows() == self._served
        results += [_result(program) for program in self._servers]
        seen = sum((Counter(found["seen"]) for found in results), Counter())
        longest: dict[str, float] = {}
        for found in results:
            for what, seconds in found["longest"].items():
                longest[what] = round(max(seconds, longest.get(what, 0.0)), 3)
        told = (
            f"{json.dumps(dict(sorted(seen.items())), indent=1)}\nlongest, in seconds: {longest}\n"
            f"programs started and ended: {dict(self._passers.outcomes)}"
        )
        assert [item for found in results for item in found["wrong"]] == [], told
        assert set(self._passers.outcomes) <= {"passed", "not started"}, told
        assert within is None or max(longest.values()) <= within + longest["speak"], told
        # The one fault that is known (docs/transparency.md).
        assert {what for what in seen if what.startswith("accept gave")} <= {"accept gave 0"}, told
        self._look_for_leftovers()
        return told

    def _look_for_leftovers(self) -> None:
        switch = self._switch
        wait_until(lambda: switch.cli("ps", "-o", "json") == [], lambda: "the programs to be forgotten")
        wait_until(lambda: switch.services() == [], lambda: f"no row: {switch.services()}")
        wait_until(lambda: not list((switch.run_dir / "l").iterdir()), lambda: "no listener's file")
        wait_until(lambda: self._open_files() == self._files_before, lambda: f"{self._open_files()} descriptors")

    def _start(self, *words: str, name: str | None = None, options: tuple[str, ...] = ()) -> Program:
        line = [self._python, "-S", self._file, *words]
        program = self._switch.run(line, name=name, options=options, stdin=subprocess.PIPE)
        program.wait_output("ready")
        return program

    def _rows(self) -> list[tuple[str, int]]:
        """Of the servers; other listeners come and go."""
        return sorted((row["name"], row["port"]) for row in self._switch.services() if row["name"] in ("web", "tcp"))

    def _open_files(self) -> dict[str, int]:
        """How many descriptors those have who hold the programs'."""
        now = roles(self._switch)
        return {role: len(os.listdir(f"/proc/{now[role]}/fd")) for role in ("supervisor", "keeper") if role in now}


class Passers:
    """In a thread: programs that start, listen for a moment and end, one after the other."""

    def __init__(self, switch: Switch, argv: list[str | os.PathLike[str]]) -> None:
        self.outcomes: Counter[str] = Counter()
        self._line, self._switch = switch.command_line(argv, name="passer"), switch
        self._stopping = False
        self._thread = threading.Thread(target=self._go_on)
        self._thread.start()

    def stop(self) -> None:
        self._stopping = True
        self._thread.join(DEADLINE)

    def _go_on(self) -> None:
        while not self._stopping:
            done = subprocess.run(
                self._line,
                env=self._switch.environment(),
                cwd=self._switch.work,
                capture_output=True,
                text=True,
                timeout=DEADLINE,
                **self._switch.mode.program_owner.popen_arguments(),
            )
            said = done.stderr.splitlines()
            if done.returncode == 125 and len(said) == 1 and said[0].startswith("appswitch: the switch in "):
                self.outcomes["not started"] += 1
            elif done.returncode == 0 and json.loads(done.stdout)["wrong"] == []:
                self.outcomes["passed"] += 1
            else:
                self.outcomes[f"exit code {done.returncode}: {done.stdout}{done.stderr}"] += 1


def _result(program: Program) -> dict[str, Any]:
    program.stdin.close()
    program.wait(3 * DEADLINE)
    found: dict[str, Any] = json.loads(program.output().splitlines()[-1])
    return found
