"""What cannot work, and how it fails: docs/compatibility.md tells it, test_cannot.py sees that it is so."""

from __future__ import annotations

from typing import NamedTuple


class Impossible(NamedTuple):
    """`tried`: the names under which src/cannot.py tries it; `error`: what each gets."""

    what: str
    call: str
    error: str
    tried: tuple[str, ...]
    remark: str = ""


IMPOSSIBLE = (
    Impossible(
        "SCTP, one-to-one; MPTCP; SMC",
        "socket()",
        "EPROTONOSUPPORT",
        ("SCTP, one-to-one", "SCTP, one-to-one, IPv6", "MPTCP", "SMC"),
        "programs fall back to TCP",
    ),
    Impossible("SCTP, one-to-many; DCCP", "socket()", "ESOCKTNOSUPPORT", ("SCTP, one-to-many", "DCCP")),
    Impossible(
        "raw sockets (`traceroute -I`, `ping` where it has no ICMP sockets)",
        "socket()",
        "EPERM",
        ("raw", "raw, IPv6"),
        "as without `CAP_NET_RAW`",
    ),
    Impossible(
        "packet sockets (tcpdump, DHCP)",
        "socket()",
        "EPERM",
        ("AF_PACKET", "AF_PACKET, cooked"),
        "as without `CAP_NET_RAW`",
    ),
    Impossible(
        "`AF_VSOCK`, `AF_SMC`, `AF_RDS`, `AF_TIPC`, `AF_XDP`, Bluetooth, CAN",
        "socket()",
        "EAFNOSUPPORT",
        ("AF_VSOCK", "AF_SMC", "AF_RDS", "AF_TIPC", "AF_XDP", "AF_BLUETOOTH", "AF_CAN"),
    ),
    Impossible(
        "TCP Fast Open by `MSG_FASTOPEN`",
        "sendto(), sendmsg()",
        "EOPNOTSUPP",
        ("MSG_FASTOPEN",),
        "as with `net.ipv4.tcp_fastopen` = 0",
    ),
    Impossible(
        "joining a multicast group",
        "setsockopt()",
        "ENODEV",
        ("multicast", "multicast, IPv6"),
        "as without a device that can",
    ),
    Impossible("broadcast; multicast without joining", "sendto()", "ENETUNREACH", ("broadcast",), "as without a route"),
    Impossible("io_uring", "io_uring_setup()", "ENOSYS", ("io_uring",), "programs fall back to epoll"),
)
#: Clients in the kernel. An ordinary user may not mount; root gets what the kernel lacks, or what its sockets meet.
IN_KERNEL = ("NFS", "CIFS")
