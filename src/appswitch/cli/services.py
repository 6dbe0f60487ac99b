"""`appswitch services`: what can be connected to."""

from __future__ import annotations

from .ask import ask, ask_for_json
from .main import show
from .options import OUTPUT, RUN_DIR, Command, Values
from .output import age, report


def main(values: Values) -> int:
    question = {"op": "services"}
    if values.one("--output") == "json":  # with thousands of rows it counts that nobody decodes them
        return show(ask_for_json(values, question))
    found = ask(values, question)
    rows = [
        (
            row["name"],
            row["vip"],
            row["port"],
            row["protocol"],
            row["host"],
            row["program"],
            row["bound"],
            row["address"],
            row["published"],
            row["tags"],
            row["balance"],
            age(row["since_s"]),
        )
        for row in found
    ]
    header = (
        *("NAME", "VIP", "PORT", "PROTOCOL", "HOST", "PROGRAM"),
        *("BOUND", "ADDRESS", "PUBLISHED", "TAGS", "BALANCE", "AGE"),
    )
    return report(values, found, header, rows)


COMMAND = Command(
    "services",
    "[OPTIONS]",
    "The services that programs offer, on all hosts of the cluster: one line for each listener or UDP port.",
    (OUTPUT, RUN_DIR),
    main,
    """
JSON: [{name, vip, port, protocol (tcp or udp), instance, program (its id there), bound, address, listener, transport,
balance, tags: [text], since_s, host (null outside a cluster), weight, uid (of its owner), published: ["ip:port"]}].
bound is the address that the program gave to bind(); address the real "ip:port" behind the service, null when it has
none; listener names the Unix socket below the run directory, null for those of other hosts and of UDP; published are
the ports of this host that lead to it (`run --expose`).""",
)
