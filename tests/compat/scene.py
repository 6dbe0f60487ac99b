"""What a case may do: start servers and clients under one lane, and say what must come of it."""

from __future__ import annotations

import hashlib
import os
import random
import re
import select
import signal
import string
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.command import python_for_everybody
from support.program import Program as Running
from support.program import wait_until
from support.switch import Switch

from .lanes import Place
from .native import Bridged

REPEAT = Path(__file__).with_name("repeat.py")
SOURCES = Path(__file__).with_name("src")
SIZE = 1 << 20
"""Bytes of what is moved."""

_LINE = re.compile(r"connect\(.*<(unix|tcp|remote|egress)\b")
Argv = Sequence[str | os.PathLike[str]]


@dataclass(frozen=True)
class Effort:
    """How much a case does: connections one after the other, and at once."""

    one_after_the_other: int = 100
    at_once: int = 10


FULL = Effort()


@dataclass(frozen=True)
class End:
    """How a server ended by SIGTERM: exit code (negative: the signal), and after how many seconds."""

    code: int
    seconds: float


@dataclass
class Scene:
    """One case in one lane. `blob` and `text` are files of 1 MiB; text is one line of letters and digits."""

    place: Place
    tools: Path
    """Where what came from PyPI and npm is: `venv/bin`, `node_modules`."""
    effort: Effort = FULL
    ends: list[End] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    """What a case wants told in the report, beside that it passed."""

    def __post_init__(self) -> None:
        self.work = self.place.servers.work
        self.client_work = self.place.clients.work
        draw = random.Random(6)
        data, text = draw.randbytes(SIZE - 1) + b"\xff", "".join(draw.choices(string.hexdigits, k=SIZE)).encode()
        self.sha256, self.text_sha256 = (hashlib.sha256(each).hexdigest() for each in (data, text))
        for directory in {self.work, self.client_work}:
            directory.chmod(0o777)
            (directory / "blob").write_bytes(data)
            (directory / "text").write_bytes(text)
        self.python = python_for_everybody()
        self.venv = self.tools / "venv" / "bin"

    @property
    def virtual(self) -> bool:
        """Whether it is under AppSwitch."""
        return self.place.servers.virtual

    def write(self, name: str, text: str, mode: int = 0o644) -> Path:
        """A file in the servers' directory; `$work` in it stands for that directory."""
        path = self.work / name
        path.write_text(text.replace("$work", str(self.work)))
        path.chmod(mode)
        return path

    def source(self, name: str) -> Path:
        """A program in `src/`, where everybody can read it."""
        for directory in {self.work, self.client_work}:
            (directory / name).write_bytes((SOURCES / name).read_bytes())
        return self.client_work / name

    # Servers.

    def server(
        self,
        name: str,
        argv: Argv,
        *ports: int,
        user: str = "",
        env: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
        trace: bool = False,
        ip: str | None = None,
        at: str = "servers",
    ) -> Running:
        """Start a server; returns when it listens on these ports. `trace`: it connects to others, too."""
        switch: Switch = getattr(self.place, at)
        program = self._start(switch, argv, name=name, user=user, env=env, options=options, trace=trace, ip=ip)
        for port in ports:
            switch.wait_service(name, port)
            if self.place.clients is not self.place.servers:
                other = self.place.servers if switch is self.place.clients else self.place.clients
                other.wait_service(name, port)
        return program

    def stop(self, server: Running, number: int = signal.SIGTERM, seconds: float = 60) -> None:
        """End a server by SIGTERM, and note how it ended: that must be as natively."""
        before = time.monotonic()
        server.send_signal(number)
        code = server.wait(seconds)
        self.ends.append(End(code, round(time.monotonic() - before, 2)))

    def stop_pid(self, pid: int, number: int = signal.SIGTERM, seconds: float = 60) -> None:
        """The same for a process that went into the background: its exit code is not seen, and told as 0."""
        before = time.monotonic()
        pidfd = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(pidfd, number)
            ended, _, _ = select.select([pidfd], [], [], seconds)
        finally:
            os.close(pidfd)
        assert ended, f"process {pid} did not end within {seconds:g} s of signal {number}"
        self.ends.append(End(0, round(time.monotonic() - before, 2)))

    # Clients.

    def client(
        self,
        argv: Argv,
        *,
        user: str = "",
        env: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
        trace: bool = True,
        name: str | None = None,
        seconds: float = 90,
        status: int | None = 0,
        at: str = "clients",
    ) -> str:
        """Run a client to its end, which must be of this status; what it printed."""
        switch: Switch = getattr(self.place, at)
        program = self._start(switch, argv, name=name, user=user, env=env, options=options, trace=trace)
        program.wait(seconds)
        assert status is None or program.returncode == status, _why(program)
        return program.output()

    def background(self, argv: Argv, name: str | None = None, **start: Any) -> Running:
        """Start a client and go on."""
        plain = {"name": name, "user": "", "env": None, "options": (), "trace": False}
        return self._start(self.place.clients, argv, **(plain | start))

    def repeated(self, argv: Argv, times: int, at_once: int, *, text: bool = False, seconds: float = 60) -> list[str]:
        """A command that runs this one many times and checks that each prints the blob (or the text)."""
        words = [self.python, REPEAT, times, at_once, self.text_sha256 if text else self.sha256, seconds, "--", *argv]
        return list(map(str, words))

    def until(self, look: Callable[[], bool], what: str) -> None:
        """Wait for something that announces itself in no other way."""
        wait_until(look, lambda: what)

    def moves(
        self, argv: Argv, *, text: bool = False, seconds: float = 60, effort: Effort | None = None, **start: Any
    ) -> None:
        """The client prints the blob (or the text): once, then one after the other, then at once."""
        effort = effort or self.effort
        for times, at_once, trace in (
            (1, 1, True),
            (effort.one_after_the_other, 1, False),
            (effort.at_once, effort.at_once, False),
        ):
            words = self.repeated(argv, times, at_once, text=text, seconds=seconds)
            self.client(words, trace=trace, seconds=seconds * 3 + 60, **start)

    def loops(self, argv: Argv, *, text: bool = False, **start: Any) -> None:
        """The same for a client that makes the connections itself: it is given TIMES AT_ONCE SHA256."""
        sha256 = self.text_sha256 if text else self.sha256
        for times, at_once, trace in (
            (1, 1, True),
            (self.effort.one_after_the_other, 1, False),
            (self.effort.at_once, self.effort.at_once, False),
        ):
            self.client([*argv, str(times), str(at_once), sha256], trace=trace, seconds=180, **start)

    def transports(self) -> list[str]:
        """Those that traced programs' connections took, without repetition."""
        found = set()
        for directory in {self.work, self.client_work}:
            for path in directory.glob("trace-*"):
                found |= set(_LINE.findall(path.read_text(errors="replace")))
        return sorted(found)

    def traps(self) -> int:
        """How many calls the switches have answered so far."""
        return sum(
            int(switch.cli("status", "-o", "json")["traps"])
            for switch in dict.fromkeys((self.place.servers, self.place.clients))
        )

    def no_traps(self, name: str, argv: Argv) -> None:
        """A client that says `ready` when it is connected makes requests for each line that it reads: none is trapped.

        It says `done` after them; the first line is to get it going.
        """
        client = self.background(argv, stdin=subprocess.PIPE, trace=True)
        client.wait_output("ready")
        counts = []
        for turn in (1, 2):
            counts.append(self.traps() if self.virtual else 0)
            client.stdin.write(b"go\n")
            client.stdin.flush()
            wait_until(lambda turn=turn: client.output().count("done") == turn, lambda: f"an answer of {client}")  # type: ignore[misc]
        counts.append(self.traps() if self.virtual else 0)
        client.stdin.close()
        assert client.wait() == 0, _why(client)
        if self.virtual:
            self.facts[f"traps during {name}"] = str(counts[2] - counts[1])
            assert counts[2] == counts[1], f"{counts[2] - counts[1]} traps during {name}"

    def _start(
        self,
        switch: Switch,
        argv: Argv,
        *,
        name: str | None,
        user: str,
        env: Mapping[str, str] | None,
        options: Sequence[str],
        trace: bool,
        ip: str | None = None,
        stdin: int = subprocess.DEVNULL,
    ) -> Running:
        words = [os.fspath(word) for word in argv]
        settings = [*self.place.options, *options]
        if isinstance(switch, Bridged):
            settings = []
            if user:
                words = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--", *words]
        else:
            if trace:
                settings += [f"--trace={switch.work}/trace-{len(list(switch.work.glob('trace-*')))}"]
            if user:
                settings += ["--user", user]
        return switch.run(words, name=name, ip=ip, options=settings, env=dict(env or {}), stdin=stdin)


def _why(program: Running) -> str:
    lines = [line.strip() for line in (program.errors() or program.output()).splitlines() if line.strip()]
    code = program.returncode
    return f"exit code {code}: {' / '.join(lines[-3:])[-400:] or 'it said nothing'}"

