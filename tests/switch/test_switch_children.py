"""The ring of the workers' process ids, and what a child said before it died."""

import os
import socket
from pathlib import Path

from appswitch.switch import wire
from appswitch.switch.children import PidRing, receive, receive_last
from appswitch.trap.delivery import Peers

#: Above every process id that Linux gives (2^22, proc(5)): none is this process's own, which counts as entered.
FIRST = 2**22 + 1


def entered(path: Path) -> set[int]:
    peers = Peers(str(path))
    peers._read()
    return peers._pids - {os.getpid()}


def test_what_a_worker_made_is_known_a_thousand_workers_later(tmp_path: Path) -> None:
    ring = PidRing(str(tmp_path / "pids"))
    for pid in range(FIRST, FIRST + 999):
        ring.add(pid)
    ring = PidRing(str(tmp_path / "pids"), ring.count)
    ring.add(FIRST + 999)
    assert entered(tmp_path / "pids") == set(range(FIRST, FIRST + 1000))


def test_the_newest_takes_the_place_of_the_oldest(tmp_path: Path) -> None:
    ring = PidRing(str(tmp_path / "pids"))
    for pid in range(FIRST, FIRST + 5000):
        ring.add(pid)
    assert entered(tmp_path / "pids") == set(range(FIRST + 5000 - 4096, FIRST + 5000))


def _line() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def test_what_a_child_said_is_heard_though_it_died_with_messages_unread() -> None:
    """The kernel tells of these by ECONNRESET, ahead of what the child had said."""
    ours, its = _line()
    with ours, open(os.devnull) as file:
        for number in range(3):
            wire.send_with_fds(its, b'{"n": %d}' % number, [file.fileno()])
        ours.send(b"unread")
        its.close()
        heard = list(receive_last(ours, "worker-0"))
        assert [message["n"] for message, _ in heard] == [0, 1, 2]
        for _, fds in heard:
            os.close(*fds)


def test_a_child_may_die_while_it_is_heard() -> None:
    ours, its = _line()
    with ours:
        its.send(b'{"n": 0}')
        its.send(b'{"n": 1}')
        ours.send(b"unread")
        words = receive(ours, "worker-0")
        assert next(words) == ({"n": 0}, [])
        its.close()
        assert [message["n"] for message, _ in receive_last(ours, "worker-0")] in ([0, 1], [1])
        words.close()
