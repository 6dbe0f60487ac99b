"""Who takes datagrams of which the table does not tell: asked of the hosts where the virtual IP has programs.

A client may know of a port before this host does, because the server told it over TCP (iperf 3, TFTP, RTSP); and ports
that the kernel chose are in no table. What a program sends there waits until one of the hosts says that it has a taker,
or all have said that they have none.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from appswitch.header import datagram
from appswitch.header.datagram import Datagram
from appswitch.model.service import Place

from .hosts import Away, Hosts
from .packets import Packet, Reason
from .program import Program

if TYPE_CHECKING:
    from appswitch.dns.forward import Stats
    from appswitch.table.store import Table

#: The number of a question between hosts.
QUESTION = struct.Struct("!Q")
#: Seconds for which an answer is waited for: far more than a network takes.
PATIENCE = 1.0
#: Hosts that are asked about one port; questions that one program may have open; what may wait for one's answer.
_HOSTS, _OPEN, _HELD, _HELD_BYTES = 16, 16, 64, 1 << 18


@dataclass(slots=True)
class Question:
    """What waits for an answer: datagrams of a program's with one `key`, the first of which was `packets[0]`.

    `source`, `destination`: as the server is to see them. `asked`: the hosts that have not answered, by their relays'
    lives.
    """

    program: Program
    key: bytes
    source: bytes
    destination: bytes
    number: int
    until: float
    asked: dict[bytes, tuple[str, Place]]
    packets: list[Packet] = field(default_factory=list)
    size: int = 0
    denied: bool = False


def places(table: Table, vip: bytes) -> tuple[dict[bytes, tuple[str, Place]], bool]:
    """The other hosts that have programs under a virtual IP, by the lives of their relays, and whether that is all."""
    others = dict.fromkeys(claim.host for claim in table.claims(vip) if claim.host)
    found = ((host, table.relay(host)) for host in others)
    known = {place.life: (host, place) for host, place in islice(found, _HOSTS) if place is not None}
    return known, len(known) == len(others)


class Asking:
    """`found` is told of a question who takes its datagrams: host, place and instance; `nobody` why nobody does."""

    def __init__(
        self,
        hosts: Hosts,
        table: Table,
        stats: Stats,
        found: Callable[[Question, str, Place, int, float], None],
        nobody: Callable[[Question, Reason, float], None],
    ) -> None:
        self._hosts, self._table, self._stats, self._found, self._nobody = hosts, table, stats, found, nobody
        self._numbers = 0
        self._questions: dict[int, Question] = {}
        self._of: defaultdict[str, dict[bytes, Question]] = defaultdict(dict)

    def holds(self, program: Program, key: bytes, packet: Packet) -> bool:
        """Keep the packet if its question is open: it goes on, or is lost, with those before it."""
        question = self._of[program.id].get(key) if program.id in self._of else None
        if question is None:
            return False
        if len(question.packets) < _HELD and question.size + len(packet.raw) <= _HELD_BYTES:
            question.packets.append(packet)
            question.size += len(packet.raw)
        return True

    def begin(
        self,
        program: Program,
        packet: Packet,
        key: bytes,
        vip: bytes,
        source: bytes,
        destination: bytes,
        ports: tuple[int, int],
        now: float,
    ) -> bool:
        """Ask the hosts that have programs under `vip`; False when there are none, or too much is asked already."""
        who = program.identity
        assert who is not None
        if self._hosts.place is None or len(self._of.get(program.id, ())) >= _OPEN:
            return False
        asked, _ = places(self._table, vip)
        if not asked:
            return False
        self._numbers += 1
        question = Question(program, key, source, destination, self._numbers, now + PATIENCE, asked)
        self._questions[question.number] = self._of[program.id][key] = question
        self.holds(program, key, packet)
        for _, place in asked.values():
            away = Away(*place, datagram.ASK, 0, source, ports[0], destination, ports[1], who.tags)
            self._hosts.send(away, QUESTION.pack(question.number))
            self._stats.add("udp_asked")
        return True

    def told(self, said: Datagram, now: float) -> None:
        """A host has answered."""
        if len(said.payload) != QUESTION.size + 1:
            return
        question = self._questions.get(*QUESTION.unpack_from(said.payload))
        if question is None or said.sender not in question.asked:
            return
        host, place = question.asked.pop(said.sender)
        verdict = said.payload[-1]
        if verdict == datagram.DATA:
            self._end(question)
            self._found(question, host, place, said.instance, now)
            return
        question.denied = question.denied or verdict == datagram.DENIED
        if not question.asked:
            self._end(question)
            self._nobody(question, Reason.POLICY if question.denied else Reason.PORT, now)

    def leave(self, program: Program) -> None:
        """It has ended: what it sent is nobody's."""
        for question in list(self._of.get(program.id, {}).values()):
            self._end(question)

    def timeout(self, now: float) -> float | None:
        """Seconds until `expire` must be called; None when nothing waits."""
        first = next(iter(self._questions.values()), None)
        return None if first is None else max(0.0, first.until - now)

    def expire(self, now: float) -> None:
        """What was not answered in time is lost, as on a network that is down."""
        for question in [each for each in self._questions.values() if each.until <= now]:
            self._end(question)
            self._stats.add("udp_unanswered")

    def _end(self, question: Question) -> None:
        del self._questions[question.number]
        of = self._of[question.program.id]
        del of[question.key]
        if not of:
            del self._of[question.program.id]
