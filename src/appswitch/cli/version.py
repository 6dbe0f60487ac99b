"""`appswitch version`."""

from __future__ import annotations

from .. import __version__
from .main import show
from .options import Command, Values


def main(_: Values) -> int:
    return show(f"appswitch {__version__}")


COMMAND = Command("version", "", "Print the version.", (), main)
