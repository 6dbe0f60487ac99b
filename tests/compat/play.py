"""Plays one case in one lane."""

from __future__ import annotations

import time
import traceback
from pathlib import Path

from support.command import installed_command

from .lanes import LANES
from .program import Case
from .results import Result
from .scene import FULL, Effort, Scene


def play(case: Case, lane: str, tools: Path, effort: Effort = FULL, log: Path | None = None) -> Result:
    """What came of it; a failure in full goes to `log`."""
    before = time.monotonic()
    scene: Scene | None = None
    reason = ""
    transports: list[str] = []
    try:
        with LANES[lane](lambda person: installed_command()) as place:
            scene = Scene(place, tools, effort)
            try:
                case.act(scene)
            except Exception:
                told = "\n".join(switch.describe() for switch in {place.servers, place.clients})
                raise AssertionError(f"{traceback.format_exc(limit=-2)}\n=== {told}") from None
            finally:
                transports = scene.transports() if scene.virtual else []
    except Exception as error:
        reason = _brief(str(error) or repr(error))
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text(traceback.format_exc() + "\n")
    ends = scene.ends if scene else []
    facts = scene.facts if scene else {}
    return Result(
        case.program.name, case.name, lane, reason, transports, ends, facts, round(time.monotonic() - before, 1)
    )


def _brief(text: str) -> str:
    """What went wrong, in a line: of an exception's text the first line with its message."""
    lines = [line.strip() for line in text.split("\n=== ")[0].splitlines() if line.strip()]
    told = [line for line in lines if "Error: " in line]
    line = (told or lines or ["?"])[-1]
    return line.removeprefix("AssertionError: ")[:300]
