"""Where a program that looks closely can tell: what docs/transparency.md says, as scenes."""

import ctypes
import os
import signal
import socket
import struct

from interrupted import NO_RESTART, RESTART, Storm, handle, interrupting, kind, pause
from scene import HOST, LIMIT, Child, await_data, listening, main, pair, poll, raw, scene, timeval, told


@scene
def peer_has_closed() -> object:
    """Poll adds a hang-up; the first send fails, not only the second."""
    client, server = pair()
    server.close()
    await_data(client)
    return poll(client), told(client.send, b"x")


@scene
def peer_reads_no_more() -> object:
    client, server = pair()
    server.shutdown(socket.SHUT_RD)
    return told(client.send, b"x")


@scene
def reset_asked_for_after_connect() -> object:
    """SO_LINGER {1, 0} then is a clean end."""
    client, server = pair()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    return told(lambda: server.recv(1).decode())


@scene
def connect_waiting_for_a_listener_that_closes() -> object:
    server = listening(0)
    first, late = socket.create_connection(server.getsockname()), socket.socket()
    late.setblocking(False)
    told(late.connect, server.getsockname())
    server.close()
    poll(late, LIMIT)
    first.close()
    return os.strerror(late.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))


@scene
def listener_read_and_written() -> object:
    server = listening()
    return told(server.recv, 1), told(server.send, b"x")


@scene
def listener_of_a_child_polled_by_its_parent() -> object:
    """The child listens on the socket that its parent bound: only the child's descriptor tells of arrivals."""
    server = socket.socket()
    server.bind((HOST, 0))
    ours, theirs = socket.socketpair()

    def listen() -> None:
        server.listen()
        theirs.send(b"x")
        theirs.recv(1)

    child = Child(listen)
    ours.recv(1)
    client = socket.create_connection(server.getsockname())
    found = poll(server, 2)
    server.accept()
    ours.send(b"x")
    child.answer()
    client.close()
    return found


@scene
def options_of_a_listener_set_late() -> object:
    """Four options are inherited as they were when listen() was called."""
    server = listening()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval(100))
    client = socket.create_connection(server.getsockname())
    accepted, _ = server.accept()
    client.close()
    return [
        accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
        accepted.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16) == timeval(100),
    ]


@scene
def accept_with_timeout_and_restart() -> object:
    """With SO_RCVTIMEO set accept() is not restarted natively, whatever SA_RESTART says (signal(7))."""
    server = listening()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval(LIMIT))
    handle(signal.SIGUSR1, RESTART)

    def connect() -> None:
        pause()
        socket.create_connection(server.getsockname())

    interrupting(signal.SIGUSR1, then=connect)
    return kind(raw("accept", server.fileno(), None, None))


KEPT: list[object] = []
"""Buffers into which an answer may still be written after its call gave EINTR (docs/transparency.md)."""


@scene
def other_calls_are_interrupted() -> object:
    """A handler without SA_RESTART that runs during a trapped call gives EINTR, natively never."""
    server = listening()
    room, length = ctypes.create_string_buffer(64), ctypes.c_int(64)
    KEPT.extend((room, length))
    storm = Storm(NO_RESTART, LIMIT)
    # Natively a second; trapped at least five, should the first signals all miss.
    found = any(raw("getsockname", server.fileno(), room, ctypes.byref(length)) == "EINTR" for _ in range(300_000))
    storm.end()
    return found


if __name__ == "__main__":
    main()
