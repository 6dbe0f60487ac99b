"""`appswitch key`: the cluster's keys, listed and changed on all hosts."""

from __future__ import annotations

import sys
from typing import Any

from .ask import switch
from .options import OUTPUT, RUN_DIR, Command, Option, UsageError, Values
from .output import report

_ACTIONS = {"list": (0, 0), "add": (0, 1), "use": (1, 1), "remove": (1, 1)}
_FORCE = Option("--force", help="use or remove though not all hosts are ready: those will need a new token")
#: A key from standard input, which no list of processes shows.
_STDIN = "-"


def main(values: Values) -> int:
    action, *words = values.words or [""]
    least, most = _ACTIONS.get(action, (1, 0))
    if not least <= len(words) <= most:
        raise UsageError("say what to do: list, add [KEY], use NAME or remove NAME")
    if words == [_STDIN]:
        words = [sys.stdin.readline()]
    request = {"op": "key", "action": action, "key": words[0] if words else None, "force": values.flag("--force")}
    with switch(values, own=True) as connection:
        found = connection.request(request)["result"]
    code = report(values, found, ("KEY", "DOES", "HOSTS", "MISSING"), [_row(key) for key in found])
    missed = action != "list" and any(key["missing"] for key in found)
    return code or (3 if missed else 0)


def _row(key: dict[str, Any]) -> tuple[object, ...]:
    missing = [f"{host['host']} ({host['state']})" for host in key["missing"]]
    return (key["key"], "seal, open" if key["primary"] else "open", f"{key['hosts']}/{key['of']}", missing)


COMMAND = Command(
    "key",
    "list | add [KEY] | use NAME | remove NAME [OPTIONS]",
    "List or change the keys of the cluster: on all its hosts, while everything runs.",
    (_FORCE, OUTPUT, RUN_DIR),
    main,
    """
    appswitch key add              a new key, which all hosts can open with from now on
    appswitch key use NAME         it seals; `appswitch token` has it in it
    appswitch key remove OLD       the old one opens nothing any more

Each returns when all hosts that live have told that they go by it, and lists the keys: by their names, which are no
secrets, whether they seal, and on how many hosts they are. MISSING: hosts that have not told that they have a key. One
that was away learns of it when it comes back, as long as a key that it has was not removed; later it needs `appswitch
leave` and a new token. So `use` is refused while a host that lives lacks the key, and `remove` while any host, live or
failed, does not seal with the new one yet; --force does it all the same.

KEY: 16, 24 or 32 random bytes in base64 (`-`: a line of standard input); without it, one is made. Changing the key
does not lock out who has the old one and has listened meanwhile: then begin a new cluster.

Exit code 3: done, but a host is missing. JSON: [{key, primary, hosts (how many have it), of (how many there are),
missing: [{host, state}]}].""",
    words=True,
    mixed=True,
)
