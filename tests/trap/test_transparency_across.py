"""Two programs with addresses of their own, each with a worker of its own: connections, and descriptors passed on."""

from collections.abc import Callable

import pytest

from support.modes import Mode
from support.switch import Switch

OTHER_VIP = "100.64.77.8"


@pytest.fixture
def two_workers(new_switch: Callable[..., Switch]) -> Switch:
    switch = new_switch()
    switch.up("--workers", "2")
    return switch


@pytest.mark.parametrize("transport", ["auto", "tcp"])
def test_scenes_of_two_programs_are_as_natively(
    mode: Mode, two_workers: Switch, compare: Callable[..., None], python: str, scenes: str, transport: str
) -> None:
    path = two_workers.work / "other"
    options = ("--transport", transport)
    other = two_workers.run(
        [python, f"{scenes}/other.py", path], ip=OTHER_VIP, options=options, env={"SCENE_HOST": OTHER_VIP}, cwd=scenes
    )
    other.wait_output("ready")
    differing = ("backlog_there",) if transport == "tcp" else ()
    compare(two_workers, "across.py", options=options, env={"SCENE_OTHER": str(path)}, differing=differing)
