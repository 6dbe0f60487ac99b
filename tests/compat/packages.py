"""Where the programs come from: Debian, PyPI and npm; what can be had, and in which version."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

TOOLS = Path(__file__).parents[2] / "tools"


def install(packages: Iterable[str], build: Path, fetch: bool = True) -> set[str]:
    """Install what is missing (into `build` what is not Debian's); those that could not be had."""
    wanted = list(dict.fromkeys(packages))
    if fetch:
        have = versions(wanted, build)
        missing = [package for package in wanted if package not in have]
        for kind, get in (("deb", _debian), ("pypi", _pypi), ("npm", _npm)):
            names = [package.partition(":")[2] for package in missing if package.startswith(f"{kind}:")]
            # All at once; where that fails one by one, so that the others are had.
            if names and not get(names, build) and len(names) > 1:
                for name in names:
                    get([name], build)
    have = versions(wanted, build)
    return {package for package in wanted if package not in have}


def versions(packages: Iterable[str], build: Path) -> dict[str, str]:
    """The version of each of these packages that is installed."""
    wanted = list(dict.fromkeys(packages))
    found = {}
    debian = [package[4:] for package in wanted if package.startswith("deb:")]
    words = ["dpkg-query", "-W", "-f=${Package} ${db:Status-Status} ${Version}\\n", *debian]
    for line in subprocess.run(words, capture_output=True, text=True).stdout.splitlines() if debian else ():
        name, state, *version = line.split()
        if state == "installed":
            found[f"deb:{name}"] = version[0]
    python = build / "venv" / "bin" / "python"
    if python.exists():
        words = [str(python), "-m", "pip", "list", "--format=json", "--disable-pip-version-check"]
        for row in json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout):
            found[f"pypi:{row['name'].lower()}"] = row["version"]
    for name in (package[4:] for package in wanted if package.startswith("npm:")):
        about = build / "node_modules" / name / "package.json"
        if about.exists():
            found[f"npm:{name}"] = json.loads(about.read_text())["version"]
    return {package: found[package] for package in wanted if package in found}


def _debian(names: list[str], build: Path) -> bool:
    return subprocess.run([str(TOOLS / "debian-packages.sh"), *names]).returncode == 0


def _pypi(names: list[str], build: Path) -> bool:
    venv = build / "venv"
    if not venv.exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    words = [str(venv / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", *names]
    return subprocess.run(words).returncode == 0


def _npm(names: list[str], build: Path) -> bool:
    if shutil.which("npm") is None:
        print("npm is not installed: nothing of npm's is tried", file=sys.stderr)
        return False
    words = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(build), *names]
    return subprocess.run(words).returncode == 0
