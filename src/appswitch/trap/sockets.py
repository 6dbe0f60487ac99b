"""What the trap handler knows of sockets: ends of connections, and listeners, both by SO_COOKIE.

A cookie stays the same over dup, fork and SCM_RIGHTS and is never used again (socket(7)), so nothing has to be
trapped to follow a socket. Ends are written through to a shared file: a restarted worker finds them again, and
`appswitch ps --connections` reads them.
"""

from __future__ import annotations

import _socket
import mmap
import os
import struct
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from socket import SOL_SOCKET

from ..header.window import Windows
from ..linux.storage import reserve
from ..model.service import Service
from .filter import (
    SO_BINDTODEVICE,
    SO_BINDTOIFINDEX,
    SO_OF_ALL,
    SO_OOBINLINE,
    SO_PRIORITY,
    SO_RCVBUF,
    SO_RCVLOWAT,
    SO_REUSEADDR,
    SO_SNDBUF,
)
from .parked import Waiter

UNIX, TCP, EGRESS, REMOTE, INGRESS = 1, 2, 3, 4, 5
KINDS = {UNIX: "unix", TCP: "tcp", EGRESS: "egress", REMOTE: "remote", INGRESS: "ingress"}
#: Ends that are sockets of the host's own network.
OF_HOST = (EGRESS, REMOTE, INGRESS)
#: Options that are trapped to be carried over, and which a Unix socket then keeps and answers by itself.
KEPT_BY_UNIX = {(SOL_SOCKET, name) for name in (SO_REUSEADDR, SO_OOBINLINE, SO_PRIORITY, SO_RCVLOWAT, *SO_OF_ALL)}
#: The kernel gives back twice what was set (socket(7)).
_DOUBLED = {(SOL_SOCKET, SO_SNDBUF), (SOL_SOCKET, SO_RCVBUF)}
#: What they name is in the program's namespace; the socket may be one of the host's.
_OF_PLACE = {(SOL_SOCKET, SO_BINDTODEVICE), (SOL_SOCKET, SO_BINDTOIFINDEX)}
_SERVER, _CLOSED = 1, 2
_FLAGS_AT = 14
_RECORD = struct.Struct("=QIBBHHH16s16s12x")
_FIRST_SLOTS = 4096
#: Bytes of the file of ends at the beginning.
RESERVED = _FIRST_SLOTS * _RECORD.size

Options = dict[tuple[int, int], bytes]


def set_again(sock: _socket.socket, options: Options) -> None:
    """Set on a socket what getsockopt() gave for another one; what it does not take stays as it is."""
    for (level, name), value in options.items():
        if (level, name) in _OF_PLACE:
            continue
        if (level, name) in _DOUBLED:
            value = (int.from_bytes(value[:4], "little") // 2).to_bytes(4, "little")
        try:
            sock.setsockopt(level, name, value)
        except OSError:
            continue  # such as options that only a bound or connected socket takes


@dataclass(slots=True)
class End:
    """One end of a connection in a program's hands: what it must be told about itself.

    `family` is what the program made (AF_INET, AF_INET6). `in_progress`: a non-blocking connect() was answered
    EINPROGRESS and not yet asked for again. `closed`: disconnected by connect(AF_UNSPEC). `options`: what was
    set at levels that the Unix socket does not know.
    """

    cookie: int
    program: int
    kind: int
    family: int
    server: bool
    local: tuple[bytes, int]
    peer: tuple[bytes, int]
    in_progress: bool = False
    closed: bool = False
    options: Options = field(default_factory=dict)


@dataclass(slots=True)
class Listener:
    """A program's listening socket: the Unix listener that stands in for it, and its row in the table.

    `native`: our copy of the socket that the program bound; it keeps the port taken in the program's namespace.
    `before`: the cookie of the listener that it succeeds, which was shut down; other processes may still have that one.
    `real`: the host's TCP listener. `holder`: process and number of the descriptor that was replaced.
    `waiting`: threads parked in accept(), the first to come first; `handle`, `number`: the watch that reports arrivals
    to them, once.
    `held`: while they wait, `number` is a copy of the Unix listener: as natively, a call that waits keeps it open.
    `windows`: which headers of other hosts have come to it since its epoch was chosen.
    """

    cookie: int
    native_cookie: int
    program: int
    family: int
    name: tuple[bytes, int]
    row: Service
    native: int
    real: int
    holder: tuple[int, int] = (0, -1)
    options: Options = field(default_factory=dict)
    inherited: list[tuple[int, int, bytes]] = field(default_factory=list)
    waiting: OrderedDict[int, Waiter] = field(default_factory=OrderedDict)
    real_handle: int = 0
    handle: int = 0
    number: int = -1
    before: int = 0
    armed: bool = False
    held: bool = False
    windows: Windows = field(default_factory=Windows)


class Ends:
    """The ends that one worker knows, by cookie, kept in a shared file over its death."""

    def __init__(self, path: str, live: Callable[[], set[int]]) -> None:
        """`live` tells the cookies of all ends that still exist; asked only when the file is full."""
        self._live = live
        self._by_cookie: dict[int, End] = {}
        self._slots: dict[int, int] = {}
        self._of_others: dict[int, End] = {}
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._count = max(_FIRST_SLOTS, os.fstat(self._fd).st_size // _RECORD.size)
        self._map = self._resize(self._count)
        self._free: list[int] = []
        with memoryview(self._map).cast("Q") as words:
            cookies = words.tolist()[:: _RECORD.size // 8]
        for slot in range(self._count - 1, -1, -1):
            if cookies[slot] and (end := _unpack(self._map, slot * _RECORD.size)) is not None:
                self._by_cookie[end.cookie] = end
                self._slots[end.cookie] = slot
            else:
                self._free.append(slot)
        self.get = self._by_cookie.get

    def add(self, end: End, connected: bool = True) -> None:
        """One that is not connected yet is so in the file: `note_closed` it otherwise when it is."""
        if not self._free:
            self._make_room()
        self._by_cookie[end.cookie] = end
        if not self._free:
            return  # the disk is full: a worker after this one will not know it
        slot = self._free.pop()
        self._slots[end.cookie] = slot
        _RECORD.pack_into(
            self._map,
            slot * _RECORD.size,
            end.cookie,
            end.program,
            end.kind,
            end.family,
            _SERVER if end.server else 0 if connected else _CLOSED,
            end.local[1],
            end.peer[1],
            end.local[0],
            end.peer[0],
        )

    def find(self, cookie: int, paths: Iterable[str]) -> End | None:
        """An end that another worker made and that was passed to a program of ours: looked up in its file, once."""
        end = self._of_others.get(cookie)
        if end is None:
            for path in filter(os.path.exists, paths):
                for found in read_ends(path):
                    if found.cookie == cookie:
                        found.in_progress = False
                        if len(self._of_others) >= _FIRST_SLOTS:
                            self._of_others.clear()
                        end = self._of_others[cookie] = found
        return end

    def latest(self, most: int) -> Iterator[End]:
        """Those that came last, the last first."""
        return islice(reversed(self._by_cookie.values()), most)

    def newest(self, programs: set[int]) -> set[int]:
        """The cookies of the last ends of each of these programs, which may have opened any number."""
        counts: Counter[int] = Counter()
        found = set()
        for end in reversed(self._by_cookie.values()):
            if end.program in programs and counts[end.program] < _FIRST_SLOTS:
                counts[end.program] += 1
                found.add(end.cookie)
        return found

    def note_closed(self, cookie: int, closed: bool = True) -> None:
        """In the file: whether the next worker is to take this end for one that is not connected (any more)."""
        slot = self._slots.get(cookie)
        if slot is not None:
            at = slot * _RECORD.size + _FLAGS_AT
            self._map[at] = self._map[at] | _CLOSED if closed else self._map[at] & ~_CLOSED

    def forget(self, cookie: int) -> None:
        if self._by_cookie.pop(cookie, None) is not None:
            slot = self._slots.pop(cookie, None)
            if slot is not None:
                struct.pack_into("=Q", self._map, slot * _RECORD.size, 0)
                self._free.append(slot)

    def forget_program(self, program: int) -> None:
        for cookie in [end.cookie for end in self._by_cookie.values() if end.program == program]:
            self.forget(cookie)

    def _make_room(self) -> None:
        live = self._live()
        for cookie in [cookie for cookie in self._by_cookie if cookie not in live]:
            self.forget(cookie)
        if len(self._free) < self._count // 2:
            try:
                larger = self._resize(self._count * 2)
            except OSError:
                return
            self._map.close()
            self._map = larger
            self._free.extend(range(self._count * 2 - 1, self._count - 1, -1))
            self._count *= 2

    def _resize(self, count: int) -> mmap.mmap:
        reserve(self._fd, count * _RECORD.size)
        return mmap.mmap(self._fd, count * _RECORD.size)


def read_ends(path: str) -> Iterator[End]:
    """The ends in a worker's file, dead ones among them: compare the cookies with sock_diag's."""
    with open(path, "rb") as file:
        data = file.read()
    for at in range(0, len(data) - _RECORD.size + 1, _RECORD.size):
        end = _unpack(data, at)
        if end is not None:
            yield end


def _unpack(data: bytes | mmap.mmap, at: int) -> End | None:
    cookie, program, kind, family, flags, lport, pport, laddr, paddr = _RECORD.unpack_from(data, at)
    if not cookie:
        return None
    server, closed = bool(flags & _SERVER), bool(flags & _CLOSED)
    # in progress, for all that is known: a connect() that was not answered yet will be made again
    return End(cookie, program, kind, family, server, (laddr, lport), (paddr, pport), not server, closed)
