"""Where a program's sockets are registered in its epolls, and the moving of what is registered to another socket.

epoll_create() is trapped for this alone: an epoll is looked for where one may be, by number, and asked about a socket
by kcmp(2).
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable

from ..linux import epoll, pidfd, procfs
from ..linux.seccomp import Call

#: So many processes, or large epolls, are remembered.
_KNOWN = 512
#: Beyond this many epolls in one process a socket is not searched in each of them: TCP is always right.
EPOLLS_SEARCHED, _SEARCHED_ONCE, _ANY_NUMBER = 16, 256, 1 << 30
#: An epoll's list is asked for at each connect() only while it is shorter (bytes, some 200 registrations): the kernel
#: takes 2 µs for each item, and the program's own threads wait meanwhile. A large one is asked again after so many.
_EPOLL_LARGE, _LARGE_SPARED = 16_000, 256


class Epolls:
    """The epolls of one program; `group` gives the process of a thread."""

    def __init__(self, group: Callable[[int], int]) -> None:
        self._group = group
        self._round = 0
        #: By process: the round, and the epolls of its own, or also of others, as (process, number).
        self._known: dict[int, tuple[int, list[tuple[int, int]]]] = {}
        self._large: dict[tuple[int, int], int] = {}
        self._copies: list[int] = []

    @property
    def any(self) -> bool:
        """Has the program made one?"""
        return self._round > 0

    def made(self) -> None:
        """The program is making an epoll: its processes' descriptors are to be looked through again."""
        self._round += 1

    def forget(self, process: int) -> None:
        """It has ended, and another may have its id."""
        self._known.pop(process, None)

    def close(self) -> None:
        for fd in self._copies:
            os.close(fd)
        self._copies.clear()

    def holding(self, call: Call, number: int, ours: int, most: int = _ANY_NUMBER) -> list[tuple[int, int]] | None:
        """(thread, number) of the epolls in which the caller's socket is registered under `number`; None when there
        are more than `most` epolls, too many to ask.
        """
        if not self._round:
            return []
        group = self._group(call.tid)
        seen, places = self._known.get(group, (0, []))
        known, fresh = places, seen != self._round
        if fresh:
            if len(self._known) > _KNOWN:
                self._known.clear()
            places = [(group, n) for n in procfs.descriptors_of_kind(call.tid, epoll.EVENTPOLL)]
            self._known[group] = (self._round, places)
        if len(places) > most:
            return None
        if not fresh or set(known) <= set(places):
            found, gone = self._ask(call, places, number, ours)
            if fresh or not gone:
                return found
        # One that this process had has another number now or was closed, and may be another process's by fork() or
        # SCM_RIGHTS.
        namespace = procfs.network_namespace(call.tid)
        others = [pid for pid in procfs.processes() if pid != group and procfs.network_namespace(pid) == namespace]
        places = [(pid, n) for pid in (group, *others) for n in procfs.descriptors_of_kind(pid, epoll.EVENTPOLL)]
        if len(places) > _SEARCHED_ONCE:
            return None
        found, _ = self._ask(call, places, number, ours)
        self._known[group] = (self._round, [place for place in places if place[0] == group or place in found])
        return found

    def _ask(
        self, call: Call, places: list[tuple[int, int]], number: int, ours: int
    ) -> tuple[list[tuple[int, int]], bool]:
        """Those of the epolls that have the socket; and whether one of them was no epoll any more."""
        group, gone, found = self._group(call.tid), False, []
        for pid, n in places:
            tid = call.tid if pid == group else pid  # the first thread may have ended
            registered = epoll.registered(tid, n, number, ours)
            gone = gone or registered is None
            if registered:
                found.append((tid, n))
        return found, gone

    def movable(self, call: Call, number: int, ours: int) -> list[tuple[int, epoll.Item]] | None:
        """Wherever the caller's socket is registered: (a copy of the epoll's descriptor, the item), under whatever
        number. None when it may be registered where it cannot be moved: an EPOLLONESHOT that has fired, a large epoll,
        many epolls. The copies are the caller's.
        """
        places = self.holding(call, number, ours, EPOLLS_SEARCHED)
        if not places:
            return None if places is None else []
        found: list[tuple[int, epoll.Item]] = []
        inode = os.fstat(ours).st_ino
        for place in places:
            items = self._items(place, inode)
            if items is None or not all(item.armed for item in items) or (copy := pidfd.copy_of(*place)) < 0:
                release_items(found)
                return None
            # each beyond the one number at which it cannot be used
            found += [(fcntl.fcntl(copy, fcntl.F_DUPFD_CLOEXEC, item.number + 1), item) for item in items]
            os.close(copy)
        return found

    def _items(self, place: tuple[int, int], inode: int) -> list[epoll.Item] | None:
        """None, and the kernel is not asked, for an epoll that had many when it was last asked about."""
        key = self._group(place[0]), place[1]
        spare = self._large.get(key, 0)
        if spare:
            self._large[key] = spare - 1
            return None
        items, length = epoll.items(*place, inode)
        if length > _EPOLL_LARGE:
            if len(self._large) > _KNOWN:
                self._large.clear()
            self._large[key] = _LARGE_SPARED
        return items

    def registrations(self, call: Call, number: int, ours: int) -> list[tuple[int, int, int]]:
        """(a copy of the epoll's descriptor, events, data) wherever the caller's socket is registered.

        The copies belong to this object until its next call of this.
        """
        self.close()
        if not self._round:
            return []
        found = []
        for place in self.holding(call, number, ours) or ():
            item = epoll.registration(*place, number)
            if item is not None and (copy := pidfd.copy_of(*place)) >= 0:
                if copy == number:  # the one number at which it cannot be used
                    copy = os.dup(copy)
                    os.close(number)
                self._copies.append(copy)
                found.append((copy, *item))
        return found

    def move(self, call: Call, number: int, old: int, new: int) -> None:
        """In the caller's epolls let `new` take the place that `old` has under this number; both are ours."""
        if self._round:
            for place, events, data in self.registrations(call, number, old):
                epoll.move(place, number, old, new, events, data)


def release_items(found: list[tuple[int, epoll.Item]]) -> None:
    """Let the copies of epolls go that `movable` gave."""
    for copy, _ in found:
        os.close(copy)
    found.clear()
