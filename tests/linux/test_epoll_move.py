"""epoll.move: what is registered under a number in a program's epoll is exchanged for another file."""

import gc
import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from appswitch.linux import epoll, procfs
from appswitch.table.store import Table


@pytest.fixture
def program() -> Iterator[tuple[select.epoll, int, int]]:
    """What a program would have: (an epoll, the socket registered in it, one to take its place, with data waiting)."""
    (old, _), (new, other) = pairs = socket.socketpair(), socket.socketpair()
    other.send(b"x")
    poll = select.epoll()
    yield poll, old.fileno(), new.fileno()
    poll.close()
    for pair in pairs:
        for sock in pair:
            sock.close()


def register(poll: select.epoll, number: int, fd: int) -> None:
    """As a program does that has `fd` at `number`; its table is not ours."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.dup2(fd, number)
            poll.register(number, select.EPOLLIN)
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0


def test_the_new_file_reports_and_our_own_numbers_stay(program: tuple[select.epoll, int, int]) -> None:
    poll, old, new = program
    with open(os.devnull, "rb") as ours:
        gc.collect()  # or what earlier tests have left is closed meanwhile
        for number in (ours.fileno(), 999):
            before = sorted(os.listdir("/proc/self/fd"))
            register(poll, number, old)
            epoll.move(poll.fileno(), number, old, new, select.EPOLLIN, 4711)
            assert poll.poll(1) == [(4711, select.EPOLLIN)]
            assert sorted(os.listdir("/proc/self/fd")) == before
            epoll.move(poll.fileno(), number, new, old, select.EPOLLIN, 4711)
            assert poll.poll(0) == []
        assert os.path.samestat(os.fstat(ours.fileno()), os.stat(os.devnull))


_OPEN = "import sys; from appswitch.table.store import Table as T; T(sys.argv[1]).close()"


def test_the_table_s_locks_outlive_a_move_at_its_number(
    program: tuple[select.epoll, int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing any descriptor of a file gives up all record locks on it (fcntl(2)); LMDB trusts in one."""
    poll, old, new = program
    table = Table(str(tmp_path))
    numbers = procfs.descriptors_below("self", str(tmp_path.resolve()))
    monkeypatch.setattr(epoll, "never_lent", set(numbers))
    for number in numbers:
        register(poll, number, old)
        epoll.move(poll.fileno(), number, old, new, select.EPOLLIN, number)
        assert poll.poll(1) == [(number, select.EPOLLIN)]
        epoll.move(poll.fileno(), number, new, old, select.EPOLLIN, number)
        subprocess.run([sys.executable, "-c", _OPEN, str(tmp_path)], check=True)
        assert table.lookup(bytes(16), 80) == ([], False)
    table.close()
