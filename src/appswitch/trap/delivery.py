"""Bringing one end of a connection to the server's listener.

A connection is made by the client's worker, whole. It connects to the Unix listener that stands for the server's and
sends a note of who calls; then that socket is the client's end itself, and what lies in the listener's queue the
server's. Where the server's end is another socket (TCP), the connection is a short-lived "carrier" that brings it with
the note. Either way it waits in the kernel's own accept queue, wakes the server as a TCP connection would, and
outlives any worker.
"""

from __future__ import annotations

import _socket
import fcntl
import logging
import os
import select
import socket
import struct
import termios
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from ..linux import features
from ..linux.view import view
from ..table.counters import Counters

log = logging.getLogger("appswitch.worker")

SO_SNDBUFFORCE, SO_RCVBUFFORCE, SO_PASSRIGHTS = 32, 33, 83
#: So much may be written before the other side reads, as on a TCP loopback connection (recipes: 4 MB there).
SEND_BUFFER = 4 << 20
_NOTE = struct.Struct("!B16sH16sHQ")
_ANCILLARY = socket.CMSG_SPACE(4)
_CREDENTIALS = struct.Struct("iII")
_ARRIVAL_MS = 20  # what another worker needs between two system calls, unless it is held up
_WITHDRAWN_KEPT = 1024
# plain numbers: operations on the enumerations of `socket` cost microseconds
_AT_ONCE = int(socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
_PEEK, _CUT_SHORT = int(socket.MSG_PEEK), int(socket.MSG_CTRUNC)
_UNIX, _CARRIER = int(socket.AF_UNIX), int(socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
_count = bytearray(4)  # an int
#: SO_LINGER values.
RESET_AT_CLOSE, END_AT_CLOSE = struct.pack("ii", 1, 0), bytes(8)
_TCP = 2  # sockets.TCP
_polls: dict[int, select.poll] = {}


class Note(NamedTuple):
    """What the server's side must know of an end: its kind (sockets.UNIX, TCP) and the two virtual addresses.

    `cookie`: the client's end's, where that is the carrier itself, as `announce` makes it.
    """

    kind: int
    client: bytes
    client_port: int
    server: bytes
    server_port: int
    cookie: int = 0


@dataclass(frozen=True, slots=True)
class Buffers:
    """How this process can give a Unix pair the room that TCP gives. `option` is SO_SNDBUF or SO_SNDBUFFORCE.

    `enough`: a program that writes before it reads fares as on TCP; where net.core.wmem_max forbids that, TCP
    is used.
    """

    option: int
    enough: bool
    pass_rights: bool

    @classmethod
    def probe(cls) -> Buffers:
        with socket.socket(socket.AF_UNIX) as sock:
            option = SO_SNDBUFFORCE
            try:
                sock.setsockopt(socket.SOL_SOCKET, option, SEND_BUFFER)
            except PermissionError:
                option = socket.SO_SNDBUF
                sock.setsockopt(socket.SOL_SOCKET, option, SEND_BUFFER)
            enough = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) >= 2 * SEND_BUFFER
            try:
                sock.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0)
                pass_rights = not features.left_out(features.PASS_RIGHTS)
            except OSError:  # before Linux 6.16
                pass_rights = False
        return cls(option, enough, pass_rights)

    def apply(self, sock: _socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, self.option, SEND_BUFFER)
        if self.pass_rights:
            sock.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0)  # TCP carries no descriptors either


class Peers:
    """The processes of this switch, from the ring of pids that the supervisor keeps."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._uid = os.geteuid()
        self._pids: set[int] = {os.getpid()}

    def ours(self, carrier: _socket.socket) -> bool:
        """Was this connection made by a process of the switch (SO_PEERCRED)?"""
        raw: bytes = carrier.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, uid, _ = _CREDENTIALS.unpack(raw)
        if uid != self._uid:
            return False
        if pid not in self._pids:
            self._read()
        return pid in self._pids

    def _read(self) -> None:
        try:
            with open(self._path, "rb") as file:
                data = file.read()
        except FileNotFoundError:
            return
        self._pids = {pid for (pid,) in struct.iter_unpack("=Q", data[: len(data) // 8 * 8]) if pid}
        self._pids.add(os.getpid())


def open_carrier(listener: str) -> _socket.socket:
    """A place in the listener's accept queue, as a non-blocking socket.

    ConnectionRefusedError: it is closed (or FileNotFoundError). BlockingIOError: its queue is full.
    """
    carrier = _socket.socket(_UNIX, _CARRIER, 0)
    try:
        carrier.connect(listener)
    except BaseException:
        carrier.close()
        raise
    return carrier


def announce(carrier: _socket.socket, note: Note, cookie: int) -> None:
    """Make the carrier, whose cookie this is, the connection itself."""
    carrier.send(_NOTE.pack(*note[:-1], cookie))


def send(carrier: _socket.socket, end: int, note: Note) -> None:
    """Put another end on its way and let the carrier go."""
    if note.kind == _TCP:
        # until it is accepted, closing its listener resets it: as natively
        view(end).setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
    carrier.sendmsg([_NOTE.pack(*note)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, end.to_bytes(4, "little"))])
    carrier.close()


class Receiver:
    """What comes out of the listeners' queues."""

    def __init__(
        self, peers: Peers, buffers: Buffers, counters: Counters, postpone: Callable[[int], None]
    ) -> None:
        """`postpone` is given carriers whose note has not come yet, to receive them again when it has."""
        self._peers, self._postpone = peers, postpone
        self._buffers = buffers
        self._counters = counters
        #: Ends that were announced and then could not be put into their clients.
        self._withdrawn: OrderedDict[int, None] = OrderedDict()

    def withdraw(self, cookie: int) -> None:
        """Nobody is to meet the end that was announced with this cookie. (Another worker's program sees it end.)"""
        self._withdrawn[cookie] = None
        if len(self._withdrawn) > _WITHDRAWN_KEPT:
            self._withdrawn.popitem(last=False)

    def receive(self, fd: int) -> tuple[int, Note] | None:
        """The end that has arrived by a carrier accepted as `fd`, which is closed unless it is the end itself.

        None when nothing came, or from a stranger.
        """
        carrier = view(fd)
        end = -1
        try:
            if not self._peers.ours(carrier):
                self._refuse("a process outside the switch connected to a listener's Unix socket; closed")
                return None
            try:
                found = _read_note(carrier)
            except BlockingIOError:
                end = fd
                self._postpone(fd)
                return None
            if found is None:
                return None
            note, other = found
            if other >= 0:
                end = other
            elif self._withdrawn and note.cookie in self._withdrawn:
                del self._withdrawn[note.cookie]
                instead = _read_note(carrier)  # by the same carrier, if we could send it so
                if instead is not None and instead[1] >= 0:
                    note, end = instead
            else:
                self._buffers.apply(carrier)
                if self._buffers.pass_rights and _brings_descriptors(carrier):
                    self._refuse("a program sent descriptors over a connection that nobody had accepted yet; closed")
                else:
                    end = fd
            return (end, note) if end >= 0 else None
        finally:
            if end != fd:
                os.close(fd)

    def _refuse(self, why: str) -> None:
        self._counters.add("strangers")
        log.warning(why)


def _read_note(carrier: _socket.socket) -> tuple[Note, int] | None:
    """The note at the head of a carrier, and the descriptor that came with it or -1. BlockingIOError: none yet."""
    try:
        data, ancillary, _, _ = carrier.recvmsg(_NOTE.size, _ANCILLARY, _AT_ONCE)
    except BlockingIOError:
        # another worker is between its connect and its send: quick as a rule, or dead (EOF)
        wait_readable(carrier.fileno(), _ARRIVAL_MS)
        data, ancillary, _, _ = carrier.recvmsg(_NOTE.size, _ANCILLARY, _AT_ONCE)
    if len(data) != _NOTE.size:
        return None
    return Note(*_NOTE.unpack(data)), int.from_bytes(ancillary[0][2][:4], "little") if ancillary else -1


def _brings_descriptors(sock: _socket.socket) -> bool:
    """Has the other side sent descriptors before it was forbidden to?"""
    fcntl.ioctl(sock.fileno(), termios.FIONREAD, _count)
    waiting = int.from_bytes(_count, "little")
    if not waiting:
        return False
    _, ancillary, flags, _ = sock.recvmsg(waiting, _ANCILLARY, _AT_ONCE | _PEEK)
    for _, _, data in ancillary:
        os.close(int.from_bytes(data[:4], "little"))
    return bool(ancillary) or bool(flags & _CUT_SHORT)


def wait_readable(fd: int, timeout_ms: int) -> int:
    """The poll events of a descriptor once it is readable or hung up; 0 after the time."""
    poll = _polls.get(fd)
    if poll is None:
        poll = _polls[fd] = select.poll()
        poll.register(fd, select.POLLIN | select.POLLRDHUP)
    events = poll.poll(timeout_ms)
    return events[0][1] if events else 0


def poll_now(fd: int) -> int:
    """The poll events of a descriptor, as of now."""
    return wait_readable(fd, 0)


def poll_writable(fd: int) -> bool:
    """Would a write be taken, or fail, now?"""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(0))


#: What poll says of a listener that was shut down.
SHUT = select.POLLHUP | select.POLLRDHUP
