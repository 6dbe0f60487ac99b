"""A small assembler for classic BPF as seccomp(2) takes it: labels, forward jumps, 64-bit-safe argument loads."""

from __future__ import annotations

import struct
import sys

# bpf_common.h
_LD_ABS, _JEQ, _JGE, _JSET, _AND, _RET = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06

# seccomp.h: what a filter answers
ALLOW = 0x7FFF0000
NOTIFY = 0x7FC00000
ERRNO = 0x00050000

# struct seccomp_data
_NR, _ARCH, _ARGS = 0, 4, 16
_LOW = 0 if sys.byteorder == "little" else 4


class Assembler:
    """Instructions in order; a jump target is a label placed later. At most 255 instructions between them."""

    def __init__(self) -> None:
        self._code: list[tuple[int, str | int, str | int, int]] = []
        self._labels: dict[str, int] = {}
        self._fresh = 0

    def new_label(self) -> str:
        self._fresh += 1
        return f".{self._fresh}"

    def label(self, name: str) -> None:
        self._labels[name] = len(self._code)

    def load_nr(self) -> None:
        self._code.append((_LD_ABS, 0, 0, _NR))

    def load_arch(self) -> None:
        self._code.append((_LD_ABS, 0, 0, _ARCH))

    def load_arg(self, index: int) -> None:
        """The lower 32 bits of an argument: all that the kernel reads of an int."""
        self._code.append((_LD_ABS, 0, 0, _ARGS + 8 * index + _LOW))

    def mask(self, value: int) -> None:
        self._code.append((_AND, 0, 0, value))

    def jump_equal(self, value: int, yes: str | int = 0, no: str | int = 0) -> None:
        self._code.append((_JEQ, yes, no, value & 0xFFFFFFFF))

    def jump_at_least(self, value: int, yes: str | int = 0, no: str | int = 0) -> None:
        self._code.append((_JGE, yes, no, value & 0xFFFFFFFF))

    def jump_any_bit(self, value: int, yes: str | int = 0, no: str | int = 0) -> None:
        self._code.append((_JSET, yes, no, value & 0xFFFFFFFF))

    def ret(self, action: int) -> None:
        self._code.append((_RET, 0, 0, action))

    def fail(self, errno: int) -> None:
        self.ret(ERRNO | errno)

    def assemble(self) -> bytes:
        """The program as an array of struct sock_filter."""
        out = []
        for here, (code, yes, no, value) in enumerate(self._code):
            offsets = []
            for target in (yes, no):
                offset = self._labels[target] - here - 1 if isinstance(target, str) else target
                if not 0 <= offset <= 255:
                    raise ValueError(f"jump of {offset} instructions to {target!r} is out of reach")
                offsets.append(offset)
            out.append(struct.pack("HBBI", code, offsets[0], offsets[1], value))
        return b"".join(out)
