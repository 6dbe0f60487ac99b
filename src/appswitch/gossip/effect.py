"""What the core wants done: values that its shell, or a simulator, carries out in their order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .member import Event, Member
from .settings import Address


@dataclass(frozen=True, slots=True)
class Datagram:
    """Send this."""

    data: bytes
    to: Address


@dataclass(frozen=True, slots=True)
class Stream:
    """Connect, send `data`, read one message, tell the core by `stream_done(id, …)`; all before `deadline`."""

    id: int
    to: Address
    data: bytes
    deadline: float


@dataclass(frozen=True, slots=True)
class Changed:
    """Tell the delegate about a member."""

    member: Member
    event: Event


@dataclass(frozen=True, slots=True)
class UserMessage:
    """Hand this to the delegate."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class MergeState:
    """Hand a peer's user state to the delegate."""

    state: bytes
    join: bool


@dataclass(frozen=True, slots=True)
class Told:
    """Tell the delegate that a peer has these versions, which are not those here."""

    versions: Mapping[str, bytes]


Effect = Datagram | Stream | Changed | UserMessage | MergeState | Told
