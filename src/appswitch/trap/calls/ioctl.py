"""ioctl(2) of interfaces (netdevice(7)): asked of the program's own namespace, never of the host's.

Answered here, not continued: the descriptor could be exchanged meanwhile for one that belongs to the host.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import struct

from ...linux.seccomp import Call
from ...linux.view import release
from ..program import Failure, Program, cookie_of
from ..worker import Worker

SIOCGIFNAME, SIOCGIFCONF, SIOCGIFFLAGS, SIOCGIFADDR = 0x8910, 0x8912, 0x8913, 0x8915
SIOCGIFDSTADDR, SIOCGIFBRDADDR, SIOCGIFNETMASK, SIOCGIFMETRIC = 0x8917, 0x8919, 0x891B, 0x891D
SIOCGIFMTU, SIOCGIFHWADDR, SIOCGIFINDEX, SIOCGIFTXQLEN, SIOCGIFMAP = 0x8921, 0x8927, 0x8933, 0x8942, 0x8970
SIOCGSKNS, SIOCOUTQNSD = 0x894C, 0x894B
_QUERIES = {
    SIOCGIFNAME,
    SIOCGIFFLAGS,
    SIOCGIFADDR,
    SIOCGIFDSTADDR,
    SIOCGIFBRDADDR,
    SIOCGIFNETMASK,
    SIOCGIFMETRIC,
    SIOCGIFMTU,
    SIOCGIFHWADDR,
    SIOCGIFINDEX,
    SIOCGIFTXQLEN,
    SIOCGIFMAP,
}
_IFREQ = 40
_IFCONF = struct.Struct("=i4xQ")


def ioctl(worker: Worker, program: Program, call: Call) -> None:
    sock = program.borrow(call, call.a0)
    try:
        cookie_of(sock)
    except OSError as error:
        raise Failure(errno.ENOTTY if error.errno == errno.ENOTSOCK else errno.EBADF) from None
    finally:
        release(sock)
    request = call.a1 & 0xFFFFFFFF
    if request == SIOCOUTQNSD:
        program.proceed(call)
    elif request == SIOCGIFCONF:
        _configuration(program, call)
    elif request in _QUERIES:
        buffer = bytearray(program.read(call, call.a2, _IFREQ))
        _ask(program, request, buffer)
        program.write(call, call.a2, bytes(buffer))
        program.reply(call)
    else:
        raise Failure(errno.EPERM)


def _configuration(program: Program, call: Call) -> None:
    length, pointer = _IFCONF.unpack(program.read(call, call.a2, _IFCONF.size))
    if length < 0:
        raise Failure(errno.EINVAL)
    buffer = ctypes.create_string_buffer(max(1, min(length, 4096)))
    request = bytearray(_IFCONF.pack(min(length, 4096), ctypes.addressof(buffer) if pointer else 0))
    _ask(program, SIOCGIFCONF, request)
    filled, _ = _IFCONF.unpack(request)
    if pointer:
        program.write(call, pointer, buffer.raw[:filled])
    program.write(call, call.a2, _IFCONF.pack(filled, pointer))
    program.reply(call)


def _ask(program: Program, request: int, buffer: bytearray) -> None:
    """Fill the buffer by a socket of ours in the program's namespace; the kernel's error is the program's."""
    try:
        fcntl.ioctl(next(iter(program.acceptors.values())).fileno(), request, buffer)
    except OSError as error:
        raise Failure(error.errno or errno.EINVAL) from None
