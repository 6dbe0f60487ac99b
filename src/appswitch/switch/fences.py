"""Programs that held a worker up are served by others from then on, which serve nobody but such programs."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable

from .children import Child
from .programs import Programs
from .registry import Entry, Registry
from .staff import Staff

log = logging.getLogger("appswitch.supervisor")

#: Within so many seconds so many programs of a user may hold workers up, before the user's new ones begin fenced.
WITHIN, STRIKES = 600.0, 3
#: So many workers for fenced programs of one user, and in all; what is more shares them.
OF_USER, IN_ALL = 4, 16


class Strikes:
    """How often a user's programs held workers up."""

    def __init__(self) -> None:
        self._times: dict[int, list[float]] = {}

    def add(self, uid: int, now: float) -> None:
        recent = [moment for moment in self._times.get(uid, ()) if moment > now - WITHIN]
        self._times[uid] = [*recent, now][-STRIKES:]

    def out(self, uid: int, now: float) -> bool:
        """Has this user had as many as there may be?"""
        times = self._times.get(uid, [])
        return len(times) == STRIKES and times[0] > now - WITHIN


class Fences:
    """`make` gives a new worker for fenced programs, appended to `workers`; the first `shared` are everybody's."""

    def __init__(
        self, workers: list[Child], make: Callable[[], None], registry: Registry, programs: Programs, staff: Staff
    ) -> None:
        self._workers, self._shared = workers, len(workers)
        self._make, self._registry, self._programs, self._staff = make, registry, programs, staff
        self._strikes = Strikes()

    def resume(self) -> None:
        """Make the workers that programs of a supervisor before this one have."""
        while any(entry.worker >= len(self._workers) for entry in self._registry.attached()):
            self._make()

    def shared(self, child: Child) -> bool:
        """Does it serve everybody?"""
        return child in self._workers[: self._shared]

    def held_up(self, child: Child, number: int, how: str) -> None:
        """A worker is being ended because a program (0: not known which) does not let it go on."""
        entry = self._registry.entries.get(number)
        if entry is None or not entry.attached:
            log.error("%s is held up: ended", child.role)
            return
        who = entry.identity
        log.error(
            "%s is held up by program %d (%s, pid %d, user %d): %s. Others' calls go on with another worker; this "
            "program gets one of its own",
            child.role, number, who.label, entry.pid, who.uid, how,
        )  # fmt: skip
        self._strikes.add(who.uid, time.monotonic())
        place = self._place(who.uid)
        entry.fenced = f"held {child.role} up: {how}"
        self._programs.move(entry, place)
        if self._workers[place].alive:
            self._programs.introduce_again(entry)
        else:
            self._staff.start(self._workers[place])

    def worker_for(self, uid: int) -> int | None:
        """Where a new program of this user is served; None: where everybody's are."""
        if not self._strikes.out(uid, time.monotonic()):
            return None
        place = self._place(uid)
        if not self._workers[place].alive:
            self._staff.start(self._workers[place])
        return place

    def wanted(self, child: Child) -> bool:
        """Has it anything to do?"""
        return self.shared(child) or bool(self._registry.programs_of(self._workers.index(child)))

    def left(self, entry: Entry) -> None:
        """A program has ended: its worker may have been the last to need it."""
        child = self._workers[entry.worker]
        if not self.wanted(child) and child.alive:
            self._staff.dismiss(child)

    def _place(self, uid: int) -> int:
        """A worker that serves nobody yet, if the user may have one more; else the one that serves fewest."""
        fenced = [entry for entry in self._registry.attached() if entry.worker >= self._shared]
        loads = Counter(entry.worker for entry in fenced)
        users = {entry.worker for entry in fenced if entry.identity.uid == uid}
        free = [place for place in range(self._shared, len(self._workers)) if not loads[place]]
        if len(users) < OF_USER and (free or len(loads) < IN_ALL):
            if not free:
                self._make()
            return free[0] if free else len(self._workers) - 1
        return min(users or loads, key=lambda place: loads[place])
