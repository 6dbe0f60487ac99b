"""What a process of a program does: one system call an act, on descriptors named by slots.

An act gives the call's value, what it returned in memory as text, or the name of its errno. Nothing is retried.
"""

import ctypes
import errno
import fcntl
import os
import select
import socket
import struct
import termios
import threading
import time
from typing import Any

LIMIT = float(os.environ.get("PLAYER_LIMIT") or 20)
"""Seconds that anything is waited for that must happen."""

VIP = "100.64.77.7"
"""The program's own address; natively loopback has it."""

_libc = ctypes.CDLL(None, use_errno=True)
_PACKED = os.uname().machine == "x86_64"
_EVENT = struct.Struct("=IQ" if _PACKED else "I4xQ")
_EVENTS = ("IN", "PRI", "OUT", "ERR", "HUP", "NVAL", "RDHUP")
_ALL = select.POLLIN | select.POLLPRI | select.POLLOUT | select.POLLRDHUP
FAMILIES = {"v4": socket.AF_INET, "v6": socket.AF_INET6}
ADDRESSES = {
    "loopback": ("127.0.0.1", "::1"),
    "own": (VIP, f"::ffff:{VIP}"),
    "any": ("0.0.0.0", "::"),
    "mapped": ("127.0.0.1", "::ffff:127.0.0.1"),
}
"""By kind: the address that a socket of family v4, v6 uses."""


def named(mask: int) -> str:
    """Poll or epoll events by name."""
    return "|".join(name for name in _EVENTS if mask & getattr(select, f"POLL{name}")) or "-"


def masked(names: str) -> int:
    """The other way round; EPOLL's modes too."""
    found = 0
    for name in names.split("|"):
        found |= getattr(select, f"EPOLL{name}") if name != "-" else 0
    return found


def encode(family: str, kind: str, port: int) -> bytes:
    """A struct sockaddr_in or sockaddr_in6."""
    text = ADDRESSES[kind][family == "v6"]
    if family == "v4":
        return struct.pack("=H", socket.AF_INET) + port.to_bytes(2, "big") + socket.inet_aton(text) + bytes(8)
    return struct.pack("=H", socket.AF_INET6) + port.to_bytes(2, "big") + bytes(4) + socket.inet_pton(
        socket.AF_INET6, text
    ) + bytes(4)


def decode(raw: bytes) -> list[Any]:
    """[address, port] of what the kernel wrote; what does not look like one as it is."""
    if len(raw) >= 16 and int.from_bytes(raw[:2], "little") == socket.AF_INET:
        return [socket.inet_ntoa(raw[4:8]), int.from_bytes(raw[2:4], "big")]
    if len(raw) >= 28 and int.from_bytes(raw[:2], "little") == socket.AF_INET6:
        return [socket.inet_ntop(socket.AF_INET6, raw[8:24]), int.from_bytes(raw[2:4], "big")]
    return [raw.hex(), 0]


def call(name: str, *args: Any) -> int | str:
    """The C library's function: its value or the name of its errno."""
    value: int = getattr(_libc, name)(*args)
    if value == -1:
        code = ctypes.get_errno()
        return errno.errorcode.get(code, str(code))
    return value


class Acts:
    """One process's descriptors, by slot, and its acts. `link` leads to the other process (SCM_RIGHTS)."""

    def __init__(self, link: socket.socket) -> None:
        self.fds: dict[int, int] = {}
        self.link = link
        self.thread: threading.Thread | None = None
        self.answer: Any = None

    def fd(self, slot: int) -> int:
        return self.fds.get(slot, 1000 + slot)  # EBADF

    def _take(self, slot: int, value: int | str) -> int | str:
        """A new descriptor; its number is nobody's business."""
        if isinstance(value, int):
            self.fds[slot] = value
            return "ok"
        return value

    # sockets ----------------------------------------------------------------------------------------

    def socket(self, slot: int, family: str, nonblock: bool) -> Any:
        kind = socket.SOCK_STREAM | (socket.SOCK_NONBLOCK if nonblock else 0)
        return self._take(slot, call("socket", int(FAMILIES[family]), int(kind), 0))

    def bind(self, slot: int, family: str, kind: str, port: int) -> Any:
        raw = encode(family, kind, port)
        return call("bind", self.fd(slot), raw, len(raw))

    def listen(self, slot: int, backlog: int) -> Any:
        return call("listen", self.fd(slot), backlog)

    def connect(self, slot: int, family: str, kind: str, port: int) -> Any:
        raw = encode(family, kind, port)
        return call("connect", self.fd(slot), raw, len(raw))

    def disconnect(self, slot: int) -> Any:
        return call("connect", self.fd(slot), bytes(16), 16)

    def accept(self, slot: int, new: int, flags: int) -> Any:
        room, length = ctypes.create_string_buffer(64), ctypes.c_int(64)
        value = self._take(new, call("accept4", self.fd(slot), room, ctypes.byref(length), flags))
        return [value, *decode(room.raw[: length.value])] if value == "ok" else value

    def dup(self, slot: int, new: int) -> Any:
        return self._take(new, call("dup", self.fd(slot)))

    def close(self, slot: int) -> Any:
        return call("close", self.fds.pop(slot, 1000))

    def shutdown(self, slot: int, how: int) -> Any:
        return call("shutdown", self.fd(slot), how)

    def getsockname(self, slot: int) -> Any:
        return self._name("getsockname", slot)

    def getpeername(self, slot: int) -> Any:
        return self._name("getpeername", slot)

    def _name(self, which: str, slot: int) -> Any:
        room, length = ctypes.create_string_buffer(64), ctypes.c_int(64)
        value = call(which, self.fd(slot), room, ctypes.byref(length))
        return decode(room.raw[: length.value]) if value == 0 else value

    def setsockopt(self, slot: int, level: int, name: int, value: str) -> Any:
        raw = bytes.fromhex(value)
        return call("setsockopt", self.fd(slot), level, name, raw, len(raw))

    def getsockopt(self, slot: int, level: int, name: int, length: int) -> Any:
        room, size = ctypes.create_string_buffer(64), ctypes.c_int(length)
        value = call("getsockopt", self.fd(slot), level, name, room, ctypes.byref(size))
        return [size.value, room.raw[: max(0, size.value)].hex()] if value == 0 else value

    # data -------------------------------------------------------------------------------------------

    def send(self, slot: int, count: int, flags: int) -> Any:
        return call("send", self.fd(slot), bytes(i & 0xFF for i in range(count)), count, flags | socket.MSG_NOSIGNAL)

    def sendmsg(self, slot: int, count: int) -> Any:
        try:
            with socket.socket(fileno=os.dup(self.fd(slot))) as sock:
                return sock.sendmsg([bytes(count // 2), bytes(count - count // 2)], [], socket.MSG_NOSIGNAL)
        except OSError as error:
            return errno.errorcode[error.errno or 0]

    def recv(self, slot: int, count: int, flags: int) -> Any:
        room = ctypes.create_string_buffer(max(1, count))
        return call("recv", self.fd(slot), room, count, flags)

    def queued(self, slot: int) -> Any:
        count = ctypes.c_int()
        value = call("ioctl", self.fd(slot), termios.FIONREAD, ctypes.byref(count))
        return count.value if value == 0 else value

    # state of descriptors -----------------------------------------------------------------------------

    def nonblock(self, slot: int, on: bool, by_ioctl: bool) -> Any:
        fd = self.fd(slot)
        if by_ioctl:
            return call("ioctl", fd, 0x5421, ctypes.byref(ctypes.c_int(on)))  # FIONBIO
        flags = call("fcntl", fd, fcntl.F_GETFL, 0)
        if isinstance(flags, str):
            return flags
        return call("fcntl", fd, fcntl.F_SETFL, flags | os.O_NONBLOCK if on else flags & ~os.O_NONBLOCK)

    def flags(self, slot: int) -> Any:
        fd = self.fd(slot)
        status, own = call("fcntl", fd, fcntl.F_GETFL, 0), call("fcntl", fd, fcntl.F_GETFD, 0)
        return [status & (os.O_NONBLOCK | os.O_ACCMODE) if isinstance(status, int) else status, own]

    # events -----------------------------------------------------------------------------------------

    def poll(self, slot: int, events: int = _ALL, seconds: float = 0.0) -> Any:
        poller = select.poll()
        poller.register(self.fd(slot), events)
        found = poller.poll(seconds * 1000)
        return named(found[0][1]) if found else "-"

    def select(self, slot: int) -> Any:
        fd = self.fd(slot)
        try:
            ready = select.select([fd], [fd], [fd], 0)
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        return "".join(letter for letter, found in zip("rwx", ready, strict=True) if found) or "-"

    def epoll_create(self, slot: int) -> Any:
        return self._take(slot, call("epoll_create1", 0))

    def epoll_ctl(self, slot: int, operation: int, of: int, events: str) -> Any:
        raw = _EVENT.pack(masked(events), of)
        return call("epoll_ctl", self.fd(slot), operation, self.fd(of), raw)

    def epoll_wait(self, slot: int, seconds: float = 0.0) -> Any:
        room = ctypes.create_string_buffer(_EVENT.size * 16)
        value = call("epoll_wait", self.fd(slot), room, 16, int(seconds * 1000))
        if isinstance(value, str):
            return value
        found = [_EVENT.unpack_from(room, at * _EVENT.size) for at in range(value)]
        return [[data, named(mask)] for mask, data in sorted(found, key=lambda item: item[1])]

    # two processes ------------------------------------------------------------------------------------

    def give(self, slot: int) -> Any:
        return socket.send_fds(self.link, [b"x"], [self.fd(slot)]) if slot in self.fds else "EBADF"

    def get(self, slot: int) -> Any:
        [fd] = socket.recv_fds(self.link, 1, 1)[1]
        return self._take(slot, fd)

    # acts that wait while others act ---------------------------------------------------------------------

    def begin(self, act: list[Any]) -> Any:
        """Do an act in a thread; returns once that sleeps, as one does that waits in a system call, or is done."""
        self.answer = None

        def body() -> None:
            self.answer = [self.act(act)]

        self.thread = threading.Thread(target=body, daemon=True)
        self.thread.start()
        place = f"/proc/self/task/{self.thread.native_id}/stat"
        while self.thread.is_alive():
            try:
                with open(place) as file:
                    if file.read().rpartition(")")[2].split()[0] == "S":
                        break
            except OSError:
                break
            time.sleep(0)
        return "begun"

    def finish(self) -> Any:
        """What the act begun said, once it is done."""
        assert self.thread is not None
        self.thread.join(LIMIT)
        return self.answer[0] if self.answer else "WAITS"

    # what is on its way ---------------------------------------------------------------------------------

    def settle(self, slot: int, data: int, mask: int) -> Any:
        """Return once so many bytes can be read and one of these events is there; None if that never comes."""
        deadline = time.monotonic() + LIMIT
        poller = select.poll()
        poller.register(self.fd(slot), mask)
        if mask and not poller.poll(LIMIT * 1000):
            return "NEVER"
        while data:
            count = self.queued(slot)
            if not isinstance(count, int) or count >= data:
                break
            if time.monotonic() > deadline:
                return "NEVER"
            time.sleep(0)  # it came in several segments: no event tells of the last
        return "ok"

    def act(self, words: list[Any]) -> Any:
        """Do an act given as [its name, its arguments …]."""
        return getattr(self, words[0])(*words[1:])
