"""`appswitch join`: make a running switch a member of a cluster."""

from __future__ import annotations

import os
from dataclasses import asdict, replace

from .ask import switch
from .config import CONFIG, NODE_OPTIONS, collect
from .main import tell
from .options import RUN_DIR, Command, UsageError, Values


def main(values: Values) -> int:
    if len(values.words) != 1:
        raise UsageError("give one token, as printed by `appswitch token`")
    wish = replace(collect(values, os.environ, os.geteuid()).wish(), token=values.words[0])
    with switch(values, own=True) as connection:
        found = connection.request({"op": "join", "cluster": asdict(wish)})["result"]
    return tell(f"This host is {found['name']} in the cluster {found['label']}.")


COMMAND = Command(
    "join",
    "[OPTIONS] TOKEN",
    "Make the running switch a member of the cluster of a token; its programs go on. Returns when it has joined.",
    (*NODE_OPTIONS, CONFIG, RUN_DIR),
    main,
    """
`appswitch up --join TOKEN` starts a switch as a member. The switch remembers its cluster when it ends, in a file of
mode 0600; `appswitch leave` forgets it.""",
    words=True,
    mixed=True,
)
