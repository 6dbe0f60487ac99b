"""Signals in the middle of calls. The C library's calls are used as they are: Python would repeat them."""

import ctypes
import os
import select
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable

from scene import (
    HOST,
    LIMIT,
    Child,
    await_call,
    await_turn,
    listening,
    main,
    poll,
    raw,
    scene,
    thread,
    timeval,
    told,
)

RESTART, NO_RESTART = False, True


def handle(number: int, interrupt: bool) -> list[int]:
    """Install a handler, without or with SA_RESTART; the list grows when it has run."""
    seen: list[int] = []
    signal.signal(number, lambda got, _: seen.append(got))
    signal.siginterrupt(number, interrupt)
    return seen


def packed(server: socket.socket) -> bytes:
    host, port = server.getsockname()
    return struct.pack("=H", socket.AF_INET) + struct.pack("!H", port) + socket.inet_aton(host) + bytes(8)


def kind(value: object) -> object:
    return "fd" if isinstance(value, int) else value


def interrupting(*numbers: int, then: Callable[[], object] | None = None) -> None:
    """A child that sends the signals to us, one by one, each when we have been in a call for a moment.

    When the last has been handled, the child does what is to be done then.
    """
    parent = os.getpid()
    handled, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)  # written to by the handler itself, whether or not the call is restarted

    def send() -> None:
        for number in numbers:
            await_call(parent)
            pause()
            os.kill(parent, number)
            os.read(handled, 1)
        if then is not None:
            then()

    Child(send)


def pause() -> None:
    select.select([], [], [], 0.03)


@scene
def accept_without_restart() -> object:
    server = listening()
    seen = handle(signal.SIGUSR1, NO_RESTART)
    interrupting(signal.SIGUSR1)
    found = [raw("accept", server.fileno(), None, None), len(seen)]
    client = socket.create_connection(server.getsockname())
    client.sendall(b"still there")
    return found, server.accept()[0].recv(20).decode()


@scene
def accept4_without_restart() -> object:
    server = listening()
    handle(signal.SIGUSR1, NO_RESTART)
    interrupting(signal.SIGUSR1, signal.SIGUSR1)
    return [raw("accept4", server.fileno(), None, None, 0) for _ in range(2)]


@scene
def accept_with_restart() -> object:
    server = listening()
    seen = handle(signal.SIGUSR1, RESTART)
    parent = os.getpid()

    def send() -> None:
        for _ in range(3):
            await_call(parent)
            pause()
            os.kill(parent, signal.SIGUSR1)
            pause()
        socket.create_connection(server.getsockname()).sendall(b"late")
        select.select([], [], [], LIMIT)

    child = Child(send)
    fd = raw("accept", server.fileno(), None, None)
    found = [kind(fd), bool(seen)]
    if isinstance(fd, int):
        found.append(socket.socket(fileno=fd).recv(10).decode())
    os.kill(child.pid, signal.SIGKILL)
    return found


@scene
def accept_with_timeout_without_restart() -> object:
    server = listening()
    seen = handle(signal.SIGUSR1, NO_RESTART)
    interrupting(signal.SIGUSR1)
    found = []
    for seconds in (LIMIT, 0.3):
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval(seconds))
        found.append(raw("accept", server.fileno(), None, None))
    return found, len(seen)


@scene
def accept_and_ignored_signals() -> object:
    server = listening()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    parent = os.getpid()

    def send() -> None:
        for number in (signal.SIGUSR1, signal.SIGCHLD, signal.SIGWINCH, signal.SIGURG):
            await_call(parent)
            pause()
            os.kill(parent, number)
            pause()
        socket.create_connection(server.getsockname()).close()

    Child(send)
    return kind(raw("accept", server.fileno(), None, None))


@scene
def accept_and_blocked_signals() -> object:
    server = listening()
    seen = handle(signal.SIGUSR1, NO_RESTART)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    parent = os.getpid()

    def send() -> None:
        await_call(parent)
        pause()
        os.kill(parent, signal.SIGUSR1)
        pause()
        socket.create_connection(server.getsockname()).close()

    Child(send)
    found = [kind(raw("accept", server.fileno(), None, None)), len(seen)]
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
    return found, len(seen)


@scene
def accept_in_a_thread_that_is_signalled() -> object:
    """As the JVM ends a blocked accept(): a marker over the descriptor, a signal to the thread."""
    server = listening()
    handle(signal.SIGUSR2, NO_RESTART)
    tid: list[int] = []

    def wait() -> object:
        tid.append(threading.get_ident())
        return raw("accept", server.fileno(), None, None)

    with thread(wait) as answer:
        await_call_of_another_thread()
        pause()
        marker = os.open("/dev/null", os.O_RDONLY)
        os.dup2(marker, server.fileno())
        signal.pthread_kill(tid[0], signal.SIGUSR2)
    return answer


def await_call_of_another_thread() -> None:
    while True:
        for tid in os.listdir("/proc/self/task"):
            if int(tid) != os.getpid():
                with open(f"/proc/self/task/{tid}/syscall") as file:
                    if file.read().split()[0] in ("43", "288", "202", "242"):
                        await_turn()
                        return
        select.select([], [], [], 0.002)


@scene
def accept_stopped_and_continued() -> object:
    server = listening()

    def serve() -> object:
        fd = raw("accept", server.fileno(), None, None)
        return socket.socket(fileno=fd).recv(10).decode() if isinstance(fd, int) else fd

    child = Child(serve)
    await_call(child.pid)
    os.kill(child.pid, signal.SIGSTOP)
    os.waitpid(child.pid, os.WUNTRACED)
    client = socket.create_connection(server.getsockname())
    client.sendall(b"hello")
    os.kill(child.pid, signal.SIGCONT)
    return child.answer()


@scene
def accept_continued_before_the_connection() -> object:
    server = listening()

    def serve() -> object:
        handle(signal.SIGCONT, RESTART)
        fd = raw("accept", server.fileno(), None, None)
        return socket.socket(fileno=fd).recv(10).decode() if isinstance(fd, int) else fd

    child = Child(serve)
    for _ in range(3):
        await_call(child.pid)
        os.kill(child.pid, signal.SIGSTOP)
        os.waitpid(child.pid, os.WUNTRACED)
        os.kill(child.pid, signal.SIGCONT)
    await_call(child.pid)
    client = socket.create_connection(server.getsockname())
    client.sendall(b"hello")
    return child.answer()


@scene
def one_of_two_in_accept_dies() -> object:
    """The connection goes to the other."""
    server = listening()

    def serve() -> object:
        return server.accept()[0].recv(10).decode()

    children = [Child(serve), Child(serve)]
    for child in children:
        await_call(child.pid)
    os.kill(children[0].pid, signal.SIGKILL)
    os.waitpid(children[0].pid, os.WUNTRACED)
    client = socket.create_connection(server.getsockname())
    client.sendall(b"hello")
    return children[1].answer()


@scene
def handler_that_raises() -> object:
    """Python's own way out of accept()."""
    server = listening()

    class Enough(Exception):
        pass

    def give_up(*_: object) -> None:
        raise Enough

    signal.signal(signal.SIGUSR1, give_up)
    interrupting(signal.SIGUSR1)
    try:
        server.accept()
    except Enough:
        return "out", poll(server)
    return "accepted"


@scene
def interrupt_ends_accept() -> object:
    """SIGINT with its default action ends a process in accept()."""
    server = listening()

    def serve() -> object:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        return raw("accept", server.fileno(), None, None)

    child = Child(serve)
    await_call(child.pid)
    os.kill(child.pid, signal.SIGINT)
    return child.answer()


def full() -> tuple[socket.socket, list[socket.socket]]:
    server = listening(1)
    return server, [socket.create_connection(server.getsockname()) for _ in range(2)]


@scene
def connect_without_restart() -> object:
    """EINTR; the connection goes on by itself, and the next connect() waits for it."""
    server, _ = full()
    handle(signal.SIGUSR1, NO_RESTART)
    interrupting(signal.SIGUSR1)
    late = socket.socket()
    found: list[object] = [raw("connect", late.fileno(), packed(server), 16), poll(late)]
    server.accept(), server.accept()
    found += [poll(late, LIMIT), late.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)]
    found += [raw("connect", late.fileno(), packed(server), 16), raw("connect", late.fileno(), packed(server), 16)]
    late.sendall(b"late")
    return found, server.accept()[0].recv(10).decode()


@scene
def connect_again_after_an_interruption() -> object:
    server, _ = full()
    handle(signal.SIGUSR1, NO_RESTART)
    interrupting(signal.SIGUSR1)
    late = socket.socket()
    found: list[object] = [raw("connect", late.fileno(), packed(server), 16)]

    def make_room() -> None:
        await_call(parent)
        server.accept(), server.accept()

    parent = os.getpid()
    child = Child(make_room)
    found.append(raw("connect", late.fileno(), packed(server), 16))
    child.answer()
    late.sendall(b"late")
    return found, server.accept()[0].recv(10).decode()


@scene
def connect_again_while_others_hold_the_socket() -> object:
    """The same with a child that has a descriptor of the socket."""
    server, _ = full()
    handle(signal.SIGUSR1, NO_RESTART)
    late = socket.socket()
    interrupting(signal.SIGUSR1)
    found: list[object] = [raw("connect", late.fileno(), packed(server), 16)]

    def make_room() -> None:
        await_call(parent)
        server.accept(), server.accept()

    parent = os.getpid()
    child = Child(make_room)
    found.append(raw("connect", late.fileno(), packed(server), 16))
    child.answer()
    late.sendall(b"late")
    return found, server.accept()[0].recv(10).decode()


@scene
def connect_with_restart() -> object:
    server, _ = full()
    seen = handle(signal.SIGUSR1, RESTART)
    parent = os.getpid()

    def send() -> None:
        for _ in range(3):
            await_call(parent)
            pause()
            os.kill(parent, signal.SIGUSR1)
            pause()
        server.accept(), server.accept()

    child = Child(send)
    late = socket.socket()
    found: list[object] = [raw("connect", late.fileno(), packed(server), 16), bool(seen), child.answer()]
    late.sendall(b"late")
    return found, server.accept()[0].recv(10).decode()


@scene
def connect_by_python_with_a_handler() -> object:
    """Python goes on waiting by itself (PEP 475)."""
    server, _ = full()
    handle(signal.SIGUSR1, NO_RESTART)
    parent = os.getpid()

    def send() -> None:
        await_call(parent)
        pause()
        os.kill(parent, signal.SIGUSR1)
        pause()
        server.accept(), server.accept()

    child = Child(send)
    late = socket.socket()
    found = [told(late.connect, server.getsockname())]
    child.answer()
    late.sendall(b"late")
    return found, server.accept()[0].recv(10).decode()


@scene
def connect_stopped_and_continued() -> object:
    server, _ = full()

    def call() -> object:
        late = socket.socket()
        found = raw("connect", late.fileno(), packed(server), 16)
        late.sendall(b"late")
        return found

    child = Child(call)
    await_call(child.pid)
    os.kill(child.pid, signal.SIGSTOP)
    os.waitpid(child.pid, os.WUNTRACED)
    os.kill(child.pid, signal.SIGCONT)
    await_call(child.pid)
    server.accept(), server.accept()
    return child.answer(), server.accept()[0].recv(10).decode()


@scene
def killed_while_it_connects() -> object:
    """A client that dies while it waits for room never reaches the server."""
    server, _ = full()

    late = socket.socket()

    def call() -> object:
        return raw("connect", late.fileno(), packed(server), 16)

    child = Child(call)
    late.close()
    await_call(child.pid)
    os.kill(child.pid, signal.SIGKILL)
    found = [child.answer()]
    server.accept(), server.accept()
    return found, poll(server, 0.5)


class Storm:
    """SIGALRM from another process, at this rate for these seconds, then more and more slowly until it is over.

    So that even where nothing gets done between two signals, because the machine is busy, everything does in the end.
    """

    def __init__(self, interrupt: bool, seconds: float, hertz: int = 1000) -> None:
        self._seen = handle(signal.SIGALRM, interrupt)
        self._end = time.monotonic() + seconds
        reader, self._writer = os.pipe()
        parent = os.getpid()

        def send() -> None:
            interval = 1 / hertz
            while not select.select([reader], [], [], interval)[0]:
                os.kill(parent, signal.SIGALRM)
                if time.monotonic() > self._end:
                    interval = min(interval * 1.02, 0.2)

        self._sender = Child(send)
        os.close(reader)

    @property
    def signals(self) -> int:
        """How many have been handled."""
        return len(self._seen)

    def over(self, enough: bool) -> bool:
        """Ends it and says so, when the time is over and enough has happened: 50 signals among it."""
        over = enough and self.signals > 50 and time.monotonic() > self._end
        if over:
            self.end()
        return over

    def end(self) -> None:
        """No signal comes any more."""
        os.write(self._writer, b"x")
        self._sender.answer()


def accept_under_storm(interrupt: bool, seconds: float) -> object:
    """Clients in another process connect, say a number and want it back; the server's thread gets 1000 signals/s."""
    server = listening(64)
    stop_reader, stop_writer = os.pipe()

    def call() -> object:
        count, good = 0, True
        while not select.select([stop_reader], [], [], 0)[0]:
            with socket.create_connection(server.getsockname()) as client:
                said = f"{os.getpid()} {count}".encode()
                client.sendall(said)
                client.settimeout(LIMIT)
                good = good and client.recv(64) == said and client.recv(64) == b""
                count += 1
        return count, good

    callers = [Child(call), Child(call)]
    storm = Storm(interrupt, seconds)
    heard: list[bytes] = []
    interrupted = 0
    ended = False
    while True:
        if not ended and storm.over(len(heard) > 0):
            ended = True
            os.write(stop_writer, b"x")
            server.setblocking(False)
        fd = raw("accept", server.fileno(), None, None)
        if isinstance(fd, str):
            interrupted += fd == "EINTR"
            if ended and fd == "EAGAIN" and not any(_runs(child.pid) for child in callers):
                break
            assert fd in ("EINTR", "EAGAIN"), fd
            continue
        data = os.read(fd, 64)
        heard.append(data)
        os.write(fd, data)
        os.close(fd)
    answers = [child.answer() for child in callers]
    total = sum(count for count, _ in answers)
    return {
        "all right": all(good for _, good in answers),
        "none lost": len(heard) == total,
        "none twice": len(set(heard)) == total,
        "interrupted": interrupt or not interrupted,
        "descriptors": len(os.listdir("/proc/self/fd")) < 20,
    }


def _runs(pid: int) -> bool:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] != "Z"


@scene
def storm_without_restart() -> object:
    return accept_under_storm(NO_RESTART, 2.0)


@scene
def storm_with_restart() -> object:
    return accept_under_storm(RESTART, 1.0)


@scene
def every_call_under_storm_with_restart() -> object:
    """With SA_RESTART nobody sees that calls are cancelled and made again: no EINTR, nothing done twice."""
    storm = Storm(RESTART, 1.0, 500)
    wrong: list[object] = []
    rounds = 0
    length = ctypes.c_int(16)
    room = ctypes.create_string_buffer(64)
    on = ctypes.c_int(1)

    def check(name: str, *args: object) -> object:
        value = raw(name, *args)
        # An answer that meets a signal on its way is dropped by the kernel, and the call is made again.
        done = {("bind", "EINVAL"), ("connect", "EISCONN")}
        if isinstance(value, str) and (name, value) not in done:
            wrong.append((name, value))
        return value

    while not storm.over(rounds > 0):
        server, client = socket.socket(), socket.socket()
        any_port = struct.pack("=H", socket.AF_INET) + bytes(2) + socket.inet_aton(HOST) + bytes(8)
        check("bind", server.fileno(), any_port, 16)
        check("setsockopt", server.fileno(), socket.IPPROTO_TCP, socket.TCP_NODELAY, ctypes.byref(on), 4)
        check("listen", server.fileno(), 4)
        check("bind", client.fileno(), any_port, 16)
        name = packed(server)
        check("connect", client.fileno(), name, 16)
        fd = check("accept", server.fileno(), None, None)
        for call in ("getsockname", "getpeername"):
            length.value = 16
            check(call, client.fileno(), room, ctypes.byref(length))
        check("setsockopt", client.fileno(), socket.IPPROTO_TCP, socket.TCP_NODELAY, ctypes.byref(on), 4)
        length.value = 4
        check("getsockopt", client.fileno(), socket.IPPROTO_TCP, socket.TCP_NODELAY, room, ctypes.byref(length))
        if isinstance(fd, int):
            client.sendall(b"x")
            if os.read(fd, 1) != b"x":
                wrong.append("data")
            os.close(fd)
        server.setblocking(False)
        wrong += [] if raw("accept", server.fileno(), None, None) == "EAGAIN" else ["accepted twice"]
        server.close()
        client.close()
        rounds += 1
    return wrong[:5], len(os.listdir("/proc/self/fd")) < 15


@scene
def connect_under_storm_without_restart() -> object:
    """EINTR, then connect() again, until it says that it is connected."""
    server = listening(64)
    name = packed(server)

    def serve() -> object:
        count = 0
        while True:
            accepted, _ = server.accept()
            with accepted:
                data = accepted.recv(16)
                if data == b"end":
                    return count
                accepted.sendall(data)
                count += 1

    child = Child(serve)
    storm = Storm(NO_RESTART, 1.0)
    wrong: list[object] = []
    rounds = 0
    while not storm.over(rounds > 0):
        client = socket.socket()
        result: object = "EINTR"
        while result == "EINTR":
            result = raw("connect", client.fileno(), name, 16)
        if result not in (0, "EISCONN"):
            wrong.append(result)
        client.sendall(b"%d" % rounds)
        if client.recv(16) != b"%d" % rounds:
            wrong.append("another's answer")
        client.close()
        rounds += 1
    socket.create_connection(server.getsockname()).sendall(b"end")
    return wrong[:5], child.answer() == rounds


@scene
def socket_never_interrupted() -> object:
    storm = Storm(NO_RESTART, 0.4)
    wrong: list[str] = []
    while not storm.over(True):
        fd = raw("socket", socket.AF_INET, socket.SOCK_STREAM, 0)
        if isinstance(fd, str):
            wrong.append(fd)
        else:
            os.close(fd)
    return wrong[:5]


if __name__ == "__main__":
    main()
