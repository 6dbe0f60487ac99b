"""A run directory without room: a switch does not begin, or goes on, and recovers."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from support.modes import MYSELF, Person
from support.needs import need
from support.program import Program
from support.switch import PATH


@pytest.mark.skipif(MYSELF.uid != 0, reason="only root can mount a disk of its own")
def test_a_full_disk(tmp_path: Path, appswitch_command: Callable[[Person], Path]) -> None:
    """The disk is a small one in a mount namespace of its own: see src/full_disk.py."""
    disk = tmp_path / "disk"
    disk.mkdir()
    script = Path(__file__).parent / "src" / "full_disk.py"
    argv = [need("unshare"), "--mount", sys.executable, str(script), str(appswitch_command(MYSELF)), str(disk)]
    program = Program(argv, directory=tmp_path, label="full-disk", person=MYSELF, env={"PATH": PATH, "LANG": "C.UTF-8"})
    try:
        assert program.wait(300) == 0, program
    finally:
        program.stop()
