"""Another process's memory, by process_vm_readv(2) and process_vm_writev(2): page protection is respected."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct

from . import seccomp

_SIZE = 4096


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


_buffer = ctypes.create_string_buffer(_SIZE)
_local = _Vector(ctypes.addressof(_buffer), 0)
_local_p = ctypes.byref(_local)
_remotes = (_Vector * 2)()
_remotes_p = ctypes.byref(_remotes)
_one, _two = _remotes
# For reading: our struct iovec and the other's, filled in one step.
_PAIR = struct.Struct("@PNPN")
_pair = ctypes.create_string_buffer(_PAIR.size)
_pair_ours, _base = ctypes.addressof(_pair), ctypes.addressof(_buffer)
_pair_other = _pair_ours + ctypes.sizeof(_Vector)
_fill = _PAIR.pack_into
_ID = struct.Struct("Q")
_call = bytearray(_ID.size)
_view = memoryview(_buffer).cast("B")
# Without errno: whatever is wrong with the memory is EFAULT.
_readv = ctypes.CDLL(None).process_vm_readv
_writev = ctypes.CDLL(None).process_vm_writev
for _function in (_readv, _writev):
    _function.argtypes = (
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_ulong,
        ctypes.c_void_p,
        ctypes.c_ulong,
        ctypes.c_ulong,
    )
    _function.restype = ctypes.c_ssize_t


def read(tid: int, address: int, length: int) -> bytes:
    """Exactly `length` bytes (at most 4096); OSError EFAULT when they are not all there."""
    if length == 0:
        return b""
    if length > _SIZE:
        raise ValueError(length)
    _fill(_pair, 0, _base, length, address, length)
    if _readv(tid, _pair_ours, 1, _pair_other, 1, 0) != length:
        raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
    return bytes(_view[:length])


def write(
    tid: int, listener: int, call_id: int, address: int, data: bytes, address2: int = 0, data2: bytes = b""
) -> None:
    """All of `data`, and of `data2` at a second place (at most 4096 bytes in all), for a call that still waits.

    OSError EFAULT when there is no such memory, ENOENT when the call is gone: then its thread goes on, and uses that
    memory for something else. Nothing can make the question and the writing one step (seccomp_unotify(2)); they
    follow each other as closely as Python lets them.
    """
    middle, length = len(data), len(data) + len(data2)
    _view[:middle] = data
    _view[middle:length] = data2
    _local.length = length
    _one.base, _one.length = address, middle
    _two.base, _two.length = address2, length - middle
    writev, local, remotes = _writev, _local_p, _remotes_p
    call = _call
    _ID.pack_into(call, 0, call_id)
    fcntl.ioctl(listener, seccomp.ID_VALID, call)
    if writev(tid, local, 1, remotes, 2, 0) != length:
        raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
