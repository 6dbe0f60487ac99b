"""What the commands that ask a switch share."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

from ..switch import client
from ..switch.paths import SwitchError
from .options import Values

T = TypeVar("T")

_TRIES = 3


def switch(values: Values, *, own: bool = False) -> client.Connection:
    """The switch that a command is about; `own`: never root's, unless it is named. SwitchError when none is up."""
    uid, option = os.geteuid(), values.one("--run-dir")
    home = client.home(option, os.environ, uid)
    found = client.connect(home, uid=uid) if own else client.find(option, os.environ, uid)
    if found is None:
        raise SwitchError(
            f"no switch is up in {home}: start one with `appswitch up`, or a program with `appswitch run`"
        )
    return found


def ask(values: Values, message: dict[str, Any]) -> Any:
    """The result of one query; asked again when the supervisor dies over it."""
    return _again(values, lambda connection: connection.request(message)["result"])


def ask_for_json(values: Values, message: dict[str, Any]) -> str:
    """The same as JSON with an indent of two, as the switch wrote it."""
    return _again(values, lambda connection: connection.document(message))


def _again(values: Values, ask: Callable[[client.Connection], T]) -> T:
    for _ in range(_TRIES):
        try:
            with switch(values) as connection:
                return ask(connection)
        except client.Ended as error:
            ended = error
    raise ended
