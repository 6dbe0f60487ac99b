"""UDP natively on loopback and between two programs: the same steps, the same results.

A step is of the client (c) or the server (s) and gives a value, or the name of its error. `server` is the server's
address, `any` the wildcard of its family.
"""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from service.acting import Actor
from service.test_service_udp import HELP
from support.modes import MYSELF
from support.needs import need
from support.program import Program
from support.switch import PATH

Start = Callable[..., Actor]
Steps = list[tuple[str, str]]

TOOLS = """
UDP_SEGMENT, SOL_UDP, IP_RECVERR, IPV6_RECVERR, IP_RECVTOS, IP_RECVTTL = 103, 17, 11, 25, 13, 12
IP_PKTINFO, MSG_ERRQUEUE, MSG_MORE, FIONREAD, SO_TIMESTAMP = 8, 0x2000, 0x8000, 0x541B, 29
SIX = ":" in server
LEVEL = IPPROTO_IPV6 if SIX else IPPROTO_IP
libc = ctypes.CDLL(None, use_errno=True)

class iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("len", ctypes.c_size_t)]
class msghdr(ctypes.Structure):
    _fields_ = [("name", ctypes.c_void_p), ("namelen", ctypes.c_uint), ("iov", ctypes.POINTER(iovec)),
                ("iovlen", ctypes.c_size_t), ("control", ctypes.c_void_p), ("controllen", ctypes.c_size_t),
                ("flags", ctypes.c_int)]
class mmsghdr(ctypes.Structure):
    _fields_ = [("hdr", msghdr), ("len", ctypes.c_uint)]

def vector(buffers):
    made = (mmsghdr * len(buffers))()
    for one, buffer in zip(made, buffers):
        one.hdr.iov = ctypes.pointer(iovec(ctypes.addressof(buffer), len(buffer)))
        one.hdr.iovlen = 1
    return made

def sendmmsg(sock, texts):
    buffers = [ctypes.create_string_buffer(text, len(text)) for text in texts]
    return libc.sendmmsg(sock.fileno(), vector(buffers), len(texts), 0)

def recvmmsg(sock, count, size=100):
    buffers = [ctypes.create_string_buffer(size) for _ in range(count)]
    found = vector(buffers)
    got = libc.recvmmsg(sock.fileno(), found, count, 0x10000, None)  # MSG_WAITFORONE
    return [buffers[i].raw[:found[i].len].decode() for i in range(got)]

def texts(sock, count):
    found = []
    while len(found) < count:
        found += recvmmsg(sock, count)
    return found

def controls(sock, size=100, room=200):
    data, found, flags, _ = sock.recvmsg(size, room)
    return data, sorted((level, kind, value) for level, kind, value in found), flags

def code(function):
    result = outcome_of(function)
    return result.decode() if isinstance(result, bytes) else result

def now(sock, function):
    "At once, where Python would wait by itself."
    sock.setblocking(False)
    try:
        return code(function)
    finally:
        sock.settimeout(TIMEOUT)

def wait(sock, events=select.POLLIN):
    poll = select.poll(); poll.register(sock, events)
    return [event for _, event in poll.poll(TIMEOUT * 1000)]

c = udp(host=server)
s = None
"""

CASES: dict[str, Steps] = {
    "sizes": [
        *(step for n in (0, 1, 1472, 20000, 65507) for step in (
            ("c", f"c.sendto(bytes({n}), (server, 4000))"),
            ("s", "len(s.recv(70000))"),
        )),
        ("c", "code(lambda: c.sendto(bytes(65528), (server, 4000)))"),
    ],
    "truncation": [
        ("c", "[c.sendto(b'0123456789', (server, 4000)) for _ in range(4)]"),
        ("s", "s.recv(3).decode()"),
        ("s", "s.recv_into(bytearray(3), 3, MSG_TRUNC)"),
        ("s", "s.recvmsg(3)[2]"),
        ("s", "[s.recv(4, MSG_PEEK).decode(), s.recv(20, MSG_PEEK).decode(), s.recv(20).decode()]"),
        ("s", "now(s, lambda: s.recv(1, MSG_DONTWAIT))"),
    ],
    "time-outs": [
        ("s", "s.setblocking(True); s.setsockopt(SOL_SOCKET, SO_RCVTIMEO, struct.pack('qq', 0, 20000))"),
        ("s", "code(lambda: s.recv(1))"),
        ("c", "c.sendto(b'x', (server, 4000))"),
        ("s", "s.setsockopt(SOL_SOCKET, SO_RCVTIMEO, struct.pack('qq', 60, 0))"),
        ("s", "s.recv(1).decode()"),
        ("s", "s.setblocking(False)"),
        ("s", "code(lambda: s.recv(1))"),
    ],
    "vectors": [
        ("c", "c.connect((server, 4000))"),
        ("c", "sendmmsg(c, [b'one', b'', b'three', b'four', b'five'])"),
        ("s", "texts(s, 5)"),
        ("c", "c.sendmsg([b'ga', b'', b'ther'])"),
        ("s", "s.recv(100).decode()"),
        ("c", "[c.send(b'a', MSG_MORE), c.send(b'b', MSG_MORE), c.send(b'c')]"),
        ("s", "s.recv(100).decode()"),
    ],
    "control messages": [
        ("s", "s.setsockopt(LEVEL, 49 if SIX else IP_PKTINFO, 1)"),
        ("s", "s.setsockopt(LEVEL, 66 if SIX else IP_RECVTOS, 1)"),
        ("s", "s.setsockopt(LEVEL, 51 if SIX else IP_RECVTTL, 1)"),
        ("c", "c.setsockopt(LEVEL, 67 if SIX else IP_TOS, 0x28)"),
        ("c", "c.sendto(b'x', (server, 4000))"),
        ("s", "d, found, flags = controls(s)"),
        ("s", "[(kind, list(value)) for _, kind, value in found if kind not in (8, 50)]"),
        # the address that it came to (the interface is another)
        ("s", "[inet_ntop(AF_INET6, value[:16]) == server if SIX else inet_ntop(AF_INET, value[8:12]) == server"
              " for _, kind, value in found if kind in (8, 50)]"),
        ("s", "s.setsockopt(SOL_SOCKET, SO_TIMESTAMP, 1)"),
        ("c", "c.sendto(b'x', (server, 4000))"),
        ("s", "[kind for level, kind, _ in controls(s)[1] if level == SOL_SOCKET]"),
    ],
    "segmentation": [
        ("c", "c.connect((server, 4000))"),
        ("c", "c.setsockopt(SOL_UDP, UDP_SEGMENT, 1000)"),
        ("c", "c.send(bytes(3500))"),
        ("s", "[len(s.recv(70000)) for _ in range(4)]"),
        ("c", "c.sendmsg([bytes(30000)], [(SOL_UDP, UDP_SEGMENT, struct.pack('H', 1400))])"),
        ("s", "sum(len(s.recv(70000)) for _ in range(22))"),
    ],
    "connected": [
        ("c", "c.connect((server, 4000))"),
        ("c", "[c.getpeername()[0] == server, c.getpeername()[1]]"),
        ("c", "code(lambda: c.connect((server, 0)))"),
        ("c", "c.connect((server, 4000))"),
        ("c", "c.send(b'x')"),
        ("s", "d, peer = s.recvfrom(10)"),
        ("s", "t = udp(host=any); t.sendto(b'other', peer); s.sendto(b'right', peer)"),
        ("c", "c.recv(10).decode()"),
        ("c", "now(c, lambda: c.recv(10, MSG_DONTWAIT))"),
        ("c", "libc.connect(c.fileno(), bytes(16), 16)"),
        ("c", "code(lambda: c.send(b'x'))"),
        ("c", "code(lambda: c.getpeername())"),
        ("s", "t.sendto(b'other', peer)"),
        ("c", "code(lambda: c.shutdown(SHUT_RD))"),
    ],
    "refusal": [
        ("c", "c.connect((server, 4999))"),
        ("c", "c.send(b'x')"),
        ("c", "wait(c)"),
        ("c", "[pending_error(c), pending_error(c)]"),
        ("c", "c.send(b'x')"),
        ("c", "wait(c)"),
        ("c", "code(lambda: c.send(b'x'))"),
        ("c", "c.send(b'x')"),
        ("c", "code(lambda: c.recv(1))"),
        # who is not connected hears nothing
        ("c", "u = udp(host=server); u.sendto(b'x', (server, 4999)); u.sendto(b'y', (server, 4000))"),
        ("s", "s.recv(1).decode()"),
        ("c", "now(u, lambda: u.recv(1, MSG_DONTWAIT))"),
    ],
    "error queue": [
        ("c", "c.setsockopt(LEVEL, IPV6_RECVERR if SIX else IP_RECVERR, 1)"),
        ("c", "c.sendto(b'lost', (server, 4999))"),
        ("c", "wait(c, 0)"),
        ("c", "d, found, flags, _ = c.recvmsg(100, 500, MSG_ERRQUEUE)"),
        ("c", "[d.decode(), flags, [(kind, list(value[:8])) for _, kind, value in found]]"),
        ("c", "now(c, lambda: c.recvmsg(100, 500, MSG_ERRQUEUE | MSG_DONTWAIT))"),
    ],
    "closed by halves": [
        ("c", "c.connect((server, 4000))"),
        ("c", "c.shutdown(SHUT_WR)"),
        ("c", "now(c, lambda: c.send(b'x'))"),
        ("c", "c.shutdown(SHUT_RD)"),
        ("c", "c.setblocking(True); x = c.recv(1)"),
        ("c", "x.decode()"),
    ],
    "waiting": [
        ("c", "[c.sendto(text, (server, 4000)) for text in (b'12', b'345')]"),
        ("s", "wait(s)"),
        ("s", "struct.unpack('i', fcntl.ioctl(s, FIONREAD, bytes(4)))[0]"),
        ("s", "e = select.epoll(); e.register(s, select.EPOLLIN | select.EPOLLET)"),
        ("s", "[event for _, event in e.poll(TIMEOUT)]"),
        ("s", "[s.recv(9).decode(), s.recv(9).decode()]"),
        ("s", "e.poll(0)"),
        ("c", "c.sendto(b'6', (server, 4000))"),
        ("s", "[event for _, event in e.poll(TIMEOUT)]"),
    ],
    "order": [
        ("c", "c.connect((server, 4000))"),
        ("c", "sum(c.send(b'%d' % i) > 0 for i in range(100))"),
        ("s", "[int(s.recv(9)) for _ in range(100)] == list(range(100))"),
    ],
    "threads on a socket": [
        ("s", "got = []\n"
              "def take():\n"
              "    while (d := s.recv(9)) != b'end': got.append(int(d))\n"
              "ts = [threading.Thread(target=take) for _ in range(4)]; [t.start() for t in ts]"),
        ("c", "cs = [udp(host=server) for _ in range(4)]\n"
              "def give(n):\n"
              "    for i in range(25): cs[n].sendto(b'%d' % (n * 25 + i), (server, 4000))\n"
              "ts = [threading.Thread(target=give, args=(n,)) for n in range(4)]\n"
              "[t.start() for t in ts]; [t.join() for t in ts]; [c.sendto(b'end', (server, 4000)) for _ in range(4)]"),
        ("s", "[t.join(TIMEOUT) for t in ts] and sorted(got) == list(range(100))"),
    ],
    "reuseport": [
        ("s", "s.close()\n"
              "ss = [socket(family_of(any), SOCK_DGRAM) for _ in range(2)]\n"
              "for x in ss: x.setsockopt(SOL_SOCKET, SO_REUSEPORT, 1); x.bind((any, 4000)); x.setblocking(False)"),
        ("c", "cs = [udp(host=server) for _ in range(20)]; [x.sendto(b'x', (server, 4000)) for x in cs]; None"),
        ("s", "count = [0, 0]\n"
              "while sum(count) < 20:\n"
              "    for i, x in enumerate(ss):\n"
              "        try: count[i] += len(x.recv(9))\n"
              "        except BlockingIOError: pass"),
        ("s", "sum(count)"),
        ("s", "[x.close() for x in ss]; s = udp(4001, any)"),
    ],
    "binding": [
        ("s", "code(lambda: udp(4000, any))"),
        ("s", "code(lambda: udp(4000, 'fd99::1' if SIX else '192.0.2.99'))"),
        ("s", "udp(0, any).getsockname()[1] > 1023"),
        ("s", "code(lambda: s.bind((any, 4001)))"),
        ("s", "[s.getsockname()[0] == any, s.getsockname()[1]]"),
        ("c", "code(lambda: c.send(b'x'))"),
        ("c", "code(lambda: c.sendto(b'x', (server, 0)))"),
        ("c", "c.getsockname()[1] > 1023"),
        ("c", "[c.sendto(b'x', (server, 4000)), c.getsockname()[1] > 1023]"),
        ("s", "s.recvfrom(9)[1][1] > 1023"),
        ("c", "code(lambda: c.listen(1))"),
        ("c", "now(c, lambda: c.accept())"),
    ],
}  # fmt: skip


def play(steps: Steps, client: Actor, server: Actor) -> list[Any]:
    found = []
    for who, code in steps:
        actor = client if who == "c" else server
        actor.begin(code)
        answer = actor.answer()
        found.append(answer.get("value", answer.get("errno")))
    return found


class Pair:
    """A client and a server, and the address of the server."""

    def __init__(self, client: Actor, server: Actor, address: str) -> None:
        self.client, self.server = client, server
        self._names = f"TIMEOUT = 30; server, any = {address!r}, {'::' if ':' in address else '0.0.0.0'!r}\n"

    def play(self, steps: Steps) -> list[Any]:
        for one in (self.client, self.server):
            one("reset()")
            one(self._names + HELP + TOOLS)
        self.server("s = udp(4000, any)")
        return play(steps, self.client, self.server)


@pytest.fixture(scope="session")
def native_actors(actor_file: Path, python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Actor]]:
    """Two programs that no switch knows of, in a network namespace with nothing but loopback."""
    into = [need("unshare"), "--net", *([] if MYSELF.uid == 0 else ["--map-root-user"]), "sh", "-c"]
    made: list[Actor] = []
    directory = tmp_path_factory.mktemp("native")
    command = f"ip link set lo up && exec {python} -S {actor_file}"
    popen = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    keywords: dict[str, Any] = {"directory": directory, "person": MYSELF, "env": {"PATH": PATH}, **popen}
    first = Program([*into, command], label="one", **keywords)
    made.append(Actor(first))
    made[0]("1")
    same_user = [] if MYSELF.uid == 0 else ["--user", "--preserve-credentials"]
    enter = [need("nsenter"), f"--target={first.pid}", "--net", *same_user]
    second = Program([*enter, python, "-S", str(actor_file)], label="two", **keywords)
    made.append(Actor(second))
    yield made
    for one in made:
        one.close()


@pytest.fixture(scope="session", params=["127.0.0.1", "::1"], ids=["v4", "v6"])
def native(request: pytest.FixtureRequest, native_actors: list[Actor]) -> Pair:
    return Pair(native_actors[0], native_actors[1], request.param)


@pytest.fixture
def virtual(native: Pair, actor: Start) -> Pair:
    """Two programs with addresses of the same family."""
    four = "0.0.0.0" in native._names
    server = actor(ip="10.50.1.1" if four else "2001:db8:50::1")
    client = actor(ip="10.50.1.2" if four else "2001:db8:50::2")
    return Pair(client, server, "10.50.1.1" if four else "2001:db8:50::1")


def test_as_on_loopback(native: Pair, virtual: Pair) -> None:
    different = {}
    for name, steps in CASES.items():
        expected, found = native.play(steps), virtual.play(steps)
        wrong = [
            f"{who}: {code}\n  natively {one!r}\n  here     {other!r}"
            for (who, code), one, other in zip(steps, expected, found, strict=True)
            if one != other
        ]
        if wrong:
            different[name] = wrong
    assert not different, "\n".join(f"{name}:\n" + "\n".join(wrong) for name, wrong in different.items())
