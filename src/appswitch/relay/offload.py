"""Conversations of two programs of this host go on in the kernel, past the relay, once they are established.

The relay decides as ever, and enters what it has decided into a map that the programs of `offload_code` look up. What
is not found there comes to the relay: other conversations, fragments, what has options, ICMP errors. Without the means,
which root alone has, everything does.
"""

from __future__ import annotations

import logging
import os
import time

from appswitch.dns.forward import Poller, Stats
from appswitch.linux import features
from appswitch.linux.bpf_objects import Map

from .flows import IDLE, Flow
from .hub import Door, Hub
from .offload_code import KEY, VALUE
from .program import Program
from .shortcuts import Entry, Shortcuts

#: Datagrams after which a conversation is established: a question and its answer are not worth a door.
ESTABLISHED = 8
#: Bytes of a packet, above which it is left to the relay: the kernel would not give it an Ethernet header.
LONGEST = 16000
#: Seconds for which a sender may go on so that the relay never has nothing left of its datagrams.
_PATIENCE = 0.25
#: Entries, two a conversation; some 10 MB when it is full. The others go on by the relay.
_MOST = 65536

log = logging.getLogger("appswitch.relay")


class Offload:
    """Told of conversations that may take the way past the relay (`Flow.due`), and of all that ends."""

    def __init__(self, poller: Poller, stats: Stats) -> None:
        self._stats = stats
        self._plan = Shortcuts()
        self._programs: dict[str, Program] = {}
        self._doors: dict[str, Door] = {}
        self._hub: Hub | None = None
        if os.geteuid() != 0 or features.left_out(features.UDP_OFFLOAD):
            return
        try:
            self._ways = Map("appswitch_udp", KEY.size, VALUE.size, _MOST)
            self._hub = Hub(poller, self._ways, IDLE, self._opened)
        except OSError as error:
            log.info("datagrams all go by the relay: %s", error)

    def is_for(self, program: Program) -> bool:
        """Root's programs have namespaces of root's: an ordinary user could show another's as his own."""
        return (
            self._hub is not None
            and program.identity is not None
            and program.identity.uid == 0
            and program.diag is not None
        )

    def attach(self, program: Program) -> None:
        """A program has come."""
        self._programs[program.id] = program

    def detach(self, program: Program) -> None:
        """It has ended, and its conversations before it."""
        if self._programs.pop(program.id, None) is not None:
            self._plan.leave(program.id)
            door = self._doors.pop(program.id, None)
            if door is not None and self._hub is not None:
                self._hub.shut(door)

    def close(self) -> None:
        """What goes past the relay does so until this process ends."""
        if self._hub is not None:
            self._hub.close()

    # ---- conversations ----

    def noted(self, flow: Flow, length: int) -> None:
        """A packet of this many bytes has come to the relay, after `Flow.due` of them, or although it had entries.

        0 for a batch: each of its datagrams is small enough.
        """
        if length > LONGEST:
            # Others of the conversation would overtake such: all of it goes by the relay for good.
            self.forget(flow)
        elif entries := self._plan.entries(flow):
            # Of this direction nothing was seen for so long that the kernel asks; it is as fresh as the conversation.
            for entry in entries:
                self._enter(flow, entry)
        elif self._hub is not None and len(flow.keys) == 2:
            for owner in self._plan.want(flow):
                self._hub.open(self._programs[str(owner)])
            for owner, _ in flow.keys:
                self._see(str(owner))

    def settle(self, program: Program) -> None:
        """The relay has nothing left of what this one sent."""
        program.settling = 0.0
        for flow, entry in self._plan.due(program.id):
            if not self._plan.entries(flow)[1:]:
                self._stats.add("offloaded")
            self._enter(flow, entry)

    def last_seen(self, flow: Flow) -> float:
        """When a datagram of the conversation went past the relay last, on the monotonic clock; else 0."""
        values = [self._ways.get(entry.key) for entry in self._plan.entries(flow)]
        return max((VALUE.unpack(value)[1] / 1e9 for value in values if value is not None), default=0.0)

    def forget(self, flow: Flow) -> None:
        """The conversation is over, or is the relay's."""
        flow.due = 0
        for entry in self._plan.end(flow):
            value = self._ways.take(entry.key)
            if value is not None:
                self._stats.add("datagrams_offloaded", VALUE.unpack(value)[2])

    def _enter(self, flow: Flow, entry: Entry) -> None:
        if entry not in self._plan.entries(flow):
            return  # there was no room for another of its
        old = self._ways.get(entry.key)
        count = 0 if old is None else VALUE.unpack(old)[2]
        try:
            self._ways.put(entry.key, VALUE.pack(entry.end, time.monotonic_ns(), count))
            flow.due = 1
        except OSError:  # the map is full
            self.forget(flow)

    # ---- doors ----

    def _opened(self, program: Program, door: Door | None) -> None:
        if self._programs.get(program.id) is not program:
            if door is not None and self._hub is not None:
                self._hub.shut(door)
            return
        if door is not None:
            self._doors[program.id] = door
        self._plan.opened(program.id, None if door is None else door.end)
        for name in self._programs:
            self._see(name)

    def _see(self, name: str) -> None:
        program = self._programs[name]
        if not program.settling and self._plan.waits(name):
            program.settling = time.monotonic() + _PATIENCE
