"""Where this host is for the other members of its cluster, as the kernel tells and changes it."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from dataclasses import replace

from ..linux import addresses
from . import membership
from .membership import Address, Here, Membership
from .paths import SwitchError

log = logging.getLogger("appswitch.router")

NOWHERE = Here("", "")
#: Seconds between looks for an address while there is none, should the kernel's word be lost.
_LOOK = 5.0
_DATAGRAM = 1 << 16


class Whereabouts:
    """`here` is NOWHERE while this host has no address that will do. It never changes its family."""

    def __init__(self, settings: Membership) -> None:
        self._settings = settings
        self._watched: socket.socket | None = None
        self._last = ""  # the host's own address that was used last
        self.here = NOWHERE

    async def find(self, *, wait: Callable[[], bool]) -> None:
        """Find it for the first time, waiting for an address as long as `wait` says so. SwitchError."""
        with addresses.watch() as watched:
            while True:
                try:
                    self.here = membership.here(self._settings)
                    self._last = self.here.bind
                    return
                except SwitchError as error:
                    if not wait():
                        raise
                    log.warning("waiting for an address: %s", error)
                try:
                    async with asyncio.timeout(_LOOK):
                        await asyncio.get_running_loop().sock_recv(watched, _DATAGRAM)
                except TimeoutError:
                    pass

    @property
    def any(self) -> str:
        """The wildcard address of its family."""
        return "::" if ":" in self._last else "0.0.0.0"

    def watch(self, members: Callable[[], list[Address]], changed: Callable[[], None]) -> None:
        """Call back at each change from now on; `members` are those that this host must reach, if it is in doubt."""
        self._watched = addresses.watch()
        asyncio.get_running_loop().add_reader(self._watched, self._look, members, changed)

    def _look(self, members: Callable[[], list[Address]], changed: Callable[[], None]) -> None:
        assert self._watched is not None
        try:
            while self._watched.recv(_DATAGRAM):
                pass
        except OSError:
            pass  # all read; or some were lost, which is the same here
        settings = self._settings
        if not settings.interface:
            settings = replace(settings, seeds=tuple(members()))
        try:
            found = membership.here(settings, self._last)
            self._last = found.bind
        except SwitchError as error:
            if self.here != NOWHERE:
                log.warning("this host has lost its address: %s", error)
            found = NOWHERE
        if found != self.here:
            if found != NOWHERE:
                log.info("this host is at %s now", found.address)
            self.here = found
            changed()
