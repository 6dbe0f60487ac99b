"""bpf(2): hash maps, and programs that see the packets of a device (tcx, Linux 6.6).

It takes root, or CAP_BPF and CAP_NET_ADMIN, over the initial user namespace.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from . import libc
from .arch import NR
from .ebpf import R0, R2, R3, Assembler

#: Where on a device a program sees packets: before the layers above it get them, or before it sends them.
INGRESS, EGRESS = 46, 47

_MAP_CREATE, _MAP_LOOKUP, _MAP_UPDATE, _MAP_LOOKUP_AND_DELETE = 0, 1, 2, 21
_PROG_LOAD, _PROG_ATTACH, _PROG_GET_FD_BY_ID, _OBJ_GET_INFO_BY_FD, _PROG_QUERY = 5, 8, 13, 15, 16
_HASH, _PROG_ARRAY, _NO_PREALLOC, _REPLACE = 1, 3, 1, 4
_TAIL_CALL, _NEXT = 12, -1
_NAME_AT, _NAME = 64, 16  # in struct bpf_prog_info
_SCHED_CLS = 3
_NO_DEVICE = 0x7FFFFFFF
_MOST_ATTACHED = 64  # BPF_MPROG_MAX
_LICENSE = b"Apache-2.0\0"


class Map:
    """A hash map of `most` entries at most, keys and values of fixed sizes in bytes; empty."""

    def __init__(self, name: str, key: int, value: int, most: int) -> None:
        self._value = value
        self.fd = _bpf(
            _MAP_CREATE, struct.pack("=IIIII8x16s", _HASH, key, value, most, _NO_PREALLOC, name.encode())
        )

    def put(self, key: bytes, value: bytes) -> None:
        """Enter, or replace. OSError (E2BIG, ENOMEM): there is no room."""
        self._do(_MAP_UPDATE, key, ctypes.create_string_buffer(value, len(value)))

    def get(self, key: bytes, command: int = _MAP_LOOKUP) -> bytes | None:
        """The value; None without one."""
        found = ctypes.create_string_buffer(self._value)
        try:
            self._do(command, key, found)
        except FileNotFoundError:
            return None
        return found.raw

    def take(self, key: bytes) -> bytes | None:
        """Strike out; the value that was there, None if there was none."""
        return self.get(key, _MAP_LOOKUP_AND_DELETE)

    def _do(self, command: int, key: bytes, value: ctypes.Array[ctypes.c_char]) -> None:
        held = ctypes.create_string_buffer(key, len(key))
        _bpf(command, struct.pack("=I4xQQQ", self.fd, ctypes.addressof(held), ctypes.addressof(value), 0))


def load(name: str, code: bytes) -> int:
    """A program for packets (BPF_PROG_TYPE_SCHED_CLS) as a descriptor. OSError when the kernel will not have it."""
    held, license_ = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(_LICENSE)
    return _bpf(
        _PROG_LOAD,
        struct.pack(
            "=IIQQ24x16s",
            _SCHED_CLS,
            len(code) // 8,
            ctypes.addressof(held),
            ctypes.addressof(license_),
            name.encode(),
        ),
    )


def attach(program: int, ifindex: int, where: int) -> None:
    """Have a program see the packets of a device in the current network namespace, as long as there is the device.

    It takes the place of one of the same name. The kernel needs some 10 ms (synchronize_rcu). OSError: ENODEV when
    there is no such device.
    """
    for other in _attached(ifindex, where):
        try:
            if _name(other) == _name(program):
                _bpf(_PROG_ATTACH, struct.pack("=IIIII12x", ifindex, program, where, _REPLACE, other))
                return
        finally:
            os.close(other)
    _bpf(_PROG_ATTACH, struct.pack("=IIII16x", ifindex, program, where, 0))


def attach_while_held(program: int, ifindex: int, where: int, name: str) -> int:
    """The same until the result, and every copy of it, is closed: at once, and without any waiting.

    A link would do as much, but each takes its process 10 ms to die. So a program of this `name` stays on the device,
    and goes on to the other as long as that stands in a table, which the kernel empties when nobody holds it.
    """
    table = _bpf(_MAP_CREATE, struct.pack("=IIIII8x16s", _PROG_ARRAY, 4, 4, 1, 0, name.encode()))
    try:
        key, value = ctypes.create_string_buffer(4), ctypes.create_string_buffer(struct.pack("=I", program), 4)
        _bpf(_MAP_UPDATE, struct.pack("=I4xQQQ", table, ctypes.addressof(key), ctypes.addressof(value), 0))
        asm = Assembler()
        asm.map(R2, table)
        asm.mov(R3, 0)
        asm.call(_TAIL_CALL)
        asm.mov(R0, _NEXT)
        asm.exit()
        stub = load(name, asm.assemble())
        try:
            attach(stub, ifindex, where)
        finally:
            os.close(stub)
    except OSError:
        os.close(table)
        raise
    return table


def try_all() -> None:
    """OSError when there can be no programs of this kind."""
    asm = Assembler()
    asm.mov(R0, 0)
    asm.exit()
    program = load("trial", asm.assemble())
    try:
        attach(program, _NO_DEVICE, INGRESS)
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
    finally:
        os.close(program)


def _attached(ifindex: int, where: int) -> list[int]:
    """Descriptors of the programs there."""
    ids = ctypes.create_string_buffer(4 * _MOST_ATTACHED)
    query = struct.pack("=IIIIQI4xQQQQ", ifindex, where, 0, 0, ctypes.addressof(ids), _MOST_ATTACHED, 0, 0, 0, 0)
    held = ctypes.create_string_buffer(query, len(query))
    libc.syscall(NR.bpf, _PROG_QUERY, ctypes.addressof(held), len(query))
    (count,) = struct.unpack_from("=I", held, 24)
    return [_bpf(_PROG_GET_FD_BY_ID, struct.pack("=I8x", each)) for each in struct.unpack_from(f"={count}I", ids)]


def _name(program: int) -> bytes:
    info = ctypes.create_string_buffer(_NAME_AT + _NAME)
    _bpf(_OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", program, len(info), ctypes.addressof(info)))
    return info.raw[_NAME_AT:].rstrip(b"\0")


def _bpf(command: int, attributes: bytes) -> int:
    held = ctypes.create_string_buffer(attributes, len(attributes))
    return libc.syscall(NR.bpf, command, ctypes.addressof(held), len(attributes))
