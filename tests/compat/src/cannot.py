"""Tries what cannot work under AppSwitch, and prints what became of each: the name of an errno, or "worked"."""

import ctypes
import errno
import json
import socket

libc = ctypes.CDLL(None, use_errno=True)


def made(*arguments):
    def act():
        socket.socket(*arguments).close()

    return act


def called(name, *arguments):
    def act():
        if getattr(libc, name)(*arguments) < 0:
            raise OSError(ctypes.get_errno(), name)

    return act


def fast_open():
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.sendto(b"early", 0x20000000, ("192.0.2.1", 80))


def to_oneself(family, address, *join):
    """A datagram to a group or to everybody, which the program itself hears."""

    def act():
        hears, sends = socket.socket(family, socket.SOCK_DGRAM), socket.socket(family, socket.SOCK_DGRAM)
        with hears, sends:
            hears.bind(("", 0))
            hears.settimeout(30)
            if join:
                hears.setsockopt(*join)
            sends.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            sends.sendto(b"hello", (address, hears.getsockname()[1]))
            hears.recv(10)

    return act


def mount(kind, source, options):
    return called("mount", source, b"/mnt", kind, 0, options)


GROUP = (socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton("239.1.2.3") + bytes(4))
GROUP6 = (socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, socket.inet_pton(socket.AF_INET6, "ff05::1234") + bytes(4))
IPPROTO_DCCP, IPPROTO_SMC, AF_SMC = 33, 256, 43
TRIED = {
    "SCTP, one-to-one": made(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP),
    "SCTP, one-to-one, IPv6": made(socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_SCTP),
    "SCTP, one-to-many": made(socket.AF_INET, socket.SOCK_SEQPACKET, socket.IPPROTO_SCTP),
    "MPTCP": made(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP),
    "SMC": made(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_SMC),
    "AF_SMC": made(AF_SMC, socket.SOCK_STREAM, 0),
    "DCCP": made(socket.AF_INET, 6, IPPROTO_DCCP),
    "raw": made(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
    "raw, IPv6": made(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6),
    "AF_PACKET": made(socket.AF_PACKET, socket.SOCK_RAW, 0),
    "AF_PACKET, cooked": made(socket.AF_PACKET, socket.SOCK_DGRAM, 0),
    "AF_VSOCK": made(socket.AF_VSOCK, socket.SOCK_STREAM, 0),
    "AF_RDS": made(socket.AF_RDS, socket.SOCK_SEQPACKET, 0),
    "AF_TIPC": made(socket.AF_TIPC, socket.SOCK_STREAM, 0),
    "AF_BLUETOOTH": made(31, socket.SOCK_STREAM, 0),
    "AF_CAN": made(socket.AF_CAN, socket.SOCK_RAW, 1),
    "AF_XDP": made(44, socket.SOCK_RAW, 0),
    "MSG_FASTOPEN": fast_open,
    "io_uring": called("syscall", 425, 8, None),
    "multicast": to_oneself(socket.AF_INET, "239.1.2.3", *GROUP),
    "multicast, IPv6": to_oneself(socket.AF_INET6, "ff05::1234", *GROUP6),
    "broadcast": to_oneself(socket.AF_INET, "255.255.255.255"),
    "NFS": mount(b"nfs4", b"192.0.2.1:/", b"addr=192.0.2.1,clientaddr=0.0.0.0,vers=4.2,proto=tcp,soft,timeo=20"),
    "CIFS": mount(b"cifs", b"//192.0.2.1/share", b"ip=192.0.2.1,user=guest,pass="),
}

told = {}
for name, act in TRIED.items():
    try:
        act()
        told[name] = "worked"
    except OSError as error:
        told[name] = errno.errorcode.get(error.errno, str(error)) if error.errno else str(error)
print(json.dumps(told))
