"""Whether any host has a TCP listener of which this host has not been told yet: asked for connect()s that wait.

A client may be told of a port by its server (FTP's PORT …) before its host hears of it. The relay of the server's host
looks into its own table, which has every listener of that host's before listen() returns.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from appswitch.header import datagram
from appswitch.header.datagram import Datagram
from appswitch.model.identity import behind
from appswitch.model.service import TCP

from .asking import PATIENCE, QUESTION, places
from .hosts import Away, Hosts

if TYPE_CHECKING:
    from appswitch.dns.forward import Stats
    from appswitch.table.store import Table

#: One question in a worker's message: address, port and number (trap/news.py); and its answer.
FROM_WORKER = struct.Struct("!16sH8s")
TO_WORKER = struct.Struct("!8s?")
#: What distinguishes such a question between hosts from one about a datagram: the protocol after its number.
ABOUT_TCP = QUESTION.size + 1
_OPEN = 1024


@dataclass(slots=True)
class _Question:
    answer: Callable[[bytes], None]
    number: bytes
    until: float
    asked: set[bytes]
    all_asked: bool


class Listening:
    """Questions of this host's workers."""

    def __init__(self, hosts: Hosts, table: Table, stats: Stats) -> None:
        self._hosts, self._table, self._stats = hosts, table, stats
        self._numbers = 0
        self._questions: dict[int, _Question] = {}

    def ask(self, question: bytes, answer: Callable[[bytes], None]) -> None:
        """Pass a worker's question on; `answer` takes what goes back to it, which may be nothing."""
        destination, port, number = FROM_WORKER.unpack(question)
        now = time.monotonic()
        for old in [key for key, each in self._questions.items() if each.until <= now]:
            del self._questions[old]
        asked, complete = places(self._table, behind(destination))
        if self._hosts.place is None or not asked or len(self._questions) >= _OPEN:
            return
        self._numbers += 1
        self._questions[self._numbers] = _Question(answer, number, now + PATIENCE, set(asked), complete)
        for _, place in asked.values():
            away = Away(*place, datagram.ASK, 0, bytes(16), 0, destination, port, ())
            self._hosts.send(away, QUESTION.pack(self._numbers) + bytes([TCP]))
            self._stats.add("udp_asked")

    def told(self, said: Datagram) -> None:
        """A host has answered: the first that has one is enough, and all must have none."""
        key = QUESTION.unpack_from(said.payload)[0]
        question = self._questions.get(key)
        if question is None or said.sender not in question.asked:
            return
        question.asked.discard(said.sender)
        there = said.payload[-1] == datagram.DATA
        if there or not question.asked:
            del self._questions[key]
            if there or question.all_asked:
                question.answer(TO_WORKER.pack(question.number, there))


def listens(table: Table, destination: bytes, port: int) -> bool:
    """Has this host a listener that others may connect to?"""
    rows, _ = table.lookup(behind(destination), port, TCP)
    return any(
        not row.remote and not row.own_only and row.state == "up" and row.takes(destination) for row in rows
    )
