"""Stand-ins in Python for transact.c and for iperf over a Unix pair, where there is no C compiler.

The same command lines as transact.c, and besides `sink PATH` and `source PATH -l BYTES -t SECONDS`. Slower
than the C ones by the interpreter's time, on both sides of every comparison; the report says when they were
used.
"""

from __future__ import annotations

import argparse
import select
import socket
import sys
import time

SNDBUF = 4 << 20
SO_SNDBUFFORCE = 32  # socket(7)


def serve_blocking(listener: socket.socket) -> None:
    """Accept, read one byte, answer byte + 1, close; for ever."""
    while True:
        end, _ = listener.accept()
        with end:
            byte = end.recv(1)
            if byte:
                end.send(bytes([byte[0] + 1]))


def serve_polling(listener: socket.socket) -> None:
    """The same from an epoll loop without a blocking call."""
    listener.setblocking(False)
    poller = select.epoll()
    poller.register(listener, select.EPOLLIN)
    open_ends: dict[int, socket.socket] = {}

    def answer(end: socket.socket) -> bool:
        try:
            byte = end.recv(1)
        except BlockingIOError:
            return False
        if byte:
            end.send(bytes([byte[0] + 1]))
        end.close()
        return True

    while True:
        for number, _ in poller.poll():
            if number in open_ends:
                answer(open_ends.pop(number))
                continue
            try:
                end, _ = listener.accept()
            except BlockingIOError:
                continue
            end.setblocking(False)
            key = end.fileno()
            if not answer(end):
                poller.register(end, select.EPOLLIN)
                open_ends[key] = end


def client(host: str, port: int, warm_up: int, count: int) -> None:
    """Transactions one after another; prints the nanoseconds in connect, exchange and close of each."""
    address = socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_STREAM)[0][4]
    taken: list[tuple[int, int, int]] = []
    for number in range(-warm_up, count):
        begin = time.monotonic_ns()
        end = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        end.connect(address)
        connected = time.monotonic_ns()
        end.send(b"a")
        back = end.recv(1)
        answered = time.monotonic_ns()
        end.close()
        closed = time.monotonic_ns()
        if back != b"b":
            sys.exit("peer: a wrong byte came back")
        if number >= 0:
            taken.append((connected - begin, answered - connected, closed - answered))
    for row in taken:
        print(*row)


def widen(end: socket.socket) -> None:
    """Give a Unix end the send buffer that AppSwitch gives its ends."""
    try:
        end.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, SNDBUF)
    except PermissionError:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SNDBUF)


def report(count: int, seconds: float) -> None:
    """Print a line as `iperf -y C` does."""
    print(f"0,unix,0,unix,0,1,0.0-{seconds:.1f},{count},{int(count * 8 / seconds)}", flush=True)


def sink(path: str) -> None:
    """Read connections to their ends, and report each as `iperf -y C` does."""
    buffer = bytearray(128 << 10)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        while True:
            end, _ = listener.accept()
            widen(end)
            total, begin = 0, time.monotonic()
            with end:
                while got := end.recv_into(buffer):
                    total += got
            seconds = time.monotonic() - begin
            report(total, seconds)


def source(path: str, size: int, seconds: float) -> None:
    """Write blocks of `size` bytes for `seconds`."""
    block = bytes(size)
    with socket.socket(socket.AF_UNIX) as end:
        end.connect(path)
        widen(end)
        begin, total = time.monotonic(), 0
        while time.monotonic() < begin + seconds:
            end.sendall(block)
            total += size
        report(total, time.monotonic() - begin)


def main() -> None:
    """Parse the command line and do it."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    server_parser = commands.add_parser("server")
    server_parser.add_argument("address")
    server_parser.add_argument("port", type=int)
    server_parser.add_argument("mode", choices=["blocking", "polling"])
    client_parser = commands.add_parser("client")
    client_parser.add_argument("host")
    for name in ("port", "warm_up", "count"):
        client_parser.add_argument(name, type=int)
    commands.add_parser("sink").add_argument("path")
    source_parser = commands.add_parser("source")
    source_parser.add_argument("path")
    source_parser.add_argument("-l", type=int, dest="size", required=True)
    source_parser.add_argument("-t", type=float, dest="seconds", required=True)
    source_parser.add_argument("-y", help="ignored: there for iperf's command line")
    args = parser.parse_args()
    if args.command == "server":
        with socket.create_server((args.address, args.port)) as listener:
            (serve_blocking if args.mode == "blocking" else serve_polling)(listener)
    elif args.command == "client":
        client(args.host, args.port, args.warm_up, args.count)
    elif args.command == "sink":
        sink(args.path)
    else:
        source(args.path, args.size, args.seconds)


if __name__ == "__main__":
    main()
