"""`appswitch up --upgrade`: a version installed meanwhile replaces the one that is up, and no program notices."""

import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

import appswitch
from service.loads import Loads, cluster_of_one, roles, status
from support import modes
from support.program import DEADLINE, Program, wait_until
from support.switch import Switch

OURS = Path(appswitch.__file__).parent
_HERE = modes.possible()[:2]

_COMMAND = "import sys; sys.path.insert(0, sys.argv.pop(1)); from appswitch.cli.main import main; sys.exit(main())"


def install(place: Path, version: str, **changes: str) -> Path:
    """A copy of AppSwitch that calls itself another version; `changes`: what is appended to modules of its switch."""
    shutil.copytree(OURS, place / "appswitch", ignore=shutil.ignore_patterns("__pycache__"))
    init = place / "appswitch" / "__init__.py"
    init.write_text(f"{init.read_text()}\n__version__ = {version!r}\n")
    for module, text in changes.items():
        with (place / "appswitch" / "switch" / f"{module}.py").open("a") as file:
            file.write(f"\n{text}\n")
    place.chmod(0o755)
    return place


def up(switch: Switch, place: Path, *options: str) -> Program:
    """`appswitch up --upgrade` of the version there, to its end."""
    interpreter = str(Path(switch.command_line([])[0]).with_name("python"))
    line = [interpreter, "-P", "-c", _COMMAND, str(place), "up", "--upgrade", *options]
    program = switch.start(line, "upgrade", switch.mode.switch_owner, {"PYTHONDONTWRITEBYTECODE": "1"})
    program.wait()
    return program


@pytest.mark.parametrize("mode", _HERE, ids=str)
def test_programs_do_not_notice(new_switch: Callable[..., Switch], python: str, public: Path) -> None:
    switch = new_switch()
    switch.up("--workers", "2", "--range", "10.200.0.0/16", *cluster_of_one())
    with closing(Loads(switch, python, public)) as loads:
        before = roles(switch)
        place = install(public / f"upgrade-{switch.mode}", "97")
        done = up(switch, place)
        assert done.output() == f"The switch in {switch.run_dir} goes on with version 97.\n", done
        assert done.returncode == 0
        assert status(switch)["version"] == "97"
        after = roles(switch)
        assert after.keys() == before.keys() > {"router"}
        # The keeper has become another in place: it is the process that a foreground switch is known by.
        assert {role for role in before if before[role] == after[role]} == {"keeper"}
        before = after
        assert str(place).encode() in Path(f"/proc/{before['keeper']}/cmdline").read_bytes().split(b"\0")
        assert status(switch)["restarts"] == 0
        assert {row["vip"].partition(".")[0] for row in switch.services("web")} == {"10"}, "settings are as they were"
        loads.finish()


@pytest.mark.parametrize("mode", _HERE[:1], ids=str)
def test_a_version_that_does_not_work_leaves_the_switch_as_it_is(switch: Switch, python: str, public: Path) -> None:
    with closing(Loads(switch, python, public)) as loads:
        before = roles(switch)
        for name, changes, reason in (
            ("import", {"router": "import nothing_of_that_name"}, "version 98 does not work here"),
            ("format", {"kept": "FORMAT += 1"}, "cannot be taken over by version 98"),
            ("start", {"daemon": "def succeed(memory):\n    raise SystemExit(3)"}, "its keeper did not start"),
            ("state", {"registry": "Registry.resume = None"}, "it does not understand the running switch"),
        ):
            failed = up(switch, install(public / f"broken-{name}", "98", **changes))
            assert failed.returncode == 1
            [line] = failed.errors().splitlines()
            assert line.startswith("appswitch: ")
            assert reason in line
            wait_until(lambda: "keeper" in roles(switch), lambda: "the keeper's successor")
            after = roles(switch)
            assert {role for role in before if before[role] != after[role]} <= {"keeper"}
            assert status(switch)["version"] == appswitch.__version__
        loads.finish()


@pytest.mark.parametrize("mode", _HERE[:1], ids=str)
def test_in_the_foreground_and_without_a_switch(new_switch: Callable[..., Switch], public: Path) -> None:
    switch = new_switch()
    place = install(public / "foreground", "99")
    interpreter = str(Path(switch.command_line([])[0]).with_name("python"))
    line = [interpreter, "-P", "-c", _COMMAND, str(place), "up", "--upgrade", "--foreground"]
    first = switch.start(line, "up", switch.mode.switch_owner)
    first.wait_output("is up in")
    assert status(switch)["version"] == "99"
    assert up(switch, OURS.parent).returncode == 0
    assert status(switch)["version"] == appswitch.__version__
    assert first.returncode is None, "whoever started it need not know"
    switch.control("down", status=0)
    assert first.wait(DEADLINE) == 0
