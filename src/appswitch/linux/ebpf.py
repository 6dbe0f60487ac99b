"""An assembler for eBPF (Documentation/bpf/standardization/instruction-set.rst): what the programs here need of it.

Pure but for `lookup`, whose instruction names a map by the descriptor that this process has for it.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

_LDDW, _PSEUDO_MAP_FD = 0x18, 1
_LOAD, _STORE, _STORE_NUMBER, _ATOMIC = 0x61, 0x63, 0x62, 0xC3
_ALU, _JUMP, _REGISTER = 0x07, 0x05, 0x08
_CALL, _EXIT = 0x85, 0x95
_ALU_OPS = {"add": 0x00, "sub": 0x10, "and": 0x50, "mov": 0xB0, "arsh": 0xC0}
_JUMPS = {"always": 0x00, "==": 0x10, "&": 0x40, "!=": 0x50, "s>": 0x60}
_SIZES = {1: 0x10, 2: 0x08, 4: 0x00, 8: 0x18}


class Register(NamedTuple):
    """One of the eleven, each of 64 bits."""

    number: int


#: What calls return; their arguments, which they clobber; what they leave alone; the frame's end.
R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10 = map(Register, range(11))


class Assembler:
    """Instructions in order; a jump's target is a label placed later. Sizes are in bytes."""

    def __init__(self) -> None:
        self._code: list[tuple[int, int, int | str, int]] = []
        self._labels: dict[str, int] = {}

    def label(self, name: str) -> None:
        self._labels[name] = len(self._code)

    def alu(self, what: str, to: Register, by: Register | int) -> None:
        """`to` = `to` add, sub, and, arsh (arithmetic shift right) `by`; or mov: = `by`."""
        self._either(_ALU | _ALU_OPS[what], to, by, 0)

    def mov(self, to: Register, value: Register | int) -> None:
        self.alu("mov", to, value)

    def jump(self, target: str, what: str = "always", this: Register = R0, other: Register | int = 0) -> None:
        """Go on at a label if `this` is ==, != or (signed) s> `other`, or has (&) any bit of it."""
        self._either(_JUMP | _JUMPS[what], this, other, target)

    def load(self, to: Register, base: Register, at: int, size: int) -> None:
        self._put(_LOAD | _SIZES[size], to.number | base.number << 4, at)

    def store(self, base: Register, at: int, value: Register | int, size: int) -> None:
        if isinstance(value, Register):
            self._put(_STORE | _SIZES[size], base.number | value.number << 4, at)
        else:
            self._put(_STORE_NUMBER | _SIZES[size], base.number, at, value)

    def store_bytes(self, base: Register, at: int, data: bytes) -> None:
        """Put constants on the stack, in words as far as they go: `at` is a multiple of four."""
        while data:
            size = next(size for size in (4, 2, 1) if size <= len(data))
            order = {1: "=b", 2: "=h", 4: "=i"}[size]
            self.store(base, at, struct.unpack(order, data[:size])[0], size)
            data, at = data[size:], at + size

    def increment(self, base: Register, at: int, by: Register) -> None:
        """Add to 64 bits of memory, atomically."""
        self._put(_ATOMIC | _SIZES[8], base.number | by.number << 4, at)

    def address(self, to: Register, at: int) -> None:
        """Where something on the stack is: `at` is negative."""
        self.mov(to, R10)
        self.alu("add", to, at)

    def map(self, to: Register, fd: int) -> None:
        """A map of this process's, for calls that take one."""
        self._put(_LDDW, to.number | _PSEUDO_MAP_FD << 4, 0, fd)
        self._put(0, 0, 0)

    def call(self, helper: int) -> None:
        """One of the kernel's functions (bpf-helpers(7)): arguments in R1 to R5, which are lost; result in R0."""
        self._put(_CALL, 0, 0, helper)

    def exit(self) -> None:
        """Return R0."""
        self._put(_EXIT, 0, 0)

    def assemble(self) -> bytes:
        """The program as an array of struct bpf_insn."""
        out = []
        for here, (code, registers, offset, number) in enumerate(self._code):
            at = self._labels[offset] - here - 1 if isinstance(offset, str) else offset
            out.append(struct.pack("=BBhi", code, registers, at, number))
        return b"".join(out)

    def _either(self, code: int, one: Register, other: Register | int, offset: int | str) -> None:
        if isinstance(other, Register):
            self._put(code | _REGISTER, one.number | other.number << 4, offset)
        else:
            self._put(code, one.number, offset, other)

    def _put(self, code: int, registers: int, offset: int | str, number: int = 0) -> None:
        self._code.append((code, registers, offset, number))
