"""Runs in the interpreter under test: one module of CPython's own tests, and a line of JSON for what each test does.

    python3.11 runner.py MODULE RESULTS SECONDS [resource=NAME | only=BEGINNING | without=PIECE]...

RESULTS is appended to: {"began": ID} before a test, then {"id": ID, "outcome": WORD, "seconds": S, "told": TEXT}, and
{"over": true} at the end. Tests that RESULTS knows already are left out, so that a run can go on after one that hung: a
test that takes longer than SECONDS ends the process, with every thread's stack on standard error. `resource` is what
CPython's own runner calls so (-u); `only` and `without` choose tests by the beginning and by any piece of their ids.
Standard library alone; nothing of it is AppSwitch's.
"""

from __future__ import annotations

import collections
import faulthandler
import importlib
import json
import os
import sys
import tempfile
import time
import unittest
from collections.abc import Iterator
from typing import Any

MOST = 6000
"""Characters kept of what a test tells."""

BAD = ("failed", "error")
_NAME = "suites_name"


class Recorder(unittest.TestResult):
    """Writes each outcome as soon as it is known."""

    def __init__(self, path: str, limit: float) -> None:
        super().__init__()
        self._file = open(path, "a", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115  (until the end)
        self._limit = limit
        self._began = 0.0
        self._outcome = "passed"
        self._told = ""

    def note(self, **row: object) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        self.note(began=name_of(test))
        self._outcome, self._told = "passed", ""
        self._began = time.monotonic()
        faulthandler.dump_traceback_later(self._limit, exit=True)

    def stopTest(self, test: unittest.TestCase) -> None:
        faulthandler.cancel_dump_traceback_later()
        super().stopTest(test)
        seconds = round(time.monotonic() - self._began, 3)
        self.note(id=name_of(test), outcome=self._outcome, seconds=seconds, told=self._told[:MOST])

    def addError(self, test: unittest.TestCase, err: Any) -> None:
        super().addError(test, err)
        self._failed(test, "error", err)

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:
        super().addFailure(test, err)
        self._failed(test, "failed", err)

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any) -> None:
        super().addSubTest(test, subtest, err)
        if err is not None:
            self._failed(test, "failed", err)

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        super().addSkip(test, reason)
        if name_of(test):
            self._outcome, self._told = "skipped", reason
        elif not hasattr(test, "test_case"):  # a part of a test has one; this is a whole class or module
            self.note(id=test.id(), outcome="skipped", seconds=0, told=reason)

    def addExpectedFailure(self, test: unittest.TestCase, err: Any) -> None:
        super().addExpectedFailure(test, err)
        self._outcome = "expected"

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:
        super().addUnexpectedSuccess(test)
        self._outcome, self._told = "failed", "unexpected success"

    def _failed(self, test: unittest.TestCase, outcome: str, err: Any) -> None:
        told = "".join(unittest.TestResult._exc_info_to_string(self, err, test))  # type: ignore[attr-defined]
        if name_of(test):
            self._told = self._told + told if self._outcome in BAD else told
            self._outcome = outcome
        else:  # setUpClass, setUpModule and their like
            self.note(id=test.id(), outcome=outcome, seconds=0, told=told[:MOST])


def tests_of(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from tests_of(item)
        else:
            yield item


def name_of(test: unittest.TestCase) -> str:
    """What `name` gave it; empty for a part of a test, and for a class or module that unittest reports as a test."""
    return str(getattr(test, _NAME, ""))


def name(tests: list[unittest.TestCase]) -> None:
    """Give each its id, made to occur once."""
    seen: collections.Counter[str] = collections.Counter()
    for test in tests:
        seen[test.id()] += 1
        setattr(test, _NAME, test.id() + (f"#{seen[test.id()]}" if seen[test.id()] > 1 else ""))


def known(results: str) -> set[str]:
    if not os.path.exists(results):
        return set()
    with open(results, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return {str(row.get("began", row.get("id"))) for row in rows}


def main() -> None:
    module, results, limit, *words = sys.argv[1:]
    chosen: dict[str, list[str]] = {"resource": [], "only": [], "without": []}
    for word in words:
        kind, _, value = word.partition("=")
        chosen[kind].append(value)
    sys.path.pop(0)  # the directory of this file
    faulthandler.enable()
    support: Any = importlib.import_module("test.support")
    support.use_resources = chosen["resource"]
    support.verbose = 0
    tests = list(tests_of(unittest.defaultTestLoader.loadTestsFromName("test." + module)))
    name(tests)
    done = known(results)
    suite = unittest.TestSuite(
        test
        for test in tests
        if name_of(test) not in done
        and name_of(test).startswith(tuple(chosen["only"]) or "")
        and not any(piece in name_of(test) for piece in chosen["without"])
    )
    del tests  # the suite lets go of each that was run: many collect garbage, which takes long where nothing ever goes
    recorder = Recorder(results, float(limit))
    here = os.getcwd()
    with tempfile.TemporaryDirectory(dir=here) as directory:  # for the files that tests make
        os.chdir(directory)
        suite.run(recorder)
        os.chdir(here)
    recorder.note(over=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # threads that a failed test left behind must not keep the process


if __name__ == "__main__":
    main()
