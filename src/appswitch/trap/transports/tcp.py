"""TCP on this host, with nothing replaced: the caller's own socket is connected to an acceptor in its own namespace,
and what is accepted there goes to the server. Epoll registrations, dups and options stay the kernel's own.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable, Iterator
from socket import AF_INET, AF_INET6, IPPROTO_TCP, SO_RCVBUF, SOL_SOCKET, TCP_DEFER_ACCEPT, TCP_QUICKACK

from ...model.address import is_v4
from .. import delivery
from ..delivery import Note
from ..filter import SO_BUF_LOCK
from ..program import Borrowed, Failure
from ..sockets import TCP
from ..surroundings import ACCEPTOR_PORT
from .attempt import Attempt

_LOOPBACK_MS = 50
#: With these the client may hold back the last step of the handshake for 200 ms (tcp(7)).
_DELAYING = {(IPPROTO_TCP, TCP_QUICKACK), (IPPROTO_TCP, TCP_DEFER_ACCEPT)}


def join(attempt: Attempt, deliver: Callable[[int, Note], None], note: Note) -> None:
    """Connect the caller's socket inside its namespace, have the accepted end delivered, answer as the kernel did."""
    program, call = attempt.program, attempt.call
    v4 = is_v4(note.server)
    to_v6 = v4 and attempt.dual
    acceptor = program.acceptors.get((AF_INET6 if to_v6 or not v4 else AF_INET, v4))
    if acceptor is None:
        raise Failure(errno.EADDRNOTAVAIL)
    _drain(acceptor)
    with _window_of(acceptor, attempt.window):
        code = attempt.connect_native(ACCEPTOR_PORT, v4=v4, to_v6=to_v6)
    if code not in (0, errno.EINPROGRESS):
        raise Failure(code)
    if not _DELAYING.isdisjoint(program.touched.get(attempt.cookie, ())):
        _acknowledge(attempt.sock)
    theirs = _accept_from(acceptor, attempt.sock)
    if theirs is None:
        raise Failure(errno.ECONNREFUSED)
    with theirs:
        end = attempt.remember(attempt.cookie, TCP, note, {}, in_progress=False)
        deliver(theirs.fileno(), note._replace(kind=TCP))
    attempt.worker.counters.add("tcp")
    if code:
        program.fail(call, code)
    elif not program.reply(call):
        end.in_progress = True  # the call was cancelled; when it is made again it gets its 0


@contextlib.contextmanager
def _window_of(acceptor: socket.socket, size: bytes | None) -> Iterator[None]:
    """Have the handshake offer the window that goes with the listener's SO_RCVBUF, if it was set.

    A client that was offered a large one makes segments that do not fit into a small one afterwards: each waits for
    the persist timer.
    """
    if size is None:
        yield
        return
    before = acceptor.getsockopt(SOL_SOCKET, SO_RCVBUF)
    acceptor.setsockopt(SOL_SOCKET, SO_RCVBUF, int.from_bytes(size[:4], "little") // 2)  # told twice (socket(7))
    try:
        yield
    finally:
        acceptor.setsockopt(SOL_SOCKET, SO_RCVBUF, before // 2)
        acceptor.setsockopt(SOL_SOCKET, SO_BUF_LOCK, 0)  # else windows would not grow any more


def _acknowledge(sock: Borrowed) -> None:
    before = sock.getsockopt(IPPROTO_TCP, TCP_QUICKACK)
    sock.setsockopt(IPPROTO_TCP, TCP_QUICKACK, 1)
    if not before:
        sock.setsockopt(IPPROTO_TCP, TCP_QUICKACK, 0)


def _drain(acceptor: socket.socket) -> None:
    """Whatever came to the acceptor without us is not ours to serve."""
    while True:
        try:
            acceptor.accept()[0].close()
        except OSError:
            return


def _accept_from(acceptor: socket.socket, client: Borrowed) -> socket.socket | None:
    """The other end of `client`, which has just been connected to the acceptor."""
    ours = client.getsockname()[1]
    while delivery.wait_readable(acceptor.fileno(), _LOOPBACK_MS):
        try:
            sock, address = acceptor.accept()
        except OSError:
            continue
        if address[1] == ours:
            sock.setblocking(True)
            return sock
        sock.close()
    return None
