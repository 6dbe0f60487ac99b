"""epoll_create(2): made natively; the handler only remembers that the program has epolls (facts for connect())."""

from __future__ import annotations

from ...linux.seccomp import Call
from ..program import Program
from ..worker import Worker


def create(worker: Worker, program: Program, call: Call) -> None:
    program.epolls.made()
    program.proceed(call)
