"""Command line of the benchmark suite: `python -m bench [--quick] [--only CASE]… [--write DIR]`."""

from __future__ import annotations

import argparse
import datetime
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from . import breakdown, footprint, machine, plot, report, startup, stores, table, throughput, transactions, web
from .lab import FULL, HERE, QUICK, Lab
from .procs import Procs, Unavailable
from .stats import Results

CASES: dict[str, Callable[[Lab], None]] = {
    throughput.CASE: throughput.run,
    transactions.CASE: transactions.run,
    breakdown.CASE: breakdown.run,
    web.CASE: web.run,
    stores.CASE: stores.run,
    startup.CASE: startup.run,
    footprint.CASE: footprint.run,
    table.CASE: table.run,
}
ROOT = HERE.parent
SVG, MARKDOWN = "benchmarks.svg", "benchmarks.md"


def main(argv: list[str] | None = None) -> int:
    """Run the cases and write or print the report.

    Exit code 0 when all was measured (targets met or not), 1 when something could not be, 130 when
    interrupted.
    """
    parser = argparse.ArgumentParser(prog="python -m bench", description="Benchmarks of AppSwitch.")
    parser.add_argument("--quick", action="store_true", help="a short, rough run (under 90 s)")
    parser.add_argument("--only", action="append", choices=list(CASES), metavar="CASE", help="one case; repeatable")
    parser.add_argument(
        "--write", type=Path, metavar="DIR", help=f"where {MARKDOWN} and {SVG} go (a whole, full run: docs)"
    )
    args = parser.parse_args(argv)
    partial = bool(args.only)
    target: Path | None = args.write or (None if args.quick or partial else ROOT / "docs")
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    began = time.monotonic()
    try:
        about = report.Run(
            date=datetime.date.today().isoformat(),
            settings=QUICK if args.quick else FULL,
            quick=args.quick,
            partial=partial,
            machine=machine.describe(),
        )
        with tempfile.TemporaryDirectory(prefix="appswitch-bench-") as name, Procs() as procs:
            folder = Path(name)
            folder.chmod(0o755)  # nginx's workers are another user when it is started by root
            lab = Lab(procs, folder, about.settings)
            _measure(lab, args.only or list(CASES))
            text = report.markdown(lab.results, about).replace(f"{folder}/", "").replace(f"{ROOT}/", "")
    except KeyboardInterrupt:
        print("bench: interrupted; everything it started was ended, nothing was written", file=sys.stderr)
        return 130
    if target:
        target.mkdir(parents=True, exist_ok=True)
        (target / MARKDOWN).write_text(text)
        if throughput.CASE in lab.results.cases:
            (target / SVG).write_text(plot.svg(lab.results))
    else:
        print(text)
    lab.say(f"bench: {time.monotonic() - began:.0f} s{f'; see {target / MARKDOWN}' if target else ''}")
    return _complain(lab.results)


def _measure(lab: Lab, cases: list[str]) -> None:
    if lab.compiler is None:
        lab.results.notes["transact"] = (
            "There is no C compiler here, so client and server were Python programs, whose own time is in both columns."
        )
    for case in cases:
        lab.results.cases.add(case)
        try:
            CASES[case](lab)
        except Unavailable as error:
            lab.skip(case, ["all"], "all", str(error))


def _complain(results: Results) -> int:
    gaps = list(results.gaps())
    if gaps:
        print(f"bench: {len(gaps)} figures could not be measured; the report says why", file=sys.stderr)
    return 1 if gaps else 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    # Only once: cleaning up must not be interrupted in its turn.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
