"""Conversations between programs of different hosts: relay to relay, both of which ask policy."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import islice
from random import Random
from typing import TYPE_CHECKING

from appswitch.header import datagram
from appswitch.header.datagram import Datagram
from appswitch.linux import device
from appswitch.model.address import is_loopback, unpack
from appswitch.model.identity import behind
from appswitch.model.policy import check
from appswitch.model.resolve import Reach, arrives
from appswitch.model.service import UDP, Place, Service
from appswitch.table.codec import service_key

from . import packets
from .asking import QUESTION
from .flows import Change, Flows, Hop, free_port
from .hosts import Away, Hosts
from .listening import ABOUT_TCP, listens
from .packets import Packet, Reason, packed
from .program import Program, Write

if TYPE_CHECKING:
    from appswitch.dns.forward import Stats
    from appswitch.table.store import Table

#: Whose the hops of other hosts' datagrams are: their keys begin with the life of the relay that sends them.
OTHERS = "@"
#: Conversations that one other host may have begun at a time, and seconds for which a denial is remembered.
_MOST, DENIED = 16384, 1.0
#: Programs of one virtual IP that are asked whether they take a datagram.
ASKED = 256
_WHOLE_V6 = device.MTU - 40 - 8
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
        deliver: Write,
        refuse: Callable[[Program, Packet, Reason], None],
        random: Random,
    ) -> None:
        self._flows, self._hosts, self._table, self._stats = flows, hosts, table, stats
        self._programs, self._deliver, self._refuse, self._random = programs, deliver, refuse, random
        #: Called with what other hosts say to questions (`asking`).
        self.told: Callable[[Datagram, float], None] = lambda found, now: None

    # ---- of a program here ----

    def begin(self, program: Program, packet: Packet, key: bytes, row: Service, reach: Reach, now: float) -> Hop:
        """A conversation with an instance on another host that the table tells of."""
        place = Place(row.real, row.epoch)
        return self.lead(
            program, packet, key, place, row.instance, reach.source, reach.destination, now, service_key(row)
        )

    def lead(
        self,
        program: Program,
        packet: Packet,
        key: bytes,
        place: Place,
        instance: int,
        source: bytes,
        destination: bytes,
        now: float,
        row: bytes = b"",
        host: str = "",
    ) -> Hop:
        """A conversation with an instance at this place; `row` or `host`: see Away."""
        who = program.identity
        assert who is not None
        source_port, port = struct.unpack_from("!HH", packet.raw, packet.at)
        flow = self._flows.begin(program.id, now)
        others = self._flows.hops(OTHERS)

        def back(shown: int) -> bytes:
            return place.life + _key(destination, port, source, shown)

        shown_port = free_port(source_port, lambda shown: back(shown) in others, self._random)
        away = Away(
            *place,
            datagram.DATA,
            instance,
            source,
            shown_port,
            destination,
            port,
            who.tags,
            row,
            host,
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
        if not away.row and not away.host:
            return True
        version = self._table.version()
        if version != away.version:
            place: Place | None = None
            if away.host:
                place = self._table.relay(away.host)
            elif (row := self._table.service(away.row)) is not None and row.state == "up":
                place = Place(row.real, row.epoch)
            if place != (away.address, away.life):
                return False
            away.version = version
        return True

    def send(self, away: Away, payload: bytes, traffic_class: int) -> None:
        """A program's datagram to the other end."""
        self._hosts.send(away, payload, traffic_class)

    def complain(self, away: Away, reason: Reason) -> None:
        """The program here did not take what came from there."""
        if away.kind == datagram.ANSWER:
            self._hosts.send(away, b"", kind=_KINDS[reason])

    # ---- from other hosts ----

    def arrived(self, found: Datagram, address: tuple[str, int], now: float) -> None:
        """A datagram that another host of the cluster has sent."""
        if found.kind == datagram.ASK:
            self._answer(found, address)
            return
        if found.kind == datagram.TELL:
            self.told(found, now)
            return
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
        # As a kernel does: what is longer than the device's packets goes in fragments, summed.
        cut = len(change.source) == 16 and len(found.payload) > _WHOLE_V6
        packet = packets.udp(
            change.source,
            change.source_port,
            change.destination,
            change.port,
            found.payload,
            found.traffic_class,
            summed=cut,
        )
        if packet is None:  # sent by IPv6, which has room for more, and taken by IPv4
            self._stats.add("udp_too_long")
            return
        self._stats.add("datagrams")
        if cut:
            for each in packets.halves(packet, self._random.getrandbits(32)):
                self._deliver(hop.to, each)
        else:
            self._deliver(hop.to, packet, packets.unsummed(packet))

    def _open(self, found: Datagram, address: tuple[str, int], key: bytes, now: float) -> Hop | None:
        """A conversation that a client elsewhere begins; None when it may not, which its host is told."""
        back = _back(found, address, datagram.ANSWER)
        program, reason = self._server(found)
        owner = OTHERS + found.sender.hex()
        if program is None:
            if reason is Reason.POLICY:  # remembered for a while, so that it is not written down for each datagram
                flow = self._flows.begin(owner, now, DENIED, _MOST)
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
        if program is None:
            return None, Reason.PORT
        refused = self._refuses(program, found)
        if refused is None:
            return program, Reason.PORT
        reason, rule = refused
        if reason is Reason.NOBODY:
            self._stats.add("udp_misdirected")
        elif reason is Reason.POLICY:
            self._note(program, found, rule)
        return None, reason

    def _refuses(self, program: Program, found: Datagram) -> tuple[Reason, str] | None:
        """Why this program does not get a client's datagram (NOBODY: not for it), and the rule; None: it does."""
        if program.identity is None:
            return Reason.NOBODY, ""
        row = program.row(found.port, found.destination)
        if any(map(is_loopback, (found.source, found.destination))):
            return Reason.NOBODY, ""  # neither leaves its host
        if not arrives(row, found.source, found.destination, found.port):
            return Reason.NOBODY, ""
        here = program.local(found.destination)
        if not program.takes(packed(found.source), found.source_port, here, found.port):
            return Reason.PORT, ""
        verdict = check(found.tags, program.identity.tags)
        return None if verdict.allowed else (Reason.POLICY, verdict.rule)

    def _note(self, program: Program, found: Datagram, rule: str) -> None:
        """Policy forbids this."""
        assert program.identity is not None
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
                rule=rule,
            )

    def _answer(self, found: Datagram, address: tuple[str, int]) -> None:
        """Another host asks who takes such datagrams."""
        back = _back(found, address, datagram.TELL)
        if len(found.payload) == ABOUT_TCP:
            there = listens(self._table, found.destination, found.port)
            self._hosts.send(back, found.payload + bytes([datagram.DATA if there else datagram.NOBODY]))
            return
        if len(found.payload) != QUESTION.size:
            return
        said = [(each, self._refuses(each, found)) for each in islice(self._programs(found.destination), ASKED)]
        takers = [program.row(found.port, found.destination) for program, refused in said if refused is None]
        # Without those whose claim to the address is barred (`table.claims`).
        rows = self._table.lookup(behind(found.destination), found.port, UDP, more=takers)[0]
        takers = [row for row in rows if row in takers]
        denied = [(each, refused[1]) for each, refused in said if refused and refused[0] is Reason.POLICY]
        verdict = datagram.NOBODY
        if takers:
            verdict, back.instance = datagram.DATA, self._random.choice(takers).instance
        elif denied:
            verdict = datagram.DENIED
            self._note(denied[0][0], found, denied[0][1])
        self._hosts.send(back, found.payload + bytes([verdict]))

    def _tell(self, hop: Hop, reason: Reason) -> None:
        """The other end has refused what a program here sent."""
        back = hop.change
        assert back is not None
        sent = packets.udp(back.destination, back.port, back.source, back.source_port, b"")
        packet = packets.parse(sent) if sent is not None else None
        if packet is not None:
            self._refuse(hop.to, packet, reason)
        self._flows.drop(hop.flow)


def _back(found: Datagram, address: tuple[str, int], kind: int) -> Away:
    """The way back to who sent this."""
    return Away(
        address, found.sender, kind, 0, found.destination, found.port, found.source, found.source_port, ()
    )


def _key(source: bytes, source_port: int, destination: bytes, port: int) -> bytes:
    return source + destination + struct.pack("!HH", source_port, port)
