"""When five hosts notice that one dies, hangs, is slow or cut off.

`python -m bench.detection [--timings KIND] [--runs N] [CASE]…` prints what docs/cluster.md tells: of each figure the
median of all runs, and the smallest and the largest (inf: not within two minutes). Each run has a cluster of its own.
Hosts are network namespaces on a bridge, those of the tests; needs root.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from appswitch.table.store import Table

from .lab import HERE
from .switch import command

sys.path.insert(0, str(HERE.parent / "tests"))

from support.delay import delaying
from support.hosts import Host, Hosts

_COUNT, _LONG, _WATCH = 5, 120.0, 0.01

Figures = dict[str, float]


class Scene:
    """The hosts; `last` is the one that something happens to."""

    def __init__(self, timings: str) -> None:
        self.hosts = Hosts(_COUNT, lambda person: Path(command()))
        self.hosts.up("--timings", timings)
        *self.others, self.last = self.hosts
        self._tables = {host: Table(str(host.run_dir / "table"), readonly=True) for host in self.hosts}

    def sees(self, host: Host, other: Host) -> str:
        return next(
            (row["state"] for row in self._tables[host].members().values() if row["address"] == other.address), "-"
        )

    def seconds(
        self, what: str, state: str, since: float, by: list[Host] | None = None, of: Host | None = None
    ) -> Figures:
        """From `since` until the first, and until the last, of these (the others) sees the host in a state."""
        waiting = dict.fromkeys(by or self.others)
        first = last = math.inf
        while waiting and (now := time.monotonic() - since) <= _LONG:
            for host in [host for host in waiting if self.sees(host, of or self.last) == state]:
                first = min(first, now)
                del waiting[host]
                last = math.inf if waiting else now
            time.sleep(_WATCH)
        return {f"{what}, first (s)": first, f"{what}, last (s)": last}

    def deaths(self, seconds: float) -> Figures:
        """How many times anybody takes another for dead, and for suspect, in so long."""
        found = {"failed": 0, "suspect": 0}
        before: dict[tuple[Host, Host], str] = {}
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for host in self.hosts:
                for other in self.hosts:
                    state = self.sees(host, other)
                    if state != before.get((host, other)) and state in found:
                        found[state] += 1
                    before[host, other] = state
            time.sleep(5 * _WATCH)
        return {f"times {state} in {seconds:g} s": float(count) for state, count in found.items()}

    def close(self) -> None:
        for table in self._tables.values():
            table.close()
        self.hosts.close()


def kill(scene: Scene) -> Figures:
    scene.last.kill()
    return scene.seconds("failed", "failed", time.monotonic())


def down(scene: Scene) -> Figures:
    start = time.monotonic()
    scene.last.control("down")
    return scene.seconds("left", "left", start)


@contextlib.contextmanager
def _stopped(pids: list[int]) -> Iterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def hang(scene: Scene) -> Figures:
    with _stopped(scene.last.processes()):
        noticed = scene.seconds("failed", "failed", time.monotonic())
    return noticed | scene.seconds("going on: alive again", "alive", time.monotonic())


def short_hang(scene: Scene) -> Figures:
    """Shorter than what takes it to be declared dead."""
    with _stopped(scene.last.processes()):
        time.sleep(2.0)
    return scene.deaths(15)


def slow(scene: Scene) -> Figures:
    with delaying(scene.last.namespace, 0.05, 0.15):
        return scene.deaths(60)


def slower(scene: Scene) -> Figures:
    with delaying(scene.last.namespace, 0.4, 0.8):
        return scene.deaths(60)


def loss(scene: Scene) -> Figures:
    for host in scene.hosts:
        host.namespace.drop("numgen random mod 100 < 30")
    return scene.deaths(60)


def one_pair(scene: Scene) -> Figures:
    scene.last.namespace.drop(f"ip saddr {scene.others[0].address}")
    return scene.deaths(60)


def deaf(scene: Scene) -> Figures:
    scene.last.namespace.drop("meta l4proto { tcp, udp }")
    start = time.monotonic()
    return scene.seconds("failed", "failed", start) | _all_dead(scene, start)


def mute(scene: Scene) -> Figures:
    for host in scene.others:
        host.namespace.drop(f"ip saddr {scene.last.address}")
    start = time.monotonic()
    return scene.seconds("failed", "failed", start) | _all_dead(scene, start)


def _all_dead(scene: Scene, start: float) -> Figures:
    """Until the host itself takes all the others for dead."""
    found = [scene.seconds("", "failed", start, [scene.last], other) for other in scene.others]
    return {"it takes the last other for dead (s)": max(*(max(one.values()) for one in found))}


def split(scene: Scene) -> Figures:
    near, far = scene.others[:2], [*scene.others[2:], scene.last]
    scene.hosts.split(near, far)
    start = time.monotonic()
    found = [scene.seconds("", "failed", start, near, other) for other in far]
    scene.hosts.heal()
    start = time.monotonic()
    healed = [scene.seconds("", "alive", start, near, other) for other in far]
    return {
        "two have lost all three (s)": max(*(max(one.values()) for one in found)),
        "healed: all alive (s)": max(*(max(one.values()) for one in healed)),
    }


CASES: dict[str, Callable[[Scene], Figures]] = {
    case.__name__: case for case in (kill, down, hang, short_hang, slow, slower, loss, one_pair, deaf, mute, split)
}


def measure(name: str, timings: str) -> Figures:
    """One run of a case."""
    scene = Scene(timings)
    try:
        return CASES[name](scene)
    finally:
        for host in scene.hosts:
            host.namespace.pass_all()
        scene.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--timings", default="lan")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("cases", nargs="*", choices=[*CASES, []])
    arguments = parser.parse_args()
    for name in arguments.cases or CASES:
        runs = [measure(name, arguments.timings) for _ in range(arguments.runs)]
        for figure in runs[0]:
            all_of_it = [run[figure] for run in runs]
            middle, least, most = statistics.median(all_of_it), min(all_of_it), max(all_of_it)
            print(f"{arguments.timings}, {name}, {figure}: {middle:.1f} ({least:.1f} to {most:.1f})", flush=True)


if __name__ == "__main__":
    main()
