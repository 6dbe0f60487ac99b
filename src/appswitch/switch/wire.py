"""What goes over the switch's sockets.

Clients and supervisor: a stream Unix socket; each message is a length (4 bytes, big endian) and a JSON object;
descriptors travel with its first byte (SCM_RIGHTS, unix(7)). One reply for each request, no pipelining.
Supervisor and its children: a SOCK_SEQPACKET pair, one JSON object a packet.

Pure standard library: `appswitch run` imports it.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from array import array
from collections.abc import Sequence
from typing import Any

REQUEST_LIMIT = 1 << 20
#: Some 200 bytes for each service that `appswitch services` lists.
REPLY_LIMIT = 256 << 20
#: Descriptors that may come with one message.
FDS_LIMIT = 16

_LENGTH = struct.Struct("!I")
_CREDENTIALS = struct.Struct("=iII")

Message = dict[str, Any]


class Malformed(ValueError):
    """These bytes are no message of ours."""


class Closed(ConnectionError):
    """The other side has gone."""


def encode(message: Message, limit: int = REQUEST_LIMIT) -> bytes:
    body = json.dumps(message, separators=(",", ":")).encode()
    if len(body) > limit:
        raise Malformed(f"a message of {len(body)} bytes is longer than {limit}")
    return _LENGTH.pack(len(body)) + body


#: How the reply begins to a request that was granted, when the rest is its result and a brace.
_GRANTED = b'{"ok":true,"result":'


def granted(document: str) -> bytes:
    """The reply to a request that was granted, with this JSON as its result."""
    body = b"%b%b}" % (_GRANTED, document.encode())
    if len(body) > REPLY_LIMIT:
        raise Malformed(f"a message of {len(body)} bytes is longer than {REPLY_LIMIT}")
    return _LENGTH.pack(len(body)) + body


def result(body: bytes) -> str | None:
    """The JSON that such a reply has as its result; None for any other."""
    return body[len(_GRANTED) : -1].decode() if body.startswith(_GRANTED) else None


def decode(body: bytes) -> Message:
    """A message from the bytes after the length; Malformed when they are not one JSON object."""
    try:
        message = json.loads(body)
    except (ValueError, RecursionError):
        raise Malformed("it is not JSON") from None
    if not isinstance(message, dict):
        raise Malformed("it is not a JSON object")
    return message


class Incoming:
    """Bytes and descriptors as they arrive, until they make a message. The descriptors are its own until taken."""

    def __init__(self, limit: int = REQUEST_LIMIT) -> None:
        self._limit = limit
        self._data = bytearray()
        self._fds: list[int] = []

    def receive(self, sock: socket.socket) -> None:
        """Read once. BlockingIOError when nothing is there, Closed at the end, Malformed when there is too much."""
        data, fds = receive_with_fds(sock)
        self._fds += fds
        if not data:
            raise Closed("the connection was closed")
        self._data += data
        if len(self._fds) > FDS_LIMIT:
            raise Malformed(f"more than {FDS_LIMIT} descriptors came with it")

    def take(self) -> tuple[Message, list[int]] | None:
        """The message that has arrived whole, with its descriptors; None when more must come."""
        whole = self.take_body()
        return None if whole is None else (decode(whole[0]), whole[1])

    def take_body(self) -> tuple[bytes, list[int]] | None:
        """The same before it is decoded."""
        if len(self._data) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._data)
        if length > self._limit:
            raise Malformed(f"a message of {length} bytes is longer than {self._limit}")
        end = _LENGTH.size + length
        if len(self._data) < end:
            return None
        with memoryview(self._data) as data:
            body = bytes(data[_LENGTH.size : end])
        del self._data[:end]
        fds, self._fds = self._fds, []
        return body, fds

    def close(self) -> None:
        """Give back the descriptors of a message that never became whole."""
        for fd in self._fds:
            os.close(fd)
        self._fds = []


# socket.send_fds and recv_fds take flags but pass none on (CPython before 3.12).


def send_with_fds(sock: socket.socket, data: bytes | memoryview, fds: Sequence[int]) -> int:
    """One sendmsg(2) with descriptors on its first byte; how many bytes were taken."""
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
    return sock.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)


def receive_with_fds(sock: socket.socket, flags: int = 0, most: int = FDS_LIMIT) -> tuple[bytes, list[int]]:
    """One recvmsg(2) with these flags; its descriptors, at most `most`, are close-on-exec, and ours to close."""
    room, flags = socket.CMSG_SPACE(most * 4), flags | socket.MSG_CMSG_CLOEXEC
    try:
        data, ancillary, _, _ = sock.recvmsg(1 << 16, room, flags)
    except ConnectionResetError:  # see `skip`
        data, ancillary, _, _ = sock.recvmsg(1 << 16, room, flags)
    fds = array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) // fds.itemsize * fds.itemsize])
    return data, list(fds)


def skip(sock: socket.socket) -> None:
    """Take the next message off a SOCK_SEQPACKET socket, after a look at it (MSG_PEEK).

    Of a process that died before it had read all that was sent to it, the kernel tells once by ECONNRESET, and ahead
    of what it said itself: that is still to be read.
    """
    try:
        sock.recv(1)
    except ConnectionResetError:
        sock.recv(1)


def send(sock: socket.socket, message: Message, fds: Sequence[int] = (), limit: int = REQUEST_LIMIT) -> None:
    """Send all of a message on a blocking socket; OSError (TimeoutError) when that fails."""
    send_all(sock, encode(message, limit), fds)


def send_all(sock: socket.socket, message: bytes, fds: Sequence[int] = ()) -> None:
    """The same with a message that is encoded already."""
    data = memoryview(message)
    sent = send_with_fds(sock, data, fds) if fds else 0
    if sent < len(data):  # a send of nothing fails when the other side has answered and gone already
        sock.sendall(data[sent:], socket.MSG_NOSIGNAL)


def receive(sock: socket.socket) -> Message:
    """The next reply on a blocking socket; Closed, Malformed, or OSError (TimeoutError)."""
    return decode(receive_body(sock))


def receive_body(sock: socket.socket) -> bytes:
    """The same before it is decoded."""
    incoming = Incoming(REPLY_LIMIT)
    try:
        while (whole := incoming.take_body()) is None:
            incoming.receive(sock)
        return whole[0]
    finally:
        incoming.close()


def credentials(sock: socket.socket) -> tuple[int, int]:
    """(process id, user id) of who connected, or of who listens (SO_PEERCRED, unix(7))."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    return pid, uid
