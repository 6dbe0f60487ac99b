"""What AppSwitch uses of the kernel and a kernel may lack: since when it is there, and what goes without it.

Each can be left out, for tests: the environment variable APPSWITCH_WITHOUT, read once at the start of `appswitch up`
and `appswitch run`, names them with commas between. The bindings ask `left_out` where they would first use one.
"""

from __future__ import annotations

from typing import NamedTuple

ENVIRONMENT = "APPSWITCH_WITHOUT"

NOTIFY, ADDFD_SEND, SYNC_WAKE_UP = "seccomp-notify", "addfd-send", "sync-wake-up"
LANDLOCK, PASS_RIGHTS, PIDFD_THREAD = "landlock", "pass-rights", "pidfd-thread"
USER_NAMESPACES, TUN, VETH, VNET, PTRACE = "user-namespaces", "tun", "veth", "vnet", "ptrace"
UDP_OFFLOAD = "udp-offload"


class Feature(NamedTuple):
    """`without`: what follows from its absence. `needed`: nothing works then. `guard`: it holds hostile programs."""

    since: str
    without: str
    needed: bool = False
    guard: bool = False


FEATURES = {
    NOTIFY: Feature(
        "Linux 5.5",
        "system calls cannot be trapped: use a kernel with CONFIG_SECCOMP_FILTER, and have a container around this "
        "allow seccomp(2)",
        needed=True,
    ),
    ADDFD_SEND: Feature(
        "Linux 5.14", "connections cannot be handed to programs: use Linux 5.14 or later", needed=True
    ),
    PTRACE: Feature(
        "kernel.yama.ptrace_scope below 3",
        "the switch cannot see what programs ask for: have root set kernel.yama.ptrace_scope to 2 or less, "
        "which takes a restart of the system",
        needed=True,
    ),
    USER_NAMESPACES: Feature("Linux 3.8", "only root's programs can be run"),
    LANDLOCK: Feature(
        "Linux 6.7, with landlock among lsm= on the kernel's command line",
        "a hostile program may connect past the switch, unless it runs with --egress deny",
        guard=True,
    ),
    PASS_RIGHTS: Feature(
        "Linux 6.16",
        "programs may pass descriptors to each other over their connections, unless these are --transport tcp",
        guard=True,
    ),
    SYNC_WAKE_UP: Feature("Linux 6.6", "each trapped call takes some 50 µs more"),
    PIDFD_THREAD: Feature("Linux 6.9", "a program whose first thread has ended cannot connect any more"),
    TUN: Feature(
        "/dev/net/tun that this user may open", "programs get a veth pair instead: they start some 10 ms later"
    ),
    UDP_OFFLOAD: Feature(
        "Linux 6.6, for root", "a datagram from one program to another takes some 40 µs more, by way of the relay"
    ),
}
#: What there is no use in telling of, but can be left out.
_UNTOLD = frozenset({VETH, VNET})
_left_out: frozenset[str] = frozenset()


def leave_out(text: str) -> None:
    """Do from now on as if this kernel had none of these features, named with commas; ValueError at an unknown one."""
    global _left_out
    names = frozenset(name.strip() for name in text.split(",") if name.strip())
    if unknown := sorted(names - FEATURES.keys() - _UNTOLD):
        known = ", ".join(sorted(_UNTOLD | FEATURES.keys()))
        raise ValueError(f"{ENVIRONMENT} names {unknown[0]!r}, which is none of {known}")
    _left_out = names


def left_out(name: str) -> bool:
    """Is this process to do without it?"""
    return name in _left_out
