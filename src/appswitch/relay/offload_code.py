"""The eBPF programs that take datagrams from one program's namespace to another's, past the relay: pure."""

from __future__ import annotations

import socket
import struct

from appswitch.linux.ebpf import R0, R1, R2, R3, R4, R5, R6, R7, R8, R10, Assembler

#: Ethernet address of every device on the way: whatever comes is for whoever gets it.
ADDRESS = bytes([2, 0, 0, 0, 0, 1])
_ETHERNET = 14

#: Number of the sender's end in the hub; version; addresses and ports as in flows.Key, then zeros.
KEY = struct.Struct("=II36s")
#: Number of the receiver's end in the hub; when a datagram went by last (ns, monotonic), and how many did.
VALUE = struct.Struct("=I4xQQ")

# bpf.h: helpers, what programs return, struct __sk_buff
_LOOKUP, _KTIME, _STORE_BYTES, _REDIRECT, _LOAD_BYTES, _CHANGE_HEAD, _REDIRECT_PEER = 1, 5, 9, 23, 26, 43, 155
_NEXT, _SHOT, _INGRESS = -1, 2, 1
_PROTOCOL, _IFINDEX = 16, 40
_IPV4, _IPV6, _UDP = 0x0800, 0x86DD, 17
_LAST, _COUNT = 8, 16
# The stack: the key, and before it what of the IP header precedes the addresses; an Ethernet header.
_KEY = -48
_IDENTITY = _KEY + 8
_HEADER = -72


def sends(map_fd: int, end: int, door: int, idle: float, *, ethernet: bool) -> bytes:
    """For what a program's device `as0` sends: what is known goes on by the `door`, all else to the relay.

    `end`: number of the door's other end in the hub. `idle`: seconds of silence after which the relay is to see a
    datagram again. `ethernet`: as0 is a device with Ethernet headers.
    """
    asm = Assembler()
    asm.mov(R6, R1)
    _find(asm, map_fd, end, _ETHERNET if ethernet else 0, "pass")
    asm.mov(R7, R0)
    asm.call(_KTIME)
    asm.mov(R8, R0)
    asm.load(R1, R7, _LAST, 8)
    asm.alu("sub", R0, R1)
    asm.alu("arsh", R0, 20)
    asm.jump("pass", "s>", R0, int(idle * 1e9) >> 20)
    if not ethernet:
        asm.mov(R1, R6)
        asm.mov(R2, _ETHERNET)
        asm.mov(R3, 0)
        asm.call(_CHANGE_HEAD)
        asm.jump("pass", "!=", R0, 0)
    asm.store_bytes(R10, _HEADER, ADDRESS * 2)
    asm.load(R1, R6, _PROTOCOL, 4)
    asm.store(R10, _HEADER + 12, R1, 2)
    asm.mov(R1, R6)
    asm.mov(R2, 0)
    asm.address(R3, _HEADER)
    asm.mov(R4, _ETHERNET)
    asm.mov(R5, 0)
    asm.call(_STORE_BYTES)
    asm.jump("drop", "!=", R0, 0)
    asm.store(R7, _LAST, R8, 8)
    asm.mov(R1, 1)
    asm.increment(R7, _COUNT, R1)
    asm.mov(R1, door)
    asm.mov(R2, 0)
    asm.call(_REDIRECT)
    asm.exit()
    _end(asm, "pass", _NEXT)
    _end(asm, "drop", _SHOT)
    return asm.assemble()


def crosses(map_fd: int) -> bytes:
    """For what comes to an end in the hub: it goes to the receiver's namespace if it may, whatever sent it."""
    asm = Assembler()
    asm.mov(R6, R1)
    _find(asm, map_fd, None, _ETHERNET, "drop")
    asm.load(R1, R0, 0, 4)
    asm.mov(R2, 0)
    asm.call(_REDIRECT_PEER)
    asm.exit()
    _end(asm, "drop", _SHOT)
    return asm.assemble()


def arrives(device: int) -> bytes:
    """For what comes in by the door: the program sees it come by `as0`, whose number is `device`."""
    asm = Assembler()
    asm.mov(R1, device)
    asm.mov(R2, _INGRESS)
    asm.call(_REDIRECT)
    asm.exit()
    return asm.assemble()


def _find(asm: Assembler, map_fd: int, end: int | None, at: int, otherwise: str) -> None:
    """R0 = the value for the plain UDP packet of R6, whose IP header is `at` that offset; else jump.

    `end`: None for the packet's device.
    """
    asm.load(R1, R6, _PROTOCOL, 4)
    asm.jump("v4", "==", R1, socket.htons(_IPV4))
    asm.jump(otherwise, "!=", R1, socket.htons(_IPV6))

    header = _IDENTITY - 8
    _load(asm, at, header, 44, otherwise)
    asm.load(R1, R10, header + 6, 1)
    asm.jump(otherwise, "!=", R1, _UDP)
    asm.store(R10, _KEY + 4, 6, 4)
    asm.jump("look")

    asm.label("v4")
    header = _IDENTITY - 12
    _load(asm, at, header, 24, otherwise)
    asm.load(R1, R10, header, 1)
    asm.jump(otherwise, "!=", R1, 0x45)
    asm.load(R1, R10, header + 9, 1)
    asm.jump(otherwise, "!=", R1, _UDP)
    asm.load(R1, R10, header + 6, 2)
    asm.jump(otherwise, "&", R1, socket.htons(0x3FFF))
    for offset in range(12, 36, 4):
        asm.store(R10, _IDENTITY + offset, 0, 4)
    asm.store(R10, _KEY + 4, 4, 4)

    asm.label("look")
    if end is None:
        asm.load(R1, R6, _IFINDEX, 4)
        asm.store(R10, _KEY, R1, 4)
    else:
        asm.store(R10, _KEY, end, 4)
    asm.map(R1, map_fd)
    asm.address(R2, _KEY)
    asm.call(_LOOKUP)
    asm.jump(otherwise, "==", R0, 0)


def _load(asm: Assembler, at: int, to: int, size: int, otherwise: str) -> None:
    asm.mov(R1, R6)
    asm.mov(R2, at)
    asm.address(R3, to)
    asm.mov(R4, size)
    asm.call(_LOAD_BYTES)
    asm.jump(otherwise, "!=", R0, 0)


def _end(asm: Assembler, label: str, result: int) -> None:
    asm.label(label)
    asm.mov(R0, result)
    asm.exit()
