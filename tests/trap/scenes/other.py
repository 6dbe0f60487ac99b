"""The other program of the scenes in across.py: `python other.py PATH` does what it is asked over a Unix socket.

Each connection to PATH has a process of its own that keeps sockets by name. A request is one JSON array
[method, arguments…], with descriptors; the answer is a JSON value, with descriptors.
"""

import json
import os
import signal
import socket
import sys
from typing import Any

from scene import HOST, told


class Other:
    """What can be asked."""

    def __init__(self) -> None:
        self.sockets: dict[str, socket.socket] = {}
        self.given: list[socket.socket] = []

    def listen(self, name: str, backlog: int = 16) -> Any:
        sock = self.sockets[name] = socket.socket()
        sock.bind((HOST, 0))
        sock.listen(backlog)
        return sock.getsockname()

    def accept(self, name: str, new: str) -> Any:
        self.sockets[new], peer = self.sockets[name].accept()
        return peer

    def connect(self, name: str, host: str, port: int) -> Any:
        sock = self.sockets.setdefault(name, socket.socket())
        return told(sock.connect, (host, port))

    def say(self, name: str, text: str) -> Any:
        return told(self.sockets[name].sendall, text.encode())

    def hear(self, name: str, count: int = 100) -> Any:
        data = told(self.sockets[name].recv, count)
        return data.decode() if isinstance(data, bytes) else data

    def names(self, name: str) -> Any:
        sock = self.sockets[name]
        return told(sock.getsockname), told(sock.getpeername)

    def option(self, name: str, level: int, option: int, value: int | None = None) -> Any:
        sock = self.sockets[name]
        if value is not None:
            told(sock.setsockopt, level, option, value)
        return told(sock.getsockopt, level, option)

    def close(self, *names: str) -> None:
        for name in names:
            self.sockets.pop(name).close()

    def give(self, *names: str) -> None:
        """The answer carries these."""
        self.given = [self.sockets[name] for name in names]

    def take(self, *names: str, fds: list[int]) -> Any:
        for name, fd in zip(names, fds, strict=True):
            self.sockets[name] = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fd)


def serve(line: socket.socket) -> None:
    other = Other()
    while True:
        data, fds, _, _ = socket.recv_fds(line, 1 << 16, 8)
        if not data:
            return
        method, *arguments = json.loads(data)
        keywords = {"fds": fds} if method == "take" else {}
        answer = getattr(other, method)(*arguments, **keywords)
        socket.send_fds(line, [json.dumps(answer).encode()], [sock.fileno() for sock in other.given])
        other.given = []


class Line:
    """The other program, asked from a scene."""

    def __init__(self, path: str) -> None:
        self._line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._line.connect(path)
        self.fds: list[int] = []

    def ask(self, method: str, *arguments: Any, sockets: tuple[socket.socket, ...] = ()) -> Any:
        """The answer; sockets that come with it are in `fds`."""
        self.tell(method, *arguments, sockets=sockets)
        return self.answer()

    def tell(self, method: str, *arguments: Any, sockets: tuple[socket.socket, ...] = ()) -> None:
        text = json.dumps([method, *arguments]).encode()
        socket.send_fds(self._line, [text], [sock.fileno() for sock in sockets])

    def answer(self) -> Any:
        data, self.fds, _, _ = socket.recv_fds(self._line, 1 << 16, 8)
        return json.loads(data)

    def sockets(self) -> list[socket.socket]:
        """Those that came with the last answer."""
        return [socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fd) for fd in self.fds]


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    door.bind(sys.argv[1])
    door.listen(16)
    print("ready", flush=True)
    while True:
        line, _ = door.accept()
        if os.fork() == 0:
            door.close()
            serve(line)
            os._exit(0)
        line.close()


if __name__ == "__main__":
    main()
