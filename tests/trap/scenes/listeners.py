"""accept(), and everything by which a program waits for it."""

import ctypes
import fcntl
import os
import select
import socket
import struct
import threading

from scene import (
    HOST,
    LIMIT,
    Child,
    await_data,
    listening,
    main,
    named,
    pair,
    poll,
    raw,
    reported,
    scene,
    thread,
    timeval,
    told,
)

NONBLOCK, CLOEXEC = socket.SOCK_NONBLOCK, socket.SOCK_CLOEXEC
BAD = ctypes.c_void_p(8)


def connect(server: socket.socket) -> socket.socket:
    return socket.create_connection(server.getsockname())


def flags(fd: int) -> tuple[bool, bool]:
    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK), bool(fcntl.fcntl(fd, fcntl.F_GETFD))


@scene
def errors_of_descriptors() -> object:
    idle = socket.socket()
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    local = socket.socket(socket.AF_UNIX)
    client, server = pair()
    file = os.open("/dev/null", os.O_RDONLY)
    return {
        "negative": raw("accept", -1, None, None),
        "closed": raw("accept", 999, None, None),
        "file": raw("accept", file, None, None),
        "not listening": raw("accept", idle.fileno(), None, None),
        "datagrams": raw("accept", datagrams.fileno(), None, None),
        "unix, not listening": raw("accept", local.fileno(), None, None),
        "client": raw("accept", client.fileno(), None, None),
        "server": raw("accept", server.fileno(), None, None),
        "flags": raw("accept4", idle.fileno(), None, None, 0x40),
        "negative, flags": raw("accept4", -1, None, None, 0x40),
        "listen on a client": raw("listen", client.fileno(), 1),
        "listen on a file": raw("listen", file, 1),
        "listen on nothing": raw("listen", -1, 1),
        "listen for datagrams": raw("listen", datagrams.fileno(), 1),
        "bind a client": told(client.bind, (HOST, 0)),
    }


@scene
def errors_of_a_listener() -> object:
    server = listening()
    server.setblocking(False)
    length = ctypes.c_int(16)
    room = ctypes.create_string_buffer(128)
    return {
        "empty": raw("accept", server.fileno(), None, None),
        "empty, bad pointer": raw("accept", server.fileno(), BAD, ctypes.byref(length)),
        "empty, unknown flag": raw("accept4", server.fileno(), None, None, 0x40),
        "bind again": told(server.bind, (HOST, 0)),
        "listen again": told(server.listen, 5),
        "connect": told(server.connect, server.getsockname()),
        "peer": told(server.getpeername),
        "name, bad pointer": raw("getsockname", server.fileno(), BAD, ctypes.byref(length)),
        "name, bad length": raw("getsockname", server.fileno(), room, BAD),
    }


def address_given(size: int | None, where: object = None) -> object:
    """accept() with room for `size` bytes of the address: result, length afterwards, bytes untouched after them."""
    with listening() as server, connect(server) as client:
        room = ctypes.create_string_buffer(b"\xee" * 64, 64)
        length = ctypes.c_int(size if size is not None else 0)
        given = ctypes.byref(length) if size is not None else BAD
        fd = raw("accept", server.fileno(), where or room, given)
        family = struct.unpack("H", room.raw[:2])[0]
        tells = same = None
        if isinstance(fd, int):
            os.close(fd)
            own = socket.inet_aton(client.getsockname()[0]) + struct.pack("!H", client.getsockname()[1])
            tells = room.raw[2:8] == own[4:] + own[:4]
            same = room.raw.rstrip(b"\xee").__len__()
        else:
            client.settimeout(LIMIT)
            same = told(lambda: client.recv(1).decode())
        return "fd" if isinstance(fd, int) else fd, length.value, family == socket.AF_INET, tells, same


@scene
def accept_addresses() -> object:
    return {
        "exact": address_given(16),
        "more": address_given(64),
        "short": address_given(6),
        "two": address_given(2),
        "zero": address_given(0),
        "negative": address_given(-1),
        "bad pointer": address_given(16, BAD),
        "bad length": address_given(None),
    }


@scene
def accept_without_an_address() -> object:
    with listening() as server, connect(server):
        length = ctypes.c_int(77)
        room = ctypes.create_string_buffer(16)
        first = raw("accept", server.fileno(), None, None)
        connect(server)
        second = raw("accept", server.fileno(), None, ctypes.byref(length))
        connect(server)
        third = raw("accept", server.fileno(), room, None)
        return [value if isinstance(value, str) else "fd" for value in (first, second, third)], length.value


@scene
def names_of_both_ends() -> object:
    server = listening()
    client = connect(server)
    accepted, peer = server.accept()
    room = ctypes.create_string_buffer(b"\xee" * 32, 32)
    length = ctypes.c_int(4)
    short = raw("getpeername", client.fileno(), room, ctypes.byref(length)), length.value, room.raw[4:5] == b"\xee"
    length = ctypes.c_int(-1)
    return {
        "crosswise": (
            client.getsockname() == accepted.getpeername() == peer,
            client.getpeername() == accepted.getsockname() == server.getsockname(),
        ),
        "addresses": [client.getsockname()[0], client.getpeername()[0], server.getsockname()[0]],
        "short": short,
        "negative": raw("getpeername", client.fileno(), room, ctypes.byref(length)),
        "bad": raw("getpeername", client.fileno(), BAD, ctypes.byref(ctypes.c_int(16))),
        "nothing": raw("getsockname", -1, room, ctypes.byref(length)),
        "unconnected": told(socket.socket().getpeername),
    }


@scene
def accepted_flags() -> object:
    server = listening()
    server.setblocking(False)
    found = []
    for mode in (None, 0, NONBLOCK, CLOEXEC, NONBLOCK | CLOEXEC):
        with connect(server):
            await_data(server)
            fd = (
                raw("accept", server.fileno(), None, None)
                if mode is None
                else raw("accept4", server.fileno(), None, None, mode)
            )
            assert isinstance(fd, int), fd
            found.append(flags(fd))
            os.close(fd)
    return found, flags(server.fileno())


@scene
def flags_survive_listen_and_connect() -> object:
    found = {}
    for wanted in ((False, False), (True, False), (False, True), (True, True)):
        server, client = socket.socket(), socket.socket()
        for sock in (server, client):
            sock.setblocking(not wanted[0])
            sock.set_inheritable(not wanted[1])
        server.listen(4)
        told(client.connect, ("127.0.0.1", server.getsockname()[1]))
        found[str(wanted)] = flags(server.fileno()), flags(client.fileno())
    return found


@scene
def client_gone_before_accept() -> object:
    server = listening()
    with connect(server) as client:
        client.send(b"last words")
        name = client.getsockname()
    accepted, peer = server.accept()
    return peer == name, accepted.recv(100).decode(), accepted.recv(100).decode()


@scene
def first_come_first_served() -> object:
    server = listening()
    clients = [connect(server) for _ in range(5)]
    peers = [server.accept()[1] for _ in clients]
    return peers == [client.getsockname() for client in clients]


@scene
def readiness_by_poll_and_select() -> object:
    server = listening()
    found = [poll(server), [len(part) for part in select.select([server], [server], [server], 0)]]
    clients = [connect(server), connect(server)]
    await_data(server)
    found += [poll(server), [len(part) for part in select.select([server], [server], [server], 0)]]
    server.accept()
    found.append(poll(server, LIMIT))
    server.accept()
    found.append(poll(server))
    assert clients
    return found


@scene
def unused_sockets_by_poll() -> object:
    idle, bound = socket.socket(), socket.socket()
    bound.bind((HOST, 0))
    return poll(idle), poll(bound)


def with_epoll(mode: int, before: bool) -> object:
    """Arrivals at a listener registered before or after listen(), as one epoll reports them."""
    epoll = select.epoll()
    server = socket.socket()
    server.bind((HOST, 0))
    if not before:
        server.listen(16)
    epoll.register(server, select.EPOLLIN | mode)
    if before:
        found = [reported(epoll)]
        server.listen(16)
        found.append(reported(epoll))
    else:
        found = [reported(epoll)]
    first = connect(server)
    found += [reported(epoll, LIMIT), reported(epoll)]
    second = connect(server)
    found += [reported(epoll, 0 if mode & select.EPOLLONESHOT else LIMIT), reported(epoll)]
    server.accept()
    await_data(server)
    found.append(reported(epoll))
    if mode & select.EPOLLONESHOT:
        epoll.modify(server, select.EPOLLIN | mode)
        found.append(reported(epoll))
    server.accept()
    found.append(reported(epoll))
    epoll.unregister(server)
    third = connect(server)
    found.append(reported(epoll))
    assert len({first, second, third}) == 3
    return found


@scene
def epoll_level() -> object:
    return with_epoll(0, False)


@scene
def epoll_edge() -> object:
    return with_epoll(select.EPOLLET, False)


@scene
def epoll_oneshot() -> object:
    return with_epoll(select.EPOLLONESHOT, False)


@scene
def epoll_edge_oneshot() -> object:
    return with_epoll(select.EPOLLET | select.EPOLLONESHOT, False)


@scene
def epoll_level_before_listen() -> object:
    return with_epoll(0, True)


@scene
def epoll_edge_before_listen() -> object:
    return with_epoll(select.EPOLLET, True)


@scene
def epoll_before_listen_at_any_number() -> object:
    """The registration is carried over whatever the descriptor's number is."""
    epoll = select.epoll()
    lost = []
    for number in range(20, 120):
        first = socket.socket()
        os.dup2(first.fileno(), number)
        first.close()
        server = socket.socket(fileno=number)
        epoll.register(server, select.EPOLLIN | select.EPOLLET)
        server.listen(4)
        epoll.poll(0)
        client = connect(server)
        if epoll.poll(LIMIT) != [(number, select.EPOLLIN)]:
            lost.append(number)
        client.close()
        epoll.unregister(server)
        server.close()
    return lost


@scene
def dup_and_epoll_before_listen() -> object:
    epoll = select.epoll()
    server = socket.socket()
    other = server.dup()
    epoll.register(server, select.EPOLLIN)
    epoll.register(other, select.EPOLLIN | select.EPOLLET)
    server.listen(4)
    found = [reported(epoll)]
    client = connect(server)
    found += [reported(epoll, LIMIT), reported(epoll)]
    epoll.unregister(other)
    other.close()
    found.append(reported(epoll))
    server.accept()
    found.append(reported(epoll))
    client.close()
    return found


@scene
def negative_backlog() -> object:
    """As much as the system allows (net/socket.c)."""
    server = socket.socket()
    server.bind((HOST, 0))
    found = [raw("listen", server.fileno(), -1)]
    clients = []
    for _ in range(5):
        client = socket.socket()
        client.setblocking(False)
        told(client.connect, server.getsockname())
        clients.append(client)
    return found, [poll(client, LIMIT) for client in clients]


@scene
def two_listen_on_one_port() -> object:
    """SO_REUSEADDR lets both bind; the second listen() is refused."""
    first, second = socket.socket(), socket.socket()
    for sock in (first, second):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    first.bind((HOST, 0))
    found = [told(second.bind, first.getsockname()), told(first.listen), told(second.listen)]
    first.close()
    return found, told(second.listen)


@scene
def epoll_exclusive() -> object:
    server = listening()
    server.setblocking(False)
    barrier, got = threading.Barrier(5), []
    reader, writer = os.pipe()

    def wait() -> None:
        epoll = select.epoll()
        epoll.register(server, select.EPOLLIN | select.EPOLLEXCLUSIVE)
        epoll.register(reader, select.EPOLLIN)
        barrier.wait()
        while len(got) < 12:
            epoll.poll()
            try:
                got.append(server.accept()[1])
            except BlockingIOError:
                pass
        os.write(writer, b"x")  # for the others

    waiting = [threading.Thread(target=wait) for _ in range(4)]
    for item in waiting:
        item.start()
    barrier.wait()
    clients = [connect(server) for _ in range(12)]
    for item in waiting:
        item.join()
    return sorted(got) == sorted(client.getsockname() for client in clients)


@scene
def woken_out_of_poll() -> object:
    """A thread that sleeps in each kind of wait is woken by an arrival."""
    found = {}
    for kind in ("poll", "select", "epoll", "accept"):
        server = listening()
        epoll = select.epoll()
        epoll.register(server, select.EPOLLIN)

        def wait(kind: str = kind, server: socket.socket = server, epoll: select.epoll = epoll) -> object:
            if kind == "poll":
                return poll(server, LIMIT)
            if kind == "select":
                return len(select.select([server], [], [], LIMIT)[0])
            if kind == "epoll":
                return reported(epoll, LIMIT)
            return server.accept()[0].recv(10).decode()

        with thread(wait) as answer:
            select.select([], [], [], 0.03)
            client = connect(server)
            client.send(b"hello")
        found[kind] = answer
    return found


@scene
def threads_in_accept() -> object:
    """Four threads accept, four connect; every connection is served once, by one of them."""
    server = listening(64)
    served: list[bytes] = []

    def serve() -> None:
        while True:
            accepted, _ = server.accept()
            with accepted:
                data = accepted.recv(16)
                if data == b"end":
                    return
                served.append(data)
                accepted.sendall(data)

    echoed: list[bool] = []

    def call(index: int) -> None:
        for number in range(15):
            with connect(server) as client:
                said = f"{index}-{number}".encode()
                client.sendall(said)
                echoed.append(client.recv(16) == said and client.recv(16) == b"")

    servers = [threading.Thread(target=serve) for _ in range(4)]
    clients = [threading.Thread(target=call, args=(index,)) for index in range(4)]
    for item in servers + clients:
        item.start()
    for item in clients:
        item.join()
    for _ in servers:
        connect(server).sendall(b"end")
    for item in servers:
        item.join()
    return len(served), len(set(served)), len(echoed), all(echoed)


@scene
def prefork() -> object:
    """Four processes accept from a listener that their parent made."""
    server = listening(64)

    def serve() -> int:
        count = 0
        while True:
            accepted, _ = server.accept()
            with accepted:
                if accepted.recv(16) == b"end":
                    return count
                count += 1
                accepted.sendall(b"yes")

    children = [Child(serve) for _ in range(4)]
    answers = []
    for _ in range(24):
        with connect(server) as client:
            client.sendall(b"call")
            answers.append(client.recv(16).decode())
    for _ in children:
        connect(server).sendall(b"end")
    return sum(child.answer() for child in children), set(answers) == {"yes"}


@scene
def prefork_polling() -> object:
    """Processes with an epoll each, non-blocking accept: as nginx does."""
    server = listening(64)
    server.setblocking(False)
    stop_reader, stop_writer = os.pipe()

    def serve() -> int:
        count = 0
        epoll = select.epoll()
        epoll.register(server, select.EPOLLIN | select.EPOLLET)
        epoll.register(stop_reader, select.EPOLLIN)
        while True:
            ready = {fd for fd, _ in epoll.poll()}
            while True:
                try:
                    accepted, _ = server.accept()
                except BlockingIOError:
                    break
                with accepted:
                    accepted.setblocking(True)
                    accepted.sendall(accepted.recv(16))
                count += 1
            if stop_reader in ready:
                return count

    children = [Child(serve) for _ in range(3)]
    answers = []
    for _ in range(24):
        with connect(server) as client:
            client.sendall(b"call")
            answers.append(client.recv(16).decode())
    os.write(stop_writer, b"x")
    return sum(child.answer() for child in children), set(answers) == {"call"}


@scene
def child_listens_parent_connects() -> object:
    ready_reader, ready_writer = os.pipe()

    def serve() -> object:
        server = listening()
        os.write(ready_writer, str(server.getsockname()[1]).encode())
        accepted, _ = server.accept()
        return accepted.recv(10).decode()

    child = Child(serve)
    port = int(os.read(ready_reader, 10))
    client = socket.create_connection((HOST, port))
    client.sendall(b"hello")
    return child.answer()


@scene
def listener_before_fork_listen_in_the_child() -> object:
    """The parent binds, the child listens, the parent's descriptor accepts."""
    server = socket.socket()
    server.bind((HOST, 0))
    ours, theirs = socket.socketpair()

    def listen() -> object:
        server.listen(4)
        theirs.send(b"x")
        theirs.recv(1)
        return poll(server)

    child = Child(listen)
    ours.recv(1)
    client = connect(server)
    client.sendall(b"hello")
    accepted, peer = server.accept()
    ours.send(b"x")
    found = [child.answer(), peer == client.getsockname(), accepted.recv(10).decode(), poll(server)]
    connect(server)
    return found, poll(server, LIMIT)


@scene
def dup_of_a_listener() -> object:
    server = listening()
    name = server.getsockname()
    other = server.dup()
    clients = [connect(server) for _ in range(2)]
    for client in clients:
        client.sendall(b"hello")
    first = other.accept()[0].recv(10).decode()
    server.close()
    second = other.accept()[0].recv(10).decode()
    found = [first, second, other.getsockname() == name, poll(other)]
    with socket.create_connection(name):
        found.append(other.accept()[0].getsockname() == name)
    other.close()
    found.append(told(socket.create_connection, name))
    return found


@scene
def dup_before_listen() -> object:
    server = socket.socket()
    server.bind((HOST, 0))
    other = server.dup()
    server.listen(4)
    client = connect(other)
    client.sendall(b"hello")
    found = [poll(server, LIMIT), poll(other, LIMIT)]
    accepted, _ = other.accept()
    server.close()
    found += [accepted.recv(10).decode(), poll(other)]
    connect(other)
    found.append(poll(other, LIMIT))
    return found


@scene
def dup2_onto_another_number() -> object:
    server = listening()
    number = 77
    os.dup2(server.fileno(), number)
    name = server.getsockname()
    server.close()
    client = socket.create_connection(name)
    client.sendall(b"hello")
    moved = socket.socket(fileno=number)
    return moved.getsockname() == name, moved.accept()[0].recv(10).decode()


@scene
def a_number_used_again() -> object:
    """A listener's number becomes a client's, and a client's a listener's."""
    server = listening()
    number = server.fileno()
    server.close()
    client, accepted = pair()
    os.dup2(client.fileno(), number)
    again = socket.socket(fileno=number)
    client.close()
    again.sendall(b"hello")
    found = [accepted.recv(10).decode(), again.getpeername() == accepted.getsockname()]
    number = again.detach()
    server = listening()
    os.dup2(server.fileno(), number)
    again = socket.socket(fileno=number)
    server.close()
    client = connect(again)
    return [*found, again.accept()[1] == client.getsockname(), accepted.recv(10).decode()]


@scene
def closed_listener_refuses() -> object:
    server = listening()
    name = server.getsockname()
    waiting = connect(server)
    waiting.sendall(b"never read")
    waiting.settimeout(LIMIT)
    server.close()
    return told(socket.create_connection, name), told(lambda: waiting.recv(1).decode())


@scene
def closed_port_is_free_again() -> object:
    found = []
    server = listening()
    name = server.getsockname()
    for _ in range(3):
        server.close()
        found.append(told(socket.create_connection, name))
        server = socket.create_server(name)
        with socket.create_connection(name) as client:
            found.append(server.accept()[1] == client.getsockname())
    second = socket.socket()
    second.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    found.append(told(second.bind, name))
    return found


@scene
def shut_down_listener() -> object:
    found = {}
    for how in (socket.SHUT_RD, socket.SHUT_RDWR):
        server = listening()
        name = server.getsockname()
        with thread(server.accept) as answer:
            select.select([], [], [], 0.05)
            found[f"{how}"] = [told(server.shutdown, how)]
        found[f"{how}"] += [answer, told(socket.create_connection, name), told(server.accept)]
    server = listening()
    server.setblocking(False)
    server.shutdown(socket.SHUT_RDWR)
    found["nonblocking"] = [told(server.accept)]
    server = listening()
    found["write side"] = [told(server.shutdown, socket.SHUT_WR), poll(server)]
    with connect(server) as client:
        found["write side"].append(server.accept()[1] == client.getsockname())
    return found


@scene
def receive_timeout() -> object:
    server = listening()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval(0.12))
    found = [raw("accept", server.fileno(), None, None), raw("accept", server.fileno(), None, None)]
    connect(server)
    await_data(server)
    found.append("fd" if isinstance(raw("accept", server.fileno(), None, None), int) else "none")
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval(0))
    with thread(lambda: server.accept()[0].recv(10).decode()) as answer:
        select.select([], [], [], 0.1)
        connect(server).sendall(b"late")
    return found, answer


@scene
def receive_timeout_before_listen() -> object:
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval(0.12))
    server.listen(1)
    found = [raw("accept", server.fileno(), None, None)]
    size = server.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16)
    return found, size == timeval(0.12)


@scene
def listen_without_bind() -> object:
    server = socket.socket()
    server.listen()
    port = server.getsockname()[1]
    with socket.create_connection((HOST, port)) as client:
        accepted, peer = server.accept()
        return port > 1023, server.getsockname()[0], peer == client.getsockname(), accepted.getsockname()[0] == HOST


@scene
def nonblocking_turned_on_and_off() -> object:
    server = listening()
    found = []
    for _ in range(2):
        server.setblocking(False)
        found.append(told(server.accept))
        server.setblocking(True)
        connect(server).sendall(b"x")
        found.append(server.accept()[0].recv(1).decode())
    return found


@scene
def out_of_descriptors() -> object:
    """EMFILE leaves the connection in the queue."""
    import resource

    server = listening()
    client = connect(server)
    client.sendall(b"kept")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (32, hard))
    try:
        while True:
            taken.append(os.dup(0))
    except OSError:
        pass
    found = [told(server.accept), told(server.accept)]
    os.close(taken.pop())
    accepted, _ = server.accept()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return found, accepted.recv(10).decode()


@scene
def waiting_connection_of_a_closed_listener() -> object:
    """Over in the queue only: a reset."""
    server = listening()
    client = socket.create_connection(server.getsockname())
    server.close()
    return told(lambda: client.recv(1).decode())


@scene
def loopback_and_own_address() -> object:
    """One listener on every address is reached by loopback, by the own address and by 0.0.0.0."""
    server = listening(host="0.0.0.0")
    port = server.getsockname()[1]
    found = []
    for name in ("127.0.0.1", HOST, "0.0.0.0", "localhost"):
        with socket.create_connection((name, port)) as client:
            accepted, peer = server.accept()
            found.append((client.getpeername()[0], accepted.getsockname()[0], peer == client.getsockname(), peer[0]))
    return found, named(0)


if __name__ == "__main__":
    main()
