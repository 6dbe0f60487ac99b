"""One run of a benchmark that has a page of its own: measure, then write the page or print it."""

from __future__ import annotations

import datetime
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from . import machine
from .lab import FULL, QUICK, Lab, Settings
from .procs import Procs
from .stats import Results

Markdown = Callable[[Results, Sequence[tuple[str, str]], str, Settings], str]


def make(name: str, target: Path | None, quick: bool, measure: Callable[[Lab], None], markdown: Markdown) -> int:
    """Write the page `name` into `target`, or print it; exit code 1 when something could not be measured."""
    about = machine.describe()
    try:
        with tempfile.TemporaryDirectory(prefix="appswitch-bench-") as folder, Procs() as procs:
            lab = Lab(procs, Path(folder), QUICK if quick else FULL)
            measure(lab)
    except KeyboardInterrupt:
        print("bench: interrupted; everything it started was ended, nothing was written", file=sys.stderr)
        return 130
    text = markdown(lab.results, about, datetime.date.today().isoformat(), lab.settings)
    if target:
        target.mkdir(parents=True, exist_ok=True)
        (target / name).write_text(text)
    else:
        print(text)
    gaps = list(lab.results.gaps())
    for gap in gaps:
        print(f"bench: not measured: {', '.join(gap)}", file=sys.stderr)
    return 1 if gaps else 0
