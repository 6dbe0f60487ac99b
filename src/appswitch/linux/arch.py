"""What differs from one processor to the next: system call numbers and the audit architecture."""

from __future__ import annotations

import platform
from types import SimpleNamespace

# asm-generic numbers (since Linux 5.1 new calls have one number everywhere)
COMMON = {
    "pidfd_send_signal": 424,
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "pidfd_open": 434,
    "pidfd_getfd": 438,
    "landlock_create_ruleset": 444,
    "landlock_add_rule": 445,
    "landlock_restrict_self": 446,
}
X86_64 = COMMON | {
    "ioctl": 16,
    "socket": 41,
    "connect": 42,
    "accept": 43,
    "sendto": 44,
    "sendmsg": 46,
    "bind": 49,
    "listen": 50,
    "getsockname": 51,
    "getpeername": 52,
    "setsockopt": 54,
    "getsockopt": 55,
    "epoll_create": 213,
    "epoll_wait": 232,
    "epoll_pwait": 281,
    "accept4": 288,
    "epoll_create1": 291,
    "sendmmsg": 307,
    "setns": 308,
    "process_vm_readv": 310,
    "process_vm_writev": 311,
    "kcmp": 312,
    "seccomp": 317,
    "bpf": 321,
}
AARCH64 = COMMON | {
    "epoll_create1": 20,
    "epoll_pwait": 22,
    "ioctl": 29,
    "socket": 198,
    "bind": 200,
    "listen": 201,
    "accept": 202,
    "connect": 203,
    "getsockname": 204,
    "getpeername": 205,
    "sendto": 206,
    "setsockopt": 208,
    "getsockopt": 209,
    "sendmsg": 211,
    "accept4": 242,
    "setns": 268,
    "sendmmsg": 269,
    "process_vm_readv": 270,
    "process_vm_writev": 271,
    "kcmp": 272,
    "seccomp": 277,
    "bpf": 280,
}
_AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_NUMBERS = {"x86_64": X86_64, "aarch64": AARCH64}

MACHINE = platform.machine()
SUPPORTED = MACHINE in _NUMBERS
#: AUDIT_ARCH_* of this kernel (linux/audit.h).
AUDIT_ARCH = _AUDIT.get(MACHINE, 0)
NUMBERS: dict[str, int] = _NUMBERS.get(MACHINE, COMMON)
NR = SimpleNamespace(**NUMBERS)
