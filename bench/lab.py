"""What the cases share: settings, compiled helpers, free ports, alternating runs."""

from __future__ import annotations

import shutil
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar, TypeVar

from .procs import Procs, Unavailable, until
from .stats import Results
from .switch import Switch

HERE = Path(__file__).parent

T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """How long and how often; the defaults are the full run (≤ 10 minutes), QUICK the short one (< 90 s)."""

    rounds: int = 5
    """Alternating runs of each figure."""
    transfer_s: float = 0.7
    """Length of one iperf transfer in seconds."""
    trap_sizes: int | None = None
    """Number of write sizes whose traps are counted; None is all of them."""
    transactions: int = 2000
    """Transactions of one run, after a warm-up of a tenth."""
    requests_s: float = 2.0
    """Length of one wrk run in seconds."""
    starts: int = 30
    """Starts of a program in the start-up case."""
    idle_s: float = 60.0
    """Idle time in which context switches are counted, in seconds."""


FULL = Settings()
QUICK = Settings(
    rounds=3,
    transfer_s=0.15,
    trap_sizes=1,
    transactions=500,
    requests_s=1.0,
    starts=10,
    idle_s=4.0,
)


@dataclass
class Lab:
    """The run: its processes, its folder, its settings and its results."""

    procs: Procs
    folder: Path
    settings: Settings
    results: Results = field(default_factory=Results)
    _switches: int = 0

    APPSWITCH: ClassVar[str] = "AppSwitch"

    def say(self, text: str) -> None:
        """Progress, on standard error."""
        print(text, file=sys.stderr, flush=True)

    def switch(self, cpu: int | None = None, without: str = "") -> Switch:
        """A new switch of this run (not yet up)."""
        self._switches += 1
        return Switch(self.procs, self.folder / f"switch{self._switches}", cpu, without)

    @cached_property
    def compiler(self) -> str | None:
        """The C compiler, if there is one."""
        return shutil.which("gcc") or shutil.which("cc")

    @cached_property
    def shim(self) -> Path | None:
        """unixpair.c as a shared library, or None without a compiler."""
        return self._compile("unixpair.c", "unixpair.so", ["-shared", "-fPIC"], ["-ldl"])

    @cached_property
    def transact(self) -> list[str]:
        """The command of the transaction client and server: transact.c, else peer.py."""
        program = self._compile("transact.c", "transact", [], [])
        return [str(program)] if program else self.peer

    @cached_property
    def udp(self) -> list[str]:
        """The command of the UDP peers: udp.c. Raises Unavailable without a compiler."""
        program = self._compile("udp.c", "udp", [], [])
        if program is None:
            raise Unavailable("there is no C compiler here")
        return [str(program)]

    @property
    def peer(self) -> list[str]:
        """The command of the stand-ins in Python."""
        return [sys.executable, "-I", str(HERE / "peer.py")]

    def _compile(self, source: str, target: str, before: list[str], after: list[str]) -> Path | None:
        if self.compiler is None:
            return None
        path = self.folder / target
        self.procs.run([self.compiler, "-O2", *before, "-o", str(path), str(HERE / source), *after])
        return path

    def alternate(
        self,
        case: str,
        cells: Sequence[str],
        variants: dict[str, Callable[[str], T]],
        keep: Callable[[str, str, list[T]], None],
    ) -> None:
        """Measure every cell with every variant in turn, `rounds` times, so that drift hits all alike.

        A cell that fails once is not measured (a lucky rest would hide the failure), and a variant is given
        up after its second failed cell. `keep(cell, variant, samples)` is called for the cells that were
        measured in all rounds.
        """
        taken: dict[tuple[str, str], list[T]] = {(c, v): [] for c in cells for v in variants}
        failed: dict[tuple[str, str], str] = {}
        rounds = self.settings.rounds
        for number in range(1, rounds + 1):
            self.say(f"{case}: round {number} of {rounds}")
            for cell in cells:
                for variant, measure in variants.items():
                    others = [reason for (_, v), reason in failed.items() if v == variant]
                    if (cell, variant) in failed or len(others) >= 2:
                        failed.setdefault((cell, variant), others[0] if others else "")
                        continue
                    try:
                        taken[cell, variant].append(measure(cell))
                    except Unavailable as error:
                        failed[cell, variant] = f"run {number} of {rounds}: {error}"
                        self.say(f"{case}: {variant}, {cell}: {error}")
        for (cell, variant), samples in taken.items():
            if (cell, variant) in failed:
                self.results.put(case, cell, variant, reason=failed[cell, variant])
            else:
                keep(cell, variant, samples)

    def skip(self, case: str, cells: Sequence[str], variant: str, reason: str) -> None:
        """Mark a variant of a case as not measured."""
        self.say(f"{case}: {variant} not measured: {reason}")
        for cell in cells:
            self.results.put(case, cell, variant, reason=reason)

    def offer(
        self,
        variants: dict[str, Callable[[str], T]],
        case: str,
        cells: Sequence[str],
        name: str,
        make: Callable[[ExitStack], Callable[[str], T]],
        stack: ExitStack,
    ) -> None:
        """Set a variant up and add it to `variants`; when that is impossible, undo it and say why."""
        own = ExitStack()
        try:
            with own:
                variants[name] = make(own)
                stack.push(own.pop_all().__exit__)
        except Unavailable as error:
            self.skip(case, cells, name, str(error))


def need(*programs: str) -> None:
    """Raise Unavailable unless all these programs are installed."""
    for program in programs:
        if shutil.which(program) is None:
            raise Unavailable(f"{program} is not installed")


def free_port() -> int:
    """A TCP port that is free on 127.0.0.1 now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_listening(pid: int, port: int) -> None:
    """Wait until something in the process's network namespace listens on the TCP port (proc_net_tcp(5))."""

    def listening() -> bool:
        for table in ("tcp", "tcp6"):
            try:
                rows = Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
            except OSError as error:
                raise Unavailable("the server ended before it listened") from error
            # Column 1 is local address:port in hexadecimal, column 3 the state (0A: LISTEN).
            for row in rows:
                columns = row.split()
                if columns[3] == "0A" and int(columns[1].rpartition(":")[2], 16) == port:
                    return True
        return False

    until(listening, f"a listener on port {port}")
