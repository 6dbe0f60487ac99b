"""The three modes in which every product test runs, and the people in them.

A mode says who owns the switch and who owns the programs. The ordinary user has no passwd entry and no
groups: nothing in the product may depend on either.
"""

import os
from dataclasses import dataclass
from typing import Any

ORDINARY_ID = 64123
"""Uid and gid of the ordinary user when the suite runs as root; free on Debian (policy manual, 9.2.2)."""


@dataclass(frozen=True)
class Person:
    """Somebody who runs programs."""

    uid: int
    gid: int

    def popen_arguments(self) -> dict[str, Any]:
        """Keyword arguments for subprocess that make the child run as this person."""
        if self.uid == os.geteuid():
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    def give(self, path: str | os.PathLike[str]) -> None:
        """Make this person the owner of a file or directory."""
        if self.uid != os.geteuid():
            os.chown(path, self.uid, self.gid)


MYSELF = Person(os.geteuid(), os.getegid())
ORDINARY = Person(ORDINARY_ID, ORDINARY_ID) if MYSELF.uid == 0 else MYSELF


@dataclass(frozen=True)
class Mode:
    """Who owns the switch, who owns the programs, and the options of `appswitch up` that make it work."""

    name: str
    switch_owner: Person
    program_owner: Person
    up_options: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.name


MODES = (
    Mode("root", MYSELF, MYSELF),
    Mode("user-own", ORDINARY, ORDINARY),
    Mode("user-root", MYSELF, ORDINARY, ("--socket-mode", "0666")),
)


def possible() -> tuple[Mode, ...]:
    """The modes that the suite's own privilege allows."""
    return MODES if MYSELF.uid == 0 else (MODES[1],)


def impossible() -> tuple[Mode, ...]:
    """The others, to be reported as not run."""
    return tuple(mode for mode in MODES if mode not in possible())
