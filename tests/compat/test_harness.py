"""The harness itself: it fails what is wrong, and tells it."""

import hashlib
import subprocess
import sys

import pytest

from compat.program import Program, all_programs
from compat.report import page
from compat.results import Result, judged
from compat.scene import REPEAT, End

RIGHT = hashlib.sha256(b"right").hexdigest()


def repeat(times: int, script: str, seconds: float = 60) -> str:
    """What repeat.py says of so many runs, five at once; empty when all were right."""
    words = [sys.executable, str(REPEAT), str(times), "5", RIGHT, str(seconds), "--", "sh", "-c", script]
    return subprocess.run(words, capture_output=True, text=True).stderr.strip()


def test_repeat_checks_every_run() -> None:
    assert repeat(10, "echo right") == ""
    assert repeat(10, '[ "$N" = 7 ] && echo wrong || echo right').startswith("1 of 10 failed; run 7: 6 bytes came")
    assert repeat(1, "echo right; echo why >&2; exit 3") == "1 of 1 failed; run 0: exit code 3: why"
    assert "did not end within 0.2 s" in repeat(1, "exec sleep 60", 0.2)


def result(lane: str, *ends: End, reason: str = "", transports: tuple[str, ...] = ()) -> Result:
    return Result("web", "static", lane, reason, list(transports), list(ends))


@pytest.mark.parametrize(
    ("end", "told"),
    [
        (End(0, 2.1), ""),
        (End(1, 0.1), "SIGTERM ended it with 1, natively with 0"),
        (End(0, 9.0), "it ended 9 s after SIGTERM, natively after 0.1 s"),
    ],
)
def test_a_server_has_to_end_as_natively(end: End, told: str) -> None:
    assert judged(result("one host", end), result("native", End(0, 0.1))) == told


def test_the_page_tells_what_failed_and_what_was_not_tried() -> None:
    program = Program("web", "deb:web")
    program.case("static")(lambda scene: None)
    program.case("other", "deb:lacking")(lambda scene: None)
    program.case("datagrams", udp=True)(lambda scene: None)
    found = [
        result("native", End(0, 0.1)),
        result("one host", End(0, 0.1), transports=("unix",)),
        result("two hosts", End(-9, 0.1)),
        Result("web", "datagrams", "native", ""),
        Result("web", "datagrams", "one host", ""),
    ]
    text = page([program], {row.key: row for row in found}, {"deb:web": "1.2"})
    assert "| web | 1.2 | static | passes | unix | not tried | **fails** [1] | exit 0 / signal 9; 0.1 s |" in text
    assert "\n1. web, static, two hosts: SIGTERM ended it with -9, natively with 0\n" in text
    assert "web, other: deb:lacking could not be installed." in text
    assert "| web | 1.2 | datagrams | passes | udp | - | not tried |" in text
    assert "2 of 3 runs pass" in text


def test_every_program_has_a_case_and_no_two_have_one_name() -> None:
    programs = all_programs()
    assert all(program.cases for program in programs)
    names = [(program.name, case.name) for program in programs for case in program.cases]
    assert len(set(names)) == len(names) >= 50
