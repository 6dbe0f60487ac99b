"""The control socket: clients come, ask one thing after the other, and go; a slow one waits by itself."""

from __future__ import annotations

import logging
import os
import select
import socket
import time
from collections import Counter
from collections.abc import Callable
from functools import partial

from . import descriptors, wire
from .loop import Loop
from .paths import SwitchError
from .registry import Entry

log = logging.getLogger("appswitch.supervisor")

#: Seconds that a client may take for its request, and a program from its identity to its start.
PATIENCE = 10.0
#: Connections pending at a time: in all, and of one user (but root and the switch's own).
CLIENTS, CLIENTS_OF_USER = 1024, 128
#: Seconds without new clients when the system has no descriptor left for one.
_PAUSE = 1.0


class Client:
    """A connection to the control socket. `entry`: the identity that it holds; `busy`: it waits for our answer."""

    __slots__ = ("busy", "entry", "incoming", "pid", "sock", "uid")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.pid, self.uid = wire.credentials(sock)
        self.incoming = wire.Incoming()
        self.entry: Entry | None = None
        self.busy = False


def listen(path: str, mode: int, gid: int | None) -> socket.socket:
    """The control socket, which users may connect to as its mode and group say. SwitchError when it cannot be made."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.setblocking(False)
        listener.bind(path)
        if gid is not None:
            os.chown(path, -1, gid)
        os.chmod(path, mode)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise SwitchError(f"cannot make the control socket {path}: {error.strerror or error}") from None
    return listener


class Control:
    """`handle` is called with each whole request and its descriptors, which it must close; what it raises as
    SwitchError is told the client. `late` is called when a client's time is over, `gone` when a client is dropped.
    """

    def __init__(
        self,
        loop: Loop,
        handle: Callable[[Client, wire.Message, list[int]], None],
        late: Callable[[Client], None],
        gone: Callable[[Client], None],
    ) -> None:
        self._loop = loop
        self._listener: socket.socket | None = None
        self._handle, self._late, self._gone = handle, late, gone
        self._uid = os.geteuid()
        # Client → deadline. All waits are equally long, so the first in order ends first.
        self._clients: dict[Client, float] = {}
        self._accept_at: float | None = None

    def open(self, listener: socket.socket) -> None:
        """Let clients come."""
        self._listener = listener
        self._loop.watch(listener.fileno(), select.EPOLLIN, self._on_arrival)

    def __contains__(self, client: Client) -> bool:
        return client in self._clients

    def due(self, now: float) -> None:
        """Do what is due at this time of the monotonic clock."""
        while self._clients and (first := next(iter(self._clients.items())))[1] <= now:
            self._late(first[0])
            self.drop(first[0])
        if self._listener is not None and self._accept_at is not None and self._accept_at <= now:
            self._accept_at = None
            self._loop.watch(self._listener.fileno(), select.EPOLLIN, self._on_arrival)

    def moments(self) -> list[float]:
        """When something will be due; empty while no client is pending."""
        found = [next(iter(self._clients.values()))] if self._clients else []
        return found if self._accept_at is None else [*found, self._accept_at]

    def renew(self, client: Client) -> None:
        """Its time begins anew."""
        self._clients.pop(client, None)
        self._clients[client] = time.monotonic() + PATIENCE

    def reply(self, client: Client, reply: wire.Message) -> bool:
        """Replies are small: one that does not fit into the socket's buffer is to a client that reads nothing."""
        data = wire.encode(reply)
        try:
            return client.sock.send(data, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT) == len(data)
        except OSError:
            return False

    def refuse(self, client: Client, reason: str) -> None:
        """Tell the client why not, and drop it."""
        self.reply(client, {"ok": False, "error": reason})
        self.drop(client)

    def drop(self, client: Client) -> None:
        """End the connection."""
        if self.release(client):
            self._loop.close([client.sock.detach()])

    def release(self, client: Client) -> bool:
        """Forget the connection without ending it; False when it is forgotten already."""
        if self._clients.pop(client, None) is None:
            return False
        self._loop.unwatch(client.sock.fileno())
        client.incoming.close()
        self._gone(client)
        return True

    def close(self, reason: str) -> None:
        """No more clients; those that are pending are told."""
        self._accept_at = None
        if self._listener is not None:
            self._loop.close([self._listener.detach()])
            self._listener = None
        for client in list(self._clients):
            self.refuse(client, reason)

    def abandon(self) -> None:
        """In a forked process: let go of every descriptor without closing it."""
        for client in self._clients:
            client.sock.detach()
        if self._listener is not None:
            self._listener.detach()

    def _on_arrival(self, _: int) -> None:
        assert self._listener is not None
        try:
            sock, _address = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError as error:
            log.warning("no client can be accepted for a while: %s", error)
            self._loop.unwatch(self._listener.fileno())
            self._accept_at = time.monotonic() + _PAUSE
            return
        sock.setblocking(False)
        client = Client(sock)
        if self._crowded(client.uid):
            self.reply(client, {"ok": False, "error": "the switch has too many requests at once: try again"})
            sock.close()
            return
        self.renew(client)
        self._loop.watch(sock.fileno(), select.EPOLLIN, partial(self._on_client, client))

    def _crowded(self, uid: int) -> bool:
        if len(self._clients) >= CLIENTS:
            return True
        if uid in (0, self._uid):
            return False
        return Counter(client.uid for client in self._clients)[uid] >= CLIENTS_OF_USER

    def _on_client(self, client: Client, _: int) -> None:
        try:
            client.incoming.receive(client.sock)
            whole = client.incoming.take()
        except (BlockingIOError, InterruptedError):
            return
        except wire.Malformed as error:
            log.warning("a client of user %d sent what is no request: %s", client.uid, error)
            self.refuse(client, f"this is no request that the switch knows ({error}): use `appswitch`")
            return
        except OSError:
            self.drop(client)
            return
        if whole is None:
            return
        message, fds = whole
        if client.busy:
            descriptors.close_all(fds)
            self.drop(client)
            return
        try:
            self._handle(client, message, fds)
        except SwitchError as error:
            self.refuse(client, str(error))
        except Exception:
            log.exception("a request of user %d failed", client.uid)
            self.refuse(client, "the switch failed on this request: see its log")
