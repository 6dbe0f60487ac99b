"""A socket that is in an epoll before it is connected, as nginx, Netty and Envoy have it."""

import contextlib
import ctypes
import os
import select
import socket
import struct
import threading
from collections.abc import Iterator

from scene import (
    HOST,
    LIMIT,
    Child,
    await_data,
    blocked,
    listening,
    main,
    named,
    receive_fds,
    scene,
    send_fds,
    thread,
    told,
)

IN, OUT, RDHUP = select.EPOLLIN, select.EPOLLOUT, select.EPOLLRDHUP
ET, ONESHOT, EXCLUSIVE = select.EPOLLET, select.EPOLLONESHOT, select.EPOLLEXCLUSIVE
ADD = 1
MARK = 0x1122334455667788
_EVENT = struct.Struct("=IQ" if os.uname().machine == "x86_64" else "I4xQ")
_libc = ctypes.CDLL(None, use_errno=True)


def add(epoll: select.epoll, number: int, events: int, data: int = MARK) -> None:
    """EPOLL_CTL_ADD with data of our choice."""
    assert _libc.epoll_ctl(epoll.fileno(), ADD, number, _EVENT.pack(events, data)) == 0


def wait(epoll: select.epoll, timeout: float = 0.0) -> list[str]:
    """What it reports: events by name, and the data where they are not MARK."""
    room = ctypes.create_string_buffer(_EVENT.size * 16)
    count = _libc.epoll_wait(epoll.fileno(), room, 16, int(timeout * 1000))
    found = (_EVENT.unpack_from(room, at * _EVENT.size) for at in range(count))
    return sorted(named(events) + ("" if data == MARK else f" of {data:x}") for events, data in found)


def connect(client: socket.socket, server: socket.socket) -> socket.socket:
    """Connect, and the server's end once the client's says that it is."""
    told(client.connect, server.getsockname())
    accepted, _ = server.accept()
    select.select([], [client], [], LIMIT)
    return accepted


@contextlib.contextmanager
def clients() -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    """A client that blocks and one that does not, each with a listener."""
    made = [(socket.socket(), listening()) for _ in range(2)]
    made[1][0].setblocking(False)
    yield made


def life(epoll: select.epoll, client: socket.socket, server: socket.socket, modified: int = IN | RDHUP) -> object:
    """From connect() to close(): what the epoll says, and what MOD and DEL by the program do."""
    other = connect(client, server)
    found: list[object] = [wait(epoll, 0.1), wait(epoll)]
    other.sendall(b"x")
    await_data(client)
    found.append(wait(epoll))
    client.recv(1)
    found.append(told(epoll.modify, client.fileno(), modified))
    other.sendall(b"y")
    await_data(client)
    found.append([item.split()[0] for item in wait(epoll)])  # whose data is Python's own
    found += [told(epoll.unregister, client.fileno()), wait(epoll), told(epoll.unregister, client.fileno())]
    return found


def lives(events: int, *, wait_before: bool = False) -> object:
    found = []
    with clients() as made:
        for client, server in made:
            epoll = select.epoll()
            add(epoll, client.fileno(), events)
            before = wait(epoll) if wait_before else []
            found.append([before, life(epoll, client, server)])
    return found


@scene
def level() -> object:
    return lives(IN | OUT)


@scene
def level_waited_for() -> object:
    return lives(IN | OUT | RDHUP, wait_before=True)


@scene
def edge() -> object:
    return lives(IN | OUT | RDHUP | ET)


@scene
def edge_waited_for() -> object:
    return lives(IN | OUT | ET, wait_before=True)


@scene
def oneshot_armed() -> object:
    return lives(OUT | ONESHOT)


@scene
def oneshot_fired() -> object:
    """It says nothing any more, not even of a hang-up, until it is armed again."""
    found = []
    with clients() as made:
        for client, server in made:
            epoll = select.epoll()
            add(epoll, client.fileno(), IN | OUT | ONESHOT)
            before = wait(epoll)
            other = connect(client, server)
            other.sendall(b"x")
            other.close()
            await_data(client)
            found.append([before, wait(epoll), told(epoll.modify, client.fileno(), IN | ONESHOT), len(wait(epoll))])
    return found


@scene
def oneshot_with_edge() -> object:
    return lives(IN | OUT | ET | ONESHOT)


@scene
def exclusive() -> object:
    """MOD is not allowed on such a one."""
    return lives(IN | OUT | EXCLUSIVE)


@scene
def exclusive_with_edge() -> object:
    return lives(OUT | EXCLUSIVE | ET, wait_before=True)


@scene
def nothing_asked_for() -> object:
    return lives(0)


@scene
def registered_under_a_dup() -> object:
    found = []
    with clients() as made:
        for client, server in made:
            epoll, other = select.epoll(), client.dup()
            add(epoll, other.fileno(), IN | OUT | ET)
            connected = connect(client, server)
            events = [wait(epoll, 0.1)]
            connected.sendall(b"x")
            await_data(client)
            events.append(wait(epoll))
            found.append([events, told(epoll.unregister, client.fileno()), told(epoll.unregister, other.fileno())])
    return found


@scene
def registered_under_both_numbers() -> object:
    found = []
    with clients() as made:
        for client, server in made:
            epoll, other = select.epoll(), client.dup()
            add(epoll, other.fileno(), IN, 1)
            add(epoll, client.fileno(), OUT | ET, 2)
            connected = connect(client, server)
            events = [wait(epoll, 0.1)]
            connected.sendall(b"x")
            await_data(client)
            events.append(wait(epoll))
            other.close()
            found.append([events, [item for item in wait(epoll) if "of 1" in item]])
    return found


@scene
def registered_under_a_number_that_was_closed() -> object:
    """The file is open by another number, so the first registration goes on."""
    client, server, epoll = socket.socket(), listening(), select.epoll()
    other = client.dup()
    add(epoll, other.fileno(), IN, 1)
    add(epoll, client.fileno(), IN, 2)
    other.close()
    connected = connect(client, server)
    connected.sendall(b"x")
    await_data(client)
    found = wait(epoll)
    client.close()
    return found, wait(epoll)


@scene
def nested() -> object:
    found = []
    with clients() as made:
        for client, server in made:
            outer, inner = select.epoll(), select.epoll()
            add(outer, inner.fileno(), IN, 7)
            add(inner, client.fileno(), IN | RDHUP)
            connected = connect(client, server)
            events = [wait(outer), wait(inner)]
            connected.sendall(b"x")
            await_data(client)
            events += [wait(outer), wait(inner)]
            client.recv(1)
            events += [wait(outer), wait(inner)]
            connected.close()
            await_data(client)
            events += [wait(outer), [len(wait(inner))]]
            found.append(events)
    return found


@scene
def nested_thrice_with_edges() -> object:
    client, server = socket.socket(), listening()
    outer, middle, inner = select.epoll(), select.epoll(), select.epoll()
    add(outer, middle.fileno(), IN | ET, 7)
    add(middle, inner.fileno(), IN, 8)
    add(inner, client.fileno(), IN | ET)
    connected = connect(client, server)
    found = [wait(outer)]
    connected.sendall(b"x")
    await_data(client)
    return [*found, wait(outer), wait(outer), wait(middle), wait(inner)]


@scene
def in_two_epolls() -> object:
    client, server = socket.socket(), listening()
    one, two = select.epoll(), select.epoll()
    add(one, client.fileno(), IN, 1)
    add(two, client.fileno(), OUT | ET, 2)
    connected = connect(client, server)
    found = [wait(one), wait(two), wait(two)]
    connected.sendall(b"x")
    await_data(client)
    return [*found, wait(one), [len(wait(two, 0.05))], told(one.unregister, client), wait(one)]


@scene
def epoll_inherited_by_a_child() -> object:
    """fork() after epoll_create(): the child reports what the parent has registered."""
    ours, theirs = socket.socketpair()
    epoll = select.epoll()

    def report() -> object:
        theirs.recv(1)
        return wait(epoll, LIMIT)

    child = Child(report)
    client, server = socket.socket(), listening()
    add(epoll, client.fileno(), IN | RDHUP)
    connected = connect(client, server)
    connected.sendall(b"x")
    await_data(client)
    ours.send(b"x")
    found = child.answer()
    client.recv(1)
    return found, wait(epoll), told(epoll.unregister, client.fileno())


@scene
def epoll_kept_by_a_child_alone() -> object:
    """The parent registers, and closes its epoll before it connects."""
    ours, theirs = socket.socketpair()
    epoll, client, server = select.epoll(), socket.socket(), listening()
    spare = select.epoll()
    connect(socket.socket(), server)  # whoever looks for epolls now finds both
    other = client.dup()
    client.close()

    def report() -> object:
        other.close()
        theirs.recv(1)
        return wait(epoll, LIMIT)

    child = Child(report)
    theirs.close()
    while len(os.listdir(f"/proc/{child.pid}/fd")) and _has(child.pid, other):
        select.select([], [], [], 0.002)
    add(epoll, other.fileno(), IN)
    epoll.close()
    connected = connect(other, server)
    connected.sendall(b"x")
    await_data(other)
    ours.send(b"x")
    return child.answer(), wait(spare)


def _has(pid: int, sock: socket.socket) -> bool:
    """Whether another process has our socket open."""
    link = os.readlink(f"/proc/self/fd/{sock.fileno()}")
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{pid}/fd/{name}") == link:
                return True
    return False


@scene
def epoll_passed_on() -> object:
    """By SCM_RIGHTS, and closed here."""
    ours, theirs = socket.socketpair()

    def report() -> object:
        ours.close()
        [passed] = socket.recv_fds(theirs, 1, 1)[1]
        epoll = select.epoll.fromfd(passed)
        theirs.send(b"x")
        theirs.recv(1)
        return wait(epoll, LIMIT)

    child = Child(report)
    epoll, client, server = select.epoll(), socket.socket(), listening()
    connect(socket.socket(), server)
    add(epoll, client.fileno(), IN)
    socket.send_fds(ours, [b"x"], [epoll.fileno()])
    ours.recv(1)
    epoll.close()
    connected = connect(client, server)
    connected.sendall(b"x")
    await_data(client)
    ours.send(b"x")
    return child.answer()


@scene
def socket_passed_on() -> object:
    """Another process registers our socket in an epoll of its own, before it is connected."""
    ours, theirs = socket.socketpair()

    def report() -> object:
        ours.close()
        [passed] = receive_fds(theirs, 1)
        epoll = select.epoll()
        add(epoll, passed.fileno(), IN)
        theirs.send(b"x")
        theirs.recv(1)
        return wait(epoll, LIMIT), passed.recv(9).decode()

    child = Child(report)
    client, server = socket.socket(), listening()
    send_fds(ours, client)
    ours.recv(1)
    connected = connect(client, server)
    connected.sendall(b"x")
    await_data(client)
    ours.send(b"x")
    return child.answer()


@scene
def waited_for_by_a_thread() -> object:
    """Blocked in epoll_wait() already when connect() is called."""
    epoll, client, server = select.epoll(), socket.socket(), listening()
    add(epoll, client.fileno(), IN | ET)
    wait(epoll)  # tells of a hang-up, as unconnected sockets have it, and no more of that
    waiting: list[int] = []

    def begin() -> object:
        waiting.append(threading.get_native_id())
        return wait(epoll, LIMIT)

    with thread(begin) as answer:
        while not (waiting and blocked(waiting[0])):
            select.select([], [], [], 0.002)
        connected = connect(client, server)
        connected.sendall(b"x")
    return answer


@scene
def among_many() -> object:
    """More than are looked through at each connect()."""
    epoll, server = select.epoll(), listening()
    pipes = [os.pipe() for _ in range(400)]
    for reader, _ in pipes:
        epoll.register(reader, IN)
    found = []
    for _ in range(3):
        client = socket.socket()
        add(epoll, client.fileno(), IN | OUT | ET)
        connected = connect(client, server)
        events = [wait(epoll)]
        connected.sendall(b"x")
        await_data(client)
        found.append([*events, wait(epoll)])
    return found


@scene
def in_many_epolls() -> object:
    epolls, client, server = [select.epoll() for _ in range(20)], socket.socket(), listening()
    for epoll in epolls:
        add(epoll, client.fileno(), IN)
    connected = connect(client, server)
    connected.sendall(b"x")
    await_data(client)
    return [wait(epoll) for epoll in epolls]


@scene
def numbers_far_apart() -> object:
    """The epoll, or the socket, at a number where the switch has something of its own."""
    found = []
    for number in (20, 21, 40, 1003):
        epoll, client, server = select.epoll(), socket.socket(), listening()
        os.dup2(client.fileno(), number)
        client.close()
        placed = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, number)
        add(epoll, number, IN | OUT)
        found.append(life(epoll, placed, server))
    return found


@scene
def refused_then_connected() -> object:
    epoll, client, server = select.epoll(), socket.socket(), listening()
    client.setblocking(False)
    add(epoll, client.fileno(), OUT | ET)
    with listening() as closed:
        name = closed.getsockname()
    found: list[object] = [told(client.connect, name)]
    client.setblocking(True)
    select.select([], [], [client], 0.05)
    found += [wait(epoll, 0.1), client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)]
    found.append(told(client.connect, server.getsockname()))
    found.append(told(client.connect, server.getsockname()))
    _kept = server.accept()
    return [*found, wait(epoll, 0.1)]


@scene
def server_with_an_epoll() -> object:
    """A listener that is in an epoll before listen()."""
    epoll, server, client = select.epoll(), socket.socket(), socket.socket()
    server.bind((HOST, 0))
    add(epoll, server.fileno(), IN | ET)
    server.listen()
    found = [wait(epoll)]
    client.connect(server.getsockname())
    return [*found, wait(epoll, LIMIT), wait(epoll)]


if __name__ == "__main__":
    main()
