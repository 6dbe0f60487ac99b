"""Socket calls whose descriptor numbers, addresses and lengths lie; prints what the kernel says to each, as JSON.

Stdlib only; it knows nothing of AppSwitch. Each call is made on sockets of its own, never retried, never blocks.
"""

import ctypes
import errno
import itertools
import json
import mmap
import os
import select
import socket
import struct
import sys
import threading
from collections.abc import Iterator

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
NUMBERS = {
    "x86_64": {"bind": 49, "listen": 50, "connect": 42, "accept": 43, "accept4": 288, "getsockname": 51,
               "getpeername": 52, "setsockopt": 54, "getsockopt": 55, "ioctl": 16},
    "aarch64": {"bind": 200, "listen": 201, "connect": 203, "accept": 202, "accept4": 242, "getsockname": 204,
                "getpeername": 205, "setsockopt": 208, "getsockopt": 209, "ioctl": 29},
}[os.uname().machine]  # fmt: skip
PAGE = mmap.PAGESIZE
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def call(name: str, *args: int) -> str:
    """The raw system call with registers full of what is given."""
    words = [ctypes.c_ulong(arg & (1 << 64) - 1) for arg in args]
    value = libc.syscall(ctypes.c_long(NUMBERS[name]), *words)
    return errno.errorcode[ctypes.get_errno()] if value < 0 else "done" if value == 0 else "descriptor"


def pages() -> int:
    """Two pages, the second of which is not there; the first ends with zeros."""
    start = libc.mmap(None, 2 * PAGE, 3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    libc.munmap(start + PAGE, PAGE)
    return int(start)


def listening() -> socket.socket:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    sock.setblocking(False)
    return sock


def connected() -> socket.socket:
    with listening() as server:
        client = socket.create_connection(server.getsockname())
        select.select([server], [], [], 60)
        kept.append(server.accept()[0])
    return client


def called() -> int:
    """A listener with a connection in its queue."""
    server = listening()
    kept.extend((server, socket.create_connection(server.getsockname())))
    select.select([server], [], [], 60)
    return server.fileno()


def fresh() -> socket.socket:
    sock = socket.socket()
    sock.setblocking(False)
    return sock


def closed() -> int:
    fd = os.dup(0)
    os.close(fd)
    return fd


kept: list[object] = []
DESCRIPTORS = {
    "tcp": fresh,
    "tcp6": lambda: socket.socket(socket.AF_INET6),
    "listening": listening,
    "connected": connected,
    "udp": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
    "unix": lambda: socket.socket(socket.AF_UNIX),
    "pipe": lambda: os.pipe()[0],
    "file": lambda: os.open("/dev/null", os.O_RDWR),
    "epoll": select.epoll,
    "path": lambda: os.open("/", os.O_PATH),
    "closed": closed,
    "-1": lambda: -1,
    "huge": lambda: 0x7FFFFFFF,
    "smallest": lambda: -0x80000000,
    "in the upper half": lambda: fresh().detach() | 0x7BCD << 32,
}


def number(kind: str) -> int:
    found = DESCRIPTORS[kind]()
    kept.append(found)
    return found if isinstance(found, int) else found.fileno()  # type: ignore[attr-defined]


def as_int(value: int) -> int:
    return ctypes.c_int(value & 0xFFFFFFFF).value


first = pages()
readonly = pages()
libc.mprotect(readonly, PAGE, 1)
gone = pages()
libc.mprotect(gone, PAGE, 0)
ADDRESSES = {
    "null": 0,
    "one": 1,
    "gone": gone,
    "kernel": 0xFFFF888000000000,
    "vsyscall": 0xFFFFFFFFFF600000,
    "not canonical": 0x0800000000000000,
    "highest": (1 << 64) - 8,
    "over the edge": first + PAGE - 3,
    "unaligned": first + 0x801,
    "readonly": readonly,
}
LENGTHS = {"0": 0, "1": 1, "2": 2, "15": 15, "16": 16, "28": 28, "128": 128, "129": 129, "-1": -1,
           "least": -(1 << 31), "most": (1 << 31) - 1, "upper half": 16 | 0xAB << 32}  # fmt: skip


def cases():  # type: ignore[no-untyped-def]
    """(label, system call, arguments)."""
    good = first + 0x200
    size = first + 0x400
    local = struct.pack("=H2s4s8x", socket.AF_INET, b"\0\x09", socket.inet_aton("127.0.0.1"))  # nobody's

    def fill(length: int = 16, content: bytes = local) -> None:
        for place in (good, first + 0x801):
            ctypes.memmove(place, content, len(content))
        ctypes.memmove(size, struct.pack("=i", length), 4)

    for kind in DESCRIPTORS:
        for name in NUMBERS:
            if name == "connect" and kind in ("tcp", "udp", "in the upper half"):
                continue  # would be one that is right
            fill()
            arguments = {
                "bind": (good, 3),
                "listen": (5,),
                "connect": (good, 16),
                "accept": (0, 0),
                "accept4": (0, 0, 0),
                "getsockname": (good, size),
                "getpeername": (good, size),
                "setsockopt": (6, 1, size, 4),
                "getsockopt": (6, 1, good, size),
                "ioctl": (0x8912, 0),
            }[name]
            yield f"{name} of {kind}", name, (number(kind), *arguments)
    for where, address in ADDRESSES.items():
        for kind in ("tcp", "listening", "connected"):
            fill()
            yield f"connect {kind} from {where}", "connect", (number(kind), address, 16)
            yield f"bind {kind} from {where}", "bind", (number(kind), address, 16)
            for name in ("getsockname", "getpeername"):
                fill()
                yield f"{name} {kind} to {where}", name, (number(kind), address, size)
                fill()
                yield f"{name} {kind} size {where}", name, (number(kind), good, address)
            fill(4)
            yield f"setsockopt {kind} {where}", "setsockopt", (number(kind), 6, 1, address, 4)
            yield f"getsockopt {kind} {where}", "getsockopt", (number(kind), 6, 1, address, size)
            yield f"getsockopt {kind} size {where}", "getsockopt", (number(kind), 6, 1, good, address)
        yield f"ioctl {where}", "ioctl", (number("tcp"), 0x8913, address)
        if where != "null":
            for name in ("accept", "accept4"):
                fill()
                yield f"{name} to {where}", name, (called(), address, size, 0)
                fill()
                yield f"{name} size {where}", name, (called(), good, address, 0)
    for label, length in LENGTHS.items():
        for kind in ("tcp", "tcp6", "connected"):
            fill()
            yield f"connect {kind} length {label}", "connect", (number(kind), good, length)
            yield f"bind {kind} length {label}", "bind", (number(kind), good, length)
            for name in ("getsockname", "getpeername"):
                fill(as_int(length))
                yield f"{name} {kind} length {label}", name, (number(kind), good, size)
            for level, option in ((6, 1), (1, 13), (0, 1), (6, 2)):
                fill(content=struct.pack("=i", 1))
                yield f"setsockopt {kind} {level}/{option} length {label}", "setsockopt", (
                    number(kind), level, option, good, length)  # fmt: skip
                fill(as_int(length))
                yield f"getsockopt {kind} {level}/{option} length {label}", "getsockopt", (
                    number(kind), level, option, good, size)  # fmt: skip
    for flags in (1, 0x800, 0x80000, 0x80800, 0x7FFFFFFF, -1, 1 << 40):
        yield f"accept4 flags {flags:#x}", "accept4", (number("listening"), 0, 0, flags)
    for level, option in itertools.product((0, 1, 6, 41), (-1, 0, 63, 0x7FFFFFFF)):
        for kind in ("tcp", "connected", "listening"):
            fill(4, struct.pack("=i", 1))
            yield f"setsockopt {kind} {level}/{option}", "setsockopt", (number(kind), level, option, good, 4)
            fill(4)
            yield f"getsockopt {kind} {level}/{option}", "getsockopt", (number(kind), level, option, good, size)


def coming_and_going(times: int) -> Iterator[str]:
    """Calls while another thread takes the memory away and gives it back."""
    place, stop = pages(), threading.Event()

    def change() -> None:
        while not stop.is_set():
            libc.mprotect(place, PAGE, 0)
            libc.mprotect(place, PAGE, 3)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        with connected() as sock, fresh() as unbound:
            for _ in range(times):
                yield call("getsockname", sock.fileno(), place, place + 0x100)
                yield call("getpeername", sock.fileno(), place + PAGE - 16, place)
                yield call("getsockopt", sock.fileno(), 6, 1, place, place + 0x100)
                yield call("connect", unbound.fileno(), place + 0x200, 16)
    finally:
        stop.set()
        thread.join()


def release(item: object) -> None:
    if not isinstance(item, int):
        item.close()  # type: ignore[attr-defined]
        return
    try:
        os.close(ctypes.c_int(item & 0xFFFFFFFF).value)
    except OSError:
        pass  # a number without a descriptor


def main() -> None:
    found: dict[str, object] = {}
    # Descriptors of no socket, before any of one: none may get lost on the way.
    end = os.pipe()[0]
    for _ in range(int(sys.argv[1])):
        call("connect", end, first, 16)
        call("getsockname", end, first, first)
    for label, name, arguments in cases():
        found[label] = call(name, *arguments)
        while kept:
            release(kept.pop())
    found["while memory comes and goes"] = sorted(set(coming_and_going(int(sys.argv[1]))))
    json.dump(found, sys.stdout)
    print(flush=True)
    sys.stdin.read()


main()
