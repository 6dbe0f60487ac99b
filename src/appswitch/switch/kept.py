"""What must survive the supervisor: descriptors, each with a document that says what it is, under a key.

The keeper and the supervisor both hold all of it. Keys:

    settings                     the switch's settings
    lock, control                the lock file, the control socket
    staff                        {"started": monotonic seconds, "pids": how many pids were entered into the ring}
    restarts, numbers            {"count"}, {"next": the number of the next program}
    child/ROLE                   {}, and its pidfd and our end of its control socket
    program/NUMBER               a program's entry, with its descriptors
    worker/INDEX/KEY             {"number": of the program}: what a worker wants kept for the one after it
    cluster                      {"membership", "node"}
    end, way                     the switch is going down; the supervisor makes way for another version's
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from typing import Any, NamedTuple

#: Of the documents, and of all that outlives a process in the run directory: the table, `state/`, `stats/`. A new
#: version of AppSwitch that changes one of them so that the one before it could not have written it takes the next
#: number.
FORMAT = 1


@dataclass(slots=True)
class Item:
    """Descriptors and what they are. In the supervisor they are somebody else's, who closes them."""

    document: dict[str, Any] = field(default_factory=dict)
    fds: list[int] = field(default_factory=list)


Kept = dict[str, Item]


class Line(NamedTuple):
    """From the keeper to its supervisor, or back: the other's process, and a SOCK_SEQPACKET socket to it."""

    sock: socket.socket
    pid: int
    pidfd: int


def below(kept: Kept, prefix: str) -> dict[str, Item]:
    """The items whose keys begin so, by the rest of the key."""
    return {key[len(prefix) :]: item for key, item in kept.items() if key.startswith(prefix)}


def descriptors(kept: Kept) -> list[int]:
    return [fd for item in kept.values() for fd in item.fds]
