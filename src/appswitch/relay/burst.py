"""The datagrams of conversations that are known and go on as they came: of interest is nothing but their key.

The rest was checked when the conversation began. Several that lie in a device one after the other go on as one batch,
which costs the receiver's kernel less than as many packets; a batch that a program sent goes on whole.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress

from appswitch.dns.forward import Stats
from appswitch.linux import device, vnet
from appswitch.linux.vnet import Unfinished
from appswitch.model.service import UDP

from . import batches, packets
from .across import Across
from .flows import Flow, Hop
from .hosts import Away
from .program import Program

#: First byte of a packet without IP options; headers of a packet with UDP, by the version of IP.
_PLAIN_V4, _V4, _V6 = 0x45, 20, 40
_UDP_HEADER = 8
#: Larger datagrams are not put together: to hold them costs more memory, and time for it, than it saves.
_JOINED = 2048
_LARGEST = 65507
#: Datagrams of a batch that cost about as much as one packet.
_AS_ONE = 8


class Burst:
    """What carries one program's packets; `hops` are its, as long as it is attached. `noted`: see Flow.due."""

    def __init__(
        self,
        program: Program,
        hops: dict[bytes, Hop],
        across: Across,
        stats: Stats,
        noted: Callable[[Flow, int], None],
    ) -> None:
        self._hops, self._across, self._stats, self._noted = hops, across, stats, noted
        self._kind = kind = program.kind
        self._before = before = device.BEFORE[kind]
        self._link = device.LINK[kind]
        self._has_header = before > self._link
        self._shortest = before + _V4 + _UDP_HEADER
        # Where is what, by the version of IP: reckoned once.
        self._key4, self._key6 = slice(before + 12, before + 24), slice(before + 8, before + 44)
        self._flags4, self._protocol4, self._protocol6 = before + 6, before + 9, before + 6
        # What stands before the packet if it is a usual one, and whether it can be put together with others.
        self._usual4 = self._usual(_V4, device.V4_HEADER)
        self._usual6 = self._usual(_V6, device.V6_HEADER)
        # What datagrams of a batch have in common: all but IPv4's identification and checksum, up to the addresses.
        self._alike4 = slice(0, before + 4), slice(before + 6, before + 10)
        self._alike6 = slice(0, before + 8), slice(0, 0)
        self._held: list[bytes] = []
        self._hop: Hop | None = None
        self._most = 0
        self._alike, self._mark = self._alike4, (b"", b"")

    def _usual(self, start: int, ethernet: bytes) -> dict[bytes, bool]:
        link = ethernet if self._link else b""
        if not self._has_header:
            return {link: False}
        left = Unfinished(start)
        return {vnet.pack(left, len(link)) + link: True, vnet.pack(vnet.FINISHED, len(link)) + link: False}

    def carry(self, frame: bytes, now: float, more: bool) -> int:
        """How many packets' work that was; 0: it must be looked at closely. `more` may come at once: see `flush`."""
        before = self._before
        if len(frame) < self._shortest:
            return 0
        first = frame[before]
        if first == _PLAIN_V4:
            at = self._flags4
            # UDP, and no fragment
            if frame[self._protocol4] != UDP or frame[at] & 0x3F or frame[at + 1]:
                return 0
            hop = self._hops.get(frame[self._key4])
            usual = self._usual4.get(frame[:before])
        elif first >> 4 == 6 and frame[self._protocol6] == UDP:
            hop = self._hops.get(frame[self._key6])
            usual = self._usual6.get(frame[:before])
        else:
            return 0
        if hop is None or hop.change is not None:
            return 0
        to, flow = hop.to, hop.flow
        if flow.until <= now:
            return 0
        if type(to) is Program:
            if to.kind != self._kind:
                return 0
            if flow.due:  # before it is there: whoever hears it may answer
                flow.due -= 1
                if not flow.due:
                    self._noted(flow, 0 if usual is None else len(frame) - before)
            if self._held and hop is self._hop and self._is_alike(frame):
                self._held.append(frame)
                if len(self._held) >= self._most:
                    self.flush()
                return 1
            if usual is None:
                return self._batch(frame, to, hop, now)
            flow.until = now + flow.idle
            if self._held:
                self.flush()
            if more and usual and self._hold(frame, hop):
                return 1
            self._stats.add("datagrams")
            try:
                os.write(to.fd, frame)
            except OSError:
                pass  # no room: lost
            return 1
        if usual is None or type(to) is not Away:
            return 0
        at = before + (_V4 if first == _PLAIN_V4 else _V6)
        if frame[at + 4 : at + 6] != (len(frame) - at).to_bytes(2, "big") or not self._across.is_there(to):
            return 0
        flow.until = now + flow.idle
        marked = frame[before + 1] if first == _PLAIN_V4 else (first & 15) << 4 | frame[before + 1] >> 4
        self._across.send(to, frame[at + _UDP_HEADER :], marked)
        return 1

    def _is_alike(self, frame: bytes) -> bool:
        one, other = self._alike
        return len(frame) == len(self._held[0]) and (frame[one], frame[other]) == self._mark

    def _hold(self, frame: bytes, hop: Hop) -> bool:
        """Keep the datagram until `flush`, for others that may come to be sent with it."""
        before = self._before
        v4 = frame[before] == _PLAIN_V4
        at = before + (_V4 if v4 else _V6)
        size = len(frame) - at - _UDP_HEADER
        total = frame[before + 2 : before + 4] if v4 else frame[before + 4 : before + 6]
        if not 0 < size <= _JOINED or int.from_bytes(total, "big") != len(frame) - (before if v4 else at):
            return False
        if int.from_bytes(frame[at + 4 : at + 6], "big") != len(frame) - at:
            return False
        self._held, self._hop, self._most = [frame], hop, min(vnet.MOST, _LARGEST // size)
        self._alike = one, other = self._alike4 if v4 else self._alike6
        self._mark = frame[one], frame[other]
        return True

    def flush(self) -> None:
        """Hand over what is held. Before anything else that the program has sent is."""
        held, hop = self._held, self._hop
        if not held or hop is None:
            return
        self._held, self._hop = [], None
        self._stats.add("datagrams", len(held))
        with suppress(OSError):  # no room: lost
            if len(held) == 1:
                os.write(hop.to.fd, held[0])
                return
            start = _V4 if held[0][self._before] == _PLAIN_V4 else _V6
            at = self._before + start
            left = Unfinished(start, len(held[0]) - at - _UDP_HEADER)
            parts = batches.joined(held, self._before, at)
            parts[0] = vnet.pack(left, self._link) + held[0][vnet.SIZE : self._before] + parts[0]
            os.writev(hop.to.fd, parts)

    def _batch(self, frame: bytes, to: Program, hop: Hop, now: float) -> int:
        """A batch that the program sent, to one that can take it whole."""
        before, link = self._before, self._link
        ethernet = device.V4_HEADER if frame[before] == _PLAIN_V4 else device.V6_HEADER
        if not self._has_header or (link and frame[before - link : before] != ethernet):
            return 0
        left = vnet.unpack(frame[: vnet.SIZE], link)
        start = _V4 if frame[before] == _PLAIN_V4 else _V6
        length = len(frame) - before - start
        if not left.segment or not packets.fits(left, start, length):
            return 0
        at = before + start
        if frame[at + 4 : at + 6] != length.to_bytes(2, "big"):
            return 0
        self.flush()
        count = -(-(length - _UDP_HEADER) // left.segment) or 1
        hop.flow.until = now + hop.flow.idle
        self._stats.add("datagrams", count)
        with suppress(OSError):
            os.write(to.fd, frame)
        return 1 + count // _AS_ONE
