"""Scenes: small programs that say what they see of their sockets, run natively and under the switch."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.needs import need
from support.switch import PATH, Switch

VIP, OTHER_VIP = "100.64.77.7", "100.64.77.8"
"""Addresses of the scenes' program and of the other one; natively loopback has both."""

Seen = dict[str, Any]

_LONG = 400.0
"""Seconds that all scenes of a file may take, should some of them hang (scenes/scene.py, LIMIT)."""

_REPLAYS = 3

_NATIVE = f"""
ip link set lo up
ip address add {VIP}/32 dev lo
ip address add {OTHER_VIP}/32 dev lo
if test -n "$OTHER"; then
    SCENE_HOST={OTHER_VIP} $OTHER > $SCENE_OTHER.ready &
    while ! grep -q ready $SCENE_OTHER.ready; do sleep 0.02; done
fi
SCENE_HOST={VIP} "$@"
kill $! 2> /dev/null || true
"""


@pytest.fixture(scope="session")
def scenes(public: Path) -> Path:
    """The scenes' directory where every user can read it."""
    target = public / "scenes"
    shutil.copytree(Path(__file__).with_name("scenes"), target, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (target, *target.iterdir()):
        path.chmod(0o755)
    return target


@pytest.fixture(scope="session")
def play_natively(
    python: str, scenes: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[Seen, dict[str, object]]]:
    """Runs scenes without AppSwitch, in a network namespace of their own; what they saw, and those that failed."""
    unshare = [need("unshare"), "--net", *(["--user", "--map-root-user"] if os.geteuid() else [])]

    def run(file: str, *names: str) -> tuple[Seen, dict[str, object]]:
        need("ip")
        setup = {"PATH": PATH, "HOME": "/"}
        if file == "across.py":
            path = tmp_path_factory.mktemp("other") / "socket"
            setup |= {"SCENE_OTHER": str(path), "OTHER": f"{python} other.py {path}"}
        command = [*unshare, "sh", "-ec", _NATIVE, "sh", python, str(scenes / file), *names]
        result = subprocess.run(command, env=setup, cwd=scenes, capture_output=True, text=True, timeout=_LONG)
        assert result.returncode == 0, result.stderr
        seen: Seen = json.loads(result.stdout)
        return seen, {name: value for name, value in seen.items() if "failed" in str(value) or value == "HANGS"}

    return run


@pytest.fixture(scope="session")
def native(play_natively: Callable[..., tuple[Seen, dict[str, object]]]) -> Callable[..., Seen]:
    """What scenes see natively; each file is played once in a session.

    Those that fail are played again: here only the kernel plays, and on a busy machine a scene's port may be taken by
    another scene as soon as it is free.
    """
    seen: dict[str, Seen] = {}

    def run(file: str, *names: str) -> Seen:
        if file not in seen:
            seen[file], broken = play_natively(file)
            for _ in range(_REPLAYS):
                if broken:
                    again, broken = play_natively(file, *broken)
                    seen[file] |= again
            assert not broken, f"natively: {broken}"
        return {name: value for name, value in seen[file].items() if name in names or not names}

    return run


@pytest.fixture(scope="session")
def play(python: str, scenes: Path) -> Callable[..., Seen]:
    """Runs scenes under a switch; gives what they saw."""

    def run(
        switch: Switch, file: str, *names: str, options: tuple[str, ...] = (), env: dict[str, str] | None = None
    ) -> Seen:
        environment = {"SCENE_HOST": VIP, **(env or {})}
        result = switch.check(
            [python, scenes / file, *names],
            ip=VIP,
            options=options,
            env=environment,
            status=0,
            timeout=_LONG,
            cwd=scenes,
        )
        seen: Seen = json.loads(result.stdout)
        return seen

    return run


@pytest.fixture(scope="session")
def compare(
    native: Callable[..., Seen], play: Callable[..., Seen], play_natively: Callable[..., tuple[Seen, dict[str, object]]]
) -> Callable[..., None]:
    """Plays scenes under a switch and fails with all those that saw something else than natively.

    On a busy machine the kernel itself shows now this, now that: what a scene saw under the switch is right, too, if
    it is seen natively at another time. Keywords as for `play`; `differing`: names of scenes to be left out.
    """

    def run(switch: Switch, file: str, *names: str, differing: tuple[str, ...] = (), **keywords: Any) -> None:
        expected = {name: [value] for name, value in native(file, *names).items() if name not in differing}
        seen = play(switch, file, *expected, **keywords)
        wrong = [name for name in expected if seen.get(name) not in expected[name]]
        for _ in range(_REPLAYS if wrong else 0):
            again, broken = play_natively(file, *wrong)
            for name in set(wrong) - set(broken):
                expected[name].append(again[name])
        wrong = [name for name in wrong if seen.get(name) not in expected[name]]
        told = "\n".join(
            f"{name}\n  natively  {' or '.join(sorted(set(map(json.dumps, expected[name]))))}\n"
            f"  here      {json.dumps(seen.get(name))}"
            for name in wrong
        )
        assert not wrong, f"{len(wrong)} of {len(expected)} scenes differ:\n{told}"

    return run
