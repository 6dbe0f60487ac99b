"""What the filter decides by itself, by running its instructions: for every call table, family and flag."""

import errno
import itertools
import socket
import struct

import pytest

from appswitch.linux.arch import AUDIT_ARCH, MACHINE, NUMBERS
from appswitch.linux.bpf import ALLOW, ERRNO, NOTIFY
from appswitch.trap import filter

FILTER = list(struct.iter_unpack("HBBI", filter.build()))
FOREIGN_ARCHES = (0x40000003, 0x40000028, 0xC000003E ^ 0xC00000B7 ^ AUDIT_ARCH, 0)
"""i386, arm, whichever of x86-64 and aarch64 this is not, none."""


def run(number: int, *arguments: int, arch: int = AUDIT_ARCH) -> int:
    """The filter's answer to a call (struct seccomp_data, seccomp(2)); classic BPF as far as the filter uses it."""
    padded = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("=IIQ6Q", number & 0xFFFFFFFF, arch, 0, *(value & (1 << 64) - 1 for value in padded))
    accumulator, at = 0, 0
    while True:
        code, yes, no, value = FILTER[at]
        at += 1
        if code == 0x20:
            [accumulator] = struct.unpack_from("=I", data, value)
        elif code == 0x54:
            accumulator &= value
        elif code == 0x06:
            return int(value)
        else:
            test = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[code]
            at += yes if test else no


def test_a_foreign_call_table_is_not_there() -> None:
    for number, arch in itertools.product(range(600), FOREIGN_ARCHES):
        assert run(number, 2, 1, arch=arch) == ERRNO | errno.ENOSYS


@pytest.mark.skipif(MACHINE != "x86_64", reason="x32 is x86-64's")
def test_x32_is_not_there() -> None:
    for number in (*range(600), 0x3FFFFFFF, 0x7FFFFFFF, 0xBFFFFFFF):
        assert run(0x40000000 | number, 2, 1) == ERRNO | errno.ENOSYS
    assert run(NUMBERS["connect"]) == NOTIFY


def test_io_uring_is_not_there() -> None:
    for name in ("setup", "enter", "register"):
        assert run(NUMBERS[f"io_uring_{name}"]) == ERRNO | errno.ENOSYS


def test_sockets_are_tcp_udp_or_local() -> None:
    local = {socket.AF_UNIX, socket.AF_NETLINK, 38}  # AF_ALG
    for family, kind, protocol in itertools.product((*range(64), -1), range(16), (0, 1, 6, 17, 132, 255, 262)):
        inet = family in (socket.AF_INET, socket.AF_INET6)
        allowed = family in local or (inet and (kind == 2 or (kind == 1 and protocol in (0, 6))))
        for flags, above in ((0, 0), (socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 1 << 32)):
            answer = run(NUMBERS["socket"], above | family, above | kind | flags, above | protocol)
            assert (answer == ALLOW) == allowed, (family, kind, protocol)
            assert allowed or answer & 0xFFFF0000 == ERRNO


def test_no_data_goes_with_a_connect() -> None:
    for name, flags in (("sendto", 3), ("sendmsg", 2), ("sendmmsg", 3)):
        arguments = [5, 6, 7, 8, 9, 10]
        for others in (0, 0x4000, 0x7FFFFFFF & ~filter.MSG_FASTOPEN, 1 << 32):
            arguments[flags] = others
            assert run(NUMBERS[name], *arguments) == ALLOW
            arguments[flags] = others | filter.MSG_FASTOPEN
            assert run(NUMBERS[name], *arguments) == ERRNO | errno.EOPNOTSUPP


def test_no_way_to_another_network_namespace() -> None:
    for flags in (0, 0x40000000, 0x40000000 | 0x00020000, 0x7FFFFFFF, 1 << 32):
        assert run(NUMBERS["setns"], 3, flags) == ERRNO | errno.EPERM
    assert run(NUMBERS["setns"], 3, 0x00020000) == ALLOW  # a mount namespace


def test_questions_about_interfaces_are_trapped() -> None:
    for request in range(0x890B, 0x8C00):
        assert run(NUMBERS["ioctl"], 3, request) == run(NUMBERS["ioctl"], 3, 1 << 32 | request) == NOTIFY
    for request in (0x5401, 0x5421, 0x8904, 0x8905, 0x8906, 0x8C00):  # terminals, FIONBIO, sockets' own
        assert run(NUMBERS["ioctl"], 3, request) == ALLOW
