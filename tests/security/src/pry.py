"""Tries ways past the trap handler that need no second thread, and says in one line of JSON how each ended.

    pry.py calls OPTIONS     calls that the filter is there for
    pry.py sockets OPTIONS   sockets that the switch put in, used for something else

OPTIONS is JSON. Each outcome is "done", the name of an errno, or what was found. Then it waits for the end of its
standard input, so that its sockets can be looked at. Stdlib only; it knows nothing of AppSwitch.
"""

import ctypes
import errno
import fcntl
import json
import os
import signal
import socket
import struct
import sys
from socket import AF_INET, AF_UNIX, IPPROTO_TCP, SOCK_DGRAM, SOL_SOCKET

libc = ctypes.CDLL(None, use_errno=True)
MSG_FASTOPEN = 0x20000000
TCP_FASTOPEN_CONNECT, TCP_FASTOPEN_NO_COOKIE = 30, 34
SIOCGIFNAME, SIOCGIFCONF, SIOCGIFADDR, SIOCGSKNS, SIOCGIWNAME = 0x8910, 0x8912, 0x8915, 0x894C, 0x8B01
NEW_NETWORK = 0x40000000
OURS = (socket.AF_UNSPEC, AF_UNIX, AF_INET, socket.AF_INET6, socket.AF_NETLINK)


def outcome(function, *arguments):
    """What a function returns ("done" for nothing), or the name of its error."""
    try:
        value = function(*arguments)
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    return "done" if value is None else value


def call(name, *arguments):
    """A function of the C library; None when it succeeds."""
    values = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    if getattr(libc, name)(*values) == -1:
        raise OSError(ctypes.get_errno(), name)


def sockaddr(address):
    host, port = address
    return struct.pack("=H", AF_INET) + struct.pack("!H", port) + socket.inet_aton(host) + bytes(8)


# Calls ------------------------------------------------------------------------------------------------------


def fast_open(how, address):
    """Connect with the first data, by one of the calls that can."""
    with socket.socket() as sock:
        if how == "sendto":
            sock.sendto(b"past", MSG_FASTOPEN, address)
        elif how == "sendmsg":
            sock.sendmsg([b"past"], [], MSG_FASTOPEN, address)
        elif how == "sendmmsg":
            name, text = sockaddr(address), b"past"
            vector = struct.pack("=QQ", address_of(text), len(text))
            header = struct.pack("=QI4xQQQQI4xI4x", address_of(name), len(name), address_of(vector), 1, 0, 0, 0, 0)
            call("sendmmsg", sock.fileno(), header, 1, MSG_FASTOPEN)
        else:  # by an option, at connect()
            sock.setsockopt(IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
            sock.setsockopt(IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE, 1)
            refused = outcome(sock.connect, address)
            try:
                sock.sendall(b"past")
            except OSError:
                pass
            if refused != "done":
                raise OSError(getattr(errno, refused), "connect")


def address_of(data):
    return ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value


def datagram(address, connected):
    with socket.socket(AF_INET, SOCK_DGRAM) as sock:
        if connected:
            sock.connect(address)
            sock.send(b"past")
        else:
            sock.sendto(b"past", address)


def to_nobody(address):
    """TCP ignores the address of sendto(): there is no connection."""
    with socket.socket() as sock:
        sock.sendto(b"past", address)


def families():
    """{family/type/protocol: outcome} of all that are neither TCP nor UDP nor local."""
    wanted = [(family, kind, 0) for family in range(48) if family not in OURS for kind in (1, 2, 3, 5)]
    wanted += [(AF_INET, kind, number) for kind, number in ((3, 1), (3, 255), (10, 3), (5, 132), (6, 33), (4, 0))]
    wanted += [(socket.AF_INET6, 3, 58), (AF_INET, 1, 262), (AF_INET, 1, 132), (17, 3, 768), (AF_INET, 1, 256)]
    found = {}
    for family, kind, number in wanted:
        fd = outcome(libc_socket, family, kind, number)
        found[f"{family}/{kind}/{number}"] = fd if isinstance(fd, str) else "done"
        if not isinstance(fd, str):
            os.close(fd)
    return found


def libc_socket(family, kind, number):
    fd = libc.socket(family, kind, number)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "socket")
    return fd


def io_uring(name, *arguments):
    number = {"setup": 425, "enter": 426, "register": 427}[name]
    call("syscall", number, *arguments)


def other_process(pid):
    """Reading or steering a process of the same user outside."""
    local, text = ctypes.create_string_buffer(8), struct.Struct("=QQ")
    here = text.pack(ctypes.addressof(local), 8)
    try:
        with open(f"/proc/{pid}/maps") as file:
            start = int(file.read(64).partition("-")[0], 16)
    except PermissionError:
        start = 0
    there = text.pack(start, 8)
    handle = os.pidfd_open(pid)
    return {
        "ptrace": outcome(call, "ptrace", 0x4206, pid, 0, 0),  # PTRACE_SEIZE
        "memory": outcome(call, "process_vm_readv", pid, here, 1, there, 1, 0),
        "descriptor": outcome(call, "syscall", 438, handle, 0, 0),  # pidfd_getfd
        "namespace": outcome(lambda: os.close(os.open(f"/proc/{pid}/ns/net", os.O_RDONLY))),
        "setns by pidfd": outcome(call, "setns", handle, NEW_NETWORK),
    }


def unix_socket(address):
    with socket.socket(AF_UNIX) as sock:
        sock.connect(address)


def calls(given):
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    canaries = [tuple(address) for address in given["canaries"]]
    ring = bytes(120)
    found = {
        "open": sorted(int(name) for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")),
        "io_uring": {
            "setup": outcome(io_uring, "setup", 1, ring),
            "enter": outcome(io_uring, "enter", -1, 0, 0, 0, 0, 0),
            "register": outcome(io_uring, "register", -1, 0, 0, 0),
        },
        "families": families(),
        "fast open": {
            how: [outcome(fast_open, how, address) for address in canaries] for how in ("sendto", "sendmsg", "sendmmsg")
        },
        "fast open at connect": [outcome(fast_open, "option", address) for address in canaries],
        "datagrams": [outcome(datagram, address, connected) for address in canaries for connected in (False, True)],
        "sendto": [outcome(to_nobody, address) for address in canaries],
        "other process": other_process(given["process"]),
        "setns": {
            "any": outcome(call, "setns", given["namespace"], 0),
            "network": outcome(call, "setns", given["namespace"], NEW_NETWORK),
        },
        "unix": {
            "abstract": outcome(unix_socket, "\0" + given["abstract"]),
            "path": outcome(unix_socket, given["path"]),
        },
    }
    return found, []


# Sockets ----------------------------------------------------------------------------------------------------


def interfaces(sock):
    """All that a socket tells of interfaces: names, and the addresses that were found beside them."""
    room = ctypes.create_string_buffer(4096)
    request = bytearray(struct.pack("=i4xQ", len(room), ctypes.addressof(room)))
    fcntl.ioctl(sock, SIOCGIFCONF, request)
    filled = room.raw[: struct.unpack_from("=i", request)[0]]
    entries = [filled[at : at + 40] for at in range(0, len(filled), 40)]
    names = {entry[:16].rstrip(b"\0").decode() for entry in entries}
    addresses = {socket.inet_ntoa(entry[20:24]) for entry in entries}
    for index in range(1, 32):
        buffer = bytearray(struct.pack("=16si20x", b"", index))
        if outcome(fcntl.ioctl, sock, SIOCGIFNAME, buffer) == 0:
            names.add(buffer[:16].rstrip(b"\0").decode())
    return sorted(names), sorted(addresses)


def questions(sock, device):
    request = struct.pack("=16s24x", device.encode())
    return {
        "interfaces": outcome(interfaces, sock),
        "address": outcome(fcntl.ioctl, sock, SIOCGIFADDR, bytearray(request)),
        "wireless": outcome(fcntl.ioctl, sock, SIOCGIWNAME, bytearray(request)),
        "namespace": outcome(fcntl.ioctl, sock, SIOCGSKNS),
        "device": outcome(sock.setsockopt, SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode()),
        "firewall": outcome(sock.setsockopt, socket.IPPROTO_IP, 64, bytes(96)),  # IPT_SO_SET_REPLACE
        "counters": outcome(sock.setsockopt, socket.IPPROTO_IP, 65, bytes(40)),  # IPT_SO_SET_ADD_COUNTERS
        "firewall 6": outcome(sock.setsockopt, socket.IPPROTO_IPV6, 64, bytes(96)),
    }


def use_again(sock, canary, listen_first):
    """A socket that has been something else: open a port with it and connect it to the canary by all means."""
    fd, name = sock.fileno(), sockaddr(canary)

    def connect():
        return {
            "connect": outcome(call, "connect", fd, name, len(name)),
            "sendto": outcome(sock.sendto, b"past", canary) == "done",
            "fast open": outcome(sock.sendto, b"past", MSG_FASTOPEN, canary),
            "connect again": outcome(call, "connect", fd, name, len(name)),
        }

    def listen():
        return {
            "bind": outcome(call, "bind", fd, sockaddr(("0.0.0.0", 0)), 16),
            "listen": outcome(sock.listen, 5),
        }

    return listen() | connect() if listen_first else connect() | listen()


def disconnect(sock):
    call("connect", sock.fileno(), bytes(16), 16)


def connected(address):
    sock = socket.create_connection(address, timeout=60)
    sock.setblocking(True)
    return sock


def refused(address):
    sock = socket.socket()
    assert outcome(sock.connect, address) == "ECONNREFUSED"
    return sock


def under_way(address):
    sock = socket.socket()
    sock.setblocking(False)
    assert outcome(sock.connect, address) == "EINPROGRESS"
    return sock


def used(outside, silent, closed, service):
    """{what it was: a function that makes a socket that has been it}"""

    def then(function, sock):
        outcome(function, sock)
        return sock

    def shut_down(sock):
        sock.shutdown(socket.SHUT_RDWR)

    return {
        "native": lambda: then(disconnect, socket.socket()),
        "egress": lambda: then(disconnect, connected(outside)),
        "end": lambda: then(disconnect, connected(service)),
        "shut down": lambda: then(shut_down, under_way(silent)),
        "disconnected": lambda: then(disconnect, under_way(silent)),
        "refused": lambda: refused(closed),
        "refused later": lambda: under_way(closed),
        "ended": lambda: then(shut_down, connected(outside)),
    }


def sockets(given):
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    canary, outside, silent, closed, service = (
        tuple(given[name]) for name in ("canary", "outside", "silent", "closed", "service")
    )
    egress = connected(outside)
    found = {"questions": {}, "again": {}, "inode": os.fstat(egress.fileno()).st_ino}
    kept = [egress]
    if "device" in given:
        listener = socket.create_server(("0.0.0.0", 8080))
        asked = {"native": socket.socket(), "egress": egress, "end": connected(service), "listener": listener}
        found["questions"] = {name: questions(sock, given["device"]) for name, sock in asked.items()}
        kept += asked.values()
    for listen_first in (False, True):
        for name, make in used(outside, silent, closed, service).items():
            sock = make()
            sock.setblocking(False)
            kept.append(sock)
            found["again"][f"{name}, listen first" if listen_first else name] = use_again(sock, canary, listen_first)
    return found, kept


if __name__ == "__main__":
    function, given = {"calls": calls, "sockets": sockets}[sys.argv[1]], json.loads(sys.argv[2])
    found, kept = function(given)
    print(json.dumps(found), flush=True)
    sys.stdin.read()
