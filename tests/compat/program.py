"""What a file in `programs/` declares: a program, where it comes from, and its cases."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field

from .lanes import FORCED_TCP, LANES
from .scene import Scene

Act = Callable[[Scene], None]


@dataclass(frozen=True)
class Case:
    """One server with one client, or more of them."""

    program: Program
    name: str
    act: Act
    packages: tuple[str, ...]
    """Those that it needs beside the program's own."""
    udp: bool = False
    """Whether its data go by datagrams: there is no transport of a connection to choose then."""
    remark: str = ""
    """What is known of why it fails."""

    @property
    def all_packages(self) -> tuple[str, ...]:
        return self.program.packages + self.packages

    @property
    def lanes(self) -> list[str]:
        """Those that it can be tried in."""
        return [lane for lane in LANES if not (self.udp and lane == FORCED_TCP)]


@dataclass
class Program:
    """A program and its packages: `deb:nginx-light`, `pypi:uvloop` or `npm:ws`; the first tells the version."""

    name: str
    packages: tuple[str, ...]
    cases: list[Case] = field(default_factory=list)

    def __init__(self, name: str, *packages: str) -> None:
        self.name, self.packages, self.cases = name, packages, []

    def case(self, name: str, *packages: str, udp: bool = False, remark: str = "") -> Callable[[Act], Act]:
        """Declares a case: `NGINX.case("static files", "deb:curl")`."""

        def declare(act: Act) -> Act:
            self.cases.append(Case(self, name, act, packages, udp, remark))
            return act

        return declare


def all_programs() -> list[Program]:
    """Every program that a file in `programs/` declares, by the name of the file."""
    from . import programs

    found = []
    for module in sorted(pkgutil.iter_modules(programs.__path__), key=lambda module: module.name):
        loaded = importlib.import_module(f"{programs.__name__}.{module.name}")
        found += [value for value in vars(loaded).values() if isinstance(value, Program)]
    return found
