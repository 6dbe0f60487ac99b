"""The ring of the workers' process ids."""

import os
from pathlib import Path

from appswitch.switch.children import PidRing
from appswitch.trap.delivery import Peers


def entered(path: Path) -> set[int]:
    peers = Peers(str(path))
    peers._read()
    return peers._pids - {os.getpid()}


def test_what_a_worker_made_is_known_a_thousand_workers_later(tmp_path: Path) -> None:
    ring = PidRing(str(tmp_path / "pids"))
    for pid in range(1, 1000):
        ring.add(pid)
    ring = PidRing(str(tmp_path / "pids"), ring.count)
    ring.add(1000)
    assert entered(tmp_path / "pids") == set(range(1, 1001))


def test_the_newest_takes_the_place_of_the_oldest(tmp_path: Path) -> None:
    ring = PidRing(str(tmp_path / "pids"))
    for pid in range(1, 5001):
        ring.add(pid)
    assert entered(tmp_path / "pids") == set(range(5001 - 4096, 5001))
