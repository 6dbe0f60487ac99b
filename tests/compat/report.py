"""docs/compatibility.md. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .cannot import IMPOSSIBLE
from .lanes import LANES, NATIVE
from .program import Case, Program
from .results import Result, judged
from .scene import End
from .words import CANNOT, HEAD

Results = Mapping[tuple[str, str, str], Result]
Versions = Mapping[str, str]


def page(programs: Sequence[Program], results: Results, versions: Versions) -> str:
    """The whole page."""
    notes: list[str] = []
    cases = [case for program in programs for case in program.cases]
    rows = [row(case, results, versions, notes) for case in cases]
    head = ["program", "version", "case", *LANES, "SIGTERM"]
    facts = list(dict.fromkeys(_facts(results)))
    parts = [
        HEAD,
        _counted(results),
        _table(head, rows),
        _section("What failed", [f"{number}. {text}" for number, text in enumerate(notes, 1)]),
        _section("Further figures", [f"- {fact}" for fact in facts]),
        _section("Not tried", [f"- {lack}" for case in cases if (lack := _lack(case, versions))]),
        CANNOT.replace("ROWS", _table(["what", "call", "error"], _impossible())),
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def row(case: Case, results: Results, versions: Versions, notes: list[str]) -> list[str]:
    """A case in all lanes; reasons of failures go to `notes`."""
    version = versions.get(case.program.packages[0], "")
    cells = [case.program.name, version or "not installed", case.name]
    native = results.get((case.program.name, case.name, NATIVE))
    found = [results.get((case.program.name, case.name, lane)) for lane in LANES]
    lacking = _lack(case, versions)
    for lane, result in zip(LANES, found, strict=True):
        if lane not in case.lanes:
            cells.append("-")
            continue
        if result is None or lacking:
            cells.append("not tried")
            continue
        reason = judged(result, native if lane != NATIVE else None)
        if reason:
            remark = f" ({case.remark})" if case.remark else ""
            notes.append(f"{case.program.name}, {case.name}, {lane}: {reason}{remark}")
            cells.append(f"**fails** [{len(notes)}]")
        else:
            datagrams = ["udp"] if case.udp and lane != NATIVE else []
            cells.append("+".join([*result.transports, *datagrams]) or "passes")
    cells.append(_ends([result for result in found if result is not None]))
    return cells


def _lack(case: Case, versions: Versions) -> str:
    lacking = [package for package in case.all_packages if package not in versions]
    return f"{case.program.name}, {case.name}: {', '.join(lacking)} could not be installed." if lacking else ""


def _ends(found: Sequence[Result]) -> str:
    """Exit codes and seconds of the first server that was ended, in all lanes."""
    ends: list[End] = [result.ends[0] for result in found if result.ends]
    if not ends:
        return ""
    codes = list(dict.fromkeys(_code(end.code) for end in ends))
    times = [f"{end.seconds:.1f}" for end in ends]
    return f"{' / '.join(codes)}; {times[0] if len(set(times)) == 1 else ' / '.join(times)} s"


def _code(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit {code}"


def _facts(results: Results) -> list[str]:
    return [
        f"{result.program}, {result.case}, {result.lane}: {key}: {value}."
        for lane in LANES
        for result in results.values()
        if result.lane == lane
        for key, value in result.facts.items()
    ]


def _impossible() -> list[list[str]]:
    return [
        [row.what, f"`{row.call}`".replace(", ", "`, `"), f"`{row.error}`" + (f", {row.remark}" if row.remark else "")]
        for row in IMPOSSIBLE
    ]


def _counted(results: Results) -> str:
    under = [row for row in results.values() if row.lane != NATIVE]
    good = [row for row in under if not judged(row, results.get((row.program, row.case, NATIVE)))]
    cases = {(row.program, row.case) for row in results.values()}
    return f"{len(cases)} cases were tried. Under AppSwitch {len(good)} of {len(under)} runs pass."


def _section(title: str, lines: Sequence[str]) -> str:
    return "\n".join([f"## {title}", "", *lines]) if lines else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [list(head), *([cell.replace("|", "\\|") for cell in line] for line in rows)]
    lines = ["| " + " | ".join(line) + " |" for line in cells]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])
