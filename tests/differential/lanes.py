"""The same program natively and under the switch, over either transport: what differs, so that it can be replayed."""

import json
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.needs import need
from support.switch import PATH

from .player.known import for_lane
from .programs import Program, told

VIP = "100.64.77.7"
TRANSPORTS = ("unix", "tcp")
REPLAYS = 3
_SHRINKING = 60.0
"""Seconds: a program that hangs takes long to try."""
_NATIVE = f"""
ip link set lo up
ip address add {VIP}/32 dev lo
exec "$@"
"""

Results = list[Any]


class Lane:
    """A player that is kept alive over many programs."""

    def __init__(self, command: list[str], **popen: Any) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, process_group=0, **popen
        )
        assert self._process.stdout is not None
        assert self._process.stdin is not None
        self._out, self._in = self._process.stdout, self._process.stdin
        assert self._out.readline() == "ready\n", "the player did not start"

    def ask(self, program: Program, leave_out: list[str]) -> None:
        self._in.write(json.dumps({"steps": program, "leave_out": leave_out}) + "\n")
        self._in.flush()

    def answer(self) -> tuple[Results, list[str]]:
        """What was seen, and which known differences were met."""
        line = self._out.readline()
        assert line, f"the player ended: {self._process.wait()}"
        said = json.loads(line)
        return said["results"], said["met"]

    def play(self, program: Program, leave_out: list[str]) -> tuple[Results, list[str]]:
        self.ask(program, leave_out)
        return self.answer()

    def close(self) -> None:
        self._in.close()
        self._out.close()
        self._process.wait(60)


def native_lane(python: str, player: Path) -> Lane:
    """Without AppSwitch, in a network namespace of its own whose loopback has the same address."""
    need("ip")
    unshare = [need("unshare"), "--net", *(["--user", "--map-root-user"] if os.geteuid() else [])]
    return Lane([*unshare, "sh", "-ec", _NATIVE, "sh", python, str(player / "main.py")], env={"PATH": PATH})


@dataclass
class Difference:
    """A program that is answered otherwise over this transport; `at`: the first such step."""

    transport: str
    program: Program
    natively: Results
    here: Results
    at: int

    @property
    def kind(self) -> tuple[str, ...]:
        """What is the same in differences that may well have one cause."""
        places = ((items[self.at : self.at + 1] or ["(ended)"])[0] for items in (self.natively, self.here))
        return self.transport, self.program[self.at][1], *(json.dumps(place) for place in places)

    def __str__(self) -> str:
        """The program with both results, up to where they part."""
        lines = [f"Over {self.transport} this program is answered otherwise than natively:"]
        for index, step in enumerate(self.program[: self.at + 1]):
            native, here = ((items[index : index + 1] or ["(ended)"])[0] for items in (self.natively, self.here))
            lines.append(f"  {index:2} {told(step)} → {native}" + (f"   BUT HERE {here}" if native != here else ""))
        text = json.dumps(self.program[: self.at + 1])
        return "\n".join([*lines, f"To play it again: make differential DIFF_PROGRAM='{text}'"])


class Lanes:
    """The native one, and one a transport."""

    def __init__(self, native: Lane, switched: dict[str, Lane]) -> None:
        self._native = native
        self._switched = switched

    def differences(self, program: Program) -> list[Difference]:
        """Where the program is answered under the switch as it never is natively."""
        for transport, lane in self._switched.items():
            lane.ask(program, for_lane(transport))
        known: dict[str, Results] = {}
        met = ["not yet asked"]
        for transport in self._switched:
            if met:
                known[transport], met = self._native.play(program, for_lane(transport))
            else:
                known[transport] = known[TRANSPORTS[0]]
        seen = {transport: lane.answer()[0] for transport, lane in self._switched.items()}
        found = [
            self._lasting(program, transport, known[transport], seen[transport])
            for transport in self._switched
            if known[transport] != seen[transport]
        ]
        return [difference for difference in found if difference is not None]

    def both(self, program: Program, transport: str, leave_out: list[str]) -> tuple[Results, Results]:
        """What is seen natively, and over a transport."""
        return self._native.play(program, leave_out)[0], self._switched[transport].play(program, leave_out)[0]

    def _lasting(self, program: Program, transport: str, known: Results, seen: Results) -> Difference | None:
        """On a busy machine the kernel itself shows now this, now that: a difference is one that stays."""
        natively = [known]
        for _ in range(REPLAYS):
            natively.append(self._native.play(program, for_lane(transport))[0])
            seen = self._switched[transport].play(program, for_lane(transport))[0]
            if seen in natively:
                return None
        return _difference(program, transport, natively[-1], seen)

    def shrink(self, difference: Difference) -> Difference:
        """The same difference by fewer steps: whatever can be left out is."""
        at, until = difference.at - 1, time.monotonic() + _SHRINKING
        while at >= 0 and time.monotonic() < until:
            program = difference.program[: difference.at + 1]
            del program[at]
            leave_out = for_lane(difference.transport)
            known = self._native.play(program, leave_out)[0]
            seen = self._switched[difference.transport].play(program, leave_out)[0]
            if known != seen:
                other = _difference(program, difference.transport, known, seen)
                difference = other if other.kind == difference.kind else difference
            at -= 1
        return difference


def _difference(program: Program, transport: str, known: Results, seen: Results) -> Difference:
    same = (index for index, (one, other) in enumerate(zip(known, seen, strict=False)) if one != other)
    return Difference(transport, program, known, seen, next(same, min(len(known), len(seen))))
