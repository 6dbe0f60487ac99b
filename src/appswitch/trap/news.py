"""Asking the relay whether any host has a listener of which the table does not tell yet (`relay.listening`).

One datagram there and one back. Without an answer (no relay, other hosts silent) the caller's own time-out decides.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from contextlib import suppress

from ..table.poke import Poke
from .events import Events

#: Address, port, and a number that nobody can guess, for anybody on the host may send to an abstract name.
_QUESTION = struct.Struct("!16sH8s")
_ANNOUNCE = struct.Struct("!QH8s")  # as relay.bound has it
_ANSWER = struct.Struct("!8s?")
_MOST = 1024
_DATAGRAM = 64

Heard = Callable[[bool], None]


class News:
    """`path`: of the relay's socket, below the current directory."""

    def __init__(self, events: Events, path: str) -> None:
        self._events, self._poke = events, Poke(path, answered=True)
        self._heard: dict[bytes, Heard] = {}
        self._watched = False

    def ask(self, destination: bytes, port: int, heard: Heard) -> None:
        """Have `heard` called with whether any host has one; or never."""
        number = os.urandom(8)
        self._send(_QUESTION.pack(destination, port, number), number, heard)

    def announce(self, program: int, port: int, heard: Heard) -> None:
        """Tell the relay of a bind(2) of UDP that is about to be made; `heard` is called when it is ready, or never."""
        number = os.urandom(8)
        self._send(_ANNOUNCE.pack(program, port, number), number, heard)

    def _send(self, question: bytes, number: bytes, heard: Heard) -> None:
        self._poke([question])
        if self._poke.socket is None:
            return
        if not self._watched:
            self._watched = True
            self._events.watch(self._poke.socket.fileno(), self._on_answer)
        if len(self._heard) >= _MOST:
            del self._heard[next(iter(self._heard))]
        self._heard[number] = heard

    def _on_answer(self, _events: int) -> None:
        assert self._poke.socket is not None
        with suppress(OSError):
            while True:
                data = self._poke.socket.recv(_DATAGRAM, socket.MSG_DONTWAIT)
                if len(data) == _ANSWER.size:
                    number, there = _ANSWER.unpack(data)
                    heard = self._heard.pop(number, None)
                    if heard is not None:
                        heard(there)
