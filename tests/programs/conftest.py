"""Real programs from Debian's packages, and the two that are built here."""

import hashlib
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

SOURCES = Path(__file__).with_name("src")


@pytest.fixture(scope="session")
def site(public: Path) -> Path:
    """A directory to serve: `blob`, 2 MiB that no compression or repetition can imitate."""
    directory = public / "site"
    directory.mkdir()
    blob = directory / "blob"
    blob.write_bytes(random.Random(20090).randbytes(2 << 20))
    for path in (directory, blob):
        path.chmod(0o755)
    return directory


@pytest.fixture(scope="session")
def digest(site: Path) -> str:
    """SHA-256 of the blob."""
    return hashlib.sha256((site / "blob").read_bytes()).hexdigest()


@pytest.fixture(scope="session")
def go_http(go_program: Callable[[Path], Path]) -> Path:
    return go_program(SOURCES / "gohttp.go")


@pytest.fixture(scope="session")
def node_http(public: Path) -> Path:
    """http.js where every user can read it."""
    target = public / "http.js"
    shutil.copyfile(SOURCES / "http.js", target)
    target.chmod(0o644)
    return target
