"""UDP over loopback, and to the virtual IP itself, between programs of one virtual IP: `oneself` decides, this acts.

Rules are set when a program comes or goes, and when ports are bound or given up; a program that is alone has none. A
worker announces a bind(2), so that they stand before it returns. What they lead out comes here as any other datagram;
more than should (a rule that is not gone yet) is given back.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import islice

from appswitch.linux.rules import Rule, Rules
from appswitch.model.address import ANY
from appswitch.model.service import Service

from . import oneself, packets
from .across import ASKED
from .oneself import SHOWN, Allowance, Place, Retries, Shown, Socket
from .program import Program

#: Directory of empty files: the virtual IPs of several programs, in hex. Workers look there (trap.calls.bind).
DIRECTORY = "shared"

#: Seconds that the binds of a program may take here at once, and the part of the time after that.
_AT_ONCE, _SHARE = 0.2, 0.05
#: Seconds after which a bind(2) is over, though that was not told.
_LOST = 5.0
#: Binds of one port that a program is thought to make at a time.
_AT_A_TIME = 16
#: Processor time, in seconds, that the rules of one program may take: some milliseconds are usual.
_TOO_LONG = 0.25

log = logging.getLogger("appswitch.relay")


class Sharing:
    """The programs that can have rules, by their virtual IPs."""

    def __init__(self, run_dir: str) -> None:
        self._directory = os.path.join(run_dir, DIRECTORY)
        #: What several programs had under the relay before this one, which may have left rules.
        self._before: set[bytes] = set()
        with suppress(OSError):
            os.makedirs(self._directory, 0o700, exist_ok=True)
            for name in os.listdir(self._directory):
                with suppress(OSError, ValueError):  # what is none of ours stays
                    self._before.add(bytes.fromhex(name))
                    os.unlink(os.path.join(self._directory, name))
        self._rules: dict[Program, Rules] = {}
        self._taken: defaultdict[bytes, dict[Program, frozenset[Place]]] = defaultdict(dict)
        self._sockets: dict[Program, frozenset[Socket]] = {}
        #: Ports that are about to be bound, each with the moments when that was said; and those whose bind(2) is over.
        self._announced: dict[Program, dict[int, list[float]]] = {}
        #: When to look for those whose end was not told; None when there are none.
        self._lost_at: float | None = None
        self._over: defaultdict[Program, list[int]] = defaultdict(list)
        self._shown: defaultdict[bytes, Shown[Program]] = defaultdict(Shown)
        self._capped: set[Program] = set()
        #: Programs whose rules could not be set, until they are; and when those that are left out are tried again.
        self._troubled: set[Program] = set()
        self._retries: dict[Program, Retries] = {}
        self._again: dict[Program, tuple[float, Rules]] = {}
        self._allowances: dict[Program, Allowance] = {}

    def attach(self, program: Program) -> None:
        """A program has come; what it has bound is told later."""
        if program.identity is None or program.route is None or program.diag is None:
            return
        self._enter(program, Rules(program.route, used=program.identity.vip in self._before))

    def _enter(self, program: Program, rules: Rules) -> None:
        assert program.identity is not None
        vip = program.identity.vip
        self._rules[program] = rules
        self._taken[vip][program] = frozenset()
        self._sockets[program] = frozenset()
        if len(self._taken[vip]) == 2:
            with suppress(OSError):
                os.close(os.open(self._marker(vip), os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        self._renew(vip)

    def detach(self, program: Program) -> None:
        """It has ended. Its rules end with its namespace."""
        self._troubled.discard(program)
        self._retries.pop(program, None)
        self._again.pop(program, None)
        if program.identity is not None and program in self._rules:
            self._leave(program)
            self._renew(program.identity.vip)

    def _leave(self, program: Program) -> None:
        assert program.identity is not None
        vip = program.identity.vip
        taken = self._taken[vip]
        del self._rules[program]
        del taken[program], self._sockets[program]
        self._announced.pop(program, None)
        self._over.pop(program, None)
        self._allowances.pop(program, None)
        self._capped.discard(program)
        if vip in self._shown:
            self._shown[vip].leave(program)
        if len(taken) < 2:
            with suppress(OSError):
                os.unlink(self._marker(vip))
        if not taken:
            self._taken.pop(vip, None)
            self._shown.pop(vip, None)

    def _marker(self, vip: bytes) -> str:
        return os.path.join(self._directory, vip.hex())

    def only_other(self, program: Program) -> Program | None:
        """The one program with which it has its virtual IP; None if there are more, or none."""
        found = self._taken.get(program.identity.vip, {}) if program.identity is not None else {}
        others = [other for other in islice(found, 3) if other is not program]
        return others[0] if len(others) == 1 and len(found) == 2 else None

    # ---- what is bound ----

    def announce(self, program: Program, port: int) -> None:
        """A bind(2) to this port is about to be made: it is as if it were, whatever the address, until it is over.

        Not for a program that binds without end: rules of all others may have to be changed each time.
        """
        if program not in self._rules:
            return
        now, began = time.monotonic(), time.thread_time()
        allowance = self._allowances.setdefault(program, Allowance(_AT_ONCE, _SHARE, now))
        if allowance.is_left(now):
            said = self._announced.setdefault(program, {}).setdefault(port, [])
            said.append(now)
            del said[:-_AT_A_TIME]
            if self._lost_at is None:
                self._lost_at = now + _LOST
            self._look(program)
            allowance.take(time.thread_time() - began)  # not what others took of the processor meanwhile

    def over(self, program: Program, port: int) -> None:
        """The bind(2) has been made, or has failed: what is bound will be told."""
        if program in self._rules:
            self._over[program].append(port)

    def bound(self, program: Program, sockets: Iterable[Socket]) -> bool:
        """These sockets have ports of the program's choice. Whether their ends are to be told, too."""
        if program not in self._rules or program.identity is None:
            return False
        announced = self._announced.get(program, {})
        for port in self._over.pop(program, ()):
            if port in announced:
                announced[port].pop()
                if not announced[port]:
                    del announced[port]
        if not announced:
            self._announced.pop(program, None)
        if not self._announced:
            self._lost_at = None
        self._sockets[program] = frozenset(sockets)
        self._look(program)  # which may be the end of its rules
        return bool(self._sockets.get(program)) and len(self._taken.get(program.identity.vip, ())) > 1

    def _look(self, program: Program) -> None:
        assert program.identity is not None
        vip = program.identity.vip
        announced = (Socket(ANY, port, True) for port in self._announced.get(program, ()))
        found = oneself.places(vip, (*self._sockets[program], *announced))
        if found != self._taken[vip][program]:
            self._taken[vip][program] = found
            self._renew(vip)

    def _renew(self, vip: bytes) -> None:
        """Set what has changed. Where that cannot be done, the program is left out, and the others' are set anew."""
        while failed := self._set(oneself.plan(vip, self._taken.get(vip, {}))):
            for program, error in failed:
                rules = self._rules[program]
                self._leave(program)
                self._put_off(program, rules, error)

    def _put_off(self, program: Program, rules: Rules, error: OSError) -> None:
        """What it has been left out for may pass, if it is not its owner's doing."""
        moment = None
        if error.errno != errno.ETIMEDOUT:
            rules.clear()  # those that have been set lead to where it is not known any more
            moment = self._retries.setdefault(program, Retries()).failed(time.monotonic())
        if moment is not None:
            self._again[program] = moment, rules
        if moment is None or program not in self._troubled:
            end = "any more" if moment is None else "until its rules can be set"
            log.warning("UDP over loopback of %s does not reach others %s: %s", program.name, end, error)
        self._troubled.add(program)

    def _set(self, plan: dict[Program, frozenset[Rule]]) -> list[tuple[Program, OSError]]:
        """Those whose rules could not be set."""
        failed = []
        for program, wanted in plan.items():
            rules = self._rules[program]
            if wanted == rules.now:
                continue
            if len(wanted) >= oneself.MOST and program not in self._capped:
                self._capped.add(program)
                log.warning(
                    "other programs of its virtual IP have more UDP ports bound than %s reaches over loopback: "
                    "the lowest ports come first",
                    program.name,
                )
            began = time.thread_time()
            try:
                rules.set(wanted)
                if time.thread_time() - began > _TOO_LONG:  # its owner may fill its namespace with rules
                    raise TimeoutError(errno.ETIMEDOUT, "its rules take too long")
            except OSError as error:
                failed.append((program, error))
                continue
            if program in self._troubled:
                self._troubled.discard(program)
                log.info("UDP over loopback of %s reaches others again", program.name)
        return failed

    # ---- what is due ----

    def moments(self) -> list[float]:
        """When `overdue` must be called, on the monotonic clock; empty while nothing waits."""
        found = [moment for moment, _ in self._again.values()]
        return found if self._lost_at is None else [*found, self._lost_at]

    def overdue(self, now: float) -> dict[Program, set[int]]:
        """Programs of which is to be told what is bound; each with ports whose bind(2) may have been made unheard."""
        found = self._lost(now)
        for program, (moment, rules) in list(self._again.items()):
            if moment <= now:
                del self._again[program]
                rules.clear()
                self._enter(program, rules)
                found.setdefault(program, set())
        return found

    def _lost(self, now: float) -> dict[Program, set[int]]:
        """Have those over of which it was not told: the port would be led to a program that has it not."""
        found: dict[Program, set[int]] = {}
        if self._lost_at is None or self._lost_at > now:
            return found
        self._lost_at = None
        for program, announced in list(self._announced.items()):
            for port, said in list(announced.items()):
                until = said[-1] + _LOST
                if until <= now:
                    del announced[port]
                    found.setdefault(program, set()).add(port)
                elif self._lost_at is None or until < self._lost_at:
                    self._lost_at = until
            if not announced:
                del self._announced[program]
        return found

    # ---- conversations ----

    def is_own(self, program: Program, vip: bytes) -> bool:
        """Is this virtual IP the program's own, and has it rules?"""
        return program in self._rules and program.identity is not None and program.identity.vip == vip

    def rows(
        self, program: Program, shown: bytes, source_port: int, port: int, others: Sequence[Program]
    ) -> tuple[list[Service], int]:
        """Who takes a datagram to an address of the sender's own (as the table keeps it), and by which port truly.

        Above all the sender itself: rules may lead out more than they should for a moment after a bind(2). Then who
        has the port bound, or is shown with it, and else any of `others` (all of the virtual IP). The kernel is asked.
        """
        assert program.identity is not None
        vip, source = program.identity.vip, packets.packed(shown)

        def takes(other: Program) -> bool:
            return other.takes(source, source_port, other.local(shown), port)

        if takes(program):
            return [program.row(port, shown)], port
        place = Place(shown, port)
        asked = [other for other, taken in self._taken[vip].items() if place in taken]
        client = self._shown[vip].client(port) if vip in self._shown else None
        if not asked and client is not None:
            asked, port = [client[0]], client[1]
        asked = [other for other in asked or others if other is not program]
        return [other.row(port, shown) for other in asked[:ASKED] if takes(other)], port

    def shown(
        self, program: Program, port: int, server: Program, source: bytes, taken: Callable[[int], bool]
    ) -> int:
        """By which port, at this (packed) address, `server` is to know one that sends from `port`.

        Its own where the server's answers come back from there, and no twin of it is shown with that.
        """
        assert program.identity is not None
        vip = program.identity.vip
        rules = self._rules.get(server)
        if port not in SHOWN and rules is not None and Rule(source, port, port) in rules.now and not taken(port):
            return port
        bound = {place.port for found in self._taken[vip].values() for place in found if place.port in SHOWN}
        return self._shown[vip].port(program, port, bound)
