"""`appswitch inspect`: all that is known of one service or program."""

from __future__ import annotations

import shlex

from .ask import ask
from .options import OUTPUT, RUN_DIR, Command, UsageError, Values
from .output import age, age_since, local_time, report_all, user_name


def main(values: Values) -> int:
    if len(values.words) != 1:
        raise UsageError("inspect takes one NAME, virtual IP, program id, pid or instance")
    found = ask(values, {"op": "inspect", "target": values.words[0]})
    for row in found["programs"]:
        row["user"] = user_name(row["uid"])
        row["command"] = shlex.join(row["command"])
    facts = [
        ("name", found["name"]),
        ("virtual ip", found["vip"]),
        ("owner", ", ".join(map(user_name, found["owners"]))),
        ("tags", found["tags"]),
        ("programs", f"{len(found['programs'])} on this host"),
        ("services", len(found["services"])),
        ("connections", len(found["connections"])),
        ("denials", len(found["denials"])),
    ]
    programs = [
        (row["id"], row["pid"], row["user"], row["tags"], row["services"], age_since(row["since"]), row["command"])
        for row in found["programs"]
    ]
    services = [
        (
            row["port"],
            row["protocol"],
            row["host"],
            row["program"],
            row["bound"],
            row["address"],
            row["published"],
            row["transport"],
            row["balance"],
            row["weight"],
            age(row["since_s"]),
        )
        for row in found["services"]
    ]
    connections = [
        (row["program"], row["local"], row["peer"], row["side"], row["transport"]) for row in found["connections"]
    ]
    denials = [
        (local_time(row["time"]), row["client"], row["service"], row["destination"], row["port"], row["rule"])
        for row in found["denials"]
    ]
    return report_all(
        values,
        found,
        [
            (("WHAT", "VALUE"), facts),
            (("ID", "PID", "USER", "TAGS", "PORTS", "AGE", "COMMAND"), programs),
            (
                (
                    *("PORT", "PROTOCOL", "HOST", "PROGRAM", "BOUND", "ADDRESS"),
                    *("PUBLISHED", "TRANSPORT", "BALANCE", "WEIGHT", "AGE"),
                ),
                services,
            ),
            (("PROGRAM", "LOCAL", "PEER", "SIDE", "TRANSPORT"), connections),
            (("TIME", "CLIENT", "SERVICE", "DESTINATION", "PORT", "RULE"), denials),
        ],
    )


COMMAND = Command(
    "inspect",
    "[OPTIONS] NAME",
    "All that is known of one service or program: by name, virtual IP, program id, pid, or instance.",
    (OUTPUT, RUN_DIR),
    main,
    """
Shown are who it is, its programs on this host, its listeners on all hosts, its connections on this host, and the last
20 refusals that concern it.

JSON: {name, vip, owners: [uid], tags: [text], programs: [as `ps`, with options], services: [as `services`],
connections: [as `ps --connections`], denials: [as `denials`]}.""",
    words=True,
    mixed=True,
)
