"""Figures of a run, their medians, and verdicts against targets. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Figure:
    """The samples of one cell of a table; none of them, and a reason, when it could not be measured."""

    samples: tuple[float, ...] = ()
    reason: str = ""

    @property
    def median(self) -> float | None:
        """The median of the samples, or None when there is none."""
        return statistics.median(self.samples) if self.samples else None


MISSING = Figure(reason="not part of this run")


@dataclass
class Results:
    """Every figure of one run, by (case, cell, variant): say ("throughput", "8 KiB", "bridge")."""

    figures: dict[tuple[str, str, str], Figure] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    cases: set[str] = field(default_factory=set)

    def get(self, case: str, cell: str, variant: str) -> Figure:
        """The figure of a cell; an empty one when the run did not come to it."""
        return self.figures.get((case, cell, variant), MISSING)

    def median(self, case: str, cell: str, variant: str) -> float | None:
        """The median of a cell, or None when it was not measured."""
        return self.get(case, cell, variant).median

    def put(self, case: str, cell: str, variant: str, samples: Sequence[float] = (), reason: str = "") -> None:
        """Record a cell: its samples, or the reason why there is none."""
        self.figures[case, cell, variant] = Figure(tuple(samples), "" if samples else reason)

    def gaps(self) -> Iterator[tuple[str, str, str, str]]:
        """(case, cell, variant, reason) of every cell that was tried and not measured."""
        for (case, cell, variant), figure in self.figures.items():
            if not figure.samples:
                yield case, cell, variant, figure.reason


@dataclass(frozen=True)
class Target:
    """What a figure must reach: at least (`>=`) or at most (`<=`) the limit."""

    relation: Literal["<=", ">="]
    limit: float
    unit: str = ""

    def __str__(self) -> str:
        sign = {"<=": "≤", ">=": "≥"}[self.relation]
        return f"{sign} {self.limit:g}{' ' + self.unit if self.unit else ''}"

    def verdict(self, value: float | None) -> str:
        """`met`, `**not met**`, or `not measured` for None."""
        if value is None:
            return NOT_MEASURED
        reached = value >= self.limit if self.relation == ">=" else value <= self.limit
        return "met" if reached else "**not met**"


def quantile(samples: Sequence[float], share: float) -> float:
    """The smallest sample that at least `share` (0 to 1) of the samples do not exceed (nearest rank)."""
    if not samples:
        raise ValueError("no samples")
    ranked = sorted(samples)
    return ranked[max(0, math.ceil(share * len(ranked)) - 1)]


def ratio(above: float | None, below: float | None) -> float | None:
    """above / below, or None when either is missing or the divisor is 0."""
    return above / below if above is not None and below else None
