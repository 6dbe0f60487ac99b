"""The README's tour: every command of its marked blocks, in order, in one shell, as a reader would type them.

A line whose comment begins with "refused" must fail, every other must succeed. After a line that starts a
service in the background the test waits for the service, where a reader would take time to type.
"""

import os
import re
import select
import shlex
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from support.modes import Person, possible
from support.needs import need
from support.program import DEADLINE
from support.switch import PATH, Switch

README = Path(__file__).parents[2] / "README.md"

_BLOCK = re.compile(r"^<!-- tested -->\n```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def tour() -> list[str]:
    """The commands of all marked blocks."""
    return [line for block in _BLOCK.findall(README.read_text()) for line in block.splitlines() if line]


def background_name(line: str) -> str | None:
    """The service name given in a command that goes to the background."""
    words = shlex.split(line, comments=True)
    return words[words.index("--name") + 1] if words[-1] == "&" and "--name" in words else None


class Shell:
    """A shell that takes one line at a time and tells its exit status, each through a pipe of its own.

    Its standard input is empty: commands that read it would eat the lines that follow.
    """

    _LOOP = 'while IFS= read -r line <&"$LINES_FD"; do eval "$line"; echo $? >&"$STATUS_FD"; done'

    def __init__(self, switch: Switch, path: str) -> None:
        lines_read, lines_write = os.pipe()
        status_read, status_write = os.pipe()
        self.program = switch.start(
            ["bash", "-c", self._LOOP],
            "shell",
            switch.mode.program_owner,
            env={"PATH": path, "LINES_FD": str(lines_read), "STATUS_FD": str(status_write)},
            pass_fds=(lines_read, status_write),
        )
        os.close(lines_read)
        os.close(status_write)
        self._lines = os.fdopen(lines_write, "w")
        self._status = os.fdopen(status_read)

    def run(self, line: str) -> int:
        """The exit status of a line."""
        print(line, file=self._lines, flush=True)
        ready, _, _ = select.select([self._status], [], [], DEADLINE)
        status = self._status.readline() if ready else ""
        assert status, f"no end of {line!r}: {self.program}"
        return int(status)

    def close(self) -> None:
        self._lines.close()
        assert self.program.wait() == 0
        self._status.close()


@pytest.mark.parametrize(
    "mode", [mode for mode in possible() if mode.switch_owner == mode.program_owner], ids=str, indirect=True
)
def test_the_tour_goes_as_told(
    new_switch: Callable[..., Switch], appswitch_command: Callable[[Person], Path]
) -> None:
    """By readers who own their switch: the first command of the tour starts it."""
    need("curl")
    switch = new_switch()
    if not switch.virtual:
        pytest.skip("the tour is about AppSwitch itself")
    shell = Shell(switch, f"{appswitch_command(switch.mode.program_owner).parent}:{PATH}")
    started: Counter[str] = Counter()
    lines = tour()
    assert lines
    for line in lines:
        comment = line.partition("#")[2].strip()
        status = shell.run(line)
        assert (status != 0) == comment.startswith("refused"), (
            f"exit status {status} of {line!r}: {shell.program}"
        )
        if name := background_name(line):
            started[name] += 1
            switch.wait_service(name, 80, started[name])
    shell.close()
    assert not switch.run_dir.exists()
