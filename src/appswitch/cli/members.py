"""`appswitch members`: the hosts of the cluster."""

from __future__ import annotations

from .ask import ask
from .main import show
from .options import OUTPUT, RUN_DIR, Command, Values
from .output import age_since, report

_HEADER = ("NAME", "ADDRESS", "STATE", "SINCE", "SERVICES", "PROGRAMS", "VERSION", "KIND", "TAGS")


def main(values: Values) -> int:
    found = ask(values, {"op": "members"})
    if not found and values.one("--output") != "json":
        return show("This switch is in no cluster.")
    rows = [
        (
            row["name"],
            row["address"],
            row["state"],
            age_since(row["since"]),
            row["services"],
            row["programs"],
            row["version"],
            row["kind"],
            [f"{key}={value}" for key, value in row["tags"].items()],
        )
        for row in found
    ]
    return report(values, found, _HEADER, rows)


COMMAND = Command(
    "members",
    "[OPTIONS]",
    "The hosts of the cluster, as this one knows them: alive, suspect (it did not answer lately), failed or left.",
    (OUTPUT, RUN_DIR),
    main,
    """
JSON: [{name, address, port (of its gossip), state, since (ISO 8601: of the state), services, programs (counts),
own (is it this host?), version (of AppSwitch), kind (switch or serf), tags (Serf's, by name)}]; empty when the switch
is in no cluster. Of kind serf are members of the Serf cluster of `up --serf` that are no switches of this cluster; they
have neither services nor programs (null).""",
)
