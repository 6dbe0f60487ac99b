"""`appswitch leave`: take the switch out of its cluster."""

from __future__ import annotations

import os

from ..switch import client, membership
from ..switch.paths import SwitchError
from .main import tell
from .options import RUN_DIR, Command, Values


def main(values: Values) -> int:
    uid = os.geteuid()
    home = client.home(values.one("--run-dir"), os.environ, uid)
    connection = client.connect(home, uid=uid)
    if connection is not None:
        with connection:
            connection.request({"op": "leave"})
        return tell("The switch is in no cluster any more.")
    if membership.forget(membership.memory_path(home, os.environ, uid)):
        return tell("The cluster is forgotten: the next switch will be in none.")
    raise SwitchError(f"no switch is up in {home}, and none remembers a cluster there")


COMMAND = Command(
    "leave",
    "[OPTIONS]",
    "Take the switch out of its cluster, and forget that. Programs go on; those of other hosts are out of reach.",
    (RUN_DIR,),
    main,
    """
`appswitch down` leaves the cluster too, but the next `appswitch up` comes back to it.""",
)
