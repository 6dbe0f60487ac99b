"""Runs scenes: small programs on sockets that say what they saw, to be compared with what the kernel says natively.

`python FILE` runs every scene of FILE, each in a process of its own, and prints one JSON object: scene → what it
returned, or how it failed. Scenes must return what is the same on every run: no port numbers, no times.
"""

import contextlib
import ctypes
import errno
import json
import os
import select
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

HOST = os.environ.get("SCENE_HOST", "127.0.0.1")
"""The program's own address."""
LIMIT = float(os.environ.get("SCENE_LIMIT", "60"))
"""Seconds that one scene may take, and that anything in it is waited for that must happen."""
JOBS = int(os.environ.get("SCENE_JOBS", "4"))
"""Scenes that play at the same time."""

SCENES: dict[str, Callable[[], Any]] = {}
_libc = ctypes.CDLL(None, use_errno=True)


def scene(function: Callable[[], Any]) -> Callable[[], Any]:
    if function.__module__ == "__main__":
        SCENES[function.__name__] = function
    return function


def told(function: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
    """What the function returns, or the name of the errno it fails with."""
    try:
        return function(*args, **keywords)
    except OSError as error:
        if isinstance(error, TimeoutError) and error.errno is None:
            return "TIMEOUT"
        return errno.errorcode.get(error.errno or 0, str(error))


def raw(name: str, *args: Any) -> int | str:
    """The C library's function with these arguments: its value, or the name of its errno. Never retried."""
    ctypes.set_errno(0)
    value: int = getattr(_libc, name)(*args)
    code = ctypes.get_errno()
    return errno.errorcode.get(code, str(code)) if value == -1 else value


def listening(backlog: int = 16, family: int = socket.AF_INET, host: str = HOST) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.bind((host, 0))
    sock.listen(backlog)
    return sock


def pair() -> tuple[socket.socket, socket.socket]:
    """The client's and the server's end of a connection."""
    with listening() as server:
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
    return client, accepted


_EVENTS = ("IN", "PRI", "OUT", "ERR", "HUP", "NVAL", "RDHUP")


def named(mask: int) -> str:
    """Poll or epoll events by name."""
    return "|".join(name for name in _EVENTS if mask & getattr(select, f"POLL{name}")) or "-"


def poll(sock: socket.socket, timeout: float = 0.0, wanted: int = 0x201F) -> str:
    """Events of one socket, once there are some or the time is over."""
    poller = select.poll()
    poller.register(sock, wanted)
    found = poller.poll(timeout * 1000)
    if found and found[0][1] & (select.POLLERR | select.POLLHUP):
        # tcp_poll() reads the state first, the rest later: of a reset that comes in between it does not tell OUT
        found = poller.poll(timeout * 1000)
    return named(found[0][1]) if found else "-"


def reported(epoll: select.epoll, timeout: float = 0.0) -> list[str]:
    """Events of an epoll, without the descriptors' numbers."""
    return sorted(named(mask) for _, mask in epoll.poll(timeout, 16))


def await_data(sock: socket.socket) -> None:
    """Return once there is something to read or to accept: the other side's news may be on its way."""
    poll(sock, LIMIT, select.POLLIN)


def await_end(sock: socket.socket) -> None:
    """Return once both directions have ended, as a reset ends them."""
    poll(sock, LIMIT, 0)


@contextlib.contextmanager
def thread(work: Callable[[], Any]) -> Iterator[list[Any]]:
    """Run `work` in a thread during the block; the list has its answer afterwards."""
    answer: list[Any] = []

    def body() -> None:
        try:
            answer.append(work())
        except OSError as error:
            answer.append(errno.errorcode.get(error.errno or 0, str(error)))

    runner = threading.Thread(target=body, daemon=True)
    runner.start()
    try:
        yield answer
    finally:
        runner.join(LIMIT)


class Child:
    """A forked process that does `work` and answers with what JSON can carry."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._reader)
            _finish(work, writer)
        os.close(writer)

    def answer(self) -> Any:
        with open(self._reader, "rb") as file:
            data = file.read()
        _, status = os.waitpid(self.pid, 0)
        return json.loads(data) if data else f"ended by {os.waitstatus_to_exitcode(status)}"


def _finish(work: Callable[[], Any], writer: int) -> None:
    try:
        result = work()
    except BaseException:
        result = {"failed": traceback.format_exc()}
    try:
        os.write(writer, json.dumps(result, default=repr).encode())
    finally:
        os._exit(0)


def blocked(tid: int) -> bool:
    """Whether a thread of ours sleeps (proc_pid_stat(5)), as one does that waits inside a system call."""
    with open(f"/proc/{os.getpid()}/task/{tid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "S"


def await_call(pid: int) -> None:
    """Return once a process sleeps in accept(), accept4() or connect() (proc_pid_syscall(5)), and that has begun."""
    while True:
        with open(f"/proc/{pid}/syscall") as file:
            words = file.read().split()
        if words and words[0] in _CALLS:
            break
        select.select([], [], [], 0.002)
    await_turn()


def await_turn() -> None:
    """Return once all calls that others of this program have made before are begun.

    Natively they are. The switch takes a program's trapped calls in the order in which they were made, so that one of
    our own is answered when it has looked at those before: a busy machine may be late with that.
    """
    with socket.socket() as sock:
        sock.getsockname()


_CALLS = {"x86_64": {"43", "288", "42"}, "aarch64": {"202", "242", "203"}}.get(os.uname().machine, set())


def send_fds(over: socket.socket, *sockets: socket.socket) -> None:
    socket.send_fds(over, [b"x"], [item.fileno() for item in sockets])


def receive_fds(over: socket.socket, count: int) -> list[socket.socket]:
    """The sockets, whose family the kernel tells (a descriptor alone does not say)."""
    _, fds, _, _ = socket.recv_fds(over, 1, count)
    return [socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fd) for fd in fds]


def timeval(seconds: float) -> bytes:
    return struct.pack("ll", int(seconds), int(seconds % 1 * 1_000_000))


class _Play:
    """One scene, in a process group of its own."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.said = b""
        self.until = time.monotonic() + LIMIT
        self.reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.setpgid(0, 0)
            os.closerange(3, writer)
            _finish(SCENES[name], writer)
        os.close(writer)

    def result(self) -> Any:
        os.close(self.reader)
        hangs = time.monotonic() >= self.until
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        if self.said:
            return json.loads(self.said)
        return "HANGS" if hangs else f"ended by {os.waitstatus_to_exitcode(status)}"


def play(names: list[str]) -> dict[str, Any]:
    """What each scene returned; some play at the same time."""
    waiting, playing, found = list(reversed(names)), dict[int, _Play](), {}
    while waiting or playing:
        while waiting and len(playing) < JOBS:
            begun = _Play(waiting.pop())
            playing[begun.reader] = begun
        soonest = min(item.until for item in playing.values())
        for reader in select.select(list(playing), [], [], max(0.0, soonest - time.monotonic()))[0]:
            data = os.read(reader, 1 << 16)
            playing[reader].said += data
            if not data:
                item = playing.pop(reader)
                found[item.name] = item.result()
        for item in [item for item in playing.values() if item.until <= time.monotonic()]:
            del playing[item.reader]
            found[item.name] = item.result()
    return {name: found[name] for name in names}


def main() -> None:
    print(json.dumps(play(sys.argv[1:] or list(SCENES))), flush=True)
