"""What became of each test, and what of that is a difference. Pure but for `read`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PASSED = ("passed", "expected")
"""An expected failure is what the test asks for."""


@dataclass(frozen=True)
class Outcome:
    """`what`: passed, expected, skipped, failed, error, or hung (the test ended its process, or had to be ended)."""

    what: str
    seconds: float = 0.0
    told: str = ""

    @property
    def passed(self) -> bool:
        return self.what in PASSED


Outcomes = Mapping[str, Outcome]
"""By the test's id, without the leading `test.`."""

ABSENT = Outcome("absent")


def read(results: Path) -> tuple[dict[str, Outcome], bool]:
    """The outcomes in a file that runner.py writes, and whether all tests were run."""
    outcomes: dict[str, Outcome] = {}
    over = False
    for line in results.read_text().splitlines() if results.exists() else ():
        row = json.loads(line)
        over = over or "over" in row
        if "began" in row:
            outcomes[row["began"].removeprefix("test.")] = Outcome("hung")
        elif "id" in row:
            outcomes[row["id"].removeprefix("test.")] = Outcome(row["outcome"], row["seconds"], row["told"])
    return outcomes, over


def write(path: Path, outcomes: Outcomes) -> None:
    """Keep the outcomes of a module that was run to its end, for `kept`."""
    rows = (
        {"id": name, "outcome": one.what, "seconds": one.seconds, "told": one.told} for name, one in outcomes.items()
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in (*rows, {"over": True})))


def kept(path: Path) -> dict[str, Outcome] | None:
    """What `write` kept there, if it is whole."""
    outcomes, over = read(path)
    return outcomes if over else None


def differences(natively: Outcomes, here: Outcomes) -> dict[str, Outcome]:
    """Tests that pass natively and do not here, with what they do here.

    What is neither passed nor skipped here and is no test natively is one too: a class that cannot even be set up.
    """
    found = {
        name: here.get(name, ABSENT)
        for name, outcome in natively.items()
        if outcome.passed and not here.get(name, ABSENT).passed
    }
    strange = {
        name: outcome
        for name, outcome in here.items()
        if name not in natively and not outcome.passed and outcome.what != "skipped"
    }
    return found | strange
