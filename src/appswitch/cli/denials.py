"""`appswitch denials`: what policy refused."""

from __future__ import annotations

from .ask import ask
from .options import OUTPUT, RUN_DIR, Command, Values
from .output import local_time, report


def main(values: Values) -> int:
    found = ask(values, {"op": "denials"})
    rows = [
        (
            local_time(row["time"]),
            row["client"],
            row["program"],
            row["service"],
            row["destination"],
            row["port"],
            row["rule"],
        )
        for row in found
    ]
    return report(values, found, ("TIME", "CLIENT", "PROGRAM", "SERVICE", "DESTINATION", "PORT", "RULE"), rows)


COMMAND = Command(
    "denials",
    "[OPTIONS]",
    "Connections that policy refused, the oldest first; the last thousand are kept.",
    (OUTPUT, RUN_DIR),
    main,
    """
JSON: [{time (ISO 8601), client, service, destination, port, rule, program (id of the client), tags: [text]}].""",
)
