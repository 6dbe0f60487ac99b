"""Two programs: connections between them, and descriptors passed from one to the other."""

import os
import select
import signal
import socket

from other import Line
from scene import HOST, LIMIT, Child, await_call, listening, main, poll, scene, thread, told

OTHER = os.environ["SCENE_OTHER"]
"""Path of the other program's Unix socket; its address is another."""


def line() -> Line:
    return Line(OTHER)


@scene
def server_there() -> object:
    other = line()
    name = tuple(other.ask("listen", "l"))
    client = socket.create_connection(name)
    client.sendall(b"question")
    peer = other.ask("accept", "l", "s")
    found = [other.ask("hear", "s"), other.ask("say", "s", "answer"), client.recv(100).decode()]
    local, remote = other.ask("names", "s")
    found += [peer == remote == list(client.getsockname()), local == list(client.getpeername()) == list(name)]
    other.ask("close", "s")
    return found, client.recv(1).decode()


@scene
def server_here() -> object:
    other = line()
    server = listening()
    found = [other.ask("connect", "c", *server.getsockname())]
    accepted, peer = server.accept()
    local, remote = other.ask("names", "c")
    found += [list(peer) == local, list(accepted.getsockname()) == remote]
    found.append(other.ask("say", "c", "hello"))
    return found, accepted.recv(100).decode()


@scene
def server_waits_there() -> object:
    """It is in accept() when the connection comes."""
    other = line()
    name = tuple(other.ask("listen", "l"))
    other.tell("accept", "l", "s")
    select.select([], [], [], 0.1)
    client = socket.create_connection(name)
    peer = other.answer()
    client.sendall(b"hello")
    return peer == list(client.getsockname()), other.ask("hear", "s")


@scene
def many_connections() -> object:
    other = line()
    name = tuple(other.ask("listen", "l", 100))
    clients = [socket.create_connection(name) for _ in range(40)]
    for index, client in enumerate(clients):
        client.sendall(str(index).encode())
    peers = [other.ask("accept", "l", str(index)) for index in range(len(clients))]
    heard = [other.ask("hear", str(index)) for index in range(len(clients))]
    return peers == [list(client.getsockname()) for client in clients], heard == [str(n) for n in range(len(clients))]


@scene
def closed_there() -> object:
    other = line()
    name = tuple(other.ask("listen", "l"))
    other.ask("close", "l")
    return told(socket.create_connection, name)


@scene
def backlog_there() -> object:
    """A full queue in the other program: a connect waits, and goes on when that accepts."""
    other = line()
    name = tuple(other.ask("listen", "l", 1))
    clients = [socket.create_connection(name) for _ in range(2)]
    late = socket.socket()
    late.setblocking(False)
    found = [told(late.connect, name), poll(late, 0.1)]
    waiting = socket.socket()
    with thread(lambda: told(waiting.connect, name)) as answer:
        for index in range(4):
            other.ask("accept", "l", f"s{index}")
    found += [answer, poll(late, LIMIT), late.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)]
    return found, len(clients)


@scene
def listener_passed_on() -> object:
    """My listener goes to the other program; it serves my address from now on."""
    other = line()
    server = listening()
    name = server.getsockname()
    other.ask("take", "l", sockets=(server,))
    server.close()
    client = socket.create_connection(name)
    client.sendall(b"hello")
    peer = other.ask("accept", "l", "s")
    found = [peer == list(client.getsockname()), other.ask("hear", "s")]
    local, remote = other.ask("names", "s")
    found += [tuple(local) == name, tuple(remote) == client.getsockname()]
    found += [other.ask("names", "l")[0] == list(name), other.ask("say", "s", "served"), client.recv(10).decode()]
    other.ask("close", "l")
    return found, told(socket.create_connection, name)


@scene
def listener_shared() -> object:
    """Both programs accept from one listener."""
    other = line()
    server = listening()
    other.ask("take", "l", sockets=(server,))
    clients = [socket.create_connection(server.getsockname()) for _ in range(2)]
    here = server.accept()[1]
    there = other.ask("accept", "l", "s")
    return here == clients[0].getsockname(), tuple(there) == clients[1].getsockname()


@scene
def listener_passed_on_waited_for() -> object:
    """The other program blocks in accept() on my listener."""
    other = line()
    server = listening()
    name = server.getsockname()
    other.ask("take", "l", sockets=(server,))
    server.close()
    other.tell("accept", "l", "s")
    select.select([], [], [], 0.1)
    client = socket.create_connection(name)
    return other.answer() == list(client.getsockname())


@scene
def client_passed_on() -> object:
    """My end of a connection goes to the other program."""
    other = line()
    server = listening()
    client = socket.create_connection(server.getsockname())
    accepted, peer = server.accept()
    other.ask("take", "c", sockets=(client,))
    client.close()
    local, remote = other.ask("names", "c")
    found = [tuple(local) == peer, tuple(remote) == server.getsockname(), other.ask("say", "c", "it is me now")]
    found.append(accepted.recv(20).decode())
    found.append(other.ask("option", "c", socket.SOL_SOCKET, socket.SO_DOMAIN) == socket.AF_INET)
    found.append(other.ask("option", "c", socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 77))
    found.append(other.ask("connect", "c", *server.getsockname()))
    return found


@scene
def server_end_passed_on() -> object:
    other = line()
    server = listening()
    client = socket.create_connection(server.getsockname())
    accepted, peer = server.accept()
    other.ask("take", "s", sockets=(accepted,))
    accepted.close()
    server.close()
    client.sendall(b"hello")
    found = [other.ask("hear", "s"), other.ask("names", "s") == [list(client.getpeername()), list(peer)]]
    other.ask("close", "s")
    return found, client.recv(1).decode()


@scene
def passed_to_me() -> object:
    """The other program's listener and connection come here."""
    other = line()
    name = tuple(other.ask("listen", "l"))
    client = socket.create_connection(name)
    other.ask("accept", "l", "s")
    other.ask("give", "l", "s")
    listener, server = other.sockets()
    other.ask("close", "l", "s")
    client.sendall(b"hello")
    found = [server.recv(10).decode(), server.getsockname() == name, server.getpeername() == client.getsockname()]
    second = socket.create_connection(name)
    accepted, peer = listener.accept()
    found += [peer == second.getsockname(), accepted.getsockname() == name, listener.getsockname() == name]
    return found


@scene
def there_and_back() -> object:
    other = line()
    server = listening()
    client = socket.create_connection(server.getsockname())
    accepted, peer = server.accept()
    name = client.getsockname()
    other.ask("take", "c", sockets=(client,))
    client.close()
    other.ask("say", "c", "from there")
    other.ask("give", "c")
    [client] = other.sockets()
    other.ask("close", "c")
    client.sendall(b", and back")
    heard = accepted.recv(10, socket.MSG_WAITALL) + accepted.recv(10)
    return heard.decode(), client.getsockname() == name == peer, client.getpeername() == server.getsockname()


@scene
def killed_in_accept() -> object:
    """A process that is killed in accept() leaves nothing that listens."""
    reader, writer = os.pipe()

    def serve() -> object:
        server = listening()
        os.write(writer, str(server.getsockname()[1]).encode())
        return server.accept()[1]

    child = Child(serve)
    port = int(os.read(reader, 10))
    await_call(child.pid)
    other = line()
    os.kill(child.pid, signal.SIGKILL)
    found = [child.answer()]
    number = 0
    while other.ask("connect", f"c{number}", HOST, port) != "ECONNREFUSED":
        select.select([], [], [], 0.02)  # the switch is told of deaths by events, too
        number += 1
    return found


if __name__ == "__main__":
    main()
