"""connect(), blocking and not, and what becomes of the socket that was there before."""

import ctypes
import os
import select
import socket
import struct
import sys
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

BAD = ctypes.c_void_p(8)
PORT = struct.Struct("!H")


def packed(host: str, port: int, size: int = 16, family: int = socket.AF_INET) -> bytes:
    return (struct.pack("=H", family) + PORT.pack(port) + socket.inet_aton(host)).ljust(size, b"\0")[:size]


def nobody() -> tuple[str, int]:
    """An address at which nothing listens any more."""
    with listening() as server:
        name: tuple[str, int] = server.getsockname()
    return name


def error_of(sock: socket.socket) -> int:
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def works(client: socket.socket, server: socket.socket) -> object:
    """Takes the connection from the listener and sends something both ways."""
    accepted, peer = server.accept()
    with accepted:
        client.sendall(b"there")
        accepted.sendall(b"back")
        return [
            accepted.recv(10).decode(),
            client.recv(10).decode(),
            peer == client.getsockname(),
            accepted.getsockname() == client.getpeername(),
        ]


@scene
def errors_of_arguments() -> object:
    server = listening()
    host, port = server.getsockname()
    good = packed(host, port)
    sock, six = socket.socket(), socket.socket(socket.AF_INET6)
    file = os.open("/dev/null", os.O_RDONLY)
    return {
        "negative": raw("connect", -1, good, 16),
        "negative, bad pointer": raw("connect", -1, BAD, 16),
        "file": raw("connect", file, good, 16),
        "bad pointer": raw("connect", sock.fileno(), BAD, 16),
        "short": raw("connect", sock.fileno(), good, 8),
        "one byte": raw("connect", sock.fileno(), good, 1),
        "nothing": raw("connect", sock.fileno(), good, 0),
        "negative length": raw("connect", sock.fileno(), good, -1),
        "too long": raw("connect", sock.fileno(), good.ljust(200), 200),
        "another family": raw("connect", sock.fileno(), packed(host, port, 28, socket.AF_INET6), 28),
        "unknown family": raw("connect", sock.fileno(), packed(host, port, 16, 77), 16),
        "v4 on v6": raw("connect", six.fileno(), packed(host, port, 28), 28),
        "short on v6": raw("connect", six.fileno(), packed("0.0.0.0", port, 16, socket.AF_INET6), 16),
        "unspecified family": raw("connect", sock.fileno(), packed(host, port, 16, 0), 16),
        "longer than needed": raw("connect", sock.fileno(), good.ljust(128, b"\0"), 128),
    }


@scene
def before_and_after() -> object:
    server = listening()
    client = socket.socket()
    found = [client.getsockname(), told(client.getpeername), told(client.send, b"x"), told(client.recv, 1)]
    client.connect(server.getsockname())
    found += [client.getpeername() == server.getsockname(), client.getsockname()[0], works(client, server)]
    found += [told(client.connect, server.getsockname()), told(client.listen)]
    return found


@scene
def refused() -> object:
    """A refused socket can be asked, and used again."""
    name = nobody()
    client = socket.socket()
    found = [told(client.connect, name), error_of(client), told(client.getpeername), told(client.send, b"x")]
    found += [told(client.connect, name), poll(client)]
    server = listening()
    found += [told(client.connect, server.getsockname()), works(client, server)]
    return found


@scene
def without_blocking() -> object:
    server = listening()
    client = socket.socket()
    client.setblocking(False)
    name = server.getsockname()
    found = [told(client.connect, name), poll(client, LIMIT), error_of(client)]
    found += [told(client.connect, name), told(client.connect, name), poll(client)]
    accepted, _ = server.accept()
    accepted.send(b"x")
    await_data(client)
    found += [poll(client), told(client.connect, name)]
    return found


@scene
def without_blocking_connected_by_asking() -> object:
    """Programs that never poll: they call connect() until it gives EISCONN."""
    server = listening()
    client = socket.socket()
    client.setblocking(False)
    found = [told(client.connect, server.getsockname())]
    while found[-1] != "EISCONN":
        found.append(told(client.connect, server.getsockname()))
    found.append(told(client.connect, server.getsockname()))
    # Whether it is still under way at the second time is a matter of time.
    return [word for word in found if word != "EALREADY"], works_nonblocking(client, server)


@scene
def without_blocking_used_at_once() -> object:
    server = listening()
    client = socket.socket()
    client.setblocking(False)
    found = [told(client.connect, server.getsockname()), poll(client, LIMIT), told(client.recv, 1)]
    return found, works_nonblocking(client, server), told(client.connect, server.getsockname())


def works_nonblocking(client: socket.socket, server: socket.socket) -> object:
    client.setblocking(True)
    result = works(client, server)
    client.setblocking(False)
    return result


@scene
def without_blocking_refused() -> object:
    name = nobody()
    client = socket.socket()
    client.setblocking(False)
    found = [told(client.connect, name), poll(client, LIMIT), error_of(client), error_of(client), poll(client)]
    client = socket.socket()
    client.setblocking(False)
    found += [told(client.connect, name), poll(client, LIMIT), told(client.connect, name), told(client.connect, name)]
    client = socket.socket()
    client.setblocking(False)
    found += [told(client.connect, name), poll(client, LIMIT), told(client.recv, 1), told(client.recv, 1)]
    client = socket.socket()
    client.setblocking(False)
    found += [told(client.connect, name), poll(client, LIMIT), told(client.send, b"x")]
    return found


@scene
def select_on_a_connecting_socket() -> object:
    found = []
    with listening() as server:
        for name in (server.getsockname(), nobody()):
            client = socket.socket()
            client.setblocking(False)
            found.append(told(client.connect, name))
            found.append([len(part) for part in select.select([client], [client], [client], LIMIT)])
    return found


def with_epoll(mode: int, before: bool, good: bool) -> object:
    """The events of a connecting socket, registered before or after connect()."""
    server = listening()
    name = server.getsockname() if good else nobody()
    client = socket.socket()
    client.setblocking(False)
    epoll = select.epoll()
    wanted = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | mode
    found: list[object] = []
    if before:
        epoll.register(client, wanted)
        found.append(reported(epoll))
        found.append(told(client.connect, name))
    else:
        found.append(told(client.connect, name))
        epoll.register(client, wanted)
    fired = before and mode & select.EPOLLONESHOT
    found += [reported(epoll, 0.1 if fired else LIMIT), reported(epoll), reported(epoll), error_of(client)]
    if good:
        accepted, _ = server.accept()
        accepted.send(b"x")
        await_data(client)
        found.append(reported(epoll))
        if mode & select.EPOLLONESHOT:
            epoll.modify(client, wanted)
            found.append(reported(epoll))
        found.append(client.recv(10).decode())
    found.append(told(epoll.unregister, client))
    found.append(reported(epoll))
    return found


@scene
def epoll_level() -> object:
    return with_epoll(0, False, True)


@scene
def epoll_edge() -> object:
    return with_epoll(select.EPOLLET, False, True)


@scene
def epoll_oneshot() -> object:
    return with_epoll(select.EPOLLONESHOT, False, True)


@scene
def epoll_level_before() -> object:
    return with_epoll(0, True, True)


@scene
def epoll_edge_before() -> object:
    return with_epoll(select.EPOLLET, True, True)


@scene
def epoll_oneshot_before() -> object:
    return with_epoll(select.EPOLLET | select.EPOLLONESHOT, True, True)


@scene
def epoll_refused() -> object:
    return with_epoll(0, False, False), with_epoll(select.EPOLLET, False, False)


@scene
def epoll_refused_before() -> object:
    return with_epoll(0, True, False), with_epoll(select.EPOLLET, True, False)


@scene
def epoll_before_with_a_thread_waiting() -> object:
    server = listening()
    client = socket.socket()
    client.setblocking(False)
    epoll = select.epoll()
    epoll.register(client, select.EPOLLOUT | select.EPOLLET)
    found: list[object] = [reported(epoll)]
    with thread(lambda: reported(epoll, LIMIT)) as answer:
        select.select([], [], [], 0.03)
        found.append(told(client.connect, server.getsockname()))
    return found, answer, error_of(client), works_nonblocking(client, server)


@scene
def epoll_before_in_the_parent() -> object:
    """The epoll is the parent's; the child, which shares the socket, connects it."""
    server = listening()
    client = socket.socket()
    epoll = select.epoll()
    epoll.register(client, select.EPOLLOUT | select.EPOLLET)
    found: list[object] = [reported(epoll)]
    found.append(Child(lambda: told(client.connect, server.getsockname())).answer())
    return found, reported(epoll, LIMIT), works(client, server)


@scene
def epoll_nested() -> object:
    server = listening()
    client = socket.socket()
    inner, outer = select.epoll(), select.epoll()
    inner.register(client, select.EPOLLIN)
    outer.register(inner, select.EPOLLIN)
    reported(inner)
    client.connect(server.getsockname())
    found = [len(outer.poll(0))]
    accepted, _ = server.accept()
    accepted.send(b"x")
    return [*found, len(outer.poll(LIMIT)), reported(inner)]


@scene
def epoll_inherited_by_exec() -> object:
    """An epoll made before exec, and by a program that the switch may not have watched since."""
    epoll = select.epoll()
    os.set_inheritable(epoll.fileno(), True)
    text = (
        "import select, socket, sys\n"
        "epoll = select.epoll.fromfd(int(sys.argv[1]))\n"
        "client = socket.socket()\n"
        "client.setblocking(False)\n"
        "epoll.register(client, select.EPOLLOUT)\n"
        "epoll.poll(0)\n"
        "client.connect_ex((sys.argv[2], int(sys.argv[3])))\n"
        "print([mask for _, mask in epoll.poll(60)])\n"
    )
    server = listening()
    host, port = server.getsockname()
    return _output([sys.executable, "-c", text, str(epoll.fileno()), host, str(port)])


def _output(command: list[str]) -> str:
    import subprocess

    done = subprocess.run(command, close_fds=False, capture_output=True, text=True)
    return done.stdout + done.stderr


@scene
def dup_before() -> object:
    """Both numbers are the connection afterwards."""
    server = listening()
    client = socket.socket()
    other = client.dup()
    client.connect(server.getsockname())
    accepted, peer = server.accept()
    client.sendall(b"one")
    found = [accepted.recv(10).decode()]
    other.sendall(b"two")
    found += [accepted.recv(10).decode(), other.getsockname() == peer, other.getpeername() == client.getpeername()]
    client.close()
    accepted.sendall(b"three")
    found += [other.recv(10).decode(), poll(other)]
    other.close()
    found.append(accepted.recv(10).decode())
    return found


@scene
def dup_before_other_flags() -> object:
    server = listening()
    client = socket.socket()
    other = client.dup()
    other.set_inheritable(True)
    client.connect(server.getsockname())
    return client.get_inheritable(), other.get_inheritable(), works(other, server)


@scene
def fork_before() -> object:
    """The child connects, the parent uses the connection."""
    server = listening()
    client = socket.socket()
    found: list[object] = [Child(lambda: told(client.connect, server.getsockname())).answer()]
    found += [client.getpeername() == server.getsockname(), poll(client), works(client, server)]
    return found


@scene
def fork_before_both_hold() -> object:
    """The parent connects, the child has been waiting in recv() on its own descriptor of the connection."""
    server = listening()
    client = socket.socket()
    ours, theirs = socket.socketpair()

    def use() -> object:
        theirs.recv(1)
        client.sendall(b"from the child")
        return client.recv(10).decode(), client.getpeername() == server.getsockname()

    child = Child(use)
    client.connect(server.getsockname())
    ours.send(b"x")
    accepted, _ = server.accept()
    said = accepted.recv(20).decode()
    accepted.sendall(b"back")
    found = [said, child.answer()]
    client.sendall(b"from here")
    return [*found, accepted.recv(20).decode()]


@scene
def fork_after() -> object:
    """The child writes and reads on the parent's connection; the parent goes on with it."""
    client, server = pair()

    def use() -> object:
        client.sendall(b"child")
        return client.getsockname() == server.getpeername(), server.getsockname() == client.getpeername()

    found = [Child(use).answer(), server.recv(10).decode()]
    client.sendall(b"parent")
    return [*found, server.recv(10).decode()]


@scene
def exec_between_calls() -> object:
    """Descriptors of a listener and a connection go through exec; the new program goes on with both."""
    server = listening()
    client, accepted = pair()
    unused = socket.socket()
    for sock in (server, client, accepted, unused):
        sock.set_inheritable(True)
    text = (
        "import json, socket, sys\n"
        "server, client, accepted, unused = (socket.socket(fileno=int(word)) for word in sys.argv[1:])\n"
        "unused.connect(server.getsockname())\n"
        "taken, peer = server.accept()\n"
        "client.sendall(b'over exec')\n"
        "print(json.dumps([peer == unused.getsockname(), taken.getsockname() == server.getsockname(),\n"
        "    accepted.recv(20).decode(), client.getpeername() == accepted.getsockname(),\n"
        "    [int(sock.family) for sock in (server, client, accepted, taken)],\n"
        "    [int(sock.type) for sock in (server, client, accepted, taken)]]))\n"
    )
    numbers = [str(sock.fileno()) for sock in (server, client, accepted, unused)]
    found = _output([sys.executable, "-c", text, *numbers])
    client.sendall(b"here")
    return found, accepted.recv(20).decode()


@scene
def family_of_a_bare_descriptor() -> object:
    client, server = pair()
    plain = listening()
    return [
        (str(sock.family), str(sock.type), sock.proto)
        for sock in (socket.socket(fileno=os.dup(item.fileno())) for item in (client, server, plain))
    ]


@scene
def threads_connect() -> object:
    """Eight threads connect at once, with sockets of their own."""
    server = listening(64)
    total = 8 * 12
    good = []

    def call() -> None:
        for _ in range(12):
            with socket.create_connection(server.getsockname()) as client:
                client.sendall(b"%d" % client.getsockname()[1])
                good.append(client.recv(16) == b"%d" % client.getsockname()[1])

    def serve() -> None:
        for _ in range(total):
            accepted, peer = server.accept()
            with accepted:
                accepted.sendall(accepted.recv(16))
                good.append(peer == accepted.getpeername())

    workers = [threading.Thread(target=call) for _ in range(8)] + [threading.Thread(target=serve)]
    for item in workers:
        item.start()
    for item in workers:
        item.join()
    return len(good), all(good)


@scene
def two_threads_connect_one_socket() -> object:
    server = listening()
    client = socket.socket()
    barrier = threading.Barrier(2)

    def call() -> object:
        barrier.wait()
        return told(client.connect, server.getsockname())

    with thread(call) as one, thread(call) as other:
        pass
    accepted, _ = server.accept()
    accepted.close()
    server.setblocking(False)
    # Who comes when the other has just been connected is told so, or that he is the one: as it falls out.
    return None in one + other, {*one, *other} <= {None, "EISCONN"}, told(server.accept)


@scene
def disconnected_and_used_again() -> object:
    server, other = listening(), listening()
    client = socket.create_connection(server.getsockname())
    found: list[object] = [works(client, server)]
    found.append(raw("connect", client.fileno(), packed("0.0.0.0", 0, 16, 0), 16))
    found.append(told(client.getpeername))
    found += [told(client.connect, other.getsockname()), works(client, other)]
    return found


@scene
def bound_before() -> object:
    server = listening()
    client = socket.socket()
    client.bind((HOST, 0))
    name = client.getsockname()
    client.connect(server.getsockname())
    found = [client.getsockname() == name, server.accept()[1] == name]
    client = socket.socket()
    client.bind(("0.0.0.0", 0))
    port = client.getsockname()[1]
    client.connect(server.getsockname())
    return found, client.getsockname() == (HOST, port), server.accept()[1] == (HOST, port)


@scene
def by_loopback() -> object:
    server = listening(host="127.0.0.1")
    client = socket.socket()
    client.connect(server.getsockname())
    other = socket.socket()
    found = [client.getsockname()[0], client.getpeername()[0], works(client, server)]
    return found, told(other.connect, (HOST, server.getsockname()[1]))


@scene
def dual_stack() -> object:
    """A listener on :: serves IPv4; addresses are v4-mapped."""
    server = listening(family=socket.AF_INET6, host="::")
    port = server.getsockname()[1]
    four = socket.create_connection((HOST, port))
    accepted, peer = server.accept()
    found = [accepted.getsockname()[:2] == ("::ffff:" + HOST, port), peer[0], accepted.getpeername() == peer]
    six = socket.socket(socket.AF_INET6)
    six.connect(("::ffff:" + HOST, port))
    accepted, peer = server.accept()
    found += [six.getpeername()[0], six.getsockname()[0], peer[0]]
    loop = socket.create_connection(("::1", port))
    accepted, peer = server.accept()
    found += [loop.getpeername()[0], loop.getsockname()[0], peer[0], accepted.getsockname()[0]]
    only = socket.socket(socket.AF_INET6)
    only.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    found += [told(only.connect, ("::ffff:" + HOST, port)), four.getpeername()[0]]
    return found


def full(backlog: int = 1) -> tuple[socket.socket, list[socket.socket]]:
    """A listener whose queue has no room left: backlog + 1 connections (listen(2))."""
    server = listening(backlog)
    return server, [socket.create_connection(server.getsockname()) for _ in range(backlog + 1)]


@scene
def backlog_blocking() -> object:
    """A blocking connect() waits until there is room."""
    server, _ = full()
    late = socket.socket()

    def call() -> object:
        late.connect(server.getsockname())
        late.sendall(b"late")
        return "connected"

    with thread(call) as answer:
        select.select([], [], [], 0.2)
        early = list(answer)
        said = []
        for _ in range(3):
            accepted, _ = server.accept()
            accepted.settimeout(0.05)
            said.append(told(lambda taken=accepted: taken.recv(10).decode()))
    return early, answer, said[:2], poll(server)


@scene
def backlog_without_blocking() -> object:
    """A non-blocking one stays in progress, and completes once the server accepts."""
    server, _ = full()
    late = socket.socket()
    late.setblocking(False)
    name = server.getsockname()
    found = [told(late.connect, name), poll(late, 0.2), error_of(late), told(late.connect, name)]
    found += [told(late.send, b"x"), told(late.recv, 1), told(late.getpeername), late.getsockname()[0]]
    taken = [server.accept(), server.accept()]
    found += [poll(late, LIMIT), error_of(late), told(late.connect, name), told(late.connect, name)]
    found += [works_nonblocking(late, server), len(taken)]
    return found


@scene
def backlog_without_blocking_then_blocking() -> object:
    """Begun without blocking, waited for by a blocking connect()."""
    server, _ = full()
    late = socket.socket()
    late.setblocking(False)
    name = server.getsockname()
    found = [told(late.connect, name)]
    late.setblocking(True)
    with thread(lambda: told(late.connect, name)) as answer:
        select.select([], [], [], 0.1)
        found += answer
        server.accept(), server.accept()
    return found, answer, works(late, server)


@scene
def backlog_with_epoll_before() -> object:
    """Registered before connect(): silent while it waits, then writable."""
    server, _ = full()
    late = socket.socket()
    late.setblocking(False)
    epoll = select.epoll()
    epoll.register(late, select.EPOLLOUT | select.EPOLLET)
    found = [reported(epoll), told(late.connect, server.getsockname())]
    server.accept(), server.accept()
    found += [reported(epoll, LIMIT), error_of(late), works_nonblocking(late, server)]
    return found


@scene
def backlog_with_dup_before() -> object:
    server, _ = full()
    late = socket.socket()
    late.setblocking(False)
    other = late.dup()
    found = [told(late.connect, server.getsockname())]
    server.accept(), server.accept()
    return found, poll(other, LIMIT), works_nonblocking(other, server)


@scene
def backlog_with_fork_before() -> object:
    server, _ = full()
    late = socket.socket()
    late.setblocking(False)
    found = [Child(lambda: told(late.connect, server.getsockname())).answer()]
    server.accept(), server.accept()
    return found, poll(late, LIMIT), works_nonblocking(late, server)


@scene
def backlog_send_timeout() -> object:
    """SO_SNDTIMEO ends a blocking connect(); the connection goes on by itself."""
    server, _ = full()
    late = socket.socket()
    late.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval(0.15))
    host, port = server.getsockname()
    found = [raw("connect", late.fileno(), packed(host, port), 16), poll(late)]
    server.accept(), server.accept()
    found += [poll(late, LIMIT), error_of(late)]
    return found


@scene
def backlog_listener_closed() -> object:
    server, _ = full()
    late = socket.socket()
    late.setblocking(False)
    found = [told(late.connect, server.getsockname())]
    server.close()
    return found, poll(late, LIMIT), error_of(late) != 0, error_of(late)


@scene
def backlog_abandoned() -> object:
    """A client that gives up while it waits never reaches the server."""
    server, clients = full()
    late = socket.socket()
    late.setblocking(False)
    found = [told(late.connect, server.getsockname())]
    late.close()
    for client in clients:
        client.close()
    for _ in clients:
        accepted, _ = server.accept()
        found.append(accepted.recv(1).decode())
    return found, poll(server, 0.5)


@scene
def backlog_of_none() -> object:
    server = listening(0)
    first = socket.create_connection(server.getsockname())
    second = socket.socket()
    second.setblocking(False)
    found = [told(second.connect, server.getsockname()), poll(second, 0.1)]
    server.listen(5)
    found += [poll(second, LIMIT), server.accept()[1] == first.getsockname(), works_nonblocking(second, server)]
    return found


@scene
def many_beyond_the_backlog() -> object:
    """Six clients at a listen(2), non-blocking: each is served in the end."""
    server = listening(2)
    clients = []
    for _ in range(6):
        client = socket.socket()
        client.setblocking(False)
        told(client.connect, server.getsockname())
        clients.append(client)
    peers = set()
    for _ in clients:
        accepted, peer = server.accept()
        peers.add(peer)
        accepted.close()
    return len(peers) == len(clients), peers == {client.getsockname() for client in clients}, named(0)


if __name__ == "__main__":
    main()
