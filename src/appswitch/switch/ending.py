"""How the switch ends: `down`, a signal, the loss of its run directory, or another version that takes over."""

from __future__ import annotations

import logging
import os
import time

from .. import __version__
from . import orphans, vigil, wire
from .control import Client, Control
from .keeping import Keeping
from .kept import FORMAT
from .paths import RunDir, SwitchError
from .registry import Registry
from .staff import Staff

log = logging.getLogger("appswitch.supervisor")

#: Seconds until a child that does not go by itself is killed.
FAREWELL = 3.0


class Ending:
    """What is decided of it, and who waits for it."""

    control: Control

    def __init__(self, run_dir: RunDir, registry: Registry, keeping: Keeping, staff: Staff) -> None:
        self._run_dir, self._registry, self._keeping, self._staff = run_dir, registry, keeping, staff
        self._uid = os.geteuid()
        #: It has begun.
        self.begun = False
        #: Another version takes over.
        self.making_way = False
        self._kill_at: float | None = None
        #: Their connections end with the switch.
        self._farewell: list[Client] = []
        #: Who waits for another version's taking over.
        self._upgrading: Client | None = None
        self._lost = False

    def on_removal(self, fd: int, _: int) -> None:
        """Something of the run directory may have been removed."""
        if not self._lost and not self.begun and vigil.lost(fd, self._run_dir):
            log.error("%s was removed: the switch ends with its last program", self._run_dir.control)
            self._lost = True
            self.end_if_lost()

    def end_if_lost(self) -> bool:
        """Whether the run directory is lost; the switch ends then with its last program."""
        if self._lost and not self._registry.entries:
            self.begin("nobody can reach it")
        return self._lost

    def due(self, now: float) -> None:
        """Kill whoever has not gone in time."""
        if self._kill_at is not None and self._kill_at <= now:
            self._kill_at = None
            for child in self._staff.alive():
                if child.killed:
                    self._staff.replace(child)  # by nobody: it ends when the kernel lets it
                    continue
                log.error("%s does not end: killed", child.role)
                child.kill()
                self._kill_at = now + orphans.KILLED

    def moments(self) -> list[float]:
        return [] if self._kill_at is None else [self._kill_at]

    def abandon(self) -> None:
        """In a forked process: close no descriptor, for the numbers will be other files'."""
        for client in self._farewell:
            client.sock.detach()

    # another version ------------------------------------------------------------------------------

    def upgrade(self, client: Client, message: wire.Message) -> None:
        """Have the version that asks replace this one. SwitchError."""
        self._check_owner(client, "upgrade it")
        python, path, formats = message.get("python"), message.get("path"), message.get("formats")
        if not isinstance(python, str) or not isinstance(path, str) or not isinstance(formats, list):
            raise SwitchError("the request is not as this switch knows it: use `appswitch` of the same version")
        if FORMAT not in formats:
            raise SwitchError(
                f"what runs under version {__version__} cannot be taken over by version {message.get('version')}: "
                "end the programs, then take the switch down and start it again"
            )
        if self._upgrading is not None:
            raise SwitchError("the switch is being upgraded already: try again in a moment")
        log.info("user %d has %s take over", client.uid, path)
        self.control.release(client)  # it may take longer than clients are given
        self._upgrading = client
        self._keeping.replace(python, path)

    def succeeded(self, refusal: str | None) -> None:
        """Another version's keeper has begun: end with all others, and have it start them again. Or it has not."""
        client, self._upgrading = self._upgrading, None
        assert client is not None
        if refusal is not None or self.begun:
            reason = f"the new version did not take over ({refusal or 'the switch is going down'})"
            self.control.reply(client, {"ok": False, "error": f"{reason}; the switch goes on as before"})
            client.sock.close()
            return
        self.control.reply(client, {"ok": True})
        self._farewell.append(client)
        self.begun = self.making_way = True
        self._keeping.put("way", {})
        self._staff.orphan_all()
        self._kill_at = time.monotonic() + orphans.FAREWELL

    # the end --------------------------------------------------------------------------------------

    def down(self, client: Client, message: wire.Message) -> None:
        """A client wants it. SwitchError."""
        self._check_owner(client, "take it down")
        live = self._registry.attached()
        if live and message.get("force") is not True:
            names = list(dict.fromkeys(entry.identity.label for entry in live))
            which = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
            count, them = ("1 program runs", "it") if len(live) == 1 else (f"{len(live)} programs run", "them")
            raise SwitchError(
                f"{count} under this switch ({which}): end {them} first, or use --force, "
                f"which leaves {them} running but without network"
            )
        self.control.reply(client, {"ok": True, "programs": len(live)})
        # The connection stays open until everything is gone: its end tells the client.
        self.control.release(client)
        self._farewell.append(client)
        self.begin(f"`appswitch down` of user {client.uid}")

    def _check_owner(self, client: Client, what: str) -> None:
        if client.uid not in (0, self._uid):
            raise SwitchError(
                f"the switch in {self._run_dir} is user {self._uid}'s: only that user and root can {what}"
            )

    def begin(self, why: str) -> None:
        """End, with all children."""
        if self.begun:
            return
        log.info("going down: %s", why)
        self.begun = True
        self._keeping.put("end", {})
        self.control.close("the switch is going down: start it again with `appswitch up`")
        self._staff.dismiss_all()
        self._kill_at = time.monotonic() + FAREWELL
