"""One connect() on its way: the caller's socket, and what it takes to put another in its place."""

from __future__ import annotations

import _socket
import errno
import fcntl
import os
import socket
from socket import IPPROTO_TCP, SOL_SOCKET, TCP_INFO

from ...linux import epoll, libc, pidfd, procfs, sockaddr
from ...linux.seccomp import Call
from ...linux.view import view
from ...model.address import LOOPBACK4, LOOPBACK6, is_any, is_loopback, pack
from ..delivery import Note
from ..epolls import release_items
from ..program import Borrowed, Program
from ..sockets import TCP, End, Options
from ..surroundings import MAPPED_LOOPBACK
from ..worker import Worker

#: SOL_SOCKET options that a replacement gets when they are not zero; the kernel keeps and answers them there.
_CARRIED = tuple(
    (name, size, bytes(size))
    for name, size in (
        (socket.SO_KEEPALIVE, 4),
        (socket.SO_LINGER, 8),
        (socket.SO_RCVTIMEO, 16),
        (socket.SO_SNDTIMEO, 16),
    )
)

_TCP_CLOSE, _TCP_LISTEN = 7, 10
_DISCONNECT = bytes(16)  # AF_UNSPEC
_MAPPED_LOOPBACK = pack(MAPPED_LOOPBACK)


class Attempt:
    """`sock` is our copy of the caller's socket, `closed` when it is not there any more; `cookie` names it.

    `bound`, `bound_to`: the port and address that the program bound it to, or 0 and "". `used`: the end it was, when an
    earlier connect() put it in and it is disconnected or failed. `dual`: the server listens on IPv6, and may be reached
    by IPv4. `window`: the SO_RCVBUF that was set on its listener, as getsockopt() tells it, if that is known here.
    `flags` are known after `describe`, `registered` after `find_registrations`.
    """

    def __init__(
        self,
        worker: Worker,
        program: Program,
        call: Call,
        sock: Borrowed,
        number: int,
        cookie: int,
        family: int,
        bound: int,
        used: End | None,
    ) -> None:
        self.worker = worker
        self.program = program
        self.call = call
        self.sock = sock
        self.closed = False
        self.dual = False
        self.window: bytes | None = None
        self.number = number
        self.cookie = cookie
        self.family = family
        self.bound = bound
        self.bound_to = ""
        self.used = used
        self.flags = -1
        self._description = b""
        self.registered: list[tuple[int, epoll.Item]] = []
        self._carried: list[tuple[int, bytes]] | None = None

    @property
    def is_native(self) -> bool:
        """The caller's socket is one of its own namespace, not one that an earlier connect() put in."""
        return self.used is None or self.used.kind == TCP

    def describe(self) -> int:
        """The caller's descriptor flags, O_NONBLOCK and O_CLOEXEC among them."""
        if self.flags < 0:
            self._description = self.program.description(self.call, self.number)
            self.flags = procfs.open_flags(self._description)
        return self.flags

    def bound_source(self, destination: bytes) -> bytes:
        """The address that the program bound it to, which only programs of its own virtual IP see; else b""."""
        address = pack(self.bound_to.split("%")[0])
        own = is_loopback(destination) or destination == self.program.identity.vip
        return address if own and not is_any(address) else b""

    def source_name(self, source: bytes) -> tuple[bytes, int]:
        """The client's address as both sides see it: with the port it bound, else a virtual one."""
        return source, self.bound or self.worker.ephemeral_port(source)

    def carried(self) -> list[tuple[int, bytes]]:
        """The SOL_SOCKET options that a replacement is to get: (name, value)."""
        found = self._carried
        if found is None:
            get = self.sock.getsockopt
            found = self._carried = [
                (name, value) for name, size, unset in _CARRIED if (value := get(SOL_SOCKET, name, size)) != unset
            ]
        return found

    def dress(self, new: _socket.socket) -> bool:
        """Give the replacement the socket options and O_NONBLOCK of the caller's; True if it is non-blocking."""
        for name, value in self.carried():
            new.setsockopt(SOL_SOCKET, name, value)
        if self.describe() & os.O_NONBLOCK:
            fcntl.fcntl(new.fileno(), fcntl.F_SETFL, os.O_NONBLOCK)
            return True
        return False

    def options(self) -> Options:
        """Options that the program set before at trapped levels."""
        if self.used is not None:
            return dict(self.used.options)
        return self.program.touched_options(self.cookie, self.sock)

    def keep_options(self, options: Options) -> None:
        """These were not used after all: the program may try again."""
        if self.used is None:
            for level, name in options:
                self.program.touch(self.cookie, level, name)

    def remember(
        self, cookie: int, kind: int, note: Note, options: Options, *, in_progress: bool, connected: bool = True
    ) -> End:
        """Know the caller's end by what it must be told from now on; `connected` as for `Ends.add`."""
        end = End(
            cookie,
            self.program.number,
            kind,
            self.family,
            False,
            (note.client, note.client_port),
            (note.server, note.server_port),
            in_progress,
            options=options,
        )
        self.worker.ends.add(end, connected)
        return end

    def find_registrations(self) -> bool:
        """Where the caller's epolls have its socket, for `swap`; False when it cannot be moved there."""
        release_items(self.registered)
        found = self.program.epolls.movable(self.call, self.number, self.sock.fileno())
        self.registered = found or []
        return found is not None

    def swap(self, ours: _socket.socket) -> bool:
        """Put `ours` at the caller's number, and at every other number of its process that has the old socket, and in
        its place in the epolls.

        Closes our copy of the old socket. False, and nothing is changed, when another process has the old one too, or
        an epoll where it cannot be replaced, or when the call was cancelled: to a program that handles EINTR the
        connection must seem under way.
        """
        # The epolls first: whenever we die, the program has one of the two there, and the new one ends with us.
        for place, item in self.registered:
            epoll.put(place, item, ours.fileno())
        swapped = False
        try:
            swapped = self._put_in_place(ours)
        finally:
            if not swapped:
                for place, item in self.registered:
                    epoll.take(place, item.number, ours.fileno())
            release_items(self.registered)
        return swapped

    def _put_in_place(self, ours: _socket.socket) -> bool:
        try:
            self.program.replace(self.call, ours.fileno(), self.number, bool(self.describe() & os.O_CLOEXEC))
        except OSError as error:
            if self.is_native and error.errno in (errno.ENOENT, errno.ESRCH):
                return False
            raise
        if not self.is_native:
            return True
        self.closed = True
        return self.worker.last_reference.close_and_tell(self.sock.fileno()) or self._swap_dups(ours)

    def _swap_dups(self, ours: _socket.socket) -> bool:
        program, call = self.program, self.call
        holders = program.holders(call, procfs.inode(self._description))
        here = program.group(call.tid)
        copies: list[int] = []
        try:
            for pid, number in holders:
                if (pid != here or program.epolls.any) and (old := pidfd.copy_of(pid, number)) >= 0:
                    copies.append(old)
                    if pid != here or not self._register_dup(number, old, ours):
                        self.sock, self.closed = view(copies.pop()), False
                        program.replace(call, old, self.number, bool(self.flags & os.O_CLOEXEC))
                        return False
            for pid, number in holders:
                if pid == here:
                    cloexec = bool(program.status_flags(call, number) & os.O_CLOEXEC)
                    program.replace(call, ours.fileno(), number, cloexec)
            for place, item in self.registered if copies else ():
                epoll.take(place, item.number, copies[0])  # should it live on, in a queue, it must not report
        except OSError as error:
            # cancelled: what the caller has now cannot be undone, so let that be connected
            if error.errno not in (errno.ENOENT, errno.ESRCH):
                raise
        finally:
            for old in copies:
                os.close(old)
        return True

    def _register_dup(self, number: int, old: int, ours: _socket.socket) -> bool:
        """Have `ours` in the epolls that have the caller's socket under a dup's number; False if that cannot be."""
        found = self.program.epolls.movable(self.call, number, old)
        if found is None:
            return False
        there = {item.number for _, item in self.registered}
        for place, item in found:
            if item.number in there:
                os.close(place)
            else:
                epoll.put(place, item, ours.fileno())
                self.registered.append((place, item))
        return True

    def exchange(self, new: _socket.socket) -> None:
        """Put `new`, which is TCP too, at the caller's number and at every other of its process that has the old
        socket, also in its epolls. Closes our copy of a native one.
        """
        program, call, ours = self.program, self.call, new.fileno()
        if not self.is_native:
            program.exchange(call, self.number, self.sock.fileno(), ours)
            return
        program.replace(call, ours, self.number, bool(self.describe() & os.O_CLOEXEC))
        program.epolls.move(call, self.number, self.sock.fileno(), ours)
        self.closed = True
        if not self.worker.last_reference.close_and_tell(self.sock.fileno()):
            self._exchange_dups(ours)

    def _exchange_dups(self, ours: int) -> None:
        program, call = self.program, self.call
        try:
            for number in procfs.descriptors_of_kind(call.tid, f"socket:[{procfs.inode(self._description)}]"):
                old = program.copy(call, number)
                try:
                    program.replace(call, ours, number, bool(program.status_flags(call, number) & os.O_CLOEXEC))
                    program.epolls.move(call, number, old, ours)
                finally:
                    os.close(old)
        except OSError as error:
            # cancelled: what the caller has now cannot be undone
            if error.errno not in (errno.ENOENT, errno.ESRCH):
                raise

    def connect_native(self, port: int, *, v4: bool, to_v6: bool = False) -> int:
        """connect() the caller's own socket to a loopback port of its own namespace; returns the errno.

        `to_v6`: by IPv4, but to where IPv6 sockets are accepted.
        """
        # elsewhere it would reach somebody else's port, or nothing for minutes
        if not self.program.owns(self.sock):
            return errno.ENETUNREACH
        if self.sock.getsockopt(IPPROTO_TCP, TCP_INFO, 1)[0] not in (_TCP_CLOSE, _TCP_LISTEN):
            # connected by a worker that died before it could say so, and nobody has the other end
            raw_connect(self.sock.fileno(), _DISCONNECT)
        return raw_connect(self.sock.fileno(), inside(self.family, port, v4=v4, to_v6=to_v6))


def inside(family: int, port: int, *, v4: bool, to_v6: bool = False) -> bytes:
    """A loopback address in the program's own namespace, for its native socket."""
    return sockaddr.encode(family, _MAPPED_LOOPBACK if to_v6 else LOOPBACK4 if v4 else LOOPBACK6, port)


def raw_connect(fd: int, address: bytes) -> int:
    """connect() with the bytes as they are; returns the errno, 0 when done."""
    try:
        libc.call("connect", fd, address, len(address))
    except OSError as error:
        return error.errno or 1
    return 0
