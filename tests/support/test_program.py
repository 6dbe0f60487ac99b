"""The helper that starts programs for tests."""

import os
import select
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.modes import MYSELF
from support.program import DEADLINE, Program


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process with a group of its own that another worker might have started; it says what it hears."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0) as process:
        yield process
        process.kill()


def started(directory: Path, script: str, label: str = "sh") -> Program:
    env = {"PATH": "/usr/bin:/bin"}
    return Program(["sh", "-c", script], directory=directory, label=label, person=MYSELF, env=env)


def test_who_has_its_number_by_now_is_left_alone(tmp_path: Path, stranger: subprocess.Popen[bytes]) -> None:
    program = started(tmp_path, "exit 3")
    assert program.wait() == 3
    program.process.pid = stranger.pid  # numbers come again: there are often no more than 32768 (proc(5), pid_max)
    program.stop()
    assert stranger.communicate(b"still here")[0] == b"still here"


def test_a_group_that_has_its_number_by_now_is_left_alone(tmp_path: Path) -> None:
    """Though its leader has ended, as with the processes of a switch."""
    program = started(tmp_path, "exit 3")
    assert program.wait() == 3
    leader = started(tmp_path, "sleep 1000 & echo $!", "other")
    assert leader.wait() == 0
    child = os.pidfd_open(int(leader.output()))
    program.process.pid = leader.pid
    program.stop()
    ended, _, _ = select.select([child], [], [], 0.1)  # SIGKILL would have ended it by then
    leader.stop()
    os.close(child)
    assert not ended


def test_its_children_are_ended_though_it_has_ended_before(tmp_path: Path) -> None:
    program = started(tmp_path, "sleep 1000 & echo $!")
    assert program.wait() == 0
    child = os.pidfd_open(int(program.output()))
    program.stop()
    ended, _, _ = select.select([child], [], [], DEADLINE)
    os.close(child)
    assert ended
