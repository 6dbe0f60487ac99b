"""Players of programs, one native and one a transport, that every test here uses."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.modes import Mode
from support.switch import Switch

from .lanes import TRANSPORTS, VIP, Lane, Lanes, native_lane


@pytest.fixture(scope="session")
def player(public: Path) -> Path:
    """The player where every user can read it."""
    target = public / "player"
    shutil.copytree(Path(__file__).with_name("player"), target, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (target, *target.iterdir()):
        path.chmod(0o755)
    return target


@pytest.fixture
def lanes(mode: Mode, switch: Switch, python: str, player: Path) -> Iterator[Lanes]:
    native = native_lane(python, player)
    switched = {
        transport: Lane(
            switch.command_line([python, player / "main.py"], ip=VIP, options=("--transport", transport)),
            env=switch.environment(),
            cwd=switch.work,
            **mode.program_owner.popen_arguments(),
        )
        for transport in TRANSPORTS
    }
    yield Lanes(native, switched)
    for lane in (native, *switched.values()):
        lane.close()
