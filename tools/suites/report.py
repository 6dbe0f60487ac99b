"""docs/suites.md, from what was judged and nothing else. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from .exceptions import EXCEPTIONS
from .lanes import NATIVE, Lane
from .outcomes import Outcomes
from .verdicts import Judged

_HEAD = (
    """
Written by `make suites`, {date}: the tests of {python}, on {kernel}. Every test runs natively, on the host's loopback,
and under `appswitch run --ip … --transport unix` and `--transport tcp`, where its clients and servers are AppSwitch's;
as root under root's switch, and as an ordinary user under a switch of that user's own. A test that passes natively has
to pass under AppSwitch. Of {total} such runs of tests {failed} do not: **{share:.2f}%**, all of them named below.
""",
    """
`make suites` exits with 1 when a test fails that is not listed. Left out are the tests of VSOCK, and those that need
the Internet. Skipped tests (other systems, missing modules, too little memory) are not counted. A test that fails for
no listed reason is run three more times on both sides: one that fails natively too, or not again, is named below.
""",
)


def markdown(judged: Sequence[Judged], natively: Mapping[tuple[str, str], Outcomes], facts: Mapping[str, str]) -> str:
    """The page. `natively`: by mode and module; `facts`: date, python, kernel."""
    total = sum(one.natively for one in judged)
    failed = sum(len(one.listed) + len(one.new) for one in judged)
    figures = {"total": f"{total:,}", "failed": failed, "share": 100 * failed / total if total else 0, **facts}
    parts = ["# CPython's own network tests\n"]
    parts += [textwrap.fill(" ".join(text.format(**figures).split()), 120) + "\n" for text in _HEAD]
    parts += ["## What passes\n", _table(judged, natively), _listed(judged), _again(judged)]
    return "\n".join(part for part in parts if part)


def _table(judged: Sequence[Judged], natively: Mapping[tuple[str, str], Outcomes]) -> str:
    lanes = list(dict.fromkeys(one.lane for one in judged))
    modes = list(dict.fromkeys(str(lane.mode) for lane in lanes))
    columns = [(mode, transport) for mode in modes for transport in (NATIVE, *_transports(lanes, mode))]
    cells = {(str(one.lane.mode), one.lane.transport, one.module): one.natively - _failing(one) for one in judged}
    for (mode, module), outcomes in natively.items():
        cells[mode, NATIVE, module] = sum(outcome.passed for outcome in outcomes.values())
    modules = list(dict.fromkeys(one.module for one in judged))
    lines = ["| module | " + " | ".join(f"{_PEOPLE[mode]}, {transport}" for mode, transport in columns) + " |"]
    lines += ["|---|" + "---:|" * len(columns)]
    for module in modules:
        lines.append(f"| {module} | " + " | ".join(str(cells.get((*column, module), "-")) for column in columns) + " |")
    sums = [sum(count for key, count in cells.items() if key[:2] == column) for column in columns]
    lines.append("| **all** | " + " | ".join(f"**{count}**" for count in sums) + " |")
    return "\n".join(lines) + "\n"


_PEOPLE = {"root": "root", "user-own": "user"}


def _transports(lanes: Sequence[Lane], mode: str) -> list[str]:
    return [lane.transport for lane in lanes if str(lane.mode) == mode]


def _failing(one: Judged) -> int:
    return len(one.listed) + len(one.new)


def _listed(judged: Sequence[Judged]) -> str:
    found = {(name, one.lane.transport) for one in judged for name in one.listed}
    lines = ["## What does not, and why\n", "The reasons are those of [transparency.md](transparency.md).\n"]
    for reason in dict.fromkeys(listed.reason for listed in EXCEPTIONS):
        names = [
            f"  - `{listed.test}`" + ("" if (listed.test, listed.transport) in found else " (a race: passed this time)")
            for listed in EXCEPTIONS
            if listed.reason == reason
        ]
        over = ", ".join(dict.fromkeys(listed.transport for listed in EXCEPTIONS if listed.reason == reason))
        lines += [f"- Over {over}: {reason}", *names]
    return "\n".join(lines) + "\n"


def _again(judged: Sequence[Judged]) -> str:
    lines = [f"- `{name}` ({one.lane}): fails natively too, now and then" for one in judged for name in one.fickle]
    lines += [f"- `{name}` ({one.lane}): failed, then passed three times" for one in judged for name in one.once]
    lines += [f"- `{name}` ({one.lane}): **not listed**" for one in judged for name in one.new]
    return "\n".join(["## Run again\n", *lines]) + "\n" if lines else ""
