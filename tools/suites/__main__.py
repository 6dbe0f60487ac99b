"""CPython's own network tests, natively and under AppSwitch, compared test by test; writes docs/suites.md.

Exit status: 1 when a test that passes natively fails under AppSwitch and is not listed in exceptions.py.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from support.command import command_for
from support.modes import possible

from . import lanes, modules, report
from .compare import beside
from .exceptions import TRANSPORTS
from .lanes import NATIVE, Place
from .modules import Part
from .outcomes import Outcome, Outcomes, kept, write
from .verdicts import Judged

MODES = ("root", "user-own")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "suites.md"


def main() -> int:
    options = _options()
    if not lanes.are_there():
        print(f"{modules.PYTHON} has no tests: apt-get install {modules.PACKAGE}", file=sys.stderr)
        return 2
    public = Path(tempfile.mkdtemp(prefix="as-public-", dir="/tmp"))
    public.chmod(0o755)
    places: dict[str, Place] = {}
    try:
        for mode in possible():
            if str(mode) in options.mode:
                places[str(mode)] = Place(mode, lambda person: command_for(person, public))
        judged, natively = _compare(places, options)
    finally:
        for place in places.values():
            place.close()
        shutil.rmtree(public)
    return _tell(judged, natively, options)


def _compare(
    places: dict[str, Place], options: argparse.Namespace
) -> tuple[list[Judged], dict[tuple[str, str], Outcomes]]:
    results: dict[tuple[str, str, str], dict[str, Outcome]] = {}

    def play(mode: str, transport: str, module: str) -> None:
        file = options.results and options.results / f"{module}.{mode}.{transport}"
        outcomes = kept(file) if file else None
        if outcomes is None:
            outcomes = places[mode].play(Part(module), transport)
            if file:
                write(file, outcomes)
        results[mode, transport, module] = outcomes
        passed = sum(outcome.passed for outcome in outcomes.values())
        print(f"{module}, {mode}, {transport}: {passed} of {len(outcomes)} passed", flush=True)

    with ThreadPoolExecutor(options.jobs) as pool:
        jobs = [
            pool.submit(play, mode, transport, module)
            for module in options.modules
            for mode in places
            for transport in (NATIVE, *options.transport)
        ]
        try:
            for job in jobs:
                job.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for place in places.values():
                place.stop()
            raise
    judged = [
        beside(place, module, transport, results[mode, NATIVE, module], results[mode, transport, module])
        for module in options.modules
        for mode, place in places.items()
        for transport in options.transport
    ]
    return judged, {(mode, module): results[mode, NATIVE, module] for mode in places for module in options.modules}


def _tell(judged: Sequence[Judged], natively: dict[tuple[str, str], Outcomes], options: argparse.Namespace) -> int:
    version = subprocess.run([modules.PYTHON, "-VV"], check=True, capture_output=True, text=True).stdout
    facts = {
        "date": datetime.date.today().isoformat(),
        "python": " ".join(version.split()[:2]) + " (Debian)",
        "kernel": f"Linux {platform.release()}, {os.cpu_count()} processors",
    }
    page = report.markdown(judged, natively, facts)
    if options.output:
        options.output.write_text(page)
        print(f"Written: {options.output}")
    new = [(one.lane, name, outcome) for one in judged for name, outcome in one.new.items()]
    for lane, name, outcome in new:
        print(f"\n== {name} ({lane}): {outcome.what}, and passes natively\n{outcome.told}")
    for one in judged:
        for name in one.once:
            print(f"{name} ({one.lane}): failed, then passed when it was run again")
    failing = sum(len(one.listed) + len(one.new) for one in judged)
    total = sum(one.natively for one in judged)
    print(f"\n{total} runs of tests pass natively; {failing} of them fail under AppSwitch, {len(new)} unlisted.")
    return 1 if new else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="suites", description=__doc__)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="which test modules (default: all)")
    parser.add_argument("--mode", action="append", choices=MODES, help="as whom (default: both, if run by root)")
    parser.add_argument("--transport", action="append", choices=TRANSPORTS, help="over what (default: both)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="modules at once (default: %(default)s)")
    parser.add_argument("--output", type=Path, help=f"the page to write (default: {PAGE.name}, if all is run)")
    parser.add_argument("--results", type=Path, help="a directory to keep results in; what it has is not run again")
    options = parser.parse_args()
    unknown = set(options.modules) - set(modules.MODULES)
    if unknown:
        parser.error(f"not one of the modules: {', '.join(sorted(unknown))}")
    if options.output is None and not (options.modules or options.mode or options.transport):
        options.output = PAGE
    if options.results:
        options.results.mkdir(parents=True, exist_ok=True)
    options.modules = options.modules or list(modules.MODULES)
    options.mode = options.mode or list(MODES)
    options.transport = options.transport or list(TRANSPORTS)
    return options


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
