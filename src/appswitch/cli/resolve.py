"""`appswitch resolve`: what a connect() would come to, and why."""

from __future__ import annotations

from .ask import ask
from .options import OUTPUT, RUN_DIR, Command, Option, UsageError, Values
from .output import report_all


def main(values: Values) -> int:
    if len(values.words) != 1:
        raise UsageError("resolve takes one NAME, NAME:PORT or virtual IP")
    tags = values.all("--tag")
    if values.flag("--as") and tags:
        raise UsageError("--as and --tag exclude each other: a program has its own tags")
    found = ask(values, {"op": "resolve", "target": values.words[0], "as": values.one("--as"), "tags": tags})
    ports = found["ports"]
    client = found["client"]
    who = client["name"] or (f"program {client['program']}" if client["program"] else "a program without a name")
    facts = [
        ("name", found["name"]),
        ("virtual ip", found["vip"]),
        ("client", f"{who}, {', '.join(client['tags']) or 'no tags'}"),
        *((f"port {port['port']}", _verdict(port)) for port in ports),
    ]
    if not ports:
        facts.append(("ports", "none: it listens nowhere"))
    instances = [
        (
            port["port"],
            place,
            row["program"],
            row["host"],
            row["transport"],
            row["address"] if row["transport"] == "remote" else None,
            row["weight"],
        )
        for port in ports
        for place, row in enumerate(port["instances"], 1)
    ]
    header = ("PORT", "ORDER", "PROGRAM", "HOST", "TRANSPORT", "ADDRESS", "WEIGHT")
    report_all(values, found, [(("WHAT", "VALUE"), facts), (header, instances)])
    return 0 if any(port["error"] is None for port in ports) else 1


def _verdict(port: dict[str, str]) -> str:
    how = f"{port['decision']}: {port['rule']}" + (f" ({port['error']})" if port["error"] else "")
    return f"{how}, {port['balance']}" if port["balance"] else how


COMMAND = Command(
    "resolve",
    "[OPTIONS] NAME[:PORT]",
    "What a program's connect() to a name would come to: address, policy's decision, instances in their order.",
    (
        Option("--as", "PROGRAM", "ask as this program of this host: its name, virtual IP or id"),
        Option("--tag", "KEY=VALUE", "ask as a program with this tag", many=True),
        OUTPUT,
        RUN_DIR,
    ),
    main,
    """
It asks the functions that decide about a real connect(), and connects to nothing. Without a port all that are served
are shown. Round robin and random begin with another instance each time: the order is that of a first connect. A socket
that cannot become a Unix one (docs/transparency.md) uses TCP all the same.

Exit code: 0 when it would connect (at one port at least), 1 when not, or when nobody has the name.
JSON: {name, vip, client: {program, name, vip, tags: [text]}, ports: [{port, decision: allowed | denied | refused |
outside | switch, rule, error (what connect() fails with, or null), balance, instances: [{instance, program, host,
address, transport: unix | tcp | remote, weight}]}]}.""",
    words=True,
    mixed=True,
)
