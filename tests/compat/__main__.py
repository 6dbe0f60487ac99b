"""`python -m compat [WORD…]`: cases whose program or name has one of the words, or all; then writes the report."""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import report
from .lanes import LANES
from .packages import install, versions
from .play import play
from .program import Case, all_programs
from .results import Result, judged, load, save
from .scene import Effort

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "compat"


def main() -> int:
    """Exit status: 1 when a case that passes natively failed under AppSwitch, and nothing is known of why."""
    parser = argparse.ArgumentParser(prog="python -m compat", description=__doc__)
    parser.add_argument("words", nargs="*", help="only cases whose program or name contains one of these")
    parser.add_argument("--lane", action="append", choices=list(LANES), help="only this lane (repeatable)")
    parser.add_argument("--jobs", type=int, default=2, help="how many cases at the same time (2)")
    parser.add_argument("--quick", action="store_true", help="10 connections one after the other, 5 at once")
    parser.add_argument("--report", action="store_true", help="only write the report of what was run before")
    options = parser.parse_args()
    if os.geteuid() != 0 and not options.report:
        sys.exit("make compat is for root: it makes network namespaces, and some servers are started by root only")
    programs = all_programs()
    known = {(program.name, case.name) for program in programs for case in program.cases}
    saved = {key: result for key, result in load(BUILD / "results.json").items() if key[:2] in known}
    chosen = [case for program in programs for case in program.cases if _matches(case, options.words)]
    lacking = install([package for case in chosen for package in case.all_packages], BUILD, not options.report)
    if not options.report:
        effort = Effort(10, 5) if options.quick else Effort()
        tried = [case for case in chosen if not set(case.all_packages) & lacking]
        with ThreadPoolExecutor(options.jobs) as pool:
            plays = [(case, lane) for case in tried for lane in options.lane or LANES if lane in case.lanes]
            for result in pool.map(lambda pair: _play(pair[0], pair[1], effort), plays):
                saved[result.key] = result
                native = saved.get((result.program, result.case, "native"))
                _say(result, native)
                save(BUILD / "results.json", saved)
    everything = [package for program in programs for case in program.cases for package in case.all_packages]
    found = versions(everything, BUILD)
    (ROOT / "docs" / "compatibility.md").write_text(report.page(programs, saved, found))
    explained = {(program.name, case.name) for program in programs for case in program.cases if case.remark}
    wrong = [
        row
        for row in saved.values()
        if row.lane != "native" and row.key[:2] not in explained and judged(row, saved.get((*row.key[:2], "native")))
    ]
    return 1 if wrong else 0


def _matches(case: Case, words: list[str]) -> bool:
    text = f"{case.program.name} {case.name}".lower()
    return not words or any(word.lower() in text for word in words)


def _play(case: Case, lane: str, effort: Effort) -> Result:
    name = "-".join("".join(c if c.isalnum() else " " for c in f"{case.program.name} {case.name} {lane}").split())
    return play(case, lane, BUILD, effort, BUILD / "logs" / f"{name}.log")


def _say(result: Result, native: Result | None) -> None:
    reason = judged(result, native)
    ends = ", ".join(f"{end.code} in {end.seconds:g} s" for end in result.ends)
    transports = "+".join(result.transports)
    words = [result.program, result.case, result.lane, f"FAILED: {reason}" if reason else "passed", transports, ends]
    print(" | ".join([*words, f"{result.seconds:g} s"]), flush=True)


if __name__ == "__main__":
    sys.exit(main())
