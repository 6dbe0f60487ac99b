"""TCP connections that carry one message each way."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from .effect import Stream
from .refused import Refused
from .settings import Address
from .sockets import family_of
from .stream import Reader
from .wire import Message

_CHUNK = 65536


class Closed(Exception):
    """The peer closed the connection where a message was due."""


class Connections:
    """Reads messages from connections, and bounds what all of them together hold."""

    def __init__(self, reader: Callable[[], Reader], refuse: Callable[[Refused], None], most_octets: int) -> None:
        """`refuse` is told why a message was refused."""
        self._reader = reader
        self._refuse = refuse
        self._most = most_octets
        self._held = 0

    async def ask(self, stream: Stream) -> Message:
        """The answer to what the core wants to say. OSError, TimeoutError, Refused, Closed."""
        async with asyncio.timeout_at(stream.deadline):
            connection = await _connect(stream.to)
            try:
                await asyncio.get_running_loop().sock_sendall(connection, stream.data)
                message, _ = await self.read(connection)
                return message
            except ConnectionError:
                raise Closed from None  # it was there, and would not have us
            finally:
                connection.close()

    async def read(self, connection: socket.socket) -> tuple[Message, AESGCM | None]:
        """One message, and the key that it was sealed with. OSError, Refused, Closed."""
        loop = asyncio.get_running_loop()
        reader = self._reader()
        held = 0
        try:
            while True:
                data = await loop.sock_recv(connection, _CHUNK)
                if not data:
                    raise Closed
                held += len(data)
                self._held += len(data)
                if self._held > self._most:
                    raise Refused("busy", "too many streams at a time")
                message = reader.feed(data)
                if message is not None:
                    return message, reader.cipher
        except Refused as refused:
            self._refuse(refused)
            raise
        finally:
            self._held -= held


async def _connect(to: Address) -> socket.socket:
    """A connection to a numeric address or the first of a name's that answers. OSError."""
    loop = asyncio.get_running_loop()
    try:
        where: list[tuple[int, Any]] = [(family_of(to[0]), to)]
    except ValueError:
        found = await loop.getaddrinfo(*to, type=socket.SOCK_STREAM)
        where = [(family, address) for family, _, _, _, address in found]
    error = OSError(errno.EHOSTUNREACH, "no address")
    for family, address in where:
        connection = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            await loop.sock_connect(connection, address)
            return connection
        except OSError as failed:
            connection.close()
            error = failed
        except BaseException:
            connection.close()
            raise
    raise error
