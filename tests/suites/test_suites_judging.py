"""What is made of the outcomes of tests, without running one."""

import json
import re
from pathlib import Path

import pytest
from suites.exceptions import EXCEPTIONS, TCP, UNIX, Listed
from suites.lanes import NATIVE, Lane
from suites.modules import MODULES, Part
from suites.outcomes import Outcome, differences, kept, read, write
from suites.verdicts import Judged, judge

from suites import report
from support.modes import MODES

PASSED, FAILED, SKIPPED = Outcome("passed"), Outcome("failed"), Outcome("skipped")
LANE = Lane(MODES[0], UNIX)
LISTED = next(listed.test for listed in EXCEPTIONS if listed.transport == UNIX)
TRANSPARENCY = Path(__file__).resolve().parents[2] / "docs" / "transparency.md"


def judged(
    here: Outcome, natively_again: Outcome = PASSED, here_again: Outcome = FAILED, test: str = "m.C.t"
) -> Judged:
    natively = {test: PASSED, "m.C.other": PASSED}
    now = {test: here, "m.C.other": PASSED}
    different = differences(natively, now)
    return judge(LANE, "m", natively, now, different, [{test: natively_again}] * 3, [{test: here_again}] * 3)


def test_a_failure_is_new() -> None:
    found = judged(FAILED)
    assert list(found.new) == ["m.C.t"]
    assert (found.natively, found.passed) == (2, 1)


@pytest.mark.parametrize("outcome", [SKIPPED, Outcome("error"), Outcome("hung")], ids=lambda outcome: outcome.what)
def test_whatever_is_not_passed_is_a_difference(outcome: Outcome) -> None:
    assert list(judged(outcome).new) == ["m.C.t"]


def test_one_that_fails_natively_when_it_is_run_again_is_none_of_ours() -> None:
    found = judged(FAILED, natively_again=FAILED)
    assert (found.fickle, found.new) == (["m.C.t"], {})


def test_one_that_passes_when_it_is_run_again_is_told() -> None:
    found = judged(FAILED, here_again=PASSED)
    assert (found.once, found.new) == (["m.C.t"], {})


def test_a_listed_one_is_no_news() -> None:
    found = judged(FAILED, test=LISTED)
    assert (found.listed, found.new) == ([LISTED], {})


def test_one_that_is_not_run_here_is_a_difference() -> None:
    assert list(differences({"m.C.t": PASSED}, {})) == ["m.C.t"]


def test_one_that_does_not_pass_natively_is_none() -> None:
    assert differences({"m.C.t": FAILED, "m.C.u": SKIPPED}, {"m.C.t": FAILED, "m.C.u": FAILED}) == {}


def test_a_class_that_cannot_be_set_up_here_is_a_difference() -> None:
    assert list(differences({}, {"setUpClass (m.C)": Outcome("error"), "m.C": SKIPPED})) == ["setUpClass (m.C)"]


def test_what_began_and_did_not_end_is_hung(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"began": "test.m.C.t"},
        {"id": "test.m.C.t", "outcome": "passed", "seconds": 0.1, "told": ""},
        {"began": "test.m.C.u"},
    ]
    file = tmp_path / "results"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcomes, over = read(file)
    assert ({name: outcome.what for name, outcome in outcomes.items()}, over) == (
        {"m.C.t": "passed", "m.C.u": "hung"},
        False,
    )
    file.write_text(file.read_text() + '{"over": true}\n')
    assert read(file)[1]
    assert read(tmp_path / "none") == ({}, False)


def test_outcomes_are_kept(tmp_path: Path) -> None:
    outcomes = {"m.C.t": Outcome("failed", 1.5, "told"), "m.C.u": PASSED}
    write(tmp_path / "kept", outcomes)
    assert kept(tmp_path / "kept") == outcomes
    assert kept(tmp_path / "none") is None


def test_a_part_is_told_to_the_runner() -> None:
    part = Part("test_socketserver", only=("test_socketserver.MiscTestCase",), without=("slow",))
    assert part.words == [
        "resource=network",
        "only=test.test_socketserver.MiscTestCase",
        "without=VSOCK",
        "without=slow",
    ]


@pytest.mark.parametrize("listed", EXCEPTIONS, ids=lambda listed: listed.test)
def test_each_exception_has_its_reason_in_the_manual(listed: Listed) -> None:
    assert listed.reason in re.sub(r"\s+", " ", TRANSPARENCY.read_text())
    assert listed.test.partition(".")[0] in MODULES


def test_the_page_has_every_figure() -> None:
    ours = judged(FAILED, test=LISTED)
    tcp = Judged(Lane(MODES[0], TCP), "m", 2, 2)
    natively = {("root", "m"): {LISTED: PASSED, "m.C.other": PASSED}}
    page = report.markdown([ours, tcp], natively, {"date": "DATE", "python": "PYTHON", "kernel": "KERNEL"})
    assert "| module | root, natively | root, unix | root, tcp |" in page
    assert "| m | 2 | 1 | 2 |" in page
    assert "Of 4 such runs of tests 1 do not: **25.00%**" in page
    assert f"  - `{LISTED}`\n" in page
    assert NATIVE not in page.partition("## What does not")[2].partition("## Run again")[0]
    assert "## Run again" not in page
    found = judged(FAILED)
    assert "`m.C.t` (root unix): **not listed**" in report.markdown(
        [found], natively, {"date": "", "python": "", "kernel": ""}
    )
