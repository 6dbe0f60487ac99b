"""The trap handlers fed with calls that no kernel filtered: a worker, and a program that is a fake but for its memory,
descriptors and network namespace.

The kernel's part (seccomp_unotify(2)) is played by `Kernel`, which also has calls vanish at any step, as signals do,
and descriptors run out. `python tests/hostile/fuzz.py [SECONDS [SEED]]` goes on for so long, with other calls each
time; test_hostile_fuzz.py is a short run under Hypothesis.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import random
import shutil
import signal
import socket
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from appswitch.linux import libc, procmem, seccomp, sock_diag
from appswitch.linux.arch import NUMBERS
from appswitch.linux.seccomp import Call
from appswitch.model.address import pack
from appswitch.model.identity import Identity
from appswitch.table import counters
from appswitch.table.store import Table
from appswitch.trap.arrivals import Arrivals
from appswitch.trap.calls import HANDLERS, accept
from appswitch.trap.ingress import Ingress
from appswitch.trap.options import DENY, ProgramOptions, WorkerSettings
from appswitch.trap.program import Program
from appswitch.trap.supervision import Supervisor
from appswitch.trap.worker import Worker
from support.program import DEADLINE

PAGE = 4096
ARENA = 8 * PAGE
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_SIOCSIFFLAGS, _SIOCSIFADDR = 0x8914, 0x8916
VIP = "10.99.0.1"
THREADS = 6

#: Numbers that lie; the program's own descriptors are named by their place.
ODD_NUMBERS = (-1, -(1 << 31), (1 << 31) - 1, 1 << 20, 1 << 32, (1 << 63) + 5, 1000)
#: Addresses that lie, and offsets into the arena: its first and last page are not there, the second is read-only.
ODD_ADDRESSES = (0, 1, 0xFFFF888000000000, (1 << 64) - 8, 0x0800000000000000)
OFFSETS = (0, PAGE, 2 * PAGE - 3, 2 * PAGE, 2 * PAGE + 256, 2 * PAGE + 257, 3 * PAGE, 7 * PAGE - 7, 7 * PAGE - 16)
LENGTHS = (0, 1, 2, 4, 8, 15, 16, 24, 28, 128, 129, 1024, 5000, -1, -(1 << 31), (1 << 31) - 1, 1 << 32)
KINDS = (*("tcp", "nonblocking") * 5, "tcp6", "bound", "udp", "unix", "pipe", "file", "epoll", "path", "dup",
         "closed", "timed")  # fmt: skip

HOSTS = (VIP, VIP, VIP, "127.0.0.1", "10.99.0.2", "100.64.3.3", "0.0.0.0", "169.254.1.1")
PORTS = (0, 1, 53, 80, 80, 80, 80, 81, 40000)


@dataclass
class Step:
    """One call. `descriptor`, `addresses`: a place among the program's own, or something odd. `vanishes`: after so many
    of the kernel's services; `memory`: what lies at every offset that can be written; `full`: no room for a descriptor.
    """

    thread: int
    name: str
    descriptor: int
    odd_number: int | None
    arguments: Sequence[int]
    memory: bytes
    vanishes: int | None = None
    full: bool = False
    make: str | None = None


class Vanished(OSError):
    def __init__(self) -> None:
        super().__init__(errno.ENOENT, "the call is gone")


@dataclass
class _Open:
    thread: int
    services_left: int | None
    full: bool
    answers: int = 0
    gone: bool = False
    said: list[str] = field(default_factory=list)


class Kernel:
    """What seccomp_unotify(2) does for a listener, for calls that were never made."""

    def __init__(self, inhabitant: Inhabitant) -> None:
        self.inhabitant = inhabitant
        self.calls: dict[int, _Open] = {}
        self._writev = procmem._writev

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Instead of the real one, for this process."""
        names = ("valid", "answer", "proceed", "replace_fd", "hand_over")
        before = {name: getattr(seccomp, name) for name in names}
        write, ioctl = procmem.write, fcntl.ioctl
        try:
            for name in names:
                setattr(seccomp, name, getattr(self, name))
            procmem.write = self.write
            yield
        finally:
            for name, function in before.items():
                setattr(seccomp, name, function)
            procmem.write = write
            assert fcntl.ioctl is ioctl

    def begin(self, call_id: int, step: Step) -> None:
        self.calls[call_id] = _Open(step.thread, step.vanishes, step.full)

    def cancel(self, thread: int) -> None:
        """A signal ends whatever call the thread is in."""
        for call in self.calls.values():
            if call.thread == thread and not call.answers:
                call.gone = True

    def _served(self, call_id: int) -> _Open | None:
        call = self.calls[call_id]
        if call.services_left is not None and not call.gone and not call.answers:
            call.gone = call.services_left == 0
            call.services_left -= 1
        return None if call.gone or call.answers else call

    def valid(self, _: int, call_id: int) -> bool:
        return self._served(call_id) is not None

    def answer(self, listener: int, call_id: int, value: int, error: int = 0) -> bool:
        return self._answer(call_id, f"error {errno.errorcode[error]}" if error else f"value {value}", listener)

    def proceed(self, listener: int, call_id: int) -> bool:
        return self._answer(call_id, "continue", listener)

    def _answer(self, call_id: int, what: str, listener: int) -> bool:
        if listener < 0:
            return False
        call = self.calls[call_id]
        assert not call.answers, f"answered twice: {call.said}, then {what}"
        if self._served(call_id) is None:
            return False
        call.answers += 1
        call.said.append(what)
        return True

    def replace_fd(self, _: int, call_id: int, source: int, target: int, cloexec: bool) -> None:
        call = self._served(call_id)
        if call is None:
            raise Vanished
        if not self.inhabitant.put(source, target):
            raise OSError(errno.EBADF, "no such number")

    def hand_over(self, listener: int, call_id: int, source: int, cloexec: bool) -> None:
        call = self.calls[call_id]
        assert not call.answers, f"handed over after {call.said}"
        if self._served(call_id) is None:
            raise Vanished
        if call.full:
            raise OSError(errno.EMFILE, "its limit")
        self.inhabitant.give(source)
        call.answers += 1
        call.said.append("descriptor")

    def write(
        self, tid: int, _: int, call_id: int, address: int, data: bytes, address2: int = 0, data2: bytes = b""
    ) -> None:
        if self._served(call_id) is None:
            raise Vanished
        for place, what in ((address, data), (address2, data2)):
            buffer = ctypes.create_string_buffer(what, len(what))
            ours = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), len(what))
            theirs = (ctypes.c_void_p * 2)(place, len(what))
            if self._writev(tid, ours, 1, theirs, 1, 0) != len(what):
                raise OSError(errno.EFAULT, "no such memory")


class Inhabitant:
    """The program: a process with memory, threads and descriptors, in a network namespace of its own."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.settimeout(60)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._ours.close()
                _Inside(theirs).serve()
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        theirs.close()
        told, self.given = self._ask("begin")
        self.arena: int = told["arena"]
        self.threads: list[int] = told["threads"]
        self.numbers: list[int] = []

    def _ask(self, what: str, *arguments: Any, fds: Sequence[int] = ()) -> tuple[Any, list[int]]:
        socket.send_fds(self._ours, [json.dumps([what, *arguments]).encode()], list(fds))
        data, found, _, _ = socket.recv_fds(self._ours, 65536, 8)
        return json.loads(data), list(found)

    def put(self, ours: int, number: int) -> bool:
        done: bool = self._ask("put", number, fds=[ours])[0]
        return done

    def give(self, ours: int) -> None:
        self.numbers.append(self._ask("give", fds=[ours])[0])

    def make(self, kind: str) -> None:
        number = self._ask("make", kind, self.numbers[-1] if self.numbers else 0)[0]
        if number >= 0 and number not in self.numbers:
            self.numbers.append(number)

    def fill(self, data: bytes) -> None:
        self._ask("fill", data.hex())

    def forget(self) -> None:
        """All its descriptors are closed."""
        self._ask("forget")
        self.numbers.clear()

    def close(self) -> None:
        self._ours.close()
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


class _Inside:
    """The inhabitant's own side."""

    def __init__(self, line: socket.socket) -> None:
        import threading

        uid, gid = os.geteuid(), os.getegid()
        libc.call("unshare", _CLONE_NEWNET | (_CLONE_NEWUSER if uid else 0))
        if uid:
            for name, text in (("setgroups", "deny"), ("gid_map", f"{gid} {gid} 1"), ("uid_map", f"{uid} {uid} 1")):
                with open(f"/proc/self/{name}", "w") as file:
                    file.write(text)
        with socket.socket() as sock:
            fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", 0x49))
            address = struct.pack("16sH2s4s8x", b"lo:1", socket.AF_INET, b"\0\0", socket.inet_aton(VIP))
            fcntl.ioctl(sock, _SIOCSIFADDR, address)
        self._line, self._first = line, True
        self._mapped = libc.libc.mmap
        self._mapped.restype, self._mapped.argtypes = ctypes.c_void_p, [ctypes.c_void_p] + [ctypes.c_long] * 5
        self.arena: int = self._mapped(None, ARENA, 3, 0x22, -1, 0)
        protect = libc.libc.mprotect
        protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        protect(self.arena, PAGE, 0)
        protect(self.arena + PAGE, PAGE, 1)
        protect(self.arena + ARENA - PAGE, PAGE, 0)
        threads = [threading.Thread(target=signal.pause, daemon=True) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        acceptors = [socket.create_server(("127.0.0.1", 1)), socket.create_server(("::1", 1), family=socket.AF_INET6)]
        told = {"arena": self.arena, "threads": [thread.native_id for thread in threads]}
        given = [sock_diag.open_socket().detach(), *(sock.detach() for sock in acceptors)]
        line.recv(1024)
        socket.send_fds(line, [json.dumps(told).encode()], given)
        for fd in given:
            os.close(fd)
        self._standing = {int(name) for name in os.listdir("/proc/self/fd")}

    def serve(self) -> None:
        while True:
            data, fds, _, _ = socket.recv_fds(self._line, 65536, 8)
            if not data:
                os._exit(0)
            what, *arguments = json.loads(data)
            answer = getattr(self, what)(*arguments, *fds)
            self._line.send(json.dumps(answer).encode())

    def put(self, number: int, fd: int) -> bool:
        try:
            os.dup2(fd, number)
        except OSError:
            return False
        finally:
            os.close(fd)
        return True

    def give(self, fd: int) -> int:
        return fd

    def make(self, kind: str, last: int) -> int:
        if kind in ("tcp", "bound", "nonblocking", "timed"):
            sock = socket.socket()
            with contextlib.suppress(OSError):
                if kind == "bound" or self._first:
                    sock.bind(("0.0.0.0", 80 if self._first else 0))
                    self._first = False
            sock.setblocking(kind != "nonblocking")
            if kind == "timed":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("qq", 10**8, 0))
            return sock.detach()
        if kind == "dup":
            try:
                return os.dup(last)
            except OSError:
                return -1
        if kind == "closed":
            if last not in self._standing:
                with contextlib.suppress(OSError):
                    os.close(last)
            return -1
        made: dict[str, Callable[[], int]] = {
            "tcp6": lambda: socket.socket(socket.AF_INET6).detach(),
            "udp": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).detach(),
            "unix": lambda: socket.socket(socket.AF_UNIX).detach(),
            "pipe": lambda: os.pipe()[0],
            "file": lambda: os.open("/dev/null", os.O_RDWR),
            "epoll": lambda: libc.call("epoll_create1", 0),
            "path": lambda: os.open("/", os.O_PATH),
        }
        return made[kind]()

    def fill(self, data: str) -> None:
        content = bytes.fromhex(data)
        for offset in OFFSETS:
            room = ARENA - PAGE - offset
            if offset >= 2 * PAGE and room > 0:
                ctypes.memmove(self.arena + offset, content, min(len(content), room))

    def forget(self) -> None:
        self._first = True
        for name in os.listdir("/proc/self/fd"):
            if int(name) not in self._standing:
                with contextlib.suppress(OSError):
                    os.close(int(name))


class Bench:
    """A worker with one program after the other, and what must hold of it."""

    def __init__(self) -> None:
        self._before = os.getcwd()
        self.run_dir = tempfile.mkdtemp(prefix="as-fuzz-", dir="/tmp")
        for name in ("table", "stats", "state", "l"):
            os.mkdir(f"{self.run_dir}/{name}")
        Table(f"{self.run_dir}/table").close()
        self.inhabitant = Inhabitant()
        self.kernel = Kernel(self.inhabitant)
        self._switch, line = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._switch.setblocking(False)
        self._line = line
        settings = WorkerSettings(self.run_dir, 0, 1)
        arrived, changed = Arrivals().admit, Ingress().changed
        self.worker = Worker(Supervisor(line), settings, accept.resume, arrived, changed, accept.announced_late)
        self._awake = os.eventfd(1, os.EFD_CLOEXEC)  # always something to tell: `wait` never does
        self.worker.events.watch(self._awake, lambda _: None)
        self._ids = 0
        self._number = 0
        self._handlers = {name: handler for name, handler in HANDLERS.items() if name in NUMBERS}

    def close(self) -> None:
        self.inhabitant.close()
        self.worker.table.close()
        os.chdir(self._before)
        shutil.rmtree(self.run_dir)

    def _program(self, **options: Any) -> Program:
        self._number += 1
        identity = Identity("fuzz", pack(VIP), (), os.geteuid(), True)
        listener = os.open(os.devnull, os.O_RDONLY)
        diag, *acceptors = (os.dup(fd) for fd in self.inhabitant.given)
        made = Program(
            self._number, identity, replace(ProgramOptions(egress=DENY), **options), listener, diag, acceptors
        )
        self.worker.programs[made.number] = made
        return made

    def play(self, steps: Sequence[Step], faults: int = 0, **options: Any) -> list[str]:
        """Make the calls as those of a new program, end it, and see that nothing of it is left. What was said."""
        worker, inhabitant, kernel = self.worker, self.inhabitant, self.kernel
        before = self._count("faults")
        with kernel.in_place():
            program = self._program(**options)
            for step in steps:
                if step.make is not None:
                    inhabitant.make(step.make)
                kernel.cancel(step.thread)
                inhabitant.fill(step.memory)
                worker.handle(self._handlers[step.name], program, self._call(step))
                self._turn()
            parked = self._parked()
            for call_id, call in kernel.calls.items():
                waits = self.inhabitant.threads[call.thread] in parked
                assert call.answers or call.gone or waits, f"call {call_id} was neither answered nor parked"
            said = [", ".join(call.said) or "-" for call in kernel.calls.values()]
            for thread in range(THREADS):
                kernel.cancel(thread)
            inhabitant.forget()
            worker.listeners.drop_program(program)
            worker.forget_program(program)
            program.close()
            until = time.monotonic() + DEADLINE
            while True:
                self._turn()
                if not self._left() or time.monotonic() > until:
                    break
                time.sleep(0.01)
            assert not self._left(), self._left()
            assert self._count("faults") <= before + faults
            kernel.calls.clear()
        return said

    def _turn(self) -> None:
        self.worker.events.wait()
        with contextlib.suppress(BlockingIOError):
            while True:  # the switch keeps nothing, and says that it has let go at once
                data, fds, _, _ = socket.recv_fds(self._switch, 65536, 8)
                for fd in fds:
                    os.close(fd)
                message = json.loads(data)
                if message["op"] == "forget":
                    self.worker.listeners.natives.forgotten(message["key"])

    def _call(self, step: Step) -> Call:
        self._ids += 1
        self.kernel.begin(self._ids, step)
        numbers = self.inhabitant.numbers
        number = step.odd_number
        if number is None:
            number = numbers[step.descriptor % len(numbers)] if numbers else -1
        words = [number, *step.arguments]
        words = [word & (1 << 64) - 1 for word in words][:6]
        words += [0] * (6 - len(words))
        tid = self.inhabitant.threads[step.thread]
        return Call(self._ids, tid, 0, NUMBERS[step.name], 0, 0, *words)

    def _parked(self) -> set[int]:
        pending = self.worker.pending
        count = len(pending._slots) - 1 - len(pending._free)
        return {slot & 0xFFFFFFFF for slot in pending._slots if slot} if count else set()

    def _left(self) -> dict[str, Any]:
        """What the worker still knows of programs that have ended."""
        worker = self.worker
        found = {
            "programs": worker.programs,
            "ends": worker.ends._by_cookie,
            "listeners": worker.listeners._by_cookie,
            "natives": worker.listeners._natives,
            "leaving": worker.listeners.natives._leaving,
            "connecting": worker.connecting,
            "held": worker.held,
            "looks": worker.waits._looks,
            "parked": self._parked(),
            "rows": [row for row in worker.table.services() if row.program <= self._number],
            "files": os.listdir(f"{self.run_dir}/l"),
        }
        return {name: what for name, what in found.items() if what}

    def _count(self, name: str) -> int:
        return counters.read(f"{self.run_dir}/stats/worker-0")[name]

    def descriptors(self) -> int:
        return len(os.listdir("/proc/self/fd"))


def address_bytes(rng: random.Random) -> bytes:
    """Memory: an address, a length, or anything."""
    family = rng.choice((socket.AF_INET, socket.AF_INET, socket.AF_INET, socket.AF_INET6, 0, 1, 77))
    port = rng.choice(PORTS).to_bytes(2, "big")
    host = socket.inet_aton(rng.choice(HOSTS))
    whole = struct.pack("=H2s4s8x", family, port, host)
    if family == socket.AF_INET6:
        mapped = bytes(10) + b"\xff\xff" + host
        whole = struct.pack("=H2s4x16s4x", family, port, rng.choice((bytes(15) + b"\1", mapped)))
    return rng.choice((whole, whole, whole, struct.pack("=i", rng.choice(LENGTHS[:-1])), rng.randbytes(32)))


def pointer(rng: random.Random, arena: int) -> int:
    return arena + rng.choice(OFFSETS) if rng.random() < 0.8 else rng.choice(ODD_ADDRESSES)


def step(rng: random.Random, arena: int) -> Step:
    """Any call."""
    names = sorted(name for name in HANDLERS if name in NUMBERS)
    name = rng.choice([*names, *("connect", "accept4") * 3])
    at, length = lambda: pointer(rng, arena), lambda: rng.choice(LENGTHS)
    level, option = rng.choice((0, 1, 6, 41, -1)), rng.choice((1, 2, 4, 13, 20, 21, 25, 64, rng.randrange(100)))
    arguments: dict[str, Callable[[], list[int]]] = {
        "connect": lambda: [at(), rng.choice((16, 16, 28, length()))],
        "bind": lambda: [at(), rng.choice((16, 28, length()))],
        "listen": lambda: [length()],
        "accept": lambda: rng.choice(([0, 0], [at(), at()])),
        "accept4": lambda: rng.choice(([0, 0, 0x800], [at(), at(), rng.choice((0, 0x800, 0x80000, 1, -1))])),
        "getsockname": lambda: [at(), at()],
        "getpeername": lambda: [at(), at()],
        "setsockopt": lambda: [level, option, at(), length()],
        "getsockopt": lambda: [level, option, at(), at()],
        "ioctl": lambda: [rng.choice((0x8912, 0x8913, 0x8915, 0x894C, 0x894B, 0x8910, 0x89FF)), at()],
    }
    return Step(
        thread=rng.randrange(THREADS),
        name=name,
        descriptor=rng.randrange(1 << 16),
        odd_number=rng.choice(ODD_NUMBERS) if rng.random() < 0.1 else None,
        arguments=arguments[name]() if name in arguments else [length()],
        memory=address_bytes(rng),
        vanishes=rng.randrange(6) if rng.random() < 0.25 else None,
        full=rng.random() < 0.1,
        make=rng.choice(KINDS) if rng.random() < 0.5 else None,
    )


def service(rng: random.Random, arena: int) -> list[Step]:
    """A listener to begin with, mostly."""
    if rng.random() < 0.2:
        return []
    name = struct.pack("=H2s4s8x", socket.AF_INET, (80).to_bytes(2, "big"), bytes(4))
    kind = rng.choice(("tcp", "nonblocking"))
    return [
        Step(0, "setsockopt", -1, None, [6, 1, arena + 3 * PAGE, 4], name, make=kind),
        Step(0, "listen", -1, None, [rng.choice((0, 1, 5))], name),
    ]


def play(bench: Bench, seed: int, count: int) -> list[str]:
    """The calls that belong to a seed."""
    rng = random.Random(seed)
    transport = rng.choice(("auto", "auto", "tcp", "unix"))
    arena = bench.inhabitant.arena
    return bench.play([*service(rng, arena), *(step(rng, arena) for _ in range(count))], transport=transport)


def main() -> int:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1 << 32)
    bench = Bench()
    until, calls, before = time.monotonic() + seconds, 0, 0
    told: dict[str, int] = {}
    try:
        while time.monotonic() < until:
            try:
                for said in play(bench, seed, 60):
                    told[said] = told.get(said, 0) + 1
                    calls += 1
            except BaseException:
                print(f"fails with seed {seed}", flush=True)
                raise
            seed += 1
            # what a warm worker keeps: caches, sockets to ask the kernel with
            if calls == 60 * 20:
                before = bench.descriptors()
            if before and bench.descriptors() > before + 40:
                raise AssertionError(f"{bench.descriptors()} descriptors, {before} at first; seed {seed}")
    finally:
        bench.close()
    print(f"{calls} calls, up to seed {seed}: {dict(sorted(told.items(), key=lambda item: -item[1]))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
