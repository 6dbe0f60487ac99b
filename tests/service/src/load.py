"""Load for a switch whose processes are killed meanwhile; knows nothing of AppSwitch.

argv[1] is what to do (serve, call, churn, pass), the rest its arguments. It goes on until standard input ends and
then tells, as JSON, how often what happened, how long the longest call of each kind took, and what went wrong.
"""

# ruff: noqa: F403, F405

import errno
import json
import os
import select
import stat
import struct
import sys
import threading
import time
import traceback
from collections import Counter
from socket import *

TIMEOUT = 60.0  # seconds after which something is taken for lost
TIMED = struct.pack("qq", int(TIMEOUT), 0)
HURRIED = struct.pack("qq", 0, 50000)

#: What a client may see of a connection that was on its way when a worker was killed: its end, never a refusal.
LOST = ("ended", "ECONNRESET", "EPIPE")

seen, longest, wrong = Counter(), {}, []
stopping = threading.Event()


def note(what, outcome, allowed, where=""):
    """Count an outcome; what is not allowed is told with its place and moment."""
    seen[f"{what} {outcome}"] += 1
    if outcome not in allowed and len(wrong) < 20:
        wrong.append([what, outcome, where, time.time()])


def timed(function, *arguments, what=None):
    """Do one thing that need not wait for anybody but the switch."""
    since = time.monotonic()
    try:
        return function(*arguments)
    finally:
        what = what or function.__name__
        longest[what] = max(longest.get(what, 0.0), time.monotonic() - since)


def repeat(what, function, *arguments, allowed=("done", *LOST)):
    """In a thread: again and again until the end."""

    def go_on():
        while not stopping.is_set():
            where = ""
            try:
                outcome = function(*arguments) or "done"
            except OSError as error:
                outcome = errno.errorcode.get(error.errno, str(error))
                where = traceback.format_tb(error.__traceback__)[-1]
            note(what, outcome, allowed, where)

    thread = threading.Thread(target=go_on, daemon=True)
    thread.start()
    return thread


def listener(port, timeout=None):
    sock = socket()
    sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    if timeout is not None:
        sock.setsockopt(SOL_SOCKET, SO_RCVTIMEO, timeout)
    timed(sock.bind, ("", port))
    timed(sock.listen, 64)
    return sock


def take(listening):
    """What accept() gives, as a socket; None when it is no socket, which is noted: the connection is lost."""
    fd, _ = listening._accept()
    if fd >= 3 and stat.S_ISSOCK(os.fstat(fd).st_mode):
        return socket(AF_INET, SOCK_STREAM, 0, fileno=fd)
    seen[f"accept gave {fd}"] += 1
    return None


def taken(listening):
    """The next connection."""
    while (sock := take(listening)) is None:
        pass
    return sock


def echo(sock):
    with sock:
        sock.setsockopt(SOL_SOCKET, SO_RCVTIMEO, TIMED)
        timed(sock.setsockopt, IPPROTO_TCP, TCP_NODELAY, 1)
        timed(sock.getpeername)
        data = sock.recv(16)
        if not data:
            return "ended"
        sock.sendall(data)
    return "done"


def serve():
    """80: accept() that waits; 81: non-blocking; 82: accept() with a time-out; 83: one connection that stays."""
    blocking, polled, steady = (listener(port) for port in (80, 81, 83))
    hurried = listener(82, HURRIED)
    polled.setblocking(False)

    def poll():
        if select.select([polled], [], [], 0.2)[0]:
            try:
                sock = taken(polled)
            except BlockingIOError:
                return "done"
            sock.setblocking(True)
            return echo(sock)

    threads = [
        repeat("accept", lambda: echo(taken(blocking))),
        repeat("accept polling", poll),
        repeat("accept timed", lambda: echo(taken(hurried)), allowed=("done", "EAGAIN", *LOST)),
    ]
    print("ready", flush=True)

    def stay():
        with taken(steady) as sock:
            while data := sock.recv(64):
                sock.sendall(data)

    threading.Thread(target=stay, daemon=True).start()
    sys.stdin.readline()
    stopping.set()
    for port in (80, 82):
        socket().connect(("127.0.0.1", port))
    for thread in threads:
        thread.join(TIMEOUT)


def say_hello(sock):
    sock.setsockopt(SOL_SOCKET, SO_RCVTIMEO, TIMED)
    sock.sendall(b"hello")
    data = sock.recv(16)
    return "done" if data == b"hello" else "ended" if not data else f"heard {data!r}"


def connect(address):
    with socket() as sock:
        timed(sock.connect, address)
        return say_hello(sock)


def connect_polling(address):
    with socket() as sock:
        sock.setblocking(False)
        code = timed(sock.connect_ex, address)
        if code not in (0, errno.EINPROGRESS):
            return errno.errorcode[code]
        if not select.select([], [sock], [], TIMEOUT)[1]:
            return "never connected"
        if code := sock.getsockopt(SOL_SOCKET, SO_ERROR):
            return errno.errorcode[code]
        sock.setblocking(True)
        return say_hello(sock)


def call(name):
    """Connect to each port of the service `name`, and over one connection speak all the time."""
    host = gethostbyname(name)
    threads = [
        repeat("call", connect, (host, 80)),
        repeat("call polling", connect_polling, (host, 81)),
        repeat("call timed", connect, (host, 82)),
    ]
    steady = socket()
    steady.connect((host, 83))
    steady.settimeout(TIMEOUT)
    ends = steady.getsockname(), steady.getpeername()
    print("ready", flush=True)
    count = 0

    def speak():
        nonlocal count
        count += 1
        text = f"{count:064}".encode()
        steady.sendall(text)
        heard = steady.recv(64, MSG_WAITALL)
        if count % 100 == 0 and ends != (timed(steady.getsockname), timed(steady.getpeername)):
            return "other addresses"
        return "done" if heard == text else f"heard {heard!r}"

    # Of this the switch knows nothing: it tells how long the machine itself lets programs wait.
    threads.append(repeat("speak", lambda: timed(speak), allowed=("done",)))
    sys.stdin.readline()
    stopping.set()
    for thread in threads:
        thread.join(2 * TIMEOUT)


def own(listening, client):
    """The other end of `client`; None when the connection ended on its way. An OSError when it is nowhere."""
    until = time.monotonic() + TIMEOUT
    while True:
        try:
            return timed(take, listening, what="accept")
        except BlockingIOError:
            try:
                if not client.recv(1, MSG_DONTWAIT):
                    return None
            except ConnectionResetError:
                return None
            except BlockingIOError:
                if time.monotonic() > until:
                    raise


def once(port):
    """listen(), a connection to oneself, and close(); then nobody listens there."""
    with listener(port, HURRIED) as listening:
        if port and listening.getsockname()[1] != port:
            return "another port"
        address = "127.0.0.1", listening.getsockname()[1]
        with socket() as client:
            timed(client.connect, address)
            client.sendall(b"hello")
            client.setsockopt(SOL_SOCKET, SO_RCVTIMEO, TIMED)
            if (sock := own(listening, client)) is None:
                return "ended"
            with sock:
                if sock.getpeername() != client.getsockname():
                    return "ended"  # of a connect() that a worker did not live to answer: it was made again
                outcome = echo(sock)
                if outcome == "done" and client.recv(16) != b"hello":
                    return "not heard"
    if outcome == "done":
        with socket() as late:
            if timed(late.connect_ex, address) != errno.ECONNREFUSED:
                return "not refused"
    return outcome


def churn():
    """Listeners come and go, at ports of one's own choice and of the kernel's."""
    threads = [repeat("listen", once, 90), repeat("listen anywhere", once, 0)]
    print("ready", flush=True)
    sys.stdin.readline()
    stopping.set()
    for thread in threads:
        thread.join(2 * TIMEOUT)


def pass_by():
    note("pass", once(80), ("done", *LOST))


if __name__ == "__main__":
    {"serve": serve, "call": call, "churn": churn, "pass": pass_by}[sys.argv[1]](*sys.argv[2:])
    print(json.dumps({"seen": seen, "longest": longest, "wrong": wrong}), flush=True)
