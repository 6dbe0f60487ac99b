"""Hostile programs, written in C, and switches for them."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.acting import Actor, start_actor
from service.sharing import actor_file
from support import needs
from support.modes import MODES, Person
from support.switch import Switch

__all__ = ["actor_file"]


@pytest.fixture(scope="session")
def hostile(public: Path) -> Callable[[str], Path]:
    """Builds src/NAME.c with gcc, once; gives the executable's path."""
    built: dict[str, Path] = {}

    def build(name: str) -> Path:
        if name not in built:
            target = public / f"hostile-{name}"
            needs.compile_c(str(Path(__file__).parent / "src" / f"{name}.c"), str(target))
            target.chmod(0o755)
            built[name] = target
        return built[name]

    return build


@pytest.fixture
def root_switch(appswitch_command: Callable[[Person], Path]) -> Iterator[Callable[..., Switch]]:
    """Starts a switch of root's: programs that hold back memory need more than an ordinary user has."""
    if os.geteuid():
        pytest.skip("userfaultfd(2) that holds the kernel back is root's")
    made: list[Switch] = []

    def start(*options: str) -> Switch:
        made.append(Switch(MODES[0], appswitch_command))
        made[-1].up(*options)
        return made[-1]

    yield start
    for switch in made:
        switch.close()


@pytest.fixture
def acting(actor_file: Path, python: str) -> Iterator[Callable[..., Actor]]:
    """Starts actors under a switch."""
    started: list[Actor] = []

    def start(switch: Switch, name: str | None = None, **keywords: object) -> Actor:
        started.append(start_actor(switch, actor_file.parent, python, name, **keywords))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for one in reversed(started):
        one.close()
