"""Fixtures of tests that do not break their switch: one for a directory, up, and actors under it.

A conftest.py that imports them has a switch of its own.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.acting import SOURCES, Actor, start_actor
from support import modes
from support.modes import Mode, Person
from support.switch import Switch


@pytest.fixture(scope="session")
def actor_file(public: Path) -> Path:
    """actor.py where every user can read it."""
    target = public / "actor.py"
    shutil.copyfile(SOURCES / "actor.py", target)
    target.chmod(0o644)
    return target


@pytest.fixture(scope="session", params=modes.possible(), ids=str)
def shared_mode(request: pytest.FixtureRequest) -> Mode:
    chosen: Mode = request.param
    return chosen


@pytest.fixture(scope="session")
def shared(
    request: pytest.FixtureRequest, shared_mode: Mode, appswitch_command: Callable[[Person], Path]
) -> Iterator[Switch]:
    """A switch for all tests that do not break it; up."""
    switch = Switch(shared_mode, appswitch_command)
    switch.up()
    yield switch
    switch.close()


@pytest.fixture(scope="session")
def idle(shared: Switch) -> list[Actor]:
    """Actors under the shared switch without name or anything that wait for their next test."""
    return []


@pytest.fixture
def actor(shared: Switch, idle: list[Actor], actor_file: Path, python: str) -> Iterator[Callable[..., Actor]]:
    """Starts actors under the shared switch; they end with the test, but for those that are like any other."""
    started: list[Actor] = []
    lent: list[Actor] = []

    def start(name: str | None = None, **keywords: object) -> Actor:
        if name is None and not keywords:
            lent.append(idle.pop() if idle else start_actor(shared, actor_file.parent, python))
            return lent[-1]
        started.append(start_actor(shared, actor_file.parent, python, name, **keywords))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for one in lent:
        if one.is_free():
            one("reset()")
            idle.append(one)
        else:
            started.append(one)
    for one in reversed(started):
        one.close()
        shared.programs.remove(one.program)
