"""A program that does what it is told: one line of JSON with Python code in, one line of JSON out.

Out: {"value": ...} of an expression (null after statements), or {"errno": "ECONNREFUSED"} of an OSError. What code
assigns stays. Everything below is at hand. Stdlib only; it knows nothing of AppSwitch.
"""

# ruff: noqa: F401, F403, F405  (names are for what tests say)

import ctypes
import errno
import fcntl
import json
import os
import select
import stat
import struct
import subprocess
import sys
import threading
import time
import traceback
from socket import *

TIMEOUT = 60.0  # seconds for what must happen
SO_COOKIE = 57


def family_of(host):
    return AF_INET6 if ":" in host else AF_INET


def listen(port, host="0.0.0.0", *, only6=None, reuse=None, backlog=16):
    """A listener; `reuse` is an option such as SO_REUSEPORT, `only6` the value of IPV6_V6ONLY."""
    sock = socket(family_of(host))
    try:
        if only6 is not None:
            sock.setsockopt(IPPROTO_IPV6, IPV6_V6ONLY, only6)
        if reuse is not None:
            sock.setsockopt(SOL_SOCKET, reuse, 1)
        sock.bind((host, port))
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def call(host, port, family=None, bind=None):
    """A connected socket, to the first address of a name."""
    if family is None:
        family, _, _, _, (host, *_) = getaddrinfo(host, port, type=SOCK_STREAM)[0]
    sock = socket(family)
    try:
        if bind is not None:
            sock.bind(bind)
        sock.connect((host, port))
    except BaseException:
        sock.close()
        raise
    sock.settimeout(TIMEOUT)
    return sock


def take(listener):
    """(accepted socket, the address that accept() told); fails after TIMEOUT seconds without an arrival."""
    if not select.select([listener], [], [], TIMEOUT)[0]:
        raise TimeoutError(errno.ETIME, "nothing arrived")
    sock, address = listener.accept()
    sock.settimeout(TIMEOUT)
    return sock, address


def story(sock):
    """[own address, peer's address] as text and port, whatever else the family adds."""
    return [list(sock.getsockname()[:2]), list(sock.getpeername()[:2])]


def read_all(sock):
    data = b""
    while piece := sock.recv(65536):
        data += piece
    return data.decode()


def greet(listener, text):
    """In a thread: say `text` to whoever connects, and close; ends when the listener does, not for want of room."""

    def serve():
        while True:
            try:
                sock, _ = listener.accept()
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    return
                time.sleep(0.05)
                continue
            with sock:
                try:
                    sock.sendall(text.encode())
                except OSError:
                    pass

    threading.Thread(target=serve, daemon=True).start()


class Accepting:
    """In a thread: echo a few bytes to whoever connects. What accept() gave that was no socket is in `wrong`."""

    def __init__(self, listener):
        self.count, self.wrong = 0, []
        self.listener = listener
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            fd, _ = self.listener._accept()
            if fd < 3 or not stat.S_ISSOCK(os.fstat(fd).st_mode):
                self.wrong.append(fd)
                continue
            self.count += 1
            with socket(fileno=fd) as sock:
                try:
                    sock.sendall(sock.recv(16))
                except OSError:
                    pass  # its worker died before it had told the client, too


class Calling:
    """In a thread: connect, say something, hear it back, again and again; `stop` gives how often each happened."""

    def __init__(self, host, port):
        self.seen, self.stopping = {}, False
        self.address = gethostbyname(host), port
        self.thread = threading.Thread(target=self.go_on, daemon=True)
        self.thread.start()

    def go_on(self):
        while not self.stopping:
            result = outcome_of(self.once)
            self.seen[result] = self.seen.get(result, 0) + 1

    def once(self):
        with socket() as sock:
            sock.connect(self.address)
            sock.settimeout(TIMEOUT)
            sock.sendall(b"hello")
            return "heard" if sock.recv(16) == b"hello" else "ended"

    def stop(self):
        self.stopping = True
        self.thread.join(2 * TIMEOUT)
        return self.seen


def greet_by_poll(listener, text):
    """The same by poll(); gives what closes the listener while nobody waits for it."""
    read, write = os.pipe()

    def serve():
        while read not in (ready := select.select([listener, read], [], [])[0]):
            if ready:
                try:
                    sock, _ = listener.accept()
                except OSError:
                    return
                with sock:
                    sock.sendall(text.encode())
        listener.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()

    def close():
        os.write(write, b".")
        thread.join(TIMEOUT)

    return close


def in_thread(function):
    """Run a function in a thread that is asleep in it when this returns; gives what waits for its result."""
    results = []
    thread = threading.Thread(target=lambda: results.append(function()), daemon=True)
    thread.start()
    wait_asleep(os.getpid(), thread.native_id)

    def result():
        thread.join(TIMEOUT)
        return results[0] if results else "still waiting"

    return result


def wait_asleep(pid, tid=None):
    """Until a thread is asleep in accept(): nothing else tells that it has come so far."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        with open(f"/proc/{pid}/task/{tid or pid}/syscall") as file:
            if file.read().split()[0] in _ACCEPTS:
                socket().getsockname()  # trapped calls are served in turn: that one has been, too
                return
        time.sleep(0.001)
    raise TimeoutError(errno.ETIME, "it does not wait in accept()")


_ACCEPTS = ("43", "288") if os.uname().machine == "x86_64" else ("202", "242")


def hear(host, port, family=None):
    """What the server at an address says until it closes."""
    with call(host, port, family) as sock:
        return read_all(sock)


def outcome(host, port, family=None):
    """What it says, or the name of the error that connect() gave."""
    return outcome_of(lambda: hear(host, port, family))


def outcome_of(function):
    """What a function returns, or the name of the error that it raises."""
    try:
        return function()
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))


def begin_call(host, port):
    """A non-blocking connect(): (the socket, the error that connect() gave at once)."""
    sock = socket(family_of(host))
    sock.setblocking(False)
    code = sock.connect_ex((host, port))
    return sock, errno.errorcode.get(code, code)


def pending_error(sock):
    """SO_ERROR by name; None when there is none."""
    return errno.errorcode.get(sock.getsockopt(SOL_SOCKET, SO_ERROR))


def events(sock, wanted=select.POLLIN | select.POLLOUT, timeout=TIMEOUT):
    """What poll() says of a socket, once it says something."""
    poll = select.poll()
    poll.register(sock, wanted)
    found = poll.poll(timeout * 1000)
    return found[0][1] if found else 0


class _Sockaddr(ctypes.Structure):
    _fields_ = [("family", ctypes.c_ushort), ("data", ctypes.c_ubyte * 26)]


class _Ifaddrs(ctypes.Structure):
    pass


_Ifaddrs._fields_ = [
    ("next", ctypes.POINTER(_Ifaddrs)),
    ("name", ctypes.c_char_p),
    ("flags", ctypes.c_uint),
    ("address", ctypes.POINTER(_Sockaddr)),
]


def getifaddrs():
    """[[interface, address]] of IPv4 and IPv6, as getifaddrs(3) of this libc tells."""
    libc = ctypes.CDLL(None, use_errno=True)
    first = ctypes.POINTER(_Ifaddrs)()
    if libc.getifaddrs(ctypes.byref(first)):
        raise OSError(ctypes.get_errno(), "getifaddrs")
    found, item = [], first
    while item:
        entry = item.contents
        if entry.address and entry.address.contents.family in (AF_INET, AF_INET6):
            data, v6 = bytes(entry.address.contents.data), entry.address.contents.family == AF_INET6
            text = inet_ntop(AF_INET6, data[6:22]) if v6 else inet_ntop(AF_INET, data[2:6])
            found.append([entry.name.decode(), text])
        item = entry.next
    libc.freeifaddrs(first)
    return found


def in_child(function):
    """What a function returns in a forked child (JSON)."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write, json.dumps(function()).encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    return json.loads(text)


def after_exec(sock):
    """The story that a program tells of an inherited descriptor after execve()."""
    code = (
        f"import json, socket; s = socket.socket({int(sock.family)}, 1, 0, fileno={sock.fileno()});"
        "print(json.dumps([s.getsockname()[:2], s.getpeername()[:2]]))"
    )
    command = [sys.executable, "-S", "-c", code]
    done = subprocess.run(command, pass_fds=[sock.fileno()], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def reset():
    """Be as at the start: what was assigned since is forgotten, and sockets that nobody else has are closed."""
    for name in globals().keys() - _AT_START.keys() - {"_AT_START"}:
        del globals()[name]
    globals().update(_AT_START)


def obey(code, names):
    try:
        expression = compile(code, "<told>", "eval")
    except SyntaxError:
        expression = None
    if expression is not None:
        return eval(expression, names)
    exec(compile(code, "<told>", "exec"), names)


def main():
    names = globals()
    for line in sys.stdin:
        code = json.loads(line)
        try:
            answer = {"value": obey(code, names)}
        except OSError as error:
            answer = {"errno": errno.errorcode.get(error.errno, str(error)), "text": str(error)}
        except BaseException:
            answer = {"error": traceback.format_exc()}
        try:
            text = json.dumps(answer)
        except (TypeError, ValueError):
            text = json.dumps({"value": repr(answer.get("value"))})
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


_AT_START = dict(globals())

if __name__ == "__main__":
    main()
