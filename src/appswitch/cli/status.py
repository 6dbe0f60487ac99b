"""`appswitch status`: how the switch fares."""

from __future__ import annotations

from typing import Any

from ..table import counters
from .ask import ask
from .options import OUTPUT, RUN_DIR, Command, Values
from .output import age, report


def main(values: Values) -> int:
    found = ask(values, {"op": "status"})
    rows: list[tuple[str, object]] = [
        ("version", found["version"]),
        ("run dir", found["run_dir"]),
        ("up for", age(found["uptime_s"])),
        ("cluster", _cluster(found["cluster"])),
        *([("serf", _serf(found["cluster"]["serf"]))] if found["cluster"] and found["cluster"].get("serf") else []),
        ("programs", found["programs"]),
        ("services", found["services"]),
        ("restarts", found["restarts"]),
    ]
    rows += [(process["role"], f"pid {process['pid']}") for process in found["processes"]]
    rows += [(f"no {row['feature']}", f"{row['without']} ({row['since']})") for row in found.get("missing", [])]
    rows += [(f"fenced: program {row['program']}", _fenced(row)) for row in found["fenced"]]
    counts = found["counters"]
    shown = [name for name in counters.MEANING if counts.get(name) or not name.startswith(("gossip_", "serf_"))]
    rows += [(name, f"{counts.get(name, 0)} {counters.MEANING[name]}") for name in shown]
    return report(values, found, ("WHAT", "VALUE"), rows)


def _fenced(row: dict[str, Any]) -> str:
    return f"{row['name'] or 'without a name'}, pid {row['pid']}, user {row['uid']}: {row['reason']}"


def _serf(found: dict[str, Any]) -> str:
    return f"port {found['port']}, " + ("encrypted" if found["encrypted"] else "plain: anybody who reaches it gets in")


def _cluster(found: dict[str, Any] | None) -> str:
    return f"{found['label']}, as {found['name']} at {found['address'] or 'no address'}" if found else "none"


COMMAND = Command(
    "status",
    "[OPTIONS]",
    "How the switch fares: its processes, how much it serves, and what it has counted since it came up.",
    (OUTPUT, RUN_DIR),
    main,
    """
JSON: {version, run_dir, uptime_s, programs, services, traps, denied, strangers, workers, restarts,
processes: [{role, pid}], counters: {name: number},
cluster: {label, name, address, serf: {port, encrypted} or null} or null,
missing: [{feature (of the kernel), since (when there is such), without (what follows)}],
fenced: [{program (id), name, pid, uid, reason}]}; traps, denied and strangers are the counters of that name. Fenced
is a program that made a worker wait: it is served by one of its own.""",
)
