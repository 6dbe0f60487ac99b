"""Clusters of 10 to 5,000 simulated hosts: `python -m bench.scale [--quick] [--resume] [--write DIR]`.

Writes docs/scale.md and docs/scale.svg. Each cell is a scene (scale_scenes.py) with its own seed, in a process of its
own.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from . import scale_plot, scale_report
from .lab import HERE
from .scale_scenes import Figures, play

SIZES = (10, 100, 1000, 5000)
LOSSES = (0.0, 0.1, 0.3)
_KEPT = HERE.parent / "build" / "scale"
"""Finished cells, for --resume."""

Cell = tuple[str, dict[str, Any]]
_COUNTS = {  # by size; quick runs take a fraction
    "rows": {10: 100, 100: 40, 1000: 8, 5000: 2},
    "detection": {10: (1, 300), 100: (1, 80), 1000: (20, 8), 5000: (100, 1)},
    "everybody": {10: 20, 100: 8, 1000: 2, 5000: 1},
    "idle": {10: 300.0, 100: 60.0, 1000: 9.0, 5000: 2.0},
    "whole": {10: 300.0, 100: 60.0, 1000: 4.0, 5000: 0.5},
    "load": {10: 30.0, 100: 9.0, 1000: 3.0, 5000: 0.5},
}


def cells(quick: bool) -> Iterator[Cell]:
    """All that is simulated, the longest first."""
    sizes = tuple(size for size in SIZES if size < 1000 or not quick)
    for size in reversed(sizes):
        yield "load", {"size": size, "services": 10_000, "changes": 10.0, "seconds": _COUNTS["load"][size]}
        for loss in LOSSES:
            yield "rows", {"size": size, "loss": loss, "count": _COUNTS["rows"][size]}
            deaths, worlds = _COUNTS["detection"][size]
            if quick:
                worlds //= 10
            yield "detection", {"size": size, "loss": loss, "deaths": deaths, "worlds": worlds}
            if size < 1000 or not loss:
                yield "everybody", {"size": size, "loss": loss, "deaths": _COUNTS["everybody"][size]}
        yield "idle", {"size": size, "seconds": _COUNTS["idle"][size]}
        yield "idle", {"size": size, "seconds": _COUNTS["whole"][size], "whole": True}
        yield "joining", {"size": size}
    for loss in LOSSES:
        yield "lossy", {"size": 100, "loss": loss, "seconds": 60.0 if quick else 120.0}
    for lag in (16.0, 30.0):
        for lifeguard in (True, False):
            arguments = {"size": 50, "lag": lag, "lifeguard": lifeguard, "seconds": 40.0 if quick else 80.0}
            yield "slow", arguments
            if lag == 16.0:
                yield "slow", arguments | {"paused": True}
    yield "lossy", {"size": 100, "loss": 0.3, "seconds": 30.0, "repeated": False}


def key(cell: Cell) -> str:
    return "-".join([cell[0], *(f"{name}={value}" for name, value in cell[1].items())])


def simulate(quick: bool, resume: bool, workers: int) -> None:
    """Every cell, or with `resume` those that are not kept."""
    _KEPT.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, max_tasks_per_child=1) as pool:
        running: dict[Future[Figures], Cell] = {
            pool.submit(play, cell[0], cell[1] | {"seed": number + 1}): cell
            for number, cell in enumerate(cells(quick))
            if not (resume and (_KEPT / f"{key(cell)}.json").exists())
        }
        for done in as_completed(running):
            cell = running[done]
            figures = done.result()
            (_KEPT / f"{key(cell)}.json").write_text(json.dumps(figures))
            print(f"{key(cell)}: {figures['seconds']:.0f} s", file=sys.stderr, flush=True)


def kept(quick: bool) -> tuple[list[tuple[Cell, Figures]], list[Cell]]:
    """The cells that were simulated, and those that were not."""
    found: list[tuple[Cell, Figures]] = []
    missing: list[Cell] = []
    for cell in cells(quick):
        path = _KEPT / f"{key(cell)}.json"
        if path.exists():
            found.append((cell, json.loads(path.read_text())))
        else:
            missing.append(cell)
    return found, missing


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.scale", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="up to 100 hosts, fewer repetitions")
    parser.add_argument("--resume", action="store_true", help="take what an interrupted run has finished")
    parser.add_argument("--kept", action="store_true", help="write what an interrupted run has finished")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--write", type=Path, default=HERE.parent / "docs", metavar="DIR")
    wish = parser.parse_args()
    if not wish.kept:
        simulate(wish.quick, wish.resume, wish.workers)
    found, missing = kept(wish.quick)
    results = scale_report.Results(found, datetime.date.today().isoformat(), missing)
    (wish.write / "scale.svg").write_text(scale_plot.svg(results))
    (wish.write / "scale.md").write_text(scale_report.markdown(results))


if __name__ == "__main__":
    main()
