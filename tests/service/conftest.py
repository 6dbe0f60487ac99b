"""Switches and programs for the scenarios of one host."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.acting import Actor, start_actor
from service.sharing import actor, actor_file, idle, shared, shared_mode
from support.switch import Switch

__all__ = ["actor", "actor_file", "idle", "shared", "shared_mode"]


@pytest.fixture
def own_actor(switch: Switch, actor_file: Path, python: str) -> Iterator[Callable[..., Actor]]:
    """Starts actors under the test's own switch."""
    started: list[Actor] = []

    def start(name: str | None = None, **keywords: object) -> Actor:
        started.append(start_actor(switch, actor_file.parent, python, name, **keywords))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for one in reversed(started):
        one.close()
