"""The trap generator: turns this process into one whose network calls are trapped, then into the program (paper, 5).

What it needs of the switch comes in as a `Plan`, what the switch needs goes out as a `Handover`: so that anybody
may carry the descriptors. Standard library only, and as little of it as will do: each start of a program waits for it.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from ..linux import arch, landlock, seccomp, sock_diag
from . import filter, surroundings
from .surroundings import Plan

_SHELL = "/bin/sh"
# What CPython ignores from its start on (Python/pylifecycle.c), however it was before.
_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)


class GeneratorError(Exception):
    """The process cannot be put under traps; one sentence that says why and what to do."""


class NotFound(Exception):
    """There is no such command (exit code 127)."""


class NotExecutable(Exception):
    """There is such a file, but it cannot be executed (exit code 126)."""


class Handover(NamedTuple):
    """For the switch: descriptors, in the order of `counts`, and what kind of device is among them."""

    fds: list[int]
    counts: dict[str, int]
    device: dict[str, Any]


def is_nested() -> bool:
    """Is this process under AppSwitch already?"""
    try:
        with open("/proc/self/net/dev", "rb") as devices, open("/proc/self/status", "rb") as status:
            return f"{surroundings.DEVICE}:".encode() in devices.read() and b"\nSeccomp:\t2" in status.read()
    except OSError:
        return False  # no /proc to be seen: the kernel will tell


def check_nested() -> None:
    """GeneratorError when this process is under AppSwitch already: the kernel gives a task one listener only."""
    if is_nested():
        raise GeneratorError(_NESTED)


_NESTED = (
    "`appswitch run` inside a program that is already under AppSwitch (or another seccomp supervisor) cannot work, "
    "for the kernel lets a program have one supervisor only: start this one from outside"
)


def confine(plan: Plan) -> Handover:
    """Make the surroundings and put this process, for good, under the guard and the filter.

    From here on calls such as connect() and getsockname() wait for a worker that has been given the listener;
    sendmsg() and recvmsg() on an open connection do not. GeneratorError when something cannot be had; the process
    is of no use then but to say so.
    """
    if not arch.SUPPORTED:
        raise GeneratorError(f"AppSwitch knows x86_64 and aarch64, not {arch.MACHINE}: run it on such a machine")
    try:
        around = surroundings.build(plan)
        diags = [sock_diag.open_socket().detach() for _ in range(3)]
        landlock.deny_tcp_connect()
    except surroundings.SurroundingsError as error:
        raise GeneratorError(str(error)) from None
    except OSError as error:
        otherwise = "see that Landlock and sock_diag are allowed here, or run appswitch outside of this container"
        raise GeneratorError(
            f"the program cannot be confined ({error.strerror or error}): {surroundings.remedy(error, otherwise)}"
        ) from None
    try:
        listener = seccomp.install(filter.build())
    except seccomp.AlreadyFiltered:
        raise GeneratorError(_NESTED) from None
    except OSError as error:
        raise GeneratorError(
            f"system calls cannot be trapped ({error.strerror}): the kernel must have seccomp user notification "
            "(Linux 5.14 or later), and a container around this must allow seccomp(2)"
        ) from None
    acceptors = [fd for fd in (around.acceptor_v4, around.acceptor_v6, around.acceptor_mapped) if fd >= 0]
    return Handover(
        [listener, around.device_fd, *acceptors, *diags, *around.dns, *around.route],
        {
            "listener": 1,
            "device": 1,
            "acceptors": len(acceptors),
            "diags": len(diags),
            "dns": len(around.dns),
            "route": len(around.route),
        },
        {"kind": around.device_kind, "ifindex": around.device_ifindex},
    )


def find_program(name: str, environ: Mapping[str, str]) -> str:
    """The file that execvp(3) would execute; NotFound or NotExecutable, with a sentence each."""
    if "/" in name:
        if not os.path.exists(name):
            raise NotFound(f"{name}: not found")
        if os.path.isdir(name) or not os.access(name, os.X_OK):
            raise NotExecutable(f"{name}: {'a directory' if os.path.isdir(name) else 'not executable'}")
        return name
    unusable = ""
    for directory in environ.get("PATH", os.defpath).split(os.pathsep):
        path = os.path.join(directory, name)
        if os.path.isfile(path):
            if os.access(path, os.X_OK):
                return path
            unusable = unusable or path
    if unusable:
        raise NotExecutable(f"{unusable}: not executable")
    raise NotFound(f"{name}: not found on PATH")


def inherited_environment() -> dict[bytes, bytes]:
    """The environment as our caller gave it: Python may have added LC_CTYPE for itself (PEP 538)."""
    environment = dict(os.environb)
    if environment.get(b"LC_CTYPE") == b"C.UTF-8":
        try:
            with open("/proc/self/environ", "rb") as file:
                if b"\0LC_CTYPE=" not in b"\0" + file.read():
                    del environment[b"LC_CTYPE"]
        except OSError:
            pass
    return environment


def become(path: str, argv: Sequence[str], environment: Mapping[bytes, bytes]) -> NoReturn:
    """Execute the program in this process, with the signal dispositions that the caller had.

    Of the two signals that Python itself ignores nothing better is known than the default. NotFound or
    NotExecutable when the kernel refuses.
    """
    for number in _IGNORED_BY_PYTHON:
        signal.signal(number, signal.SIG_DFL)
    try:
        try:
            os.execve(path, list(argv), environment)
        except OSError as error:
            if error.errno != errno.ENOEXEC:
                raise
            os.execve(_SHELL, [_SHELL, path, *argv[1:]], environment)  # as execvp(3) does
    except OSError as error:
        if error.errno == errno.ENOENT:
            what = "its interpreter was not found" if os.path.exists(path) else "not found"
            raise NotFound(f"{argv[0]}: {what}") from None
        raise NotExecutable(f"{argv[0]}: {error.strerror}") from None
