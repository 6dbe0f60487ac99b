"""Every option of the levels that TCP knows, asked for and set in every way, on every kind of socket.

A scene is a kind of socket: for each option, what getsockopt() gives with several lengths, and for each value and
length that is set, what setsockopt() says and getsockopt() says afterwards.
"""

import ctypes
import errno
import socket
import struct
from collections.abc import Callable
from socket import AF_INET, AF_INET6, IPPROTO_IP, IPPROTO_IPV6, IPPROTO_TCP, SOL_SOCKET

from scene import HOST, await_data, main, scene

NAMES = {
    SOL_SOCKET: range(1, 90),
    IPPROTO_TCP: range(1, 50),
    IPPROTO_IP: range(0, 64),
    IPPROTO_IPV6: range(0, 64),
}
LENGTHS = (-1, 0, 1, 4, 16, 300)
_INT = struct.Struct("i")
VALUES = [
    *(_INT.pack(number) for number in (1, 0, -1, 200, 70_000)),
    b"",
    b"\1",
    _INT.pack(5)[:3],
    struct.pack("qq", 3, 0),
    b"reno\0",
]

#: Answers that are the kernel's own affair or another at each connection: only how long they are is compared.
SIZE_ONLY = {
    SOL_SOCKET: {7, 8, 49, 55, 56, 57, 71},  # SNDBUF, RCVBUF, INCOMING_CPU, MEMINFO, NAPI_ID, COOKIE, NETNS_COOKIE
    IPPROTO_TCP: {2, 11, 24, 26, 28},  # MAXSEG, INFO, TIMESTAMP, CC_INFO, SAVED_SYN
    IPPROTO_IP: {9, 14, 33, 52},  # PKTOPTIONS, MTU, MULTICAST_TTL, PROTOCOL
    IPPROTO_IPV6: {17, 18, 24, 26, 61},  # MULTICAST_IF, MULTICAST_HOPS, MTU, V6ONLY, PATHMTU
}
#: Left out when setting. They stop a connection (TCP_REPAIR), make it another protocol's or need more than a value
#: (TCP_ULP, TCP_MD5SIG, TCP_AO …): what they answer here is told in docs/transparency.md. SO_DETACH_FILTER and
#: SO_ATTACH_…: addresses of programs.
NOT_SET = {
    SOL_SOCKET: {13, 18, 25, 26, 27, 44, 50, 51, 52, 80},
    IPPROTO_TCP: {14, 19, 20, 21, 22, 29, 31, 32, 38, 39, 40, 41, 42, 43},
    IPPROTO_IP: set(),
    IPPROTO_IPV6: set(),
}
NOT_ASKED = {
    SOL_SOCKET: {26, 28},
    IPPROTO_TCP: {19, 20, 21, 22, 29, 35, 38, 39, 40, 41, 42, 43},
    IPPROTO_IP: {8, 11, 41},  # PKTINFO, RECVERR (docs/transparency.md), MSFILTER
    IPPROTO_IPV6: {25, 32, 48, 49},  # RECVERR, FLOWLABEL_MGR, MSFILTER, RECVPKTINFO
}
_ADDRESS = {AF_INET: (HOST, 0), AF_INET6: ("::1", 0)}
_libc = ctypes.CDLL(None, use_errno=True)


def get(fd: int, level: int, name: int, length: int) -> str:
    room, size = ctypes.create_string_buffer(b"\xee" * 512, 512), ctypes.c_int(length)
    if _libc.getsockopt(fd, level, name, room, ctypes.byref(size)) < 0:
        return errno.errorcode[ctypes.get_errno()]
    if name in SIZE_ONLY[level]:
        return f"{size.value} bytes"
    return room.raw[: max(0, size.value)].hex() + (" and more" if b"\xee" * 32 not in room.raw[size.value :] else "")


def put(fd: int, level: int, name: int, value: bytes) -> str:
    if _libc.setsockopt(fd, level, name, value, len(value)) < 0:
        return errno.errorcode[ctypes.get_errno()]
    return "0"


def fresh(family: int) -> list[socket.socket]:
    return [socket.socket(family)]


def listener(family: int) -> list[socket.socket]:
    made = socket.socket(family)
    made.bind(_ADDRESS[family])
    made.listen()
    return [made]


def client(family: int) -> list[socket.socket]:
    """And what keeps it connected."""
    [server], made = listener(family), socket.socket(family)
    made.connect(server.getsockname())
    return [made, server.accept()[0], server]


def server(family: int) -> list[socket.socket]:
    made, accepted, waiting = client(family)
    return [accepted, made, waiting]


def known(level: int, family: int) -> list[int]:
    """The options that a socket of this family has, and one that none has."""
    found = [0]
    with socket.socket(family) as probe:
        for name in NAMES[level]:
            said = get(probe.fileno(), level, name, 64), put(probe.fileno(), level, name, _INT.pack(0))
            if not set(said) <= {"ENOPROTOOPT", "ENOTSUP"} and name not in NOT_ASKED[level]:
                found.append(name)
    return found + [63]


def asked(make: Callable[[int], list[socket.socket]], family: int) -> object:
    subject, *_kept = make(family)
    fd = subject.fileno()
    return {
        f"{level}/{name}": [get(fd, level, name, length) for length in LENGTHS]
        for level in NAMES
        for name in known(level, family)
    }


def set_and_asked(make: Callable[[int], list[socket.socket]], family: int) -> object:
    found = {}
    for level in NAMES:
        for name in known(level, family):
            if name in NOT_SET[level]:
                continue
            subject, *_kept = make(family)
            fd = subject.fileno()
            results = []
            for value in VALUES:
                said = put(fd, level, name, value)
                results.append(f"{said} {get(fd, level, name, 64)}" if said == "0" else said)
            found[f"{level}/{name}"] = results
            for item in (subject, *_kept):
                item.close()
    return found


def set_before(family: int) -> object:
    """Set on a socket before it is connected and on one before it listens; asked of both ends and of the listener."""
    found = {}
    for level in NAMES:
        for name in known(level, family):
            if name in NOT_SET[level] or (level, name) in UNFIT_BEFORE:
                continue
            for value in (_INT.pack(1), _INT.pack(0), _INT.pack(200)):
                made, waiting = socket.socket(family), socket.socket(family)
                waiting.bind(_ADDRESS[family])
                said = [put(item.fileno(), level, name, value) for item in (made, waiting)]
                if said == ["0", "0"]:
                    waiting.listen()
                    try:
                        made.connect(waiting.getsockname())
                    except OSError as error:
                        raise AssertionError(f"{level}/{name}") from error
                    await_data(waiting)
                    accepted = waiting.accept()[0]
                    said += [get(item.fileno(), level, name, 64) for item in (made, accepted, waiting)]
                    accepted.close()
                found[f"{level}/{name}={value.hex()}"] = said
                made.close()
                waiting.close()
    return found


#: Set before connect() these decide whether and how it connects at all.
UNFIT_BEFORE = {
    (IPPROTO_TCP, socket.TCP_DEFER_ACCEPT),
    (IPPROTO_TCP, socket.TCP_FASTOPEN),
    (IPPROTO_TCP, 30),  # TCP_FASTOPEN_CONNECT
    (IPPROTO_TCP, 34),  # TCP_FASTOPEN_NO_COOKIE
    (IPPROTO_TCP, 37),  # TCP_TX_DELAY
    (IPPROTO_TCP, socket.TCP_WINDOW_CLAMP),
    (SOL_SOCKET, 20),
    (SOL_SOCKET, 21),  # SO_RCVTIMEO, SO_SNDTIMEO
    (SOL_SOCKET, socket.SO_DONTROUTE),
    (SOL_SOCKET, socket.SO_MARK),
    (SOL_SOCKET, 62),  # SO_BINDTOIFINDEX
    (SOL_SOCKET, 46),  # SO_BUSY_POLL
    (SOL_SOCKET, 69),  # SO_PREFER_BUSY_POLL
    (IPPROTO_IP, 4),  # IP_OPTIONS
    (IPPROTO_IP, 21),  # IP_MINTTL
    (IPPROTO_IP, 50),  # IP_UNICAST_IF
    (IPPROTO_IPV6, 26),  # IPV6_V6ONLY
}


def _scenes() -> None:
    for family, suffix in ((AF_INET, "v4"), (AF_INET6, "v6")):
        for make in (fresh, listener, client, server):
            for work in (asked, set_and_asked):

                def play(make: object = make, family: int = family, work: object = work) -> object:
                    return work(make, family)  # type: ignore[operator]

                play.__name__ = f"{work.__name__}_{make.__name__}_{suffix}"
                scene(play)

        def before(family: int = family) -> object:
            return set_before(family)

        before.__name__ = f"set_before_{suffix}"
        scene(before)


_scenes()

if __name__ == "__main__":
    main()
