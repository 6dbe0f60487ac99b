"""What is said over a connection: half-close, the end, flags of recv(), and writing before reading."""

import ctypes
import os
import select
import signal
import socket
import struct
import threading

from scene import (
    HOST,
    LIMIT,
    Child,
    await_data,
    await_end,
    listening,
    main,
    pair,
    poll,
    raw,
    receive_fds,
    reported,
    scene,
    send_fds,
    thread,
    told,
)

MEBIBYTE = 1 << 20


def read_all(sock: socket.socket) -> bytes:
    data = b""
    while part := sock.recv(1 << 16):
        data += part
    return data


def count_all(sock: socket.socket, total: int) -> int:
    """Reads so many bytes, or to the end."""
    count = 0
    while count < total and (part := sock.recv(1 << 18)):
        count += len(part)
    return count


@scene
def half_close() -> object:
    client, server = pair()
    client.sendall(b"question")
    client.shutdown(socket.SHUT_WR)
    found: list[object] = [read_all(server).decode(), server.recv(1).decode(), told(client.send, b"x")]
    server.sendall(b"answer")
    server.sendall(b"more")
    found.append(poll(server))
    server.close()
    return [*found, read_all(client).decode()]


@scene
def half_close_by_the_server() -> object:
    client, server = pair()
    server.sendall(b"banner")
    server.shutdown(socket.SHUT_WR)
    found = [read_all(client).decode(), poll(client)]
    client.sendall(b"still heard")
    client.close()
    return found, read_all(server).decode()


@scene
def half_close_wakes_a_reader() -> object:
    client, server = pair()
    with thread(lambda: server.recv(10).decode()) as answer:
        select.select([], [], [], 0.03)
        client.shutdown(socket.SHUT_WR)
    return answer, poll(server), poll(client)


@scene
def both_directions_shut() -> object:
    client, server = pair()
    client.shutdown(socket.SHUT_RDWR)
    found = [client.recv(1).decode(), told(client.send, b"x"), server.recv(1).decode(), client.fileno() > 0]
    return found, told(client.shutdown, socket.SHUT_WR), told(socket.socket().shutdown, socket.SHUT_WR)


@scene
def shutdown_ends_own_recv() -> object:
    client, _ = pair()
    with thread(lambda: client.recv(10).decode()) as answer:
        select.select([], [], [], 0.03)
        client.shutdown(socket.SHUT_RD)
    return answer


@scene
def peer_closes() -> object:
    client, server = pair()
    server.sendall(b"last")
    server.close()
    found: list[object] = [client.recv(2).decode(), client.recv(10).decode(), client.recv(10).decode()]
    told(client.send, b"x")
    await_end(client)
    found.append(told(client.send, b"x"))
    return found


@scene
def broken_pipe_signal() -> object:
    """SIGPIPE, unless MSG_NOSIGNAL."""
    client, server = pair()
    server.close()
    caught: list[int] = []
    signal.signal(signal.SIGPIPE, lambda number, _: caught.append(number))
    told(client.send, b"x")
    await_end(client)
    found = [told(client.send, b"x", socket.MSG_NOSIGNAL), raw("write", client.fileno(), b"x", 1)]

    def die() -> object:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        return told(client.send, b"x")

    return found, bool(caught), Child(die).answer()


@scene
def closed_with_unread_data() -> object:
    """A reset: ECONNRESET to who reads."""
    client, server = pair()
    client.sendall(b"never read")
    await_data(server)
    server.close()
    await_data(client)
    return told(client.recv, 10), told(client.recv, 10)


@scene
def closed_with_unread_data_seen_by_poll() -> object:
    client, server = pair()
    client.sendall(b"never read")
    await_data(server)
    server.close()
    await_data(client)
    return "ERR" in poll(client), client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


@scene
def reset_by_linger() -> object:
    """SO_LINGER {1, 0} set before connect(): close() is a reset."""
    listener, client = listening(), socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.connect(listener.getsockname())
    server, _ = listener.accept()
    client.close()
    return told(server.recv, 1), told(server.recv, 1)


@scene
def linger_by_the_listener() -> object:
    listener = listening()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 5))
    client = socket.create_connection(listener.getsockname())
    server, _ = listener.accept()
    server.sendall(b"all of it")
    server.close()
    return read_all(client).decode()


@scene
def last_words_of_a_killed_process() -> object:
    listener = listening()
    ours, theirs = socket.socketpair()

    def speak() -> object:
        client = socket.create_connection(listener.getsockname())
        client.sendall(b"last words")
        theirs.send(b"x")
        theirs.recv(1)
        return None

    child = Child(speak)
    server, _ = listener.accept()
    ours.recv(1)
    os.kill(child.pid, signal.SIGKILL)
    return read_all(server).decode()


@scene
def peek_and_flags() -> object:
    client, server = pair()
    found: list[object] = [told(server.recv, 10, socket.MSG_DONTWAIT)]
    client.sendall(b"abcdef")
    await_data(server)
    found += [
        server.recv(3, socket.MSG_PEEK).decode(),
        server.recv(10, socket.MSG_PEEK | socket.MSG_DONTWAIT).decode(),
        server.recv(2).decode(),
        server.recv(0).decode(),
    ]
    with thread(lambda: server.recv(8, socket.MSG_WAITALL).decode()) as answer:
        select.select([], [], [], 0.03)
        client.sendall(b"ghij")
    found.append(answer)
    client.sendall(b"tail")
    client.close()
    found.append(server.recv(100, socket.MSG_WAITALL).decode())
    return found


@scene
def names_of_the_sender() -> object:
    """recvfrom() and recvmsg() on a connection tell no address."""
    client, server = pair()
    client.sendall(b"one")
    await_data(server)
    room, length = ctypes.create_string_buffer(b"\xee" * 32, 32), ctypes.c_int(32)
    data = ctypes.create_string_buffer(10)
    count = raw("recvfrom", server.fileno(), data, 10, 0, room, ctypes.byref(length))
    client.sendall(b"two")
    await_data(server)
    _, ancillary, flags, address = server.recvmsg(10, 100)
    return count, length.value, ancillary, flags, str(address)


@scene
def gathered_and_scattered() -> object:
    client, server = pair()
    sent = client.sendmsg([b"ab", b"", b"cde"])
    await_data(server)
    one, other = bytearray(2), bytearray(8)
    got, _, _, _ = server.recvmsg_into([one, other])
    found = [sent, got, bytes(one).decode(), bytes(other[: got - 2]).decode()]
    found.append(os.writev(server.fileno(), [b"x", b"yz"]))
    return found, client.recv(10).decode()


@scene
def files_by_sendfile_and_splice() -> object:
    client, server = pair()
    with open("/proc/self/exe", "rb") as file:
        sent = os.sendfile(client.fileno(), file.fileno(), 0, 70_000)
        file.seek(0)
        expected = file.read(sent)
    got = b""
    while len(got) < sent:
        got += server.recv(1 << 16)
    reader, writer = os.pipe()
    client.sendall(b"through a pipe")
    moved = os.splice(server.fileno(), writer, 100)
    found = os.read(reader, 100).decode()
    os.write(writer, b"and back")
    os.splice(reader, server.fileno(), 8)
    return got == expected, moved, found, client.recv(100).decode()


@scene
def events_of_a_connection() -> object:
    client, server = pair()
    found = [poll(client), poll(server)]
    client.sendall(b"x")
    found.append(poll(server, LIMIT, select.POLLIN))
    server.recv(1)
    found.append(poll(server))
    client.shutdown(socket.SHUT_WR)
    found += [poll(server, LIMIT, select.POLLIN | select.POLLRDHUP), poll(client)]
    return found


@scene
def edges_of_a_connection() -> object:
    client, server = pair()
    epoll = select.epoll()
    epoll.register(server, select.EPOLLIN | select.EPOLLET | select.EPOLLRDHUP)
    found = [reported(epoll)]
    for _ in range(3):
        client.sendall(b"x")
        found.append(reported(epoll, LIMIT))
    found.append(reported(epoll))
    client.shutdown(socket.SHUT_WR)
    found.append(reported(epoll, LIMIT))
    return found, server.recv(10).decode(), server.recv(10).decode()


@scene
def a_full_pipe_says_so() -> object:
    """A writer that does not block is told EAGAIN in the end, and writable again when the reader has read."""
    client, server = pair()
    client.setblocking(False)
    sent = 0
    told_so = False
    while poll(client, 0.2, select.POLLOUT) == "OUT":  # what is on its way may make room yet
        try:
            while True:
                sent += client.send(bytes(1 << 16))
        except BlockingIOError:
            told_so = True
    got = count_all(server, sent)
    return told_so, sent > MEBIBYTE, got == sent, poll(client, LIMIT, select.POLLOUT)


def written_first(size: int, times: int) -> object:
    """Both sides write so much before either reads."""
    client, server = pair()
    block = bytes(size)

    def write(sock: socket.socket) -> str:
        for _ in range(times):
            sock.sendall(block)
        return "written"

    with thread(lambda: write(server)) as answer:
        mine = write(client)
    total = size * times
    with thread(lambda: count_all(server, total)) as heard:
        got = count_all(client, total)
    return mine, answer, got == total, heard == [total]


@scene
def mebibyte_first() -> object:
    return written_first(MEBIBYTE, 1)


@scene
def ten_thousand_bytes_first() -> object:
    return written_first(1, 10_000)


@scene
def thousand_hundreds_first() -> object:
    return written_first(100, 1000)


@scene
def written_before_accept() -> object:
    """The client writes a mebibyte before its connection is accepted."""
    listener = listening()
    client = socket.create_connection(listener.getsockname())
    client.sendall(bytes(MEBIBYTE))
    client.shutdown(socket.SHUT_WR)
    server, _ = listener.accept()
    return len(read_all(server)) == MEBIBYTE


@scene
def much_both_ways() -> object:
    """16 MiB each way at once, between processes."""
    listener = listening()
    total = 16 * MEBIBYTE

    def exchange(sock: socket.socket) -> bool:
        block = bytes(range(256)) * 256

        def write() -> None:
            for _ in range(total // len(block)):
                sock.sendall(block)

        writer = threading.Thread(target=write)
        writer.start()
        count, right = 0, True
        while count < total and (part := sock.recv(1 << 18)):
            place = count % len(block)
            right = right and part == (block * 5)[place : place + len(part)]
            count += len(part)
        writer.join()
        return right and count == total

    child = Child(lambda: exchange(socket.create_connection(listener.getsockname())))
    server, _ = listener.accept()
    return exchange(server), child.answer()


@scene
def passed_to_another_process() -> object:
    """A listener and both ends of a connection go to another process of the program by SCM_RIGHTS."""
    ours, theirs = socket.socketpair()

    def use() -> object:
        ours.close()
        listener, client, server = receive_fds(theirs, 3)
        taken, peer = listener.accept()
        said = taken.recv(20).decode()
        client.sendall(b"by the client")
        return [
            said,
            peer[0] == HOST,
            taken.getsockname() == listener.getsockname(),
            server.recv(20).decode(),
            client.getsockname() == server.getpeername(),
            client.getpeername() == server.getsockname(),
            client.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY),
            client.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN) == socket.AF_INET,
        ]

    child = Child(use)
    listener = listening()
    client, server = pair()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    caller = socket.create_connection(listener.getsockname())
    send_fds(ours, listener, client, server)
    listener.close()
    caller.sendall(b"to whom it concerns")
    found = child.answer()
    return found, told(socket.create_connection, caller.getpeername())


@scene
def passed_before_it_listens() -> object:
    """A bound socket goes to another process, which listens; then an unconnected one, which connects."""
    ours, theirs = socket.socketpair()

    def use() -> object:
        ours.close()
        listener, client = receive_fds(theirs, 2)
        listener.listen()
        client.connect(listener.getsockname())
        taken, peer = listener.accept()
        client.sendall(b"self-made")
        return taken.recv(20).decode(), peer == client.getsockname()

    child = Child(use)
    listener, client = socket.socket(), socket.socket()
    listener.bind((HOST, 0))
    send_fds(ours, listener, client)
    listener.close()
    client.close()
    return child.answer()


@scene
def closed_in_flight() -> object:
    """An end that is closed by everybody while it lies in a Unix socket's queue ends when that is closed."""
    ours, theirs = socket.socketpair()
    client, server = pair()
    send_fds(ours, server)
    server.close()
    client.settimeout(LIMIT)
    ours.close()
    theirs.close()
    return read_all(client).decode()


if __name__ == "__main__":
    main()
