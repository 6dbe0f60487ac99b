"""Options: what was set before connect() and listen() holds afterwards, and queries answer as on TCP."""

import ctypes
import fcntl
import os
import socket
import struct
import termios
from socket import IPPROTO_IP, IPPROTO_IPV6, IPPROTO_TCP, SOL_SOCKET

from scene import HOST, LIMIT, await_data, listening, main, pair, raw, scene, timeval, told

IP_MTU_DISCOVER, IP_RECVTOS, TCP_NOTSENT_LOWAT, TCP_INQ, TCP_SAVE_SYN = 10, 13, 25, 36, 27
SO_MAX_PACING_RATE, SO_BUSY_POLL, SO_PEEK_OFF, SO_MARK = 47, 46, 42, 36
ON, OFF = struct.pack("i", 1), struct.pack("i", 0)

#: Set before or after: level, name, value.
SET = [
    (SOL_SOCKET, socket.SO_KEEPALIVE, ON),
    (SOL_SOCKET, socket.SO_REUSEADDR, ON),
    (SOL_SOCKET, socket.SO_OOBINLINE, ON),
    (SOL_SOCKET, socket.SO_PRIORITY, struct.pack("i", 4)),
    (SOL_SOCKET, socket.SO_RCVTIMEO, timeval(151.5)),
    (SOL_SOCKET, socket.SO_SNDTIMEO, timeval(252.5)),
    (SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 7)),
    (SOL_SOCKET, socket.SO_SNDBUF, struct.pack("i", 50_000)),
    (SOL_SOCKET, socket.SO_RCVBUF, struct.pack("i", 60_000)),
    (SOL_SOCKET, socket.SO_REUSEPORT, ON),
    (IPPROTO_TCP, socket.TCP_NODELAY, ON),
    (IPPROTO_TCP, socket.TCP_KEEPIDLE, struct.pack("i", 33)),
    (IPPROTO_TCP, socket.TCP_KEEPINTVL, struct.pack("i", 5)),
    (IPPROTO_TCP, socket.TCP_KEEPCNT, struct.pack("i", 4)),
    (IPPROTO_TCP, socket.TCP_USER_TIMEOUT, struct.pack("i", 9000)),
    (IPPROTO_TCP, socket.TCP_SYNCNT, struct.pack("i", 3)),
    (IPPROTO_TCP, socket.TCP_LINGER2, struct.pack("i", 20)),
    (IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, struct.pack("i", 3)),
    (IPPROTO_TCP, socket.TCP_CORK, ON),
    (IPPROTO_TCP, socket.TCP_QUICKACK, OFF),
    (IPPROTO_TCP, TCP_NOTSENT_LOWAT, struct.pack("i", 16384)),
    (IPPROTO_TCP, TCP_INQ, ON),
    (IPPROTO_IP, socket.IP_TOS, struct.pack("i", 0x10)),
    (IPPROTO_IP, socket.IP_TTL, struct.pack("i", 33)),
    (IPPROTO_IP, IP_MTU_DISCOVER, struct.pack("i", 1)),
    (IPPROTO_IP, IP_RECVTOS, ON),
]

#: Asked of every socket.
ASKED = sorted({(level, name) for level, name, _ in SET}) + [
    (SOL_SOCKET, socket.SO_TYPE),
    (SOL_SOCKET, socket.SO_DOMAIN),
    (SOL_SOCKET, socket.SO_PROTOCOL),
    (SOL_SOCKET, socket.SO_ERROR),
    (SOL_SOCKET, socket.SO_ACCEPTCONN),
    (SOL_SOCKET, socket.SO_BROADCAST),
    (SOL_SOCKET, socket.SO_DEBUG),
    (SOL_SOCKET, socket.SO_DONTROUTE),
    (SOL_SOCKET, socket.SO_RCVLOWAT),
    (SOL_SOCKET, socket.SO_SNDLOWAT),
    (SOL_SOCKET, socket.SO_PEERCRED),
    (SOL_SOCKET, socket.SO_BINDTODEVICE),
    (SOL_SOCKET, SO_BUSY_POLL),
    (SOL_SOCKET, SO_PEEK_OFF),
    (SOL_SOCKET, SO_MARK),
    (IPPROTO_TCP, socket.TCP_MAXSEG),
    (IPPROTO_TCP, socket.TCP_QUICKACK),
    (IPPROTO_TCP, socket.TCP_CONGESTION),
    (IPPROTO_TCP, socket.TCP_FASTOPEN),
    (IPPROTO_TCP, 31),  # TCP_ULP
    (IPPROTO_TCP, 99),
    (IPPROTO_IP, socket.IP_OPTIONS),
    (IPPROTO_IP, 14),  # IP_MTU
    (IPPROTO_IP, 15),  # IP_FREEBIND
    (IPPROTO_IP, 60),
    (IPPROTO_IPV6, socket.IPV6_V6ONLY),
    (IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS),
]


def ask(sock: socket.socket, level: int, name: int, size: int = 64) -> str:
    value = told(sock.getsockopt, level, name, size)
    return value.hex() if isinstance(value, bytes) else str(value)


def everything(sock: socket.socket) -> dict[str, str]:
    found = {f"{level}/{name}": ask(sock, level, name) for level, name in ASKED}
    # The kernel fits these two to the path, with small differences from one connection to the next.
    for key, least in (("1/7", 16384), ("6/2", 500)):
        if struct.unpack("i", bytes.fromhex(found[key]))[0] >= least:
            found[key] = "enough"
    return found


def state(sock: socket.socket) -> int:
    return int(sock.getsockopt(IPPROTO_TCP, socket.TCP_INFO, 8)[0])


@scene
def defaults() -> object:
    """Every option of a fresh socket, a listener and both ends of a connection."""
    client, server = pair()
    sockets = {"fresh": socket.socket(), "listener": listening(), "client": client, "server": server}
    return {name: everything(sock) for name, sock in sockets.items()}


@scene
def defaults_of_v6() -> object:
    listener = listening(family=socket.AF_INET6, host="::1")
    client = socket.create_connection(listener.getsockname()[:2])
    server, _ = listener.accept()
    found = {name: everything(sock) for name, sock in (("listener", listener), ("client", client), ("server", server))}
    del found["server"][f"{IPPROTO_IPV6}/{socket.IPV6_V6ONLY}"]  # taken over from the listener: nobody asks
    return found


def differing_in_general(level: int, name: int) -> bool:
    """Set on a listener after listen(), these are not taken over by what it accepts (see differences.py)."""
    return level == SOL_SOCKET and name in LATE


LATE = (socket.SO_KEEPALIVE, socket.SO_LINGER, socket.SO_RCVTIMEO, socket.SO_SNDTIMEO)


def each_set(stage: str) -> dict[str, object]:
    """Each option set alone, at a stage; what setting says and what both ends and the listener say then."""
    found: dict[str, object] = {}
    for level, name, value in SET:
        listener, client = socket.socket(), socket.socket()
        listener.bind((HOST, 0))
        result = None
        if stage == "before":
            result = told(client.setsockopt, level, name, value), told(listener.setsockopt, level, name, value)
        listener.listen()
        if stage == "listener":
            result = told(listener.setsockopt, level, name, value)
        defer = (level, name) == (IPPROTO_TCP, socket.TCP_DEFER_ACCEPT)
        client.connect(listener.getsockname())
        if defer:
            client.sendall(b"x")
        server, _ = listener.accept()
        if stage == "after":
            result = told(client.setsockopt, level, name, value), told(server.setsockopt, level, name, value)
        asked = [ask(sock, level, name) for sock in (client, server, listener)]
        if stage == "listener" and (level, name) == (SOL_SOCKET, socket.SO_SNDBUF):
            del asked[0]  # the client's is the kernel's own affair
        if stage == "listener" and differing_in_general(level, name):
            del asked[1]
        client.sendall(b"still")
        server.settimeout(LIMIT)
        got = server.recv(10)[-5:]
        while len(got) < 5:
            got += server.recv(10)
        found[f"{level}/{name}"] = result, asked, got.decode()[-5:]
    return found


@scene
def set_before() -> object:
    return each_set("before")


@scene
def set_on_a_listener() -> object:
    return each_set("listener")


@scene
def set_after() -> object:
    return each_set("after")


@scene
def all_before_at_once() -> object:
    listener, client = socket.socket(), socket.socket()
    for level, name, value in SET:
        if (level, name) != (IPPROTO_TCP, socket.TCP_DEFER_ACCEPT):
            told(client.setsockopt, level, name, value)
            told(listener.setsockopt, level, name, value)
    listener.bind((HOST, 0))
    listener.listen()
    client.connect(listener.getsockname())
    server, _ = listener.accept()
    asked = everything(server)
    # Over TCP these are set on the accepted socket, which has side effects: the priority by IP_TOS, the route.
    del asked[f"{SOL_SOCKET}/{socket.SO_PRIORITY}"], asked[f"{IPPROTO_IP}/14"]
    return everything(client), asked, everything(listener)


@scene
def state_of_the_connection() -> object:
    fresh, listener = socket.socket(), listening()
    client, server = pair()
    found = [state(fresh), state(listener), state(client), state(server)]
    size = len(client.getsockopt(IPPROTO_TCP, socket.TCP_INFO, 512))
    return found, size > 200, [len(client.getsockopt(IPPROTO_TCP, socket.TCP_INFO, size)) for size in (1, 8, 104, 232)]


@scene
def lengths_and_pointers() -> object:
    client, _ = pair()
    fd = client.fileno()
    room = ctypes.create_string_buffer(b"\xee" * 64, 64)
    bad = ctypes.c_void_p(8)
    found: dict[str, object] = {}
    for level, name in (
        (IPPROTO_TCP, socket.TCP_NODELAY),
        (IPPROTO_TCP, socket.TCP_MAXSEG),
        (IPPROTO_IP, socket.IP_TOS),
        (SOL_SOCKET, socket.SO_DOMAIN),
        (SOL_SOCKET, socket.SO_SNDBUF),
        (SOL_SOCKET, socket.SO_ERROR),
    ):
        for size in (-1, 0, 1, 2, 4, 16):
            length = ctypes.c_int(size)
            result = raw("getsockopt", fd, level, name, room, ctypes.byref(length))
            found[f"get {level}/{name} {size}"] = result, length.value
        length = ctypes.c_int(4)
        found[f"get {level}/{name} nowhere"] = raw("getsockopt", fd, level, name, bad, ctypes.byref(length))
        found[f"get {level}/{name} no length"] = raw("getsockopt", fd, level, name, room, bad)
    on = ctypes.c_int(1)
    for level, name in (
        (IPPROTO_TCP, socket.TCP_NODELAY),
        (IPPROTO_TCP, socket.TCP_KEEPIDLE),
        (IPPROTO_IP, socket.IP_TTL),
        (SOL_SOCKET, socket.SO_REUSEPORT),
        (SOL_SOCKET, socket.SO_SNDBUF),
    ):
        for size in (-1, 0, 1, 3, 4, 8):
            found[f"set {level}/{name} {size}"] = raw("setsockopt", fd, level, name, ctypes.byref(on), size)
        found[f"set {level}/{name} nowhere"] = raw("setsockopt", fd, level, name, bad, 4)
    found["negative fd"] = raw("setsockopt", -1, IPPROTO_TCP, socket.TCP_NODELAY, ctypes.byref(on), 4)
    null = os.open("/dev/null", os.O_RDONLY)
    found["file"] = raw("setsockopt", null, IPPROTO_TCP, socket.TCP_NODELAY, ctypes.byref(on), 4)
    found["get of a file"] = raw("getsockopt", null, IPPROTO_TCP, socket.TCP_NODELAY, room, ctypes.byref(length))
    return found


@scene
def values_refused() -> object:
    """TCP's own errors."""
    client, server = pair()
    cases = [
        (IPPROTO_TCP, socket.TCP_MAXSEG, 1),
        (IPPROTO_TCP, socket.TCP_MAXSEG, 70_000),
        (IPPROTO_TCP, socket.TCP_INFO, 1),
        (IPPROTO_TCP, socket.TCP_KEEPIDLE, 0),
        (IPPROTO_TCP, socket.TCP_KEEPIDLE, 40_000),
        (IPPROTO_TCP, socket.TCP_KEEPCNT, 200),
        (IPPROTO_TCP, socket.TCP_USER_TIMEOUT, -1),
        (IPPROTO_TCP, socket.TCP_SYNCNT, 1000),
        (IPPROTO_TCP, 99, 1),
        (IPPROTO_IP, socket.IP_TTL, 300),
        (IPPROTO_IP, socket.IP_TTL, 0),
        (IPPROTO_IP, 60, 1),
        (IPPROTO_IPV6, socket.IPV6_V6ONLY, 1),
        (IPPROTO_IPV6, socket.IPV6_TCLASS, 1),
        (SOL_SOCKET, socket.SO_TYPE, 1),
        (SOL_SOCKET, socket.SO_DOMAIN, 1),
        (SOL_SOCKET, socket.SO_ERROR, 1),
        (SOL_SOCKET, socket.SO_ACCEPTCONN, 1),
        (SOL_SOCKET, socket.SO_PASSCRED, 1),
        (SOL_SOCKET, 999, 1),
    ]
    found = {
        f"{level}/{name}={value}": [told(sock.setsockopt, level, name, value) for sock in (client, server)]
        for level, name, value in cases
    }
    return found, told(client.setsockopt, IPPROTO_TCP, socket.TCP_CONGESTION, b"nonesuch")


@scene
def switched_on_and_off() -> object:
    client, server = pair()
    found = []
    for sock in (client, server):
        for level, name in (
            (IPPROTO_TCP, socket.TCP_NODELAY),
            (IPPROTO_TCP, socket.TCP_CORK),
            (IPPROTO_TCP, socket.TCP_QUICKACK),
            (SOL_SOCKET, socket.SO_KEEPALIVE),
        ):
            for value in (0, 1, 5, 0):
                found.append((told(sock.setsockopt, level, name, value), sock.getsockopt(level, name)))
    return found


@scene
def timeouts_work_after_connect() -> object:
    listener, client = listening(), socket.socket()
    client.setsockopt(SOL_SOCKET, socket.SO_RCVTIMEO, timeval(0.1))
    client.connect(listener.getsockname())
    return raw("recv", client.fileno(), ctypes.create_string_buffer(1), 1, 0)


@scene
def accepted_inherit_timeouts() -> object:
    listener = socket.socket()
    listener.bind((HOST, 0))
    listener.setsockopt(SOL_SOCKET, socket.SO_RCVTIMEO, timeval(0.1))
    listener.listen()
    client = socket.create_connection(listener.getsockname())
    await_data(listener)
    server, _ = listener.accept()
    found = raw("recv", server.fileno(), ctypes.create_string_buffer(1), 1, 0)
    client.sendall(b"x")
    await_data(server)
    return found, server.recv(1).decode()


@scene
def asked_over_fork_and_dup() -> object:
    from scene import Child

    client, server = pair()
    client.setsockopt(IPPROTO_TCP, socket.TCP_KEEPIDLE, 44)
    other = client.dup()
    found = [other.getsockopt(IPPROTO_TCP, socket.TCP_KEEPIDLE)]
    found.append(Child(lambda: client.getsockopt(IPPROTO_TCP, socket.TCP_KEEPIDLE)).answer())
    Child(lambda: told(client.setsockopt, IPPROTO_TCP, socket.TCP_KEEPIDLE, 55)).answer()
    return [*found, other.getsockopt(IPPROTO_TCP, socket.TCP_KEEPIDLE), server.getsockopt(IPPROTO_TCP, 4)]


@scene
def queued_bytes() -> object:
    client, server = pair()
    client.sendall(b"12345")
    await_data(server)
    count = ctypes.c_int()
    fcntl.ioctl(server, termios.FIONREAD, count)
    flags = bytearray(4)
    fcntl.ioctl(server, 0x5421, ON)  # FIONBIO
    return count.value, bool(fcntl.fcntl(server, fcntl.F_GETFL) & os.O_NONBLOCK), told(client.recv, 0), len(flags)


if __name__ == "__main__":
    main()
