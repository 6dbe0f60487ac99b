"""Work in a forked child: what it does to itself ends with it."""

from __future__ import annotations

import os
import pickle
import select
import traceback
from collections.abc import Callable
from typing import Any

from appswitch.linux import libc

NOBODY = 65534
AS_ROOT = os.geteuid() == 0


def in_child(work: Callable[..., Any], *args: Any, drop: bool = False) -> Any:
    """What `work` returns in a forked child, as an ordinary user when `drop` says so."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if AS_ROOT and drop:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
                libc.call("prctl", 4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: else /proc/self belongs to root
            outcome = (True, work(*args))
        except BaseException:
            outcome = (False, traceback.format_exc())
        os.write(writer, pickle.dumps(outcome))
        os._exit(0)
    os.close(writer)
    try:
        assert select.select([reader], [], [], 90)[0], "the child does not answer"
        done, value = pickle.loads(os.read(reader, 1 << 20))
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        os.close(reader)
    assert done, value
    return value
