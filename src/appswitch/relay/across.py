"""Conversations between programs of different hosts: relay to relay, both of which ask policy."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING

from appswitch.header import datagram
from appswitch.header.datagram import Datagram
from appswitch.model.address import is_loopback, unpack
from appswitch.model.identity import behind
from appswitch.model.policy import check
from appswitch.model.resolve import Reach, arrives
from appswitch.model.service import Service
from appswitch.table.codec import service_key

from . import packets
from .flows import Change, Flows, Hop, free_port
from .hosts import Away, Hosts
from .packets import Packet, Reason, packed
from .program import Program

if TYPE_CHECKING:
    from appswitch.dns.forward import Stats
    from appswitch.table.store import Table

#: Whose the hops of other hosts' datagrams are: their keys begin with the life of the relay that sends them.
OTHERS = "@"
#: Conversations that one other host may have begun at a time, and seconds for which a denial is remembered.
_MOST, _DENIED = 16384, 1.0
_REASONS = {datagram.NOBODY: Reason.PORT, datagram.DENIED: Reason.POLICY}
_KINDS = {Reason.PORT: datagram.NOBODY, Reason.NOBODY: datagram.NOBODY, Reason.POLICY: datagram.DENIED}


class Across:
    """Shares the `flows` with Datagrams. `deliver` writes a packet to a program, `refuse` an ICMP error about one."""

    def __init__(
        self,
        flows: Flows,
        hosts: Hosts,
        table: Table,
        stats: Stats,
        programs: Callable[[bytes], Iterable[Program]],
        deliver: Callable[[Program, bytes], object],
        refuse: Callable[[Program, Packet, Reason], None],
        random: Random,
    ) -> None:
        self._flows, self._hosts, self._table, self._stats = flows, hosts, table, stats
        self._programs, self._deliver, self._refuse, self._random = programs, deliver, refuse, random

    # ---- of a program here ----

    def begin(self, program: Program, packet: Packet, key: bytes, row: Service, reach: Reach, now: float) -> Hop:
        """A conversation with an instance on another host."""
        who = program.identity
        assert who is not None
        source_port, port = struct.unpack_from("!HH", packet.raw, packet.at)
        flow = self._flows.begin(program.id, now)
        others = self._flows.hops(OTHERS)

        def back(shown: int) -> bytes:
            return row.epoch + _key(reach.destination, port, reach.source, shown)

        shown_port = free_port(source_port, lambda shown: back(shown) in others, self._random)
        away = Away(
            row.real,
            row.epoch,
            datagram.DATA,
            row.instance,
            reach.source,
            shown_port,
            reach.destination,
            port,
            who.tags,
            service_key(row),
            self._table.version(),
        )
        flow.peer = away
        hop = self._flows.lead(flow, program.id, key, away)
        self._flows.lead(
            flow, OTHERS, back(shown_port), program, Change(packet.destination, port, packet.source, source_port)
        )
        self._stats.add("conversations")
        return hop

    def is_there(self, away: Away) -> bool:
        """Is the instance at the other end still what the table tells of?"""
        if not away.row:
            return True
        version = self._table.version()
        if version != away.version:
            row = self._table.service(away.row)
            if row is None or row.state != "up" or (row.epoch, row.real) != (away.life, away.address):
                return False
            away.version = version
        return True

    def send(self, away: Away, payload: bytes, traffic_class: int) -> None:
        """A program's datagram to the other end."""
        if not self._hosts.send(away, payload, traffic_class):
            self._stats.add("udp_too_long")

    def complain(self, away: Away, reason: Reason) -> None:
        """The program here did not take what came from there."""
        if away.kind == datagram.ANSWER:
            self._hosts.send(away, b"", kind=_KINDS[reason])

    # ---- from other hosts ----

    def arrived(self, found: Datagram, address: tuple[str, int], now: float) -> None:
        """A datagram that another host of the cluster has sent."""
        key = found.sender + _key(found.source, found.source_port, found.destination, found.port)
        hop = self._flows.find(OTHERS, key, now)
        if found.kind in _REASONS:
            if hop is not None:
                self._tell(hop, _REASONS[found.kind])
            return
        if hop is None:
            hop = self._open(found, address, key, now) if found.kind == datagram.DATA else None
            if hop is None:
                return
        elif isinstance(hop.flow.peer, Away):
            hop.flow.peer.address = address
        change = hop.change
        if change is None:
            self._hosts.send(hop.flow.peer, b"", kind=datagram.DENIED)
            return
        packet = packets.udp(
            change.source,
            change.source_port,
            change.destination,
            change.port,
            found.payload,
            found.traffic_class,
            summed=False,
        )
        if packet is not None:
            self._stats.add("datagrams")
            self._deliver(hop.to, packet)

    def _open(self, found: Datagram, address: tuple[str, int], key: bytes, now: float) -> Hop | None:
        """A conversation that a client elsewhere begins; None when it may not, which its host is told."""
        back = Away(
            address,
            found.sender,
            datagram.ANSWER,
            0,
            found.destination,
            found.port,
            found.source,
            found.source_port,
            (),
        )
        program, reason = self._server(found)
        owner = OTHERS + found.sender.hex()
        if program is None:
            if reason is Reason.POLICY:  # remembered for a while, so that it is not written down for each datagram
                flow = self._flows.begin(owner, now, _DENIED, _MOST)
                flow.peer = back
                return self._flows.lead(flow, OTHERS, key, None)
            self._hosts.send(back, b"", kind=_KINDS[reason])
            return None
        source, here = packed(found.source), program.local(found.destination)
        taken = self._flows.hops(program.id)

        def answer(shown: int) -> bytes:
            return here + source + struct.pack("!HH", found.port, shown)

        shown_port = free_port(found.source_port, lambda shown: answer(shown) in taken, self._random)
        flow = self._flows.begin(owner, now, most=_MOST)
        flow.peer = back
        hop = self._flows.lead(flow, OTHERS, key, program, Change(source, shown_port, here, found.port))
        self._flows.lead(flow, program.id, answer(shown_port), back)
        return hop

    def _server(self, found: Datagram) -> tuple[Program | None, Reason]:
        """The program that a client's datagram is for, if it may have it; else why not."""
        number = str(found.instance >> 24)
        program = next((each for each in self._programs(found.destination) if each.id == number), None)
        if program is None or program.identity is None or is_loopback(found.destination):
            return None, Reason.PORT
        row = program.row(found.port, found.destination)
        if not arrives(row, found.source, found.destination, found.port):
            self._stats.add("udp_misdirected")
            return None, Reason.PORT
        verdict = check(found.tags, program.identity.tags)
        if not verdict.allowed:
            self._stats.add("denied")
            names = self._table.names_of(behind(found.source))
            with suppress(Exception):  # a table that cannot be written is no reason to let anything pass
                self._table.add_denial(
                    client=names[0] if names else unpack(found.source),
                    program=0,  # none of this host
                    tags=found.tags,
                    service=program.identity.label,
                    destination=unpack(found.destination),
                    port=found.port,
                    rule=verdict.rule,
                )
            return None, Reason.POLICY
        here = program.local(found.destination)
        if not program.takes(packed(found.source), found.source_port, here, found.port):
            return None, Reason.PORT
        return program, Reason.PORT

    def _tell(self, hop: Hop, reason: Reason) -> None:
        """The other end has refused what a program here sent."""
        back = hop.change
        assert back is not None
        sent = packets.udp(back.destination, back.port, back.source, back.source_port, b"")
        packet = packets.parse(sent) if sent is not None else None
        if packet is not None:
            self._refuse(hop.to, packet, reason)
        self._flows.drop(hop.flow)


def _key(source: bytes, source_port: int, destination: bytes, port: int) -> bytes:
    return source + destination + struct.pack("!HH", source_port, port)
