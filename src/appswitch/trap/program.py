"""One program under AppSwitch, as its trap worker knows it: its listener, its threads' descriptors, its answers."""

from __future__ import annotations

import errno
import fcntl
import functools
import os
from collections import OrderedDict
from socket import SOL_SOCKET, socket

from ..linux import pidfd, procfs, procmem, seccomp, sock_diag
from ..linux.seccomp import Call
from ..linux.view import View, view
from ..model.identity import Identity
from .epolls import Epolls
from .options import ProgramOptions

SO_COOKIE, SO_NETNS_COOKIE = 57, 71
_SIOCGSKNS = 0x894C  # a descriptor of the socket's network namespace
_THREADS_KEPT = 512
_GROUPS_KEPT = 1 << 14
_TOUCHED_KEPT = 4096
_FDINFO_KEPT = 64

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
        #: Sockets whose bind(2) the relay has been told of, and is to be made when its call comes again.
        self.announced: set[int] = set()
        #: Sockets whose bind(2) the relay was told of first, and until when it has time (monotonic).
        self.announcing: dict[int, float] = {}
        self._pidfds: OrderedDict[int, int] = OrderedDict()
        self._groups: dict[int, int] = {}
        self.epolls = Epolls(self.group)
        self._fdinfo: dict[tuple[int, int], int] = {}

    def close(self) -> None:
        self.forget_threads()
        self.epolls.close()
        os.close(self.listener)
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
            self.epolls.forget(tid)
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
            self.epolls.move(call, n, old, new)

    def hand_over(self, call: Call, ours: int, cloexec: bool) -> None:
        seccomp.hand_over(self.listener, call.id, ours, cloexec)

    def tcp_cookies(self) -> set[int] | None:
        """The TCP sockets in the program's namespace; None when that cannot be told now, or is kept from us."""
        try:
            return sock_diag.tcp_cookies(self.diag)
        except OSError:
            return None


def as_int(value: int) -> int:
    """An argument as the kernel takes an int."""
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value & 0x80000000 else value
