"""Conversations with addresses outside the table, by sockets of the host's."""

from __future__ import annotations

import errno
import logging
import struct
import time
from collections.abc import Callable

from appswitch.dns.forward import Poller, Stats

from . import packets
from .flows import Change, Flows, Hop
from .outlets import Outlet, Outlets
from .packets import Packet, Reason
from .program import Program, Write

log = logging.getLogger("appswitch.relay")


class Leaving:
    """Shares the `flows` with Datagrams: `to` of its hops is an Outlet, `change` what comes back gets.

    `deliver` writes a packet to a program, `refuse` an ICMP error about one of its packets.
    """

    def __init__(
        self,
        poller: Poller,
        flows: Flows,
        stats: Stats,
        deliver: Write,
        refuse: Callable[[Program, Packet, Reason], None],
    ) -> None:
        self._flows, self._stats, self._deliver, self._refuse = flows, stats, deliver, refuse
        self._outlets = Outlets(poller, self._silent)
        self._hops: dict[Outlet, Hop] = {}

    def begin(self, program: Program, packet: Packet, key: bytes, now: float) -> Hop | None:
        """A conversation begins; None when it cannot, which the program has been told."""
        who = program.identity
        assert who is not None
        way: list[Hop] = []

        def heard(payload: bytes | None, code: int) -> None:
            self._heard(program, way[0], payload, code)

        try:
            outlet = self._outlets.open(program.id, who.uid, packets.text(packet.destination), packet.port, heard)
        except OSError as error:
            self._stats.add("refused")
            self._refuse(program, packet, Reason.NOBODY)
            if error.errno in (errno.EMFILE, errno.ENFILE):
                log.error("no descriptor is left (%s): datagrams do not leave until some are closed", error.strerror)
            return None
        flow = self._flows.begin(program.id, now)
        source_port, port = struct.unpack_from("!HH", packet.raw, packet.at)
        hop = self._flows.lead(
            flow, program.id, key, outlet, Change(packet.destination, port, packet.source, source_port)
        )
        way.append(hop)
        self._hops[outlet] = hop
        self._stats.add("egress")
        return hop

    def send(self, program: Program, packet: Packet, hop: Hop, now: float) -> None:
        """A program's datagram goes out."""
        for payload in packet.payloads:
            self._stats.add("datagrams")
            code = self._outlets.send(hop.to, payload, packets.traffic_class(packet), now)
            if code:
                self._complain(program, hop, code)
                return

    def _heard(self, program: Program, hop: Hop, payload: bytes | None, code: int) -> None:
        """The host's network has answered."""
        if payload is None:
            self._complain(program, hop, code)
            return
        flow, back = hop.flow, hop.change
        assert back is not None
        flow.until = time.monotonic() + flow.idle
        answer = packets.udp(back.source, back.source_port, back.destination, back.port, payload, summed=False)
        if answer is not None:
            self._stats.add("datagrams")
            self._deliver(program, answer, packets.unsummed(answer))

    def _complain(self, program: Program, hop: Hop, code: int) -> None:
        """Tell the program what the host's network said of its datagram, or a former one."""
        back = hop.change
        assert back is not None
        sent = packets.udp(back.destination, back.port, back.source, back.source_port, b"")
        packet = packets.parse(sent) if sent is not None else None
        if packet is not None and code != errno.EMSGSIZE:
            self._refuse(program, packet, Reason.PORT if code == errno.ECONNREFUSED else Reason.NOBODY)

    def ended(self, to: object) -> None:
        """A hop was forgotten."""
        if isinstance(to, Outlet):
            self._hops.pop(to, None)
            self._outlets.close(to)

    def _silent(self, outlet: Outlet) -> None:
        hop = self._hops.get(outlet)
        if hop is not None:
            self._flows.drop(hop.flow)

    def close(self) -> None:
        """Close all of the host's sockets."""
        for outlet in list(self._hops):
            self._silent(outlet)

    def timeout(self) -> float | None:
        """Seconds until `expire` must be called; None when nothing waits."""
        return self._outlets.timeout()

    def expire(self) -> None:
        """Close what has been silent for too long."""
        self._outlets.expire()
