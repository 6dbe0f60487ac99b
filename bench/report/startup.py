"""The section on the start of a program."""

from __future__ import annotations

from .. import startup
from ..lab import Settings
from ..stats import Results, Target
from .tables import figure, table

STARTUP = Target("<=", 100, "ms")


def section(results: Results, settings: Settings) -> str:
    native = results.median(startup.CASE, startup.CELL, startup.NATIVE)
    own = results.median(startup.CASE, startup.CELL, startup.APPSWITCH)
    more = own - native if own is not None and native is not None else None
    rows = [
        ["`true`", figure(native, 1, "ms"), "", ""],
        ["`appswitch run -- true`", figure(own, 1, "ms"), "", ""],
        ["difference", figure(more, 1, "ms"), str(STARTUP), STARTUP.verdict(more)],
    ]
    return f"""
## Start of a program

{table(["from start to exit", "median", "target", ""], rows)}

{settings.starts} starts of each in turn, a switch being up.
"""
