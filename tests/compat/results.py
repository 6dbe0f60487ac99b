"""What came of the cases: kept as JSON, so that a part of them can be run again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .scene import End


@dataclass(frozen=True)
class Result:
    """One case in one lane; `reason` is empty when it passed."""

    program: str
    case: str
    lane: str
    reason: str
    transports: list[str] = field(default_factory=list)
    ends: list[End] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def key(self) -> tuple[str, str, str]:
        return self.program, self.case, self.lane


def load(path: Path) -> dict[tuple[str, str, str], Result]:
    """All that were saved, by program, case and lane."""
    if not path.exists():
        return {}
    rows = [Result(**{**row, "ends": [End(**end) for end in row["ends"]]}) for row in json.loads(path.read_text())]
    return {row.key: row for row in rows}


def save(path: Path, results: dict[tuple[str, str, str], Result]) -> None:
    """Write them all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(row) for _, row in sorted(results.items())], indent=1) + "\n")


SLOWER = 2.0
"""Seconds that a server may take longer to end than natively; the machine may be busy."""


def judged(result: Result, native: Result | None) -> str:
    """Why it is no success, compared with the native run; empty when it is."""
    if result.reason or native is None:
        return result.reason
    for own, other in zip(result.ends, native.ends, strict=False):
        if own.code != other.code:
            return f"SIGTERM ended it with {own.code}, natively with {other.code}"
        if own.seconds > 2 * other.seconds + SLOWER:
            return f"it ended {own.seconds:g} s after SIGTERM, natively after {other.seconds:g} s"
    return ""
