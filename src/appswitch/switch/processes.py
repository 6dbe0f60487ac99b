"""Processes of the switch: forked, named, awaited and ended."""

from __future__ import annotations

import gc
import logging
import os
import signal
from collections.abc import Callable, Iterable

from ..linux import libc

log = logging.getLogger("appswitch.supervisor")

_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15


def set_process_name(name: str) -> None:
    """What ps -o comm shows of this process; at most 15 bytes."""
    libc.call("prctl", _PR_SET_NAME, name.encode()[:15] + b"\0", 0, 0, 0)


def reap(pid: int) -> str:
    """How a process ended that has, in words."""
    try:
        ended = os.waitid(os.P_PID, pid, os.WEXITED)
    except ChildProcessError:
        return "ended"  # somebody else's child
    assert ended is not None
    if ended.si_code == os.CLD_EXITED:
        return f"exited with code {ended.si_status}"
    return f"was ended by signal {ended.si_status} ({signal.strsignal(ended.si_status)})"


def kill(pidfd: int) -> None:
    """SIGKILL to a process, which may have ended."""
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        pass  # and somebody else, whose child it was, has heard of it


def fork(
    name: str,
    body: Callable[[], object],
    keep: Iterable[int],
    forget: Callable[[], None],
    orphaned: signal.Signals | None = None,
    close_last: int = -1,
) -> int:
    """Fork a process that runs `body` and exits; returns its process id. OSError when there can be none.

    In the child only the standard descriptors and `keep` stay open. `forget` must make every object there that
    would close a descriptor let go of it: the numbers will soon be other files'. `orphaned`: what ends it when this
    process dies. `close_last`: the descriptor to be closed after all others.
    """
    parent = os.getpid()
    gc.collect()  # no garbage that closes descriptors later, in the child
    pid = os.fork()
    if pid:
        return pid
    gc.freeze()  # no copies of shared pages for the collector's marks; and less to be looked through at the next fork
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C on a foreground switch is the supervisor's
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        if orphaned is not None:
            libc.call("prctl", _PR_SET_PDEATHSIG, orphaned, 0, 0, 0)
        if orphaned is None or os.getppid() == parent:
            forget()
            close_others({0, 1, 2, *keep, close_last})
            if close_last >= 0:
                os.close(close_last)
            set_process_name(name)
            body()
            code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        log.exception("%s failed", name)
    os._exit(code)


def close_others(keep: set[int]) -> None:
    """Close all of this process's descriptors but these."""
    for text in os.listdir("/proc/self/fd"):
        if int(text) not in keep:
            try:
                os.close(int(text))
            except OSError:
                pass  # the listing's own
