"""UDP: which way a program's datagram goes (resolve → policy → pick, once for a conversation), and back.

Nothing is trapped: sockets are native, and what they send arrives here as packets. A datagram for a program of this
host is written into that one's device as it is; its source is a virtual address already.
"""

from __future__ import annotations

import logging
import random
import struct
import time
from typing import NamedTuple

from appswitch.dns.forward import Poller, Stats
from appswitch.header.datagram import Datagram
from appswitch.model import balance
from appswitch.model.address import is_any, is_loopback, is_multicast, unpack
from appswitch.model.egress import Nobody, Outside, Virtual, leave
from appswitch.model.identity import behind
from appswitch.model.resolve import Decision, Deny, Egress, Reach, Refuse, resolve, where
from appswitch.model.service import UDP, Place, Service
from appswitch.table.store import Table

from . import packets
from .across import ASKED, DENIED, Across
from .asking import Asking, Question
from .bound import Bound
from .burst import Burst
from .flows import Change, Flows, Hop, free_port
from .hosts import Away, Here, Hosts
from .leaving import Leaving
from .listening import ABOUT_TCP, Listening
from .offload import ESTABLISHED, Offload
from .oneself import meant
from .packets import Packet, Reason
from .program import Program, Write
from .readdress import complaint, readdressed
from .sharing import Sharing

log = logging.getLogger("appswitch.relay")

_FRAGMENTS = 8
_TURNS = 65536


class _Refused(NamedTuple):
    """The end of a way that leads nowhere."""

    reason: Reason


class Datagrams:
    """All programs' conversations. `write` delivers a packet to a program's namespace."""

    def __init__(
        self, poller: Poller, table: Table, stats: Stats, virtual_range: str, run_dir: str, write: Write
    ) -> None:
        self._table, self._stats, self._write = table, stats, write
        self._offload = Offload(poller, stats)
        self._flows = Flows(
            lambda to: self._leaving.ended(to), last_seen=self._offload.last_seen, forgotten=self._offload.forget
        )
        self._leaving = Leaving(poller, self._flows, stats, write, self._refuse)
        self._hosts = Hosts(poller, stats, lambda found, at: self._across.arrived(found, at, time.monotonic()))
        self._listening = Listening(self._hosts, table, stats)
        self._sharing = Sharing(run_dir)
        self._bound = Bound(
            poller,
            table,
            run_dir,
            self._hosts,
            self._sharing,
            lambda program, port: self._flows.port_closed(program.id, port),
            self._listening.ask,
        )
        self._under: dict[bytes, list[Program]] = {}
        self._bursts: dict[str, Burst] = {}
        self._virtual = Virtual(virtual_range)
        self._hosts.renewed = self._place
        self._turns: dict[tuple[bytes, int], int] = {}
        self._random = random.Random()
        self._across = Across(
            self._flows,
            self._hosts,
            table,
            stats,
            lambda address: self._under.get(behind(address), ()),
            write,
            self._refuse,
            self._random,
        )
        self._asking = Asking(self._hosts, table, stats, self._found, self._nobody)
        self._across.told = self._told

    def _told(self, said: Datagram, now: float) -> None:
        if len(said.payload) == ABOUT_TCP + 1:
            self._listening.told(said)
        else:
            self._asking.told(said, now)

    def join(self, here: Here) -> None:
        """This host's place in its cluster, at the start and whenever it changes."""
        self._hosts.join(here)
        self._place()

    def _place(self) -> None:
        self._bound.place()
        if self._table.relay("") != self._hosts.place:
            self._table.set_relay("", self._hosts.place)

    def attach(self, program: Program) -> None:
        """Carry the program's datagrams, and those that are for it."""
        if program.identity is not None:
            self._under.setdefault(program.identity.vip, []).append(program)
            self._bursts[program.id] = Burst(
                program, self._flows.hops(program.id), self._across, self._stats, self._offload.noted
            )
            self._sharing.attach(program)
            self._bound.attach(program)
            self._offload.attach(program)

    def detach(self, program: Program) -> None:
        """It has ended: nobody is held to it. Before its descriptors are closed."""
        self._bound.detach(program)
        self._sharing.detach(program)
        self._asking.leave(program)
        self._bursts.pop(program.id, None)
        self._flows.leave(program.id)
        self._offload.detach(program)
        program.fragments.clear()
        if program.identity is not None:
            under = self._under.get(program.identity.vip, [])
            if program in under:
                under.remove(program)
            if not under:
                self._under.pop(program.identity.vip, None)

    def close(self) -> None:
        """Close the host's sockets."""
        self._leaving.close()
        self._bound.close()
        self._hosts.close()
        self._offload.close()

    def timeout(self) -> float | None:
        """Seconds until `expire` must be called; None when nothing waits."""
        asking = self._asking.timeout(time.monotonic())
        timers = (self._leaving.timeout(), self._bound.timeout(), asking, self._hosts.timeout())
        return min((timer for timer in timers if timer is not None), default=None)

    def expire(self) -> None:
        """Do what is due."""
        self._leaving.expire()
        self._bound.expire()
        self._asking.expire(time.monotonic())
        self._hosts.expire()

    # ---- what programs send ----

    def burst(self, program: Program) -> Burst | None:
        """What carries this program's next packets where that is quick."""
        return self._bursts.get(program.id)

    def settle(self, program: Program) -> None:
        """All that this program has sent so far has gone its way."""
        self._offload.settle(program)

    def carry(self, program: Program, packet: Packet) -> bool:
        """A UDP packet of a program's: it goes its way, or the program is told why not. True if that took long."""
        now = time.monotonic()
        key = packets.key(packet)
        if key is None:
            begun = program.fragments.get(packets.fragment(packet))
            if begun is not None:
                self._pass(program, packet, *begun, now=now)
            return False
        hop = self._flows.find(program.id, key, now)
        if hop is not None and isinstance(hop.to, Away) and not self._across.is_there(hop.to):
            self._flows.drop(hop.flow)
            hop = None
        fresh = hop is None
        if hop is None:
            hop = self._open(program, packet, key, now)
        if hop is not None:
            whole = packets.Whole()
            if packet.partial:
                while len(program.fragments) >= _FRAGMENTS:
                    del program.fragments[next(iter(program.fragments))]
                program.fragments[packets.fragment(packet)] = hop, whole
            self._pass(program, packet, hop, whole, now)
        return fresh

    def _pass(self, program: Program, packet: Packet, hop: Hop, whole: packets.Whole, now: float) -> None:
        """`whole`: of a fragment, what has come of its datagram."""
        to = hop.to
        if isinstance(to, Program):
            self._stats.add("datagrams", len(packet.payloads) or 1)
            self._write(to, packet.raw if hop.change is None else readdressed(packet, hop.change), packet.left)
        elif isinstance(to, _Refused):
            self._refuse(program, packet, to.reason)
        elif isinstance(to, Away):
            payloads = packet.payloads
            if packet.partial and (payload := whole.add(packet)) is not None:
                payloads = [payload]
            for payload in payloads:
                self._across.send(to, payload, packets.traffic_class(packet))
        else:
            self._leaving.send(program, packet, hop, now)

    def _refuse(self, program: Program, packet: Packet, reason: Reason) -> None:
        answer = packets.unreachable(packet, reason)
        if answer is not None:
            self._write(program, answer)

    # ---- a conversation begins ----

    def _open(self, program: Program, packet: Packet, key: bytes, now: float) -> Hop | None:
        """Decide as connect() does (trap.calls.connect); None when the program has been told that nobody is there."""
        who = program.identity
        assert who is not None
        if self._asking.holds(program, key, packet):
            return None
        source_port, port = struct.unpack_from("!HH", packet.raw, packet.at)
        destination = packets.stored(packet.destination)
        vip, shown = where(who, destination)
        own, real = self._sharing.is_own(program, vip), port
        if own:
            others, known = self._under.get(vip, ()), True
            rows, real = self._sharing.rows(program, shown, source_port, port, others)
        else:
            rows, known = self._rows(program, destination, source_port, port)
        decision = resolve(who, destination, port, rows, known=known)
        if isinstance(decision, Reach):
            instances = decision.instances
            if len(instances) > 1:
                instances = balance.order(instances, self._turn(instances[0].vip, port), self._random)
            for row in instances:
                if row.remote:
                    return self._across.begin(program, packet, key, row, decision, now)
                server = self._program(row)
                if server is not None:
                    return self._join(program, packet, key, server, decision, now, real if own else None)
        outcome: Decision | Outside | Nobody = decision
        if isinstance(decision, Egress):
            outcome = leave(destination, self._virtual, denied=not program.may_leave)
        if isinstance(outcome, Deny):
            return self._deny(program, packet, key, outcome, now)
        if isinstance(outcome, Refuse) and vip != who.vip:
            source = who.source_for(shown)
            if self._asking.begin(program, packet, key, vip, source, shown, (source_port, port), now):
                return None
        here = is_loopback(destination) or is_any(destination) or is_multicast(destination)
        if isinstance(outcome, Outside) and not here:
            return self._leaving.begin(program, packet, key, now)
        self._stats.add("refused")
        self._refuse(program, packet, Reason.NOBODY if isinstance(outcome, Nobody | Outside) else Reason.PORT)
        return None

    def _rows(
        self, program: Program, destination: bytes, source_port: int, port: int
    ) -> tuple[list[Service], bool]:
        """Who takes such a datagram, on any host, and whether anybody has the address. Here the kernel is asked."""
        who = program.identity
        assert who is not None
        vip, shown = where(who, destination)
        source = packets.packed(shown if vip == who.vip else who.source_for(shown))
        here = [
            other.row(port, shown)
            for other in self._under.get(vip, ())[:ASKED]
            if other.takes(source, source_port, other.local(shown), port)
        ]
        rows, known = self._table.lookup(vip, port, UDP, client=who, more=here)
        return [row for row in rows if not row.cookie and (not row.remote or (row.epoch and row.real[0]))], known

    def _program(self, row: Service) -> Program | None:
        return next((other for other in self._under.get(row.vip, ()) if other.id == str(row.program)), None)

    def _turn(self, vip: bytes, port: int) -> int:
        if len(self._turns) >= _TURNS:
            self._turns.clear()
        turn = self._turns[vip, port] = self._turns.get((vip, port), -1) + 1
        return turn

    def _join(
        self,
        program: Program,
        packet: Packet,
        key: bytes,
        server: Program,
        reach: Reach,
        now: float,
        own: int | None = None,
    ) -> Hop:
        """A conversation of two programs of this host; `own`: of one virtual IP, and the server's true port."""
        source_port, asked = struct.unpack_from("!HH", packet.raw, packet.at)
        port = asked if own is None else own
        source, destination = packets.packed(reach.source), server.local(reach.destination)
        if own is not None and (server is program or packets.stored(packet.source) in meant(server.row(0, b"").vip)):
            source = packet.source  # as over loopback
        flow = self._flows.begin(program.id, now)
        there = self._flows.hops(server.id)

        def back(shown: int) -> bytes:
            return destination + source + struct.pack("!HH", port, shown)

        # Another program of the same virtual IP may talk to this one from this very port: as in a translator.
        def taken(shown: int) -> bool:
            return back(shown) in there or (server is program and back(shown) == key)

        if own is not None and server is not program:
            shown_port = self._sharing.shown(program, source_port, server, source, taken)
        else:
            shown_port = free_port(source_port, taken, self._random)
        change = Change(source, shown_port, destination, port)
        if change == (packet.source, source_port, packet.destination, asked):
            hop = self._flows.lead(flow, program.id, key, server)
            self._flows.lead(flow, server.id, back(shown_port), program)
            if own is None and self._offload.is_for(program) and self._offload.is_for(server):
                flow.due = ESTABLISHED
        else:
            reverse = Change(packet.destination, asked, packet.source, source_port)
            hop = self._flows.lead(flow, program.id, key, server, change)
            self._flows.lead(flow, server.id, back(shown_port), program, reverse)
        self._stats.add("conversations")
        return hop

    def _deny(self, program: Program, packet: Packet, key: bytes, denial: Deny, now: float) -> Hop:
        who = program.identity
        assert who is not None
        self._stats.add("denied")
        try:
            self._table.add_denial(
                client=who.label,
                program=int(program.id),
                tags=who.tags,
                service=denial.service,
                destination=unpack(packets.stored(packet.destination)),
                port=packet.port,
                rule=denial.rule,
            )
        except Exception as error:  # a table that cannot be written is no reason to let anything pass
            log.error("a denial could not be written down: %s", error)
        return self._denied(program, key, now)

    def _denied(self, program: Program, key: bytes, now: float) -> Hop:
        """For a while: so often a program is asked about and written down that goes on."""
        flow = self._flows.begin(program.id, now, DENIED)
        return self._flows.lead(flow, program.id, key, _Refused(Reason.POLICY))

    def _found(self, question: Question, host: str, place: Place, instance: int, now: float) -> None:
        """Another host has said who takes what waits."""
        program, key, first = question.program, question.key, question.packets[0]
        hop = self._across.lead(
            program, first, key, place, instance, question.source, question.destination, now, host=host
        )
        for packet in question.packets:
            self._pass(program, packet, hop, packets.Whole(), now)

    def _nobody(self, question: Question, reason: Reason, now: float) -> None:
        """Nobody takes it, or may."""
        if reason is Reason.POLICY:
            self._stats.add("denied")
            self._denied(question.program, question.key, now)
        else:
            self._stats.add("refused")
        for packet in question.packets:
            self._refuse(question.program, packet, reason)

    # ---- errors ----

    def complain(self, program: Program, packet: Packet) -> None:
        """The kernel of the program's namespace says that a datagram found nobody: whoever sent it is to know."""
        found = complaint(packet)
        if found is None:
            return
        key = found.destination + found.source + struct.pack("!HH", found.port, found.source_port)
        hop = self._flows.find(program.id, key, time.monotonic())
        if hop is None:
            return
        if isinstance(hop.to, Program):
            # As an answer would go back, so the datagram came.
            back = hop.change or Change(found.destination, found.port, found.source, found.source_port)
            sent = packets.udp(back.destination, back.port, back.source, back.source_port, found.payload)
            complained = packets.parse(sent) if sent is not None else None
            if complained is not None:
                self._refuse(hop.to, complained, found.reason)
        elif isinstance(hop.to, Away):
            self._across.complain(hop.to, found.reason)
        if found.reason is Reason.PORT:
            self._flows.drop(hop.flow)  # the next datagram finds another instance, if there is one

