"""The ring of the workers' process ids."""

import os
from pathlib import Path

from appswitch.switch.children import PidRing
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
