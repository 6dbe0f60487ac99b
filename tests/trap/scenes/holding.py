"""Makes a connection in each of many ways and holds both ends, so that one can look at them.

Prints for each a line with the way's name and the client's port; ends when its input does.
"""

import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

from scene import HOST, LIMIT, Child, listening, reported, told

WAYS: dict[str, Callable[[], Any]] = {}


def way(function: Callable[[], Any]) -> Callable[[], Any]:
    WAYS[function.__name__] = function
    return function


def connected(client: socket.socket) -> tuple[socket.socket, socket.socket]:
    with listening() as server:
        client.connect(server.getsockname())
        return client, server.accept()[0]


@way
def plain() -> Any:
    return connected(socket.socket())


@way
def dup_before() -> Any:
    client = socket.socket()
    other = client.dup()
    connected_pair = connected(client)
    client.close()
    return other, connected_pair[1]


@way
def epoll_elsewhere() -> Any:
    """The program has an epoll, but not for this socket."""
    epoll = select.epoll()
    epoll.register(os.pipe()[0], select.EPOLLIN)
    return (*connected(socket.socket()), epoll)


def in_epoll(mode: int) -> Any:
    epoll, client = select.epoll(), socket.socket()
    epoll.register(client, select.EPOLLOUT | mode)
    reported(epoll)
    pair = connected(client)
    events = reported(epoll, LIMIT)
    assert events == ["OUT"], events
    return (*pair, epoll)


@way
def epoll_level_before() -> Any:
    return in_epoll(0)


@way
def epoll_edge_before() -> Any:
    return in_epoll(select.EPOLLET)


@way
def epoll_exclusive_before() -> Any:
    return in_epoll(select.EPOLLEXCLUSIVE)


@way
def epoll_oneshot_before() -> Any:
    epoll, client = select.epoll(), socket.socket()
    epoll.register(client, select.EPOLLOUT | select.EPOLLONESHOT)
    pair = connected(client)
    events = reported(epoll, LIMIT)
    assert events == ["OUT"], events
    return (*pair, epoll)


@way
def epoll_oneshot_fired() -> Any:
    """It must stay silent, which nobody can make a new registration do."""
    epoll, client = select.epoll(), socket.socket()
    epoll.register(client, select.EPOLLOUT | select.EPOLLONESHOT)
    reported(epoll)
    return (*connected(client), epoll)


@way
def epoll_in_an_epoll() -> Any:
    outer, inner, client = select.epoll(), select.epoll(), socket.socket()
    outer.register(inner, select.EPOLLIN)
    inner.register(client, select.EPOLLOUT)
    pair = connected(client)
    assert reported(outer, LIMIT) == ["IN"]
    return (*pair, outer, inner)


@way
def epoll_of_a_child() -> Any:
    """A child has the epoll, too."""
    epoll = select.epoll()
    ours, theirs = socket.socketpair()
    child = Child(lambda: theirs.recv(1) and reported(epoll, LIMIT))
    client = socket.socket()
    epoll.register(client, select.EPOLLOUT)
    pair = connected(client)
    ours.send(b"x")
    assert child.answer() == ["OUT"]
    return (*pair, epoll)


@way
def epolls_too_many() -> Any:
    """More than are looked through at each connect()."""
    epolls = [select.epoll() for _ in range(20)]
    return (*connected(socket.socket()), *epolls)


@way
def epoll_in_a_dup() -> Any:
    """Registered under the number of a dup."""
    epoll, client = select.epoll(), socket.socket()
    other = client.dup()
    epoll.register(other, select.EPOLLOUT | select.EPOLLET)
    reported(epoll)
    pair = connected(client)
    events = reported(epoll, LIMIT)
    assert events == ["OUT"], events
    return (*pair, other, epoll)


@way
def epoll_that_is_a_dup() -> Any:
    """The epoll has another number than the one it was made under."""
    first, client = select.epoll(), socket.socket()
    first.register(os.pipe()[0], select.EPOLLIN)
    connected(socket.socket())
    epoll = select.epoll.fromfd(os.dup(first.fileno()))
    first.close()
    epoll.register(client, select.EPOLLOUT | select.EPOLLET)
    reported(epoll)
    pair = connected(client)
    events = reported(epoll, LIMIT)
    assert events == ["OUT"], events
    return (*pair, epoll)


@way
def fork_before() -> Any:
    """Another process has the socket too when it is connected."""
    client = socket.socket()
    ours, theirs = socket.socketpair()

    def use() -> Any:
        theirs.recv(1)
        client.sendall(b"x")
        return told(client.recv, 1)

    child = Child(use)
    pair = connected(client)
    ours.send(b"x")
    assert pair[1].recv(1) == b"x"
    pair[1].sendall(b"y")
    child.answer()
    return pair


@way
def linger_of_zero() -> Any:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return connected(client)


@way
def low_water_mark() -> Any:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 10)
    return connected(client)


@way
def after_a_refusal() -> Any:
    client = socket.socket()
    with listening() as server:
        name = server.getsockname()
    assert told(client.connect, name) == "ECONNREFUSED"
    return connected(client)


@way
def with_options() -> Any:
    client = socket.socket()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 100_000)
    return connected(client)


def hold(name: str) -> Any:
    client, server, *kept = WAYS[name]()
    client.sendall(b"ping")
    assert server.recv(10) == b"ping"
    server.sendall(b"pong, and more")
    assert client.recv(100) == b"pong, and more"
    assert client.getpeername()[0] == HOST
    os.write(1, f"{name} {client.getsockname()[1]}\n".encode())
    signal.pause()
    return kept


def main() -> None:
    children = [Child(lambda name=name: hold(name)) for name in sys.argv[1:] or WAYS]  # type: ignore[misc]
    sys.stdin.read()
    for child in children:
        os.kill(child.pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
