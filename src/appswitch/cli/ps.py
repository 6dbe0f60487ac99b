"""`appswitch ps`: the programs under the switch, or their connections."""

from __future__ import annotations

import shlex

from .ask import ask
from .options import OUTPUT, RUN_DIR, Command, Option, Values
from .output import age_since, report, user_name


def main(values: Values) -> int:
    if values.flag("--connections"):
        return _connections(values)
    found = ask(values, {"op": "ps"})
    for row in found:
        row["user"] = user_name(row["uid"])
        row["command"] = shlex.join(row["command"])
    keys = ("id", "pid", "uid", "user", "name", "vip", "tags", "command", "since", "services", "fenced")
    document = [{key: row[key] for key in keys} for row in found]
    rows = [
        (
            row["id"],
            row["pid"],
            row["user"],
            row["name"],
            row["vip"],
            row["tags"],
            row["services"],
            age_since(row["since"]),
            row["command"],
        )
        for row in document
    ]
    return report(values, document, ("ID", "PID", "USER", "NAME", "VIP", "TAGS", "PORTS", "AGE", "COMMAND"), rows)


def _connections(values: Values) -> int:
    found = ask(values, {"op": "ps", "connections": True})
    keys = ("program", "name", "local", "peer", "side", "transport")
    rows = [tuple(row[key] for key in keys) for row in found]
    return report(values, found, [key.upper() for key in keys], rows)


COMMAND = Command(
    "ps",
    "[OPTIONS]",
    "The programs that run under the switch.",
    (
        Option("--connections", "", "their connections instead, both ends of each that is on this host"),
        OUTPUT,
        RUN_DIR,
    ),
    main,
    """
JSON: [{id, pid, uid, user, name, vip, tags: [text], command, since (ISO 8601), services: [port], fenced}].
Fenced is why a program is served by a worker of its own, or null.
With --connections: [{program (id), name, local, peer, side: client | server, transport: unix | tcp | egress}];
local and peer are virtual addresses, "ip:port".""",
)
