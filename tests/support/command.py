"""Where the ordinary user finds the appswitch command and the files that the tests hand to programs.

The checkout and its virtual environment may lie in a private directory. Then the ordinary user gets a copy of
both, in a virtual environment of its own under the session's public directory.
"""

import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

import appswitch

from .modes import MYSELF, ORDINARY, Person

_LAUNCHER = """#!{python}
import sys
from appswitch.cli.main import main
sys.exit(main())
"""


def dependencies() -> list[str]:
    """The distributions that AppSwitch needs at run time, directly or not; each is imported by its own name."""
    found: list[str] = []
    waiting = ["appswitch"]
    while waiting:
        for text in metadata.requires(waiting.pop()) or ():
            wanted = Requirement(text)
            here = wanted.marker is None or wanted.marker.evaluate({"extra": ""})
            if here and wanted.name not in found:
                found.append(wanted.name)
                waiting.append(wanted.name)
    return found


def installed_command() -> Path:
    """The appswitch command of the environment that runs the tests."""
    command = Path(sys.executable).with_name("appswitch")
    assert command.exists(), f"{command} is missing: run `make venv`, then the tests with `make test`"
    return command


def command_for(person: Person, public: Path) -> Path:
    """The appswitch command that this person can run; copied below `public` if need be."""
    command = installed_command()
    if person == MYSELF or _runs(person, command, Path(appswitch.__file__).parent):
        return command
    copy = public / "venv" / "bin" / "appswitch"
    if not copy.exists():
        _copy_environment(public / "venv")
    [package] = (public / "venv").glob("lib/python3*/site-packages/appswitch")
    assert _runs(person, copy, package), f"uid {person.uid} cannot run even {copy}"
    return copy


def python_for_everybody() -> str:
    """An interpreter that the ordinary user may execute: that of the virtual environment, else Debian's."""
    candidates = (os.path.realpath(sys.executable), "/usr/bin/python3")
    for candidate in candidates:
        if _can(ORDINARY, [candidate, "-c", "import ssl"]):
            return candidate
    raise AssertionError(f"the ordinary user can run none of {candidates}: make .venv from /usr/bin/python3")


def _runs(person: Person, command: Path, package: Path) -> bool:
    """Whether this person can run the command and read all of its package and what it imports."""
    check = f"import appswitch.cli, {', '.join(dependencies())}; open({str(command)!r})"
    # Not the compiled ones, which come and go while others import the package; Python does without.
    paths = [path for path in (package, *package.rglob("*")) if "__pycache__" not in path.parts]
    readable = all(path.stat().st_mode & (0o005 if path.is_dir() else 0o004) for path in paths)
    return readable and _can(person, [str(command.with_name("python")), "-c", check])


def _can(person: Person, argv: list[str]) -> bool:
    try:
        return subprocess.run(argv, cwd="/", capture_output=True, **person.popen_arguments()).returncode == 0
    except PermissionError:
        return False


def _copy_environment(target: Path) -> None:
    python = python_for_everybody()
    subprocess.run([python, "-m", "venv", "--without-pip", str(target)], check=True)
    [site_packages] = target.glob("lib/python3*/site-packages")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    assert site_packages.parent.name == version, f"{python} is not {version}, which .venv was made with"
    shutil.copytree(
        Path(appswitch.__file__).parent,
        site_packages / "appswitch",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    for name in dependencies():
        _copy_distribution(name, site_packages)
    for path in (target, *target.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
    # As `make venv` does; the ordinary user cannot write what Python compiles.
    subprocess.run([target / "bin" / "python", "-m", "compileall", "-q", site_packages], check=True)
    launcher = target / "bin" / "appswitch"
    launcher.write_text(_LAUNCHER.format(python=target / "bin" / "python"))
    launcher.chmod(0o755)


def _copy_distribution(name: str, site_packages: Path) -> None:
    """Copy an installed distribution, with its metadata, by the list of files that its installer left."""
    for file in metadata.distribution(name).files or ():
        if file.parts[0] == ".." or "__pycache__" in file.parts:
            continue
        destination = site_packages / file
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(str(file.locate())), destination)
