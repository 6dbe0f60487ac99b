"""`appswitch token`: what a new host needs to join."""

from __future__ import annotations

from .ask import ask
from .main import show
from .options import RUN_DIR, Command, Values


def main(values: Values) -> int:
    return show(ask(values, {"op": "token"}))


COMMAND = Command(
    "token",
    "[OPTIONS]",
    "Print the token of this switch's cluster: one string, all that a new host needs.",
    (RUN_DIR,),
    main,
    """
    A$ appswitch up --node-interface eth0
    A$ appswitch token
    B$ appswitch up --join TOKEN

The token has the cluster's key. Whoever knows it is a member, with all that members may do: keep it secret, and
keep files that hold it at mode 0600. Only root and the switch's own user may have it printed.""",
)
