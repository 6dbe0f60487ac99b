"""DNS over TCP (RFC 7766): the relay's ends of the streams that trap workers gave to programs instead of a
connection to port 53.

A worker connects to a Unix SOCK_SEQPACKET socket in the run directory and sends one message, {"program": id},
with one descriptor, the stream. From then on that carries DNS messages, each after its length in two octets.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import select
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable

from appswitch.dns.forward import Poller

NAME = "dns.sock"
LIMIT = 256  # connections, deliveries under way included
SHARE = 64  # of them, for one program
IDLE = 30.0  # seconds without progress after which a connection is closed
PIPELINE = 32  # queries of one connection in hand at a time, and read in one turn of the loop
BACKLOG = 65536  # octets of answers that a client has not taken, above which nothing more is read from it
_CHUNK = 16384

log = logging.getLogger("appswitch.relay")

Resolve = Callable[[bytes, str, Callable[[bytes | None], None]], None]
"""(query, program, deliver): `deliver` is called once, with None where silence is the answer."""


class Streams:
    """The listener and its connections."""

    def __init__(
        self,
        poller: Poller,
        path: str,
        resolve: Resolve,
        *,
        idle: float = IDLE,
        limit: int = LIMIT,
        share: int = SHARE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Listen at `path`, for this user alone, taking the place of a listener that was there.

        Raises OSError when that cannot be done.
        """
        self.poller, self.resolve = poller, resolve
        self._path, self._idle, self._limit, self._share, self._clock = path, idle, limit, share, clock
        # By their last progress: all have the same time to wait, so this is the order of the deadlines.
        self._open: dict[_Connection, float] = {}
        self._programs: Counter[str] = Counter()
        self._spare = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        self._listener = _listen(path)
        self._inode = os.stat(path).st_ino
        poller.watch(self._listener.fileno(), select.EPOLLIN, self._accept)

    def __len__(self) -> int:
        """Connections."""
        return len(self._open)

    def timeout(self) -> float | None:
        """Seconds until `expire` must be called; None without connections."""
        first = next(iter(self._open.values()), None)
        return None if first is None else max(0.0, first - self._clock())

    def expire(self) -> None:
        """Close the connections that made no progress for too long."""
        now = self._clock()
        for connection, deadline in list(self._open.items()):
            if deadline > now:
                break
            connection.close()

    def close(self) -> None:
        """Close everything."""
        for connection in list(self._open):
            connection.close()
        self.poller.forget(self._listener.fileno())
        self._listener.close()
        os.close(self._spare)
        try:
            if os.stat(self._path).st_ino == self._inode:
                os.unlink(self._path)
        except OSError:
            pass

    def progress(self, connection: _Connection) -> None:
        """The connection is in use: its time begins anew."""
        self._open.pop(connection, None)
        self._open[connection] = self._clock() + self._idle

    def gone(self, connection: _Connection) -> None:
        """The connection is closed."""
        self._open.pop(connection, None)
        if isinstance(connection, _Stream):
            self._programs[connection.program] -= 1
            if not self._programs[connection.program]:
                del self._programs[connection.program]

    def delivered(self, sock: socket.socket, program: str) -> None:
        """Serve DNS on `sock` for `program`."""
        if self._programs[program] >= self._share:
            log.info("connection of %s to DNS closed: it has %d already", program, self._share)
            sock.close()
            return
        self._programs[program] += 1
        _Stream(self, sock, program)

    def _accept(self, _events: int) -> None:
        for _ in range(16):
            try:
                sock, _ = self._listener.accept()
            except OSError as problem:
                if problem.errno in (errno.EMFILE, errno.ENFILE):
                    self._turn_away()
                return
            if len(self._open) >= self._limit:
                sock.close()
                continue
            credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            if struct.unpack("3i", credentials)[1] != os.geteuid():
                log.warning("connection to %s closed: it is another user's", self._path)
                sock.close()
                continue
            sock.setblocking(False)
            _Delivery(self, sock)

    def _turn_away(self) -> None:
        """Out of descriptors: take the next caller and close it, or the listener would be ready for ever."""
        os.close(self._spare)
        try:
            self._listener.accept()[0].close()
        except OSError:
            pass
        self._spare = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)


def _listen(path: str) -> socket.socket:
    """A listener at `path`, mode 0600; the name changes hands at once, so that callers always find one."""
    fresh = f"{path}.new"
    flags = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | flags)
    mask = os.umask(0o177)
    try:
        if os.path.exists(fresh):
            os.unlink(fresh)  # of a relay that was killed just here
        listener.bind(fresh)
        listener.listen(128)
        os.rename(fresh, path)
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(mask)
    return listener


class _Connection:
    """Something that is open, is watched, and is closed when it makes no progress."""

    def __init__(self, streams: Streams, sock: socket.socket) -> None:
        self.streams, self.sock = streams, sock
        self.events = select.EPOLLIN
        self.closed = False
        streams.poller.watch(sock.fileno(), self.events, self.ready)
        streams.progress(self)

    def ready(self, events: int) -> None:
        """The descriptor has some of the watched events."""
        raise NotImplementedError

    def close(self) -> None:
        """End it. May be called again."""
        if not self.closed:
            self.closed = True
            self.streams.poller.forget(self.sock.fileno())
            self.sock.close()
            self.streams.gone(self)


class _Delivery(_Connection):
    """A worker that is about to send a stream."""

    def ready(self, events: int) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self.sock, 4096, 4, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        self.close()
        stream = _stream(fds)
        program = _program(data)
        if stream is not None and program is not None:
            self.streams.delivered(stream, program)
            return
        if data:
            log.error("a stream for DNS was closed, its delivery is not as agreed: %.200r", data)
        if stream is not None:
            stream.close()


def _stream(fds: list[int]) -> socket.socket | None:
    """The stream socket that was sent; everything else is closed."""
    if len(fds) == 1:
        try:
            sock = socket.socket(fileno=fds[0])
        except OSError:
            os.close(fds[0])
            return None
        if sock.type == socket.SOCK_STREAM:
            return sock
        sock.close()
        return None
    for fd in fds:
        os.close(fd)
    return None


def _program(data: bytes) -> str | None:
    try:
        message = json.loads(data)
    except ValueError:
        return None
    program = message.get("program") if isinstance(message, dict) else None
    return str(program) if isinstance(program, (str, int)) else None


class _Stream(_Connection):
    """A program's DNS connection. Answers go out as they come, in whatever order (RFC 7766, 7)."""

    def __init__(self, streams: Streams, sock: socket.socket, program: str) -> None:
        self.program = program
        self._in, self._out = bytearray(), bytearray()
        self._asked = 0  # queries without an answer yet
        self._ended = False  # the client sends no more
        self._busy = False
        super().__init__(streams, sock)

    def ready(self, events: int) -> None:
        if events & (select.EPOLLHUP | select.EPOLLERR):
            self.close()  # nobody is left to read an answer
            return
        try:
            if events & select.EPOLLIN:
                # MSG_DONTWAIT: the open file may have other holders, so its flags are not ours to set.
                data = self.sock.recv(_CHUNK, socket.MSG_DONTWAIT)
                self._in += data
                self._ended = not data
                self.streams.progress(self)
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        self._go_on()

    def _go_on(self) -> None:
        """Serve what is there, send what can be sent, and watch for what is missing."""
        self._busy = True  # an answer that comes at once only goes to the buffer
        for _ in range(PIPELINE):
            query = None if self._full() else self._next()
            if query is None:
                break
            self._asked += 1
            self.streams.resolve(query, self.program, self._answer)
        self._busy = False
        self._send()

    def _full(self) -> bool:
        return self._asked >= PIPELINE or len(self._out) >= BACKLOG

    def _next(self) -> bytes | None:
        """Take the next whole query from the buffer."""
        if not self._whole():
            return None
        end = 2 + int.from_bytes(self._in[:2], "big")
        query = bytes(self._in[2:end])
        del self._in[:end]
        return query

    def _whole(self) -> bool:
        return len(self._in) >= 2 and len(self._in) >= 2 + int.from_bytes(self._in[:2], "big")

    def _answer(self, answer: bytes | None) -> None:
        if self.closed:
            return
        self._asked -= 1
        if answer is not None:
            self._out += len(answer).to_bytes(2, "big") + answer
        if not self._busy:
            self._go_on()

    def _send(self) -> None:
        try:
            if self._out:
                sent = self.sock.send(self._out, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                del self._out[:sent]
                self.streams.progress(self)
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        left = self._whole() and not self._full()
        if self._ended and not (self._asked or self._out or left):
            self.close()
            return
        events = 0
        if self._out or left:
            events |= select.EPOLLOUT  # also says "again in the next turn", after the others had theirs
        if not self._ended and not self._full() and not self._whole():
            events |= select.EPOLLIN
        if events != self.events:
            self.events = events
            self.streams.poller.change(self.sock.fileno(), events)
