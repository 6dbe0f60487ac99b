"""Which of the features this kernel lacks, found out by trying them, for who brings a switch up and for `status`."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Callable
from contextlib import suppress

from . import bpf_objects, device, features, landlock, libc, namespace, pidfd, seccomp
from .bpf import ALLOW, Assembler
from .features import FEATURES, left_out

_NOBODY = 65534
_PR_SET_DUMPABLE = 4
_NO_ATTACH = "3"
#: Taken to be there: it cannot be told by trying, such as under another seccomp supervisor.
_UNKNOWN = True


def missing() -> dict[str, str]:
    """The missing features and what goes without each, a clause that ends a sentence.

    They are tried in a process of its own, which some of the trials change for good. OSError when none can be had.
    """
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read)
            os.write(write, json.dumps(_try_all()).encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        found = pipe.read()
    with suppress(ChildProcessError):  # the caller ignores SIGCHLD: it is gone by itself
        os.waitpid(pid, 0)
    return dict(json.loads(found)) if found else {}


def _try_all() -> dict[str, str]:
    notify, send, sync = _seccomp()
    there: dict[str, bool] = {
        features.NOTIFY: notify,
        features.ADDFD_SEND: send,
        features.PTRACE: namespace.sysctl("kernel.yama.ptrace_scope") != _NO_ATTACH,
        features.LANDLOCK: landlock.abi() >= landlock.NETWORK,
        features.PASS_RIGHTS: _works(_pass_rights),
        features.SYNC_WAKE_UP: sync,
        features.PIDFD_THREAD: pidfd.threads_can_be_named(),
        features.TUN: _works(device.try_tun),
        features.UDP_OFFLOAD: _works(bpf_objects.try_all),
    }
    found = {name: FEATURES[name].without for name in FEATURES if left_out(name) or not there.get(name, True)}
    refusal = _user_namespaces()
    if refusal:
        found[features.USER_NAMESPACES] = refusal
    return found


def _works(trial: Callable[[], object]) -> bool:
    try:
        trial()
    except OSError:
        return False
    return True


def _seccomp() -> tuple[bool, bool, bool]:
    """Notification, handing over with an answer, and SYNC_WAKE_UP."""
    asm = Assembler()
    asm.ret(ALLOW)
    try:
        listener = seccomp.install(asm.assemble())
    except seccomp.AlreadyFiltered:
        return _UNKNOWN, _UNKNOWN, _UNKNOWN
    except OSError:
        return False, _UNKNOWN, _UNKNOWN
    try:
        seccomp.hand_over(listener, 0, listener, True)
        send = True
    except OSError as error:
        send = error.errno == errno.ENOENT  # there is no such call; EINVAL: nor such a flag
    return True, send, seccomp.prefer_sync_wake_up(listener)


def _pass_rights() -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.setsockopt(socket.SOL_SOCKET, 83, 0)  # SO_PASSRIGHTS


def _user_namespaces() -> str:
    """Why an ordinary user, this one or any, cannot make them; "" when that works."""
    try:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(_NOBODY, _NOBODY, _NOBODY)
            os.setresuid(_NOBODY, _NOBODY, _NOBODY)
            libc.call("prctl", _PR_SET_DUMPABLE, 1, 0, 0, 0)  # else /proc/self stays root's
    except OSError:
        return ""  # it cannot be tried
    try:
        namespace.enter(user=True)
    except namespace.NamespaceError as error:
        return str(error)
    return ""
