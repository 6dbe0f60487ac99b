"""Programs of socket calls, drawn by Hypothesis: lists of steps that player/play.py plays."""

import socket
import struct
from random import Random
from typing import Any

from hypothesis import strategies as st

Step = list[Any]
Program = list[Step]

LENGTH = 20, 45
"""Steps of a program."""


def _int(value: int) -> str:
    return struct.pack("i", value).hex()


_SOL, _TCP, _IP, _IP6 = socket.SOL_SOCKET, socket.IPPROTO_TCP, socket.IPPROTO_IP, socket.IPPROTO_IPV6
SETTINGS = [
    (_TCP, socket.TCP_NODELAY, _int(1)),
    (_TCP, socket.TCP_NODELAY, ""),
    (_TCP, socket.TCP_KEEPIDLE, _int(33)),
    (_TCP, socket.TCP_KEEPCNT, _int(200)),
    (_TCP, socket.TCP_KEEPINTVL, _int(7)),
    (_TCP, socket.TCP_USER_TIMEOUT, _int(9000)),
    (_TCP, socket.TCP_SYNCNT, _int(3)),
    (_TCP, socket.TCP_LINGER2, _int(20)),
    (_TCP, socket.TCP_CORK, _int(0)),
    (_TCP, socket.TCP_QUICKACK, _int(1)),
    (_TCP, socket.TCP_MAXSEG, _int(1)),
    (_TCP, socket.TCP_INFO, _int(1)),
    (_IP, socket.IP_TOS, _int(0x10)),
    (_IP, socket.IP_TTL, _int(44)),
    (_IP, socket.IP_TTL, _int(300)),
    (_IP6, socket.IPV6_TCLASS, _int(8)),
    (_IP6, socket.IPV6_V6ONLY, _int(1)),
    (_SOL, socket.SO_KEEPALIVE, _int(1)),
    (_SOL, socket.SO_REUSEADDR, _int(1)),
    (_SOL, socket.SO_REUSEPORT, _int(1)),
    (_SOL, socket.SO_OOBINLINE, _int(1)),
    (_SOL, socket.SO_PRIORITY, _int(4)),
    (_SOL, socket.SO_LINGER, struct.pack("ii", 1, 0).hex()),
    (_SOL, socket.SO_LINGER, struct.pack("ii", 1, 3).hex()),
    (_SOL, socket.SO_RCVTIMEO, struct.pack("qq", 30, 0).hex()),
    (_SOL, socket.SO_RCVBUF, _int(60_000)),
    (_SOL, socket.SO_SNDBUF, _int(90_000)),
    (_SOL, socket.SO_TYPE, _int(1)),
    (_SOL, socket.SO_PASSCRED, _int(1)),
]
#: The kernel's own affair, or taken over from a listener in a way that nobody asks for.
_NOT_ASKED = {
    (_SOL, socket.SO_SNDBUF),
    (_SOL, socket.SO_RCVBUF),
    (_TCP, socket.TCP_MAXSEG),
    (_TCP, socket.TCP_QUICKACK),
    (_IP6, socket.IPV6_V6ONLY),
}
QUESTIONS = sorted({(level, name) for level, name, _ in SETTINGS} - _NOT_ASKED) + [
    (_SOL, socket.SO_ERROR),
    (_SOL, socket.SO_ACCEPTCONN),
    (_SOL, socket.SO_DOMAIN),
    (_SOL, socket.SO_PROTOCOL),
    (_SOL, socket.SO_PEERCRED),
    (_TCP, socket.TCP_DEFER_ACCEPT),
    (_TCP, socket.TCP_CONGESTION),
    (_TCP, 99),
    (_IP6, socket.IPV6_UNICAST_HOPS),
]
LENGTHS = {(_TCP, socket.TCP_INFO): (1,)}
"""Of queries of which only the beginning is the same in any two connections: here its state."""
EVENTS = ["IN", "OUT", "IN|OUT", "IN|RDHUP", "IN|OUT|RDHUP", "-"]
MODES = ["", "|ET", "|ONESHOT", "|ET|ONESHOT", "|EXCLUSIVE"]
_RECV_FLAGS = [0, 0, 0, 2, 0x40, 0x42, 0x100]
_ACCEPT_FLAGS = [0, 0, int(socket.SOCK_NONBLOCK), int(socket.SOCK_CLOEXEC), 4]


class _Writer:
    """Writes a program step by step; keeps only what helps to draw steps that come to something."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self.steps: Program = []
        self.next = 1
        self.held: list[tuple[int, int]] = []  # (process, slot) of sockets
        self.epolls: list[tuple[int, int]] = []
        self.listeners: list[tuple[int, int]] = []
        self.kinds: dict[int, str] = {}  # addresses of listeners
        self.families: dict[int, str] = {}
        self.clients: list[tuple[int, int]] = []
        self.ends: list[tuple[int, int]] = []
        self.ended: set[int] = set()
        self.callers: list[int] = []  # listeners to which somebody has connected

    def pick(self, items: Any) -> Any:
        return self._random.choice(items)

    def chance(self, one_in: int) -> bool:
        return self._random.randrange(one_in) == 0

    def slot(self) -> int:
        self.next += 1
        return self.next - 1

    def process(self) -> int:
        known = (0, 0, 1, 2) if self.forked else (0, 0, 1)
        return self.pick([number for number in known if number not in self.ended])

    @property
    def forked(self) -> bool:
        return any(step[1] == "fork" for step in self.steps)

    def add(self, *step: Any) -> None:
        self.steps.append(list(step))

    def any_socket(self) -> tuple[int, int]:
        return self.pick(self.held)

    # what programs do -----------------------------------------------------------------------------------

    def make(self, options: bool = True) -> tuple[int, int]:
        process, slot, family = self.process(), self.slot(), self.pick(["v4", "v4", "v6"])
        self.add(process, "socket", slot, family, self.chance(2))
        self.held.append((process, slot))
        self.families[slot] = family
        while options and self.chance(3):
            self.add(process, "setsockopt", slot, *self.pick(SETTINGS))
        return process, slot

    def listener(self) -> None:
        process, slot = self.make()
        kind = self.pick(["any", "loopback", "own"])
        if not self.chance(6):
            self.add(process, "bind", slot, kind, None)
        self.add(process, "listen", slot, self.pick([0, 1, 3, 8]))
        self.listeners.append((process, slot))
        self.kinds[slot] = kind

    def client(self) -> None:
        process, slot = self.make()
        if self.chance(8):
            self.add(process, "bind", slot, self.pick(["any", "loopback", "own"]), None)
        self.clients.append((process, slot))

    def connect(self, caller: tuple[int, int] | None = None) -> None:
        if self.ends and self.chance(12):
            self.add(*self._at("connect"), self.pick(["loopback", "own", "any", "mapped"]), -1)
            return
        (process, slot), (_, listener) = caller or self.pick(self.clients), self.pick(self.listeners)
        if self.families[listener] == "v4" and self.families[slot] == "v6":
            likely = {"any": ["own", "mapped"], "loopback": ["mapped"], "own": ["own"]}
        else:
            likely = {"any": ["own", "loopback", "any"], "loopback": ["loopback"], "own": ["own"]}
        self.add(process, "connect", slot, self.pick(likely[self.kinds[listener]]), listener)
        self.callers.append(listener)
        self.ends.append((process, slot))

    def accept(self) -> None:
        listener = self.callers.pop() if self.callers else None
        called = [item for item in self.listeners if item[1] == listener]
        process, slot = self.pick(called or self.listeners)
        new = self.slot()
        self.add(process, "accept", slot, new, self.pick(_ACCEPT_FLAGS))
        self._accepted(process, new, slot)

    def _accepted(self, process: int, new: int, slot: int) -> None:
        self.held.append((process, new))
        self.ends.append((process, new))
        self.families[new] = self.families[slot]

    def pair(self) -> None:
        """A connection, at once."""
        caller = self.make()
        self.clients.append(caller)
        self.connect(caller)
        if self.callers:
            self.accept()

    def both_ways(self) -> None:
        """A connection both of whose ends shut something, send or close."""
        self.pair()
        for _ in range(self.pick([1, 3, 5])):
            self.pick([self.send, self.send, self.shutdown, self.close, self.receive, self.poll, self.query])()

    def _at(self, act: str, among: list[tuple[int, int]] | None = None) -> tuple[int, str, int]:
        """An act on one of these, rather a young one than an old one."""
        among = among or self.held
        process, slot = self.pick(among[-2:] if self.chance(2) else among)
        return process, act, slot

    @property
    def _groups(self) -> tuple[list[tuple[int, int]], ...]:
        return self.held, self.ends, self.clients, self.listeners, self.epolls

    def _forget(self, process: int, slot: int | None) -> None:
        """It is closed there, or all of the process's are. The last listener stays, to show what is said then."""
        for group in self._groups:
            gone = [item for item in group if item[0] == process and slot in (None, item[1])]
            if len(gone) == len(group):
                del gone[:1]
            group[:] = [item for item in group if item not in gone]

    def send(self) -> None:
        if self.chance(5):
            self.add(*self._at("sendmsg", self.ends), self.pick([1, 2, 300]))
        else:
            self.add(*self._at("send", self.ends), self.pick([0, 1, 10, 100, 2000]), self.pick([0, 0, 0x40]))

    def receive(self) -> None:
        self.add(*self._at("recv", self.ends), self.pick([1, 10, 3000]), self.pick(_RECV_FLAGS))

    def query(self) -> None:
        act = self.pick(["getsockname", "getpeername", "flags", "queued", "getsockopt", "getsockopt", "getsockopt"])
        if act == "getsockopt":
            question = self.pick(QUESTIONS)
            self.add(*self._at(act), *question, self.pick(LENGTHS.get(question, (4, 4, 64, 1))))
        else:
            self.add(*self._at(act))

    def set(self) -> None:
        self.add(*self._at("setsockopt"), *self.pick(SETTINGS))

    def error(self) -> None:
        self.add(*self._at("getsockopt"), _SOL, socket.SO_ERROR, 4)

    def shutdown(self) -> None:
        self.add(*self._at("shutdown", self.ends), self.pick([0, 1, 1, 2]))

    def close(self) -> None:
        process, act, slot = self._at("close", self.pick([self.ends, self.held]))
        self.add(process, act, slot)
        self._forget(process, slot)

    def again(self) -> None:
        """Calls that were made before, or too late."""
        process, slot = self.any_socket()
        act = self.pick(["listen", "connect", "connect", "disconnect", "bind", "accept", "shutdown"])
        rest: list[Any]
        if act == "accept":
            rest = [self.slot(), 0]
        elif act == "connect":
            rest = [self.pick(["loopback", "own"]), self.pick([item[1] for item in self.listeners])]
        else:
            rest = {
                "listen": [self.pick([0, 2])],
                "disconnect": [],
                "bind": ["any", self.pick([None, self.pick(self.listeners)[1]])],
                "shutdown": [self.pick([0, 1, 2])],
            }[act]
        self.add(process, act, slot, *rest)

    def nonblock(self) -> None:
        self.add(*self._at("nonblock"), self.chance(2), self.chance(2))

    def dup(self) -> None:
        process, slot = self.any_socket()
        new = self.slot()
        self.add(process, "dup", slot, new)
        self._like(process, slot, new)

    def _like(self, process: int, slot: int, new: int) -> None:
        self.families[new] = self.families[slot]
        for group in (self.held, self.ends, self.clients, self.listeners):
            if any(item[1] == slot for item in group):
                group.append((process, new))
        if slot in self.kinds:
            self.kinds[new] = self.kinds[slot]

    def pass_on(self) -> None:
        process, slot = self.any_socket()
        if process == 2:
            return
        self.add(process, "pass", slot)
        for group in (self.held, self.ends, self.clients, self.listeners):
            if (process, slot) in group:
                group.append((1 - process, slot))

    def fork(self) -> None:
        if self.forked:
            return
        self.add(0, "fork")
        for group in self._groups:
            group += [(2, slot) for process, slot in group if process == 0]

    def exit(self) -> None:
        process = self.pick([1, 2])
        self.add(process, "exit")
        self._forget(process, None)
        self.ended.add(process)

    def poll(self) -> None:
        self.add(*self._at(self.pick(["poll", "poll", "select"])))

    def epoll(self) -> None:
        """Make one, often with a socket that is not connected yet."""
        process, slot = self.process(), self.slot()
        self.add(process, "epoll_create", slot)
        self.epolls.append((process, slot))
        if self.epolls and self.chance(4):
            inner = self.pick([item[1] for item in self.epolls if item[0] == process])
            self.add(process, "epoll_ctl", slot, 1, inner, self.pick(["IN", "IN|ET"]))
        self.register()

    def register(self) -> None:
        if not self.epolls:
            return
        process, slot = self.pick(self.epolls)
        here = [item for item in self.held if item[0] == process]
        if here:
            events = self.pick(EVENTS) + self.pick(MODES)
            self.add(process, "epoll_ctl", slot, self.pick([1, 1, 1, 2, 3]), self.pick(here)[1], events)

    def register_and_connect(self) -> None:
        """As nginx, Netty and Envoy do."""
        process, slot = self.make()
        self.clients.append((process, slot))
        here = [item for item in self.epolls if item[0] == process]
        if not here:
            here = [(process, self.slot())]
            self.add(process, "epoll_create", here[0][1])
            self.epolls += here
        events = self.pick(EVENTS) + self.pick(MODES)
        self.add(process, "epoll_ctl", self.pick(here)[1], 1, slot, events)
        if self.chance(3):
            self.wait()
        self.connect((process, slot))
        self.wait()

    def wait(self) -> None:
        if self.epolls:
            self.add(*self._at("epoll_wait", self.epolls))

    def meanwhile(self) -> None:
        """One waits in a call until another makes a call."""
        if self.chance(2):
            process, slot = self.pick(self.listeners)
            caller = self.make()
            self.clients.append(caller)
            self.connect(caller)
            other = self.steps.pop()
            new = self.slot()
            if self.chance(2):
                self.add(process, "meanwhile", ["accept", slot, new, 0], other)
                self._accepted(process, new, slot)
            else:
                self.add(process, "meanwhile", ["poll", slot, 1], other)
        else:
            process, slot = self.pick(self.ends or self.held)
            other = [*self._at("send", self.ends), 10, 0]
            self.add(process, "meanwhile", self.pick([["recv", slot, 20, 0], ["poll", slot, 1]]), other)


_DEEDS = {
    "pair": 4,
    "both_ways": 6,
    "register_and_connect": 2,
    "listener": 1,
    "client": 1,
    "connect": 3,
    "accept": 3,
    "send": 4,
    "receive": 4,
    "query": 4,
    "set": 2,
    "error": 2,
    "shutdown": 2,
    "close": 2,
    "again": 2,
    "nonblock": 1,
    "dup": 1,
    "pass_on": 1,
    "fork": 1,
    "exit": 1,
    "poll": 4,
    "epoll": 2,
    "register": 2,
    "wait": 3,
    "meanwhile": 2,
}
_WEIGHTED = [name for name, weight in _DEEDS.items() for _ in range(weight)]


def write(random: Random) -> Program:
    """At least 20 steps in up to three processes."""
    writer = _Writer(random)
    writer.listener()
    writer.pair()
    length = random.randint(*LENGTH)
    while len(writer.steps) < length:
        getattr(writer, writer.pick(_WEIGHTED))()
    return writer.steps


#: Hypothesis gives the seed; what a program does not need is left out step by step (Lanes.shrink).
programs = st.randoms(use_true_random=True).map(write)


def told(step: Step) -> str:
    """A step as one reads it."""
    process, act, *rest = step
    if act == "meanwhile":
        return f"process {process}: in a thread {_called(rest[0])}, meanwhile {told(rest[1])}"
    return f"process {process}: {_called([act, *rest])}"


def _called(words: list[Any]) -> str:
    return f"{words[0]}({', '.join(map(repr, words[1:]))})"
