"""One program under AppSwitch, as its trap worker knows it: its listener, its threads' descriptors, its answers."""

from __future__ import annotations

import errno
import fcntl
import functools
import os
from collections import OrderedDict
from socket import SOL_SOCKET, socket

from ..linux import epoll, pidfd, procfs, procmem, seccomp, sock_diag
from ..linux.seccomp import Call
from ..linux.view import View, view
from ..model.identity import Identity
from .options import ProgramOptions

SO_COOKIE, SO_NETNS_COOKIE = 57, 71
_SIOCGSKNS = 0x894C  # a descriptor of the socket's network namespace
_THREADS_KEPT = 512
_GROUPS_KEPT = 1 << 14
_TOUCHED_KEPT = 4096
_FDINFO_KEPT = 64
#: Beyond this many epolls in one process a socket is not searched in each of them: TCP is always right.
EPOLLS_SEARCHED, _SEARCHED_ONCE, _ANY_NUMBER = 16, 256, 1 << 30
#: An epoll's list is asked for at each connect() only while it is shorter (bytes, some 200 registrations): the kernel
#: takes 2 µs for each item, and the program's own threads wait meanwhile. A large one is asked again after so many.
_EPOLL_LARGE, _LARGE_SPARED = 16_000, 256

Borrowed = View


def cookie_of(sock: View) -> int:
    """SO_COOKIE: the socket's name for as long as the system runs."""
    raw: bytes = sock.getsockopt(SOL_SOCKET, SO_COOKIE, 8)
    return int.from_bytes(raw, "little")


def namespace_of(sock: View | socket) -> bytes:
    """SO_NETNS_COOKIE: the name of the network namespace that the socket was made in (Linux 5.14)."""
    found: bytes = sock.getsockopt(SOL_SOCKET, SO_NETNS_COOKIE, 8)
    return found


@functools.cache
def _host_namespace() -> bytes:
    with socket() as ours:
        return namespace_of(ours)


def is_of_host(sock: View) -> bool:
    """Is it a socket of the host's network: one that connect() put in, or that the program was given by others?"""
    return namespace_of(sock) == _host_namespace()


class Failure(Exception):
    """The call is to be answered with this errno."""

    def __init__(self, code: int) -> None:
        super().__init__(os.strerror(code))
        self.errno = code


class Program:
    """`number` is the switch's id for the program; `acceptors` are TCP listeners inside its namespace, by the family of
    what they accept and whether that came by IPv4.
    """

    def __init__(
        self,
        number: int,
        identity: Identity,
        options: ProgramOptions,
        listener: int,
        diag: int,
        acceptors: list[int],
    ) -> None:
        self.number = number
        self.identity = identity
        self.options = options
        self.listener = listener
        self.diag = socket(fileno=diag)
        self.acceptors: dict[tuple[int, bool], socket] = {}
        for fd in acceptors:
            sock = socket(fileno=fd)
            sock.setblocking(False)
            self.acceptors[sock.family, "." in sock.getsockname()[0]] = sock
        self._namespace = namespace_of(next(iter(self.acceptors.values())))
        #: Options set at trapped levels on sockets not yet connected, by cookie: to be copied by connect().
        self.touched: OrderedDict[int, set[tuple[int, int]]] = OrderedDict()
        #: Native sockets whose connect() was in progress and then refused, for the next connect() to say so.
        self.refused: set[int] = set()
        #: Sockets bound to a port of our choice by a call that was interrupted before it could be answered.
        self.bound_unheard: set[int] = set()
        self._pidfds: OrderedDict[int, int] = OrderedDict()
        self._epoll_round = 0
        #: By process: the round, and the epolls of its own, or also of others, as (process, number).
        self._epolls: dict[int, tuple[int, list[tuple[int, int]]]] = {}
        self._large_epolls: dict[tuple[int, int], int] = {}
        self._groups: dict[int, int] = {}
        self._epoll_copies: list[int] = []
        self._fdinfo: dict[tuple[int, int], int] = {}

    def close(self) -> None:
        self.forget_threads()
        for fd in (self.listener, *self._epoll_copies):
            os.close(fd)
        self.listener = -1
        for sock in (self.diag, *self.acceptors.values()):
            sock.close()

    def forget_threads(self) -> None:
        """Close what is only kept to be quick."""
        for fd in (*self._pidfds.values(), *self._fdinfo.values()):
            os.close(fd)
        self._pidfds.clear()
        self._fdinfo.clear()

    # the caller's descriptors and memory ------------------------------------------------------------

    def copy(self, call: Call, number: int) -> int:
        """Our own descriptor for the caller's `number`; Failure EBADF when it has none.

        Memory read before this was the caller's own: the pidfd is known to have been taken for a thread that
        waits for us, and would fail with ESRCH if that thread had ended and its id been used again.
        """
        tid = call.tid
        handle = self._pidfds.get(tid)
        if handle is not None:
            try:
                return pidfd.copy_descriptor(handle, number)
            except OSError as error:
                if error.errno == errno.EBADF:
                    raise Failure(errno.EBADF) from None
                if error.errno != errno.ESRCH:
                    raise
            os.close(self._pidfds.pop(tid))
            self._groups.pop(tid, None)
            self._epolls.pop(tid, None)
        handle = pidfd.open_thread(tid)
        if not seccomp.valid(self.listener, call.id):
            os.close(handle)
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        self._pidfds[tid] = handle
        if len(self._pidfds) > _THREADS_KEPT:
            _, old = self._pidfds.popitem(last=False)
            os.close(old)
        try:
            return pidfd.copy_descriptor(handle, number)
        except OSError as error:
            raise Failure(error.errno) if error.errno == errno.EBADF else error from None

    def borrow(self, call: Call, number: int) -> Borrowed:
        """A view of a copy of the caller's descriptor, to be released by the borrower; not always a socket."""
        copy = self.copy(call, as_int(number))
        try:
            return view(copy)
        except OSError:  # no descriptor is left to make one with
            os.close(copy)
            raise

    def owns(self, sock: View) -> bool:
        """Is it a socket of the program's own network namespace, not one of the host's or of a namespace it made?"""
        return namespace_of(sock) == self._namespace

    # A call that a signal interrupts is over at once, and the program goes on using that memory: what was read may
    # be something else, and a write may hit what is no buffer any more. Therefore the question, each time.

    def read(self, call: Call, address: int, length: int) -> bytes:
        """Exactly so many bytes; OSError EFAULT when they are not there, ENOENT when the call is gone."""
        data = procmem.read(call.tid, address, length)
        if not seccomp.valid(self.listener, call.id):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return data

    def write(self, call: Call, address: int, data: bytes) -> None:
        """OSError EFAULT when there is no such memory, ENOENT when the call is gone."""
        procmem.write(call.tid, self.listener, call.id, address, data)

    def write_sized(self, call: Call, address: int, size_address: int, data: bytes) -> None:
        """As the kernel returns addresses: truncated to the caller's size, the true size written back."""
        size = as_int(int.from_bytes(procmem.read(call.tid, size_address, 4), "little"))
        if size < 0:
            raise Failure(errno.EINVAL)
        self.write_two(call, address, data[:size], size_address, len(data).to_bytes(4, "little"))

    def write_two(self, call: Call, address: int, data: bytes, address2: int, data2: bytes) -> None:
        """As `write`, at two places in one step."""
        procmem.write(call.tid, self.listener, call.id, address, data, address2, data2)

    def status_flags(self, call: Call, number: int) -> int:
        """The open flags of the caller's descriptor, O_NONBLOCK and O_CLOEXEC among them."""
        return procfs.open_flags(self.description(call, number))

    def description(self, call: Call, number: int) -> bytes:
        """What /proc tells of the caller's descriptor (linux/procfs.py)."""
        key = (call.tid, number)
        file = self._fdinfo.get(key)
        if file is not None:
            try:
                return procfs.description(file)
            except FileNotFoundError:  # that thread has ended, and another has its id
                os.close(self._fdinfo.pop(key))
        file = self._fdinfo[key] = procfs.open_fdinfo(*key)
        if len(self._fdinfo) > _FDINFO_KEPT:
            os.close(self._fdinfo.pop(next(iter(self._fdinfo))))
        return procfs.description(file)

    def group(self, tid: int) -> int:
        """The process of a thread."""
        found = self._groups.get(tid)
        if found is None:
            if len(self._groups) >= _GROUPS_KEPT:
                self._groups.clear()
            found = self._groups[tid] = pidfd.thread_group(tid)
        return found

    # epolls -----------------------------------------------------------------------------------------

    @property
    def uses_epoll(self) -> bool:
        return self._epoll_round > 0

    def epoll_made(self) -> None:
        """The program is making an epoll: its processes' descriptors are to be looked through again."""
        self._epoll_round += 1

    def in_epoll(self, call: Call, number: int, ours: int, most: int = _ANY_NUMBER) -> list[tuple[int, int]] | None:
        """(thread, number) of the epolls in which the caller's socket is registered under `number`; None when there
        are more than `most` epolls, too many to ask.
        """
        if not self._epoll_round:
            return []
        group = self.group(call.tid)
        seen, places = self._epolls.get(group, (0, []))
        known, fresh = places, seen != self._epoll_round
        if fresh:
            if len(self._epolls) > _THREADS_KEPT:
                self._epolls.clear()
            places = [(group, n) for n in procfs.descriptors_of_kind(call.tid, epoll.EVENTPOLL)]
            self._epolls[group] = (self._epoll_round, places)
        if len(places) > most:
            return None
        if not fresh or set(known) <= set(places):
            found, gone = self._ask_epolls(call, places, number, ours)
            if fresh or not gone:
                return found
        # One that this process had has another number now or was closed, and may be another process's by fork() or
        # SCM_RIGHTS.
        namespace = procfs.network_namespace(call.tid)
        others = [pid for pid in procfs.processes() if pid != group and procfs.network_namespace(pid) == namespace]
        places = [(pid, n) for pid in (group, *others) for n in procfs.descriptors_of_kind(pid, epoll.EVENTPOLL)]
        if len(places) > _SEARCHED_ONCE:
            return None
        found, _ = self._ask_epolls(call, places, number, ours)
        self._epolls[group] = (self._epoll_round, [place for place in places if place[0] == group or place in found])
        return found

    def _ask_epolls(
        self, call: Call, places: list[tuple[int, int]], number: int, ours: int
    ) -> tuple[list[tuple[int, int]], bool]:
        """Those of the epolls that have the socket; and whether one of them was no epoll any more."""
        group, gone, found = self._groups[call.tid], False, []
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
        places = self.in_epoll(call, number, ours, EPOLLS_SEARCHED)
        if not places:
            return None if places is None else []
        found: list[tuple[int, epoll.Item]] = []
        inode = os.fstat(ours).st_ino
        for place in places:
            items = self._items(place, inode)
            if items is None or not all(item.armed for item in items) or (copy := self.copy_from(*place)) < 0:
                release_items(found)
                return None
            # each beyond the one number at which it cannot be used
            found += [(fcntl.fcntl(copy, fcntl.F_DUPFD_CLOEXEC, item.number + 1), item) for item in items]
            os.close(copy)
        return found

    def _items(self, place: tuple[int, int], inode: int) -> list[epoll.Item] | None:
        """None, and the kernel is not asked, for an epoll that had many when it was last asked about."""
        key = self.group(place[0]), place[1]
        spare = self._large_epolls.get(key, 0)
        if spare:
            self._large_epolls[key] = spare - 1
            return None
        items, length = epoll.items(*place, inode)
        if length > _EPOLL_LARGE:
            if len(self._large_epolls) > _THREADS_KEPT:
                self._large_epolls.clear()
            self._large_epolls[key] = _LARGE_SPARED
        return items

    def registrations(self, call: Call, number: int, ours: int) -> list[tuple[int, int, int]]:
        """(a copy of the epoll's descriptor, events, data) wherever the caller's socket is registered.

        The copies belong to the program object until its next call of this.
        """
        for fd in self._epoll_copies:
            os.close(fd)
        self._epoll_copies.clear()
        if not self._epoll_round:
            return []
        found = []
        for place in self.in_epoll(call, number, ours) or ():
            item = epoll.registration(*place, number)
            if item is not None and (copy := self.copy_from(*place)) >= 0:
                if copy == number:  # the one number at which it cannot be used
                    copy = os.dup(copy)
                    os.close(number)
                self._epoll_copies.append(copy)
                found.append((copy, *item))
        return found

    def holders(self, call: Call, inode: int) -> list[tuple[int, int]]:
        """(process, number) of every descriptor of the socket, in the caller's process and in others of its program."""
        link = f"socket:[{inode}]"
        group = self.group(call.tid)
        found = [(group, n) for n in procfs.descriptors_of_kind(call.tid, link)]
        namespace = procfs.network_namespace(call.tid)
        for pid in procfs.processes():
            if pid != group and procfs.network_namespace(pid) == namespace:
                found += [(pid, n) for n in procfs.descriptors_of_kind(pid, link)]
        return found

    def threads(self) -> list[int]:
        """Every thread in the program's namespace."""
        place = fcntl.ioctl(next(iter(self.acceptors.values())).fileno(), _SIOCGSKNS)
        namespace = os.fstat(place).st_ino
        os.close(place)
        return [
            tid
            for pid in procfs.processes()
            if procfs.network_namespace(pid) == namespace
            for tid in procfs.threads(pid)
        ]

    def copy_from(self, pid: int, number: int) -> int:
        """A copy of another process's descriptor; -1 when it cannot be had."""
        try:
            handle = pidfd.open_thread(pid)
            try:
                return pidfd.copy_descriptor(handle, number)
            finally:
                os.close(handle)
        except OSError:
            return -1

    # options set before connect() ---------------------------------------------------------------------

    def touch(self, cookie: int, level: int, name: int) -> None:
        self.touched.setdefault(cookie, set()).add((level, name))
        if len(self.touched) > _TOUCHED_KEPT:
            self.touched.popitem(last=False)

    def note_refused(self, cookie: int) -> None:
        if len(self.refused) >= _TOUCHED_KEPT:
            self.refused.clear()
        self.refused.add(cookie)

    def touched_options(self, cookie: int, sock: Borrowed) -> dict[tuple[int, int], bytes]:
        """What was set at trapped levels on a native socket, and took."""
        found = {}
        for level, name in self.touched.pop(cookie, ()):
            try:
                found[level, name] = sock.getsockopt(level, name, 64)
            except OSError:
                continue  # it was refused then, too
        return found

    # answers ----------------------------------------------------------------------------------------

    def reply(self, call: Call, value: int = 0) -> bool:
        return seccomp.answer(self.listener, call.id, value)

    def fail(self, call: Call, code: int) -> bool:
        return seccomp.answer(self.listener, call.id, 0, code)

    def proceed(self, call: Call) -> bool:
        """The kernel does it natively, on a socket of the program's own empty namespace or on none of ours."""
        return seccomp.proceed(self.listener, call.id)

    def replace(self, call: Call, ours: int, number: int, cloexec: bool) -> None:
        seccomp.replace_fd(self.listener, call.id, ours, number, cloexec)

    def exchange(self, call: Call, number: int, old: int, new: int) -> None:
        """Put `new` at the caller's `number` and at every other of its process that has `old`, also in its epolls."""
        numbers = [number, *(n for n in procfs.same_socket(call.tid, old) if n != number)]
        flags = [bool(self.status_flags(call, n) & os.O_CLOEXEC) for n in numbers]
        for n, cloexec in zip(numbers, flags, strict=True):
            self.replace(call, new, n, cloexec)
        # after that, so that nothing has changed when the call was cancelled; `old` is ours, and its items still there
        for n in numbers:
            self.move_registrations(call, n, old, new)

    def move_registrations(self, call: Call, number: int, old: int, new: int) -> None:
        """In the caller's epolls let `new` take the place that `old` has under this number; both are ours."""
        if self._epoll_round:
            for place, events, data in self.registrations(call, number, old):
                epoll.move(place, number, old, new, events, data)

    def hand_over(self, call: Call, ours: int, cloexec: bool) -> None:
        seccomp.hand_over(self.listener, call.id, ours, cloexec)

    def tcp_cookies(self) -> set[int] | None:
        """The TCP sockets in the program's namespace; None when that cannot be told now, or is kept from us."""
        try:
            return sock_diag.tcp_cookies(self.diag)
        except OSError:
            return None


def release_items(found: list[tuple[int, epoll.Item]]) -> None:
    """Let the copies of epolls go that `movable` gave."""
    for copy, _ in found:
        os.close(copy)
    found.clear()


def as_int(value: int) -> int:
    """An argument as the kernel takes an int."""
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value & 0x80000000 else value
