"""`appswitch down`: end the switch."""

from __future__ import annotations

from ..switch.paths import SwitchError
from .ask import switch
from .main import tell
from .options import RUN_DIR, Command, Option, Values


def main(values: Values) -> int:
    with switch(values, own=True) as connection:
        reply = connection.request({"op": "down", "force": values.flag("--force")})
        try:
            connection.wait_end()
        except TimeoutError:
            raise SwitchError(f"the switch does not end: see {connection.run_dir.log}") from None
    left = reply["programs"]
    if left:
        return tell(f"The switch is down; {left} program{'s run' if left > 1 else ' runs'} on without network.")
    return tell("The switch is down.")


COMMAND = Command(
    "down",
    "[OPTIONS]",
    "End the switch: your own, or the one named by --run-dir. Refused while programs run under it.",
    (
        Option("--force", "", "even while programs run"),
        RUN_DIR,
    ),
    main,
    """
--force ends no program. Those that run go on, but without network: connections that are open stay open, while
every new connect(), accept() and the like fails with ENOSYS.""",
)
