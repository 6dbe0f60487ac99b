"""Trapped calls in words, as strace(1) has them. Pure: what was read and written comes in as bytes."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Callable

from ...linux import sockaddr
from ...linux.arch import NUMBERS
from ...linux.seccomp import Call
from ...model.address import show
from ..calls import ioctl
from ..program import as_int

Name = Callable[[bytes], str | None]
"""Gives the name that a virtual IP stands for."""

NAMES = {number: name for name, number in NUMBERS.items()}
#: Calls whose first argument points to an address that the program gives.
TAKES_ADDRESS = {NUMBERS[name] for name in ("connect", "bind")}
SETSOCKOPT, CONNECT = NUMBERS["setsockopt"], NUMBERS["connect"]

_RETURNS_ADDRESS = ("accept", "accept4", "getsockname", "getpeername")
_LEVELS = {
    socket.SOL_SOCKET: ("SOL_SOCKET", "SO_"),
    socket.IPPROTO_TCP: ("IPPROTO_TCP", "TCP_"),
    socket.IPPROTO_IP: ("IPPROTO_IP", "IP_"),
    socket.IPPROTO_IPV6: ("IPPROTO_IPV6", "IPV6_"),
}
_NO_OPTIONS = ("SO_J1939_", "SO_VM_", "IP_DEFAULT_", "IP_MAX_", "IPV6_RTHDR_TYPE_")
# Reversed, for of two names with one number the first in order of the alphabet is the usual one.
_OPTIONS = {
    (level, value): name
    for level, (_, prefix) in _LEVELS.items()
    for name, value in sorted(vars(socket).items(), reverse=True)
    if name.startswith(prefix) and isinstance(value, int) and not name.startswith(_NO_OPTIONS)
}
_OPTIONS |= {(socket.SOL_SOCKET, value): name for value, name in ((3, "SO_TYPE"), (4, "SO_ERROR"), (57, "SO_COOKIE"))}
_REQUESTS = {value: name for name, value in vars(ioctl).items() if name.startswith("SIOC")}
_ACCEPT_FLAGS = {int(socket.SOCK_NONBLOCK): "SOCK_NONBLOCK", int(socket.SOCK_CLOEXEC): "SOCK_CLOEXEC"}
_EPOLL_CLOEXEC = os.O_CLOEXEC
_HEX_SHOWN = 16


def call_text(call: Call, given: bytes, written: bytes, name_of: Name) -> str:
    """The call with its arguments; `given` and `written` is what it points to, and what was put there."""
    name = NAMES.get(call.nr, f"syscall {call.nr}")
    words = [str(as_int(call.a0))]
    if name in ("connect", "bind"):
        words.append(_address(given, name_of))
    elif name in _RETURNS_ADDRESS:
        if call.a1:
            words.append(_address(written, name_of) if written else "...")
        if name == "accept4" and call.a3:
            words.append(_flags(as_int(call.a3)))
    elif name == "listen":
        words.append(str(as_int(call.a1)))
    elif name in ("setsockopt", "getsockopt"):
        level, option = as_int(call.a1), as_int(call.a2)
        words.append(_LEVELS[level][0] if level in _LEVELS else str(level))
        words.append(_OPTIONS.get((level, option), str(option)))
        words.append(_value(given if name == "setsockopt" else written))
    elif name == "ioctl":
        request = call.a1 & 0xFFFFFFFF
        words.append(_REQUESTS.get(request, f"{request:#x}"))
    elif name == "epoll_create1":
        words = ["EPOLL_CLOEXEC" if as_int(call.a0) == _EPOLL_CLOEXEC else words[0]]
    return f"{name}({', '.join(words)})"


def error_text(code: int) -> str:
    """What a call that fails with this errno returns."""
    return f"-1 {errno.errorcode.get(code, code)} ({os.strerror(code)})"


def address_of(raw: bytes) -> tuple[bytes, int] | None:
    """(address, port) of an IPv4 or IPv6 socket address; None when it is none, or not whole."""
    family = int.from_bytes(raw[:2], "little")
    smallest = sockaddr.IN_SIZE if family == socket.AF_INET else sockaddr.IN6_MINIMUM
    if family not in (socket.AF_INET, socket.AF_INET6) or len(raw) < smallest:
        return None
    return sockaddr.decode(raw.ljust(sockaddr.IN6_SIZE, b"\0"))


def _address(raw: bytes, name_of: Name) -> str:
    found = address_of(raw)
    if found is not None:
        name = name_of(found[0])
        return show(*found) + (f' "{name}"' if name else "")
    family = int.from_bytes(raw[:2], "little")
    if len(raw) >= 2 and family == socket.AF_UNSPEC:
        return "AF_UNSPEC"
    if family == socket.AF_UNIX:
        path = raw[2:].split(b"\0", 1)[0] if raw[2:3] != b"\0" else b"@" + raw[3:].rstrip(b"\0")
        return json.dumps(path.decode(errors="backslashreplace"))
    return _hex(raw)


def _flags(value: int) -> str:
    words = [word for bit, word in _ACCEPT_FLAGS.items() if value & bit]
    if rest := value & ~sum(_ACCEPT_FLAGS):
        words.append(f"{rest:#x}")
    return "|".join(words)


def _value(raw: bytes) -> str:
    return str(int.from_bytes(raw, "little", signed=True)) if len(raw) == 4 else _hex(raw)


def _hex(raw: bytes) -> str:
    return raw[:_HEX_SHOWN].hex() + ("..." if len(raw) > _HEX_SHOWN else "") if raw else "..."
