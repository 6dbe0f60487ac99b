"""When five hosts notice that one dies, hangs, is slow or cut off: `python -m bench.detection [--timings KIND] [CASE]…`

Prints what docs/cluster.md tells. Hosts are network namespaces on a bridge, those of the tests; needs root.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
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

    def seconds(self, state: str, since: float, by: list[Host] | None = None, of: Host | None = None) -> str:
        """From `since` until the first, and until the last, of these (the others) sees the host in a state."""
        waiting = dict.fromkeys(by or self.others)
        first = ""
        while waiting:
            now = time.monotonic() - since
            if now > _LONG:
                return f"{first or 'nobody'} … not all within {_LONG:g} s"
            for host in [host for host in waiting if self.sees(host, of or self.last) == state]:
                first = first or f"{now:.1f}"
                del waiting[host]
            time.sleep(_WATCH)
        return f"{first} to {now:.1f} s"

    def deaths(self, seconds: float) -> str:
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
        return f"in {seconds:g} s {found['failed']} times failed, {found['suspect']} times suspect"

    def close(self) -> None:
        for table in self._tables.values():
            table.close()
        self.hosts.close()


def kill(scene: Scene) -> str:
    scene.last.kill()
    return scene.seconds("failed", time.monotonic())


def down(scene: Scene) -> str:
    start = time.monotonic()
    scene.last.control("down")
    return scene.seconds("left", start)


@contextlib.contextmanager
def _stopped(pids: list[int]) -> Iterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def hang(scene: Scene) -> str:
    with _stopped(scene.last.processes()):
        noticed = scene.seconds("failed", time.monotonic())
    return f"{noticed}; it goes on, and lives for all again after {scene.seconds('alive', time.monotonic())}"


def short_hang(scene: Scene) -> str:
    """Shorter than what takes it to be declared dead."""
    with _stopped(scene.last.processes()):
        time.sleep(2.0)
    return scene.deaths(15)


def slow(scene: Scene) -> str:
    with delaying(scene.last.namespace, 0.05, 0.15):
        return scene.deaths(60)


def slower(scene: Scene) -> str:
    with delaying(scene.last.namespace, 0.4, 0.8):
        return scene.deaths(60)


def loss(scene: Scene) -> str:
    for host in scene.hosts:
        host.namespace.drop("numgen random mod 100 < 30")
    return scene.deaths(60)


def one_pair(scene: Scene) -> str:
    scene.last.namespace.drop(f"ip saddr {scene.others[0].address}")
    return scene.deaths(60)


def deaf(scene: Scene) -> str:
    scene.last.namespace.drop("meta l4proto { tcp, udp }")
    start = time.monotonic()
    return f"{scene.seconds('failed', start)}; it takes the last of the others for dead after {_all_dead(scene, start)}"


def mute(scene: Scene) -> str:
    for host in scene.others:
        host.namespace.drop(f"ip saddr {scene.last.address}")
    start = time.monotonic()
    return f"{scene.seconds('failed', start)}; it takes the last of the others for dead after {_all_dead(scene, start)}"


def _all_dead(scene: Scene, start: float) -> str:
    for other in scene.others:
        found = scene.seconds("failed", start, [scene.last], other)
    return found


def split(scene: Scene) -> str:
    near, far = scene.others[:2], [*scene.others[2:], scene.last]
    scene.hosts.split(near, far)
    noticed = scene.seconds("failed", time.monotonic(), near)
    scene.hosts.heal()
    return f"{noticed}; healed for all after {scene.seconds('alive', time.monotonic(), near)}"


CASES: dict[str, Callable[[Scene], str]] = {
    case.__name__: case for case in (kill, down, hang, short_hang, slow, slower, loss, one_pair, deaf, mute, split)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--timings", default="lan")
    parser.add_argument("cases", nargs="*", choices=[*CASES, []])
    arguments = parser.parse_args()
    for name in arguments.cases or CASES:
        scene = Scene(arguments.timings)
        try:
            print(f"{arguments.timings}, {name}: {CASES[name](scene)}", flush=True)
        finally:
            for host in scene.hosts:
                host.namespace.pass_all()
            scene.close()


if __name__ == "__main__":
    main()
