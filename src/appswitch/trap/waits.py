"""Who waits for the table to change: its version is looked at every 50 ms while anybody does, else never."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from ..table.store import Table
from .events import Events

log = logging.getLogger("appswitch.worker")

_LOOK_EVERY = 0.05

Look = Callable[[], bool]
"""Looks at the table again; whether it goes on waiting."""


Key = tuple[int, bytes, int]
"""Thread, virtual IP and port."""
#: Interrupted calls that are remembered.
_KEPT = 1024
#: Seconds for which nobody is waited for again at a place where nobody came.
_NOBODY = 10.0


class Waits:
    """Who waits for the table to change, and since when.

    `held`: by socket cookie, the addresses to which connects wait, or would if a signal had not ended the call.
    """

    def __init__(self, events: Events, table: Table) -> None:
        self._events, self._table = events, table
        self._looks: list[Look] = []
        self._seen = -1
        self._armed = False
        self._deadlines: dict[Key, float] = {}
        self._nobody: dict[tuple[bytes, int], float] = {}
        self.held: dict[int, bytes] = {}

    def until(self, key: Key, now: float, seconds: float) -> float:
        """Until when this thread waits: a call that a signal interrupts goes on where it was."""
        deadline = self._deadlines.get(key, 0.0)
        if deadline <= now:
            _make_room(self._deadlines)
            deadline = self._deadlines[key] = now + seconds
        return deadline

    def until_known(self, vip: bytes, port: int, now: float, seconds: float) -> float:
        """Until when news of this place are waited for, once in a while: what refuses is not to cost that each time."""
        deadline = self._nobody.get((vip, port), 0.0)
        if deadline + _NOBODY <= now:
            _make_room(self._nobody)
            deadline = self._nobody[vip, port] = now + seconds
        return deadline

    def somebody_came(self, vip: bytes, port: int) -> None:
        """Who comes there later is waited for, too."""
        self._nobody.pop((vip, port), None)

    def somebody_is_there(self, vip: bytes, port: int, deadline: float) -> None:
        """News of this place will come: they are waited for until then."""
        self._nobody[vip, port] = deadline

    def add(self, look: Look, cookie: int, raw: bytes) -> None:
        """Have `look` called when the table has changed, for as long as it says so."""
        self._looks.append(look)
        _make_room(self.held)
        self.held[cookie] = raw
        self._seen = -1  # something may have changed since it looked
        if not self._armed:
            self._arm()

    def forget(self, cookie: int, key: Key | None = None) -> None:
        """It is answered, or asked for anew."""
        self.held.pop(cookie, None)
        if key is not None:
            self._deadlines.pop(key, None)

    def _arm(self) -> None:
        self._armed = bool(self._looks)
        if self._armed:
            self._events.after(time.monotonic() + _LOOK_EVERY, self._look)

    def _look(self) -> None:
        version = self._table.version()
        if version != self._seen:
            self._seen = version
            looks, self._looks = self._looks, []
            self._looks += [look for look in looks if _goes_on(look)]
        self._arm()


def _make_room(kept: dict[Any, Any]) -> None:
    if len(kept) >= _KEPT:
        del kept[next(iter(kept))]


def _goes_on(look: Look) -> bool:
    try:
        return look()
    except Exception:
        log.exception("error in the trap worker; it goes on")
        return False
