"""What a question to the switch is answered from, beside the table."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Any

from ..model.identity import DEFAULT_RANGE
from .paths import RunDir
from .registry import Entry

_RANGE = ipaddress.IPv4Network(DEFAULT_RANGE)


@dataclass(frozen=True, slots=True)
class View:
    """The supervisor's side, as it was when the question came."""

    run_dir: RunDir
    started: float
    processes: list[tuple[str, int]]
    restarts: int
    workers: int
    entries: list[Entry]
    cluster: dict[str, Any] | None = None
    network: ipaddress.IPv4Network = _RANGE
    missing: tuple[tuple[str, str], ...] = ()
