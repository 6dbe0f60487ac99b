"""Rules (ip-rule(8)) by which some datagrams to a namespace's own addresses leave it by its device, as others' do.

The kernel asks its rules in the order of their preferences, the first of all for the addresses of its own: that one
makes room while others are set. `TABLE` leads each address to the device; the program's own process fills it
(`routes`), and who has a NETLINK_ROUTE socket of the namespace may set rules at any time (`Rules`).
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

from .netlink import _ACK, _CREATE, _HEADER, Message, attribute

TABLE = 77
_PREFERENCE, _LOCAL_FIRST, _LOCAL_LATER = 50, 0, 100
_RTM_NEWROUTE, _RTM_NEWRULE, _RTM_DELRULE = 24, 32, 33
_FRA_DST, _FRA_IIFNAME, _FRA_PRIORITY, _FRA_IP_PROTO, _FRA_DPORT_RANGE = 1, 3, 6, 22, 24
_RTA_DST, _RTA_OIF, _RTA_PREFSRC = 1, 4, 7
_FR_ACT_TO_TBL, _RT_TABLE_LOCAL, _RTPROT_BOOT, _RT_SCOPE_LINK, _RTN_UNICAST = 1, 255, 3, 253, 1
_NLMSG_ERROR = 2
#: Requests in a datagram, whose answers the socket has room for.
_AT_ONCE = 64
#: Rules of one family that may have been left: more are somebody else's, who may set them as fast as they go.
_LEFT = 1024
#: Datagrams that are not answers: there are none, unless somebody sends them.
_STRANGE = 16
#: Answers that came after a request was given up.
_LATE = _AT_ONCE + _STRANGE
#: What says that it is as it was to become.
_DONE = (errno.EEXIST, errno.ENOENT)


class Rule(NamedTuple):
    """UDP that the namespace sends to this address of its own (packed) and these ports leaves by the device."""

    destination: bytes
    first: int
    last: int


def routes(index: int, addresses: Iterable[str]) -> list[Message]:
    """The routes of `TABLE`: each address by this device, from itself, as over loopback."""
    made = []
    for address in addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        packed = socket.inet_pton(family, address)
        scope = _RT_SCOPE_LINK if family == socket.AF_INET else 0
        body = struct.pack(
            "=BBBBBBBBI", family, len(packed) * 8, 0, 0, TABLE, _RTPROT_BOOT, scope, _RTN_UNICAST, 0
        )
        body += attribute(_RTA_DST, packed) + attribute(_RTA_OIF, struct.pack("=I", index))
        made.append((_RTM_NEWROUTE, _CREATE, body + attribute(_RTA_PREFSRC, packed)))
    return made


def _message(
    family: int, preference: int, table: int, more: bytes = b"", bits: int = 0, *, delete: bool = False
) -> Message:
    body = struct.pack("=BBBBBBBBI", family, bits, 0, 0, table, 0, 0, _FR_ACT_TO_TBL, 0)
    body += attribute(_FRA_PRIORITY, struct.pack("=I", preference)) + more
    return (_RTM_DELRULE, _ACK, body) if delete else (_RTM_NEWRULE, _CREATE, body)


def rule_message(rule: Rule, *, delete: bool = False) -> Message:
    """Set one rule, or take it away."""
    more = attribute(_FRA_DST, rule.destination) + attribute(_FRA_IIFNAME, b"lo\0")
    more += attribute(_FRA_IP_PROTO, bytes([socket.IPPROTO_UDP]))
    more += attribute(_FRA_DPORT_RANGE, struct.pack("=HH", rule.first, rule.last))
    return _message(_family(rule), _PREFERENCE, TABLE, more, len(rule.destination) * 8, delete=delete)


def any_rule_message(family: int) -> Message:
    """Take one rule away, whatever it says; ENOENT when there is none."""
    return _message(family, _PREFERENCE, 0, delete=True)


def room_messages(family: int, *, wanted: bool) -> list[Message]:
    """Have the namespace's own addresses come later, or first as ever; they are never without a rule."""
    now, then = (_LOCAL_LATER, _LOCAL_FIRST) if wanted else (_LOCAL_FIRST, _LOCAL_LATER)
    return [
        _message(family, now, _RT_TABLE_LOCAL),
        _message(family, then, _RT_TABLE_LOCAL, delete=True),
    ]


def _family(rule: Rule) -> int:
    return socket.AF_INET if len(rule.destination) == 4 else socket.AF_INET6


class Rules:
    """What is set in one namespace, by a NETLINK_ROUTE socket of it.

    The socket may be a hostile program's, who has a copy: nothing is waited for. The kernel's answers are there when
    a request was sent.
    """

    def __init__(self, netlink: socket.socket, *, used: bool) -> None:
        """`used`: another process may have left rules; they are taken away."""
        self._socket = netlink
        self._number = 0
        self.now: frozenset[Rule] = frozenset()
        if used:
            self.clear()

    def clear(self) -> None:
        """Take away what another process has left, or a `set` that failed; as far as the kernel lets us."""
        self.now = frozenset()
        with suppress(OSError):
            for _ in range(_LATE):
                self._socket.recv(65536, socket.MSG_DONTWAIT)
        for family in (socket.AF_INET, socket.AF_INET6):
            with suppress(OSError):  # no IPv6
                left = False
                for _ in range(_LEFT):
                    if any(self._ask([any_rule_message(family)])):
                        break
                    left = True
                if left:  # else nobody has made room: what is first as ever cannot be set twice
                    self._ask(room_messages(family, wanted=False))

    def set(self, wanted: frozenset[Rule]) -> None:
        """Have these rules and no others. OSError when the kernel, or whoever has the socket, does not let us."""
        new, old = wanted - self.now, self.now - wanted
        had, will = {_family(rule) for rule in self.now}, {_family(rule) for rule in wanted}
        messages: list[Message] = []
        for family in sorted(will - had):
            messages += room_messages(family, wanted=True)
        messages += [rule_message(rule, delete=True) for rule in sorted(old)]
        messages += [rule_message(rule) for rule in sorted(new)]
        for family in sorted(had - will):
            messages += room_messages(family, wanted=False)
        self.now = wanted
        failed = 0
        for start in range(0, len(messages), _AT_ONCE):
            codes = self._ask(messages[start : start + _AT_ONCE])
            failed = failed or next((code for code in codes if code and code not in _DONE), 0)
        if failed:
            raise OSError(failed, "the rules of a namespace cannot be set")

    def _ask(self, messages: list[Message]) -> list[int]:
        """The errno of each. OSError when the answers are not there."""
        numbers = {}
        packed = []
        for at, (kind, flags, body) in enumerate(messages):
            self._number = self._number % 0xFFFFFFF + 1
            numbers[self._number] = at
            packed.append(_HEADER.pack(_HEADER.size + len(body), kind, flags, self._number, 0) + body)
        self._socket.send(b"".join(packed), socket.MSG_DONTWAIT)
        codes = [0] * len(messages)
        for _ in range(len(messages) + _STRANGE):
            if not numbers:
                return codes
            data, start = self._socket.recv(65536, socket.MSG_DONTWAIT), 0
            while start + _HEADER.size + 4 <= len(data):
                length, kind, _, number, _ = _HEADER.unpack_from(data, start)
                if kind == _NLMSG_ERROR and number in numbers:
                    codes[numbers.pop(number)] = -struct.unpack_from("=i", data, start + _HEADER.size)[0]
                start += max(length + 3 & ~3, _HEADER.size)
        raise OSError(errno.EIO, "no answers among what was received")
