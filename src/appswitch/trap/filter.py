"""The trap generator's filter: which system calls are handed to the trap handler, which the kernel refuses itself.

Everything not named here runs natively, at the cost of a filter that lets it pass: read, write, send, recv,
close, dup, fork, poll, epoll_wait, sendfile and splice among them.
"""

from __future__ import annotations

import errno
import socket

from ..linux.arch import AUDIT_ARCH, MACHINE, NUMBERS
from ..linux.bpf import ALLOW, NOTIFY, Assembler

#: Always trapped.
TRAPPED = (
    "connect",
    "accept",
    "accept4",
    "getsockname",
    "getpeername",
    "bind",
    "listen",
    "epoll_create",
    "epoll_create1",
)
#: Levels whose options an AF_UNIX socket does not know, and must answer as TCP would.
TCP_LEVELS = (socket.IPPROTO_TCP, socket.IPPROTO_IP, socket.IPPROTO_IPV6)
#: Options of those levels that only datagram programs use: native, so that a DNS query costs no trap.
NATIVE_IP = (8, 11)  # IP_PKTINFO, IP_RECVERR
NATIVE_IPV6 = (25, 49)  # IPV6_RECVERR, IPV6_RECVPKTINFO

SO_REUSEADDR, SO_ERROR, SO_OOBINLINE, SO_PRIORITY, SO_RCVTIMEO = 2, 4, 10, 12, 20
SO_SNDBUF, SO_RCVBUF, SO_REUSEPORT, SO_PASSCRED, SO_PEERCRED, SO_RCVLOWAT = 7, 8, 15, 16, 17, 18
SO_BINDTODEVICE, SO_PEERSEC, SO_SNDBUFFORCE, SO_RCVBUFFORCE, SO_PROTOCOL, SO_DOMAIN = 25, 31, 32, 33, 38, 39
SO_INCOMING_CPU, SO_PEERGROUPS, SO_ZEROCOPY, SO_PEERPIDFD, SO_PASSRIGHTS = 49, 59, 60, 77, 83
SO_PASSSEC, SO_PASSPIDFD = 34, 76
SO_BINDTOIFINDEX, SO_PEERNAME, SO_RCVTIMEO_NEW, SO_BUF_LOCK, SO_TXREHASH, SO_INQ = 62, 28, 66, 72, 74, 84
#: When data came, or went, is told by TCP alone: SO_TIMESTAMP, SO_TIMESTAMPNS, SO_TIMESTAMPING, old and new.
SO_TIMESTAMPS = (29, 35, 37, 63, 64, 65)
#: Of every socket, also a Unix one: SO_DEBUG, BROADCAST, NO_CHECK, RXQ_OVFL, WIFI_STATUS, PEEK_OFF, NOFCS,
#: SELECT_ERR_QUEUE, MAX_PACING_RATE, RCVMARK, RCVPRIORITY. Not those that take a privilege (MARK, BUSY_POLL …): the
#: program's is not the switch's.
SO_OF_ALL = (1, 6, 11, 40, 41, 42, 43, 45, 47, 75, 82)
#: SOL_SOCKET options that differ between a Unix end and TCP.
GET_SOCKET = (
    SO_SNDBUF,
    SO_RCVBUF,
    SO_PEERCRED,
    SO_PEERSEC,
    SO_PROTOCOL,
    SO_DOMAIN,
    SO_INCOMING_CPU,
    SO_PEERGROUPS,
    SO_ZEROCOPY,
    SO_PEERPIDFD,
    SO_REUSEPORT,
    SO_PASSCRED,
    SO_PASSSEC,
    SO_PASSPIDFD,
    SO_PASSRIGHTS,
    SO_PEERNAME,
    SO_BINDTOIFINDEX,
    SO_BUF_LOCK,
    SO_TXREHASH,
    SO_INQ,
    *SO_TIMESTAMPS,
    SO_RCVTIMEO_NEW,
    SO_RCVTIMEO,  # of a listener: it has one of ours
    SO_ERROR,  # before a program hears that an instance failed, the next one is tried
)
SET_SOCKET = (
    SO_SNDBUF,
    SO_RCVBUF,
    SO_SNDBUFFORCE,
    SO_RCVBUFFORCE,
    SO_PASSCRED,
    SO_REUSEPORT,
    SO_BINDTODEVICE,
    SO_BINDTOIFINDEX,
    SO_ZEROCOPY,
    SO_PASSRIGHTS,
    SO_PASSSEC,
    SO_PASSPIDFD,
    SO_BUF_LOCK,
    SO_TXREHASH,
    SO_INQ,
    *SO_TIMESTAMPS,
    # seldom set, and so asked of a socket at connect() only when they were:
    SO_REUSEADDR,
    SO_OOBINLINE,
    SO_PRIORITY,
    SO_RCVLOWAT,
    *SO_OF_ALL,
)
#: Interface ioctls (netdevice(7)), those of wireless ones (linux/wireless.h), and SIOCGSKNS, which would give away
#: the host's network namespace.
IOCTL_FIRST, IOCTL_LAST = 0x890B, 0x8BFF
MSG_FASTOPEN = 0x20000000
CLONE_NEWNET = 0x40000000
_X32_BIT = 0x40000000
_AF_ALG, _AF_PACKET = 38, 17


def build() -> bytes:
    """The filter for this machine's architecture, as an array of struct sock_filter."""
    asm = Assembler()
    asm.load_arch()
    asm.jump_equal(AUDIT_ARCH, yes="native")
    asm.fail(errno.ENOSYS)  # i386 and other call tables
    asm.label("native")
    asm.load_nr()
    if MACHINE == "x86_64":
        asm.jump_at_least(_X32_BIT, yes="refuse", no=0)
    for name in TRAPPED:
        if name in NUMBERS:
            asm.jump_equal(NUMBERS[name], yes="trap")
    for name in ("socket", "setsockopt", "getsockopt", "ioctl", "sendto", "sendmsg", "sendmmsg", "setns"):
        asm.jump_equal(NUMBERS[name], yes=name)
    for name in ("io_uring_setup", "io_uring_enter", "io_uring_register"):
        asm.jump_equal(NUMBERS[name], yes="refuse")
    asm.ret(ALLOW)
    asm.label("refuse")
    asm.fail(errno.ENOSYS)
    asm.label("trap")
    asm.ret(NOTIFY)
    _socket(asm)
    _options(asm, "setsockopt", SET_SOCKET)
    _options(asm, "getsockopt", GET_SOCKET)
    asm.label("ioctl")
    asm.load_arg(1)
    asm.jump_at_least(IOCTL_LAST + 1, yes="ioctl-native")
    asm.jump_at_least(IOCTL_FIRST, yes="ioctl-trap")
    asm.label("ioctl-native")
    asm.ret(ALLOW)
    asm.label("ioctl-trap")
    asm.ret(NOTIFY)
    for name, argument in (("sendto", 3), ("sendmsg", 2), ("sendmmsg", 3)):
        asm.label(name)
        asm.load_arg(argument)
        asm.jump_any_bit(MSG_FASTOPEN, yes=0, no=1)
        asm.fail(errno.EOPNOTSUPP)  # what tcp_fastopen=0 gives: programs fall back to connect()
        asm.ret(ALLOW)
    asm.label("setns")
    asm.load_arg(1)
    asm.jump_equal(0, yes="setns-no")
    asm.jump_any_bit(CLONE_NEWNET, yes="setns-no")
    asm.ret(ALLOW)
    asm.label("setns-no")
    asm.fail(errno.EPERM)
    return asm.assemble()


def _socket(asm: Assembler) -> None:
    """TCP and UDP only, Unix, netlink and crypto sockets; no raw, packet or host-wide families (AF_VSOCK …)."""
    asm.label("socket")
    asm.load_arg(0)
    asm.jump_equal(socket.AF_INET, yes="inet")
    asm.jump_equal(socket.AF_INET6, yes="inet")
    for family in (socket.AF_UNIX, socket.AF_NETLINK, _AF_ALG):
        asm.jump_equal(family, yes="socket-native")
    asm.jump_equal(_AF_PACKET, yes="socket-no")
    asm.fail(errno.EAFNOSUPPORT)
    asm.label("inet")
    asm.load_arg(1)
    asm.mask(0xF)
    asm.jump_equal(socket.SOCK_DGRAM, yes="socket-native")
    asm.jump_equal(socket.SOCK_RAW, yes="socket-no")
    asm.jump_equal(socket.SOCK_STREAM, yes="stream")
    asm.fail(errno.ESOCKTNOSUPPORT)
    asm.label("stream")
    asm.load_arg(2)
    asm.jump_equal(0, yes="socket-native")
    asm.jump_equal(socket.IPPROTO_TCP, yes="socket-native")
    asm.fail(errno.EPROTONOSUPPORT)  # MPTCP, SCTP, SMC: programs fall back to TCP
    asm.label("socket-no")
    asm.fail(errno.EPERM)
    asm.label("socket-native")
    asm.ret(ALLOW)


def _options(asm: Assembler, name: str, at_socket_level: tuple[int, ...]) -> None:
    asm.label(name)
    asm.load_arg(1)
    asm.jump_equal(socket.SOL_SOCKET, yes=f"{name}-socket")
    asm.jump_equal(socket.IPPROTO_TCP, yes=f"{name}-trap")
    asm.jump_equal(socket.IPPROTO_IP, yes=f"{name}-ip")
    asm.jump_equal(socket.IPPROTO_IPV6, yes=f"{name}-ipv6")
    asm.ret(ALLOW)
    for level, natives in (("ip", NATIVE_IP), ("ipv6", NATIVE_IPV6)):
        asm.label(f"{name}-{level}")
        asm.load_arg(2)
        for option in natives:
            asm.jump_equal(option, yes=f"{name}-native")
        asm.ret(NOTIFY)
    asm.label(f"{name}-socket")
    asm.load_arg(2)
    for option in at_socket_level:
        asm.jump_equal(option, yes=f"{name}-trap")
    asm.label(f"{name}-native")
    asm.ret(ALLOW)
    asm.label(f"{name}-trap")
    asm.ret(NOTIFY)
