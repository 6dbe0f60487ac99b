"""iperf 2 throughput by write size: bridge, native loopback, AppSwitch, and the same iperf over a Unix pair.

Measured with the scheduler free to place client and server, as in the paper, and with both pinned to one
processor: free placement makes runs differ by tens of per cent on small machines, too much to tell 0.95
from 1.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from .bridge import SERVER_ADDRESS, Bridge
from .lab import Lab, free_port, need, wait_listening
from .procs import Unavailable, until
from .switch import Switch, context_switches

CASE = "throughput"
SIZES = {"1 KiB": 1 << 10, "8 KiB": 8 << 10, "64 KiB": 64 << 10, "128 KiB": 128 << 10, "1 MiB": 1 << 20}
FREE, PINNED = "unpinned", "one core"
PLACEMENTS: dict[str, int | None] = {FREE: None, PINNED: 0}
BRIDGE, LOOPBACK, APPSWITCH, UNIX = "veth + bridge", "native loopback", Lab.APPSWITCH, "Unix pair"
TRAPS, SWITCHES, BYTES = "traps", "context switches", "bytes"
SNDBUF = 4 << 20
SERVICE_PORT = 5001

Measure = Callable[[str], float]


def cell_name(size: str, placement: str) -> str:
    """The name of a cell: say "64 KiB, one core"."""
    return f"{size}, {placement}"


def parse_csv(line: str) -> float:
    """Gbit/s from a line of `iperf -y C`: date, 2 addresses with ports, id, interval, bytes, bit/s."""
    fields = line.strip().split(",")
    if len(fields) < 9 or not fields[8].isdigit():
        raise Unavailable(f"iperf reported something unexpected: {line.strip()[:80]!r}")
    return int(fields[8]) / 1e9


@dataclass
class Iperf:
    """A running iperf server and the way to send to it.

    Throughput is taken from the server's report: only what arrived counts.
    """

    lab: Lab
    server: subprocess.Popen[bytes]
    report: Path
    client: Sequence[str]
    env: Mapping[str, str]
    cpu: int | None

    def transfer(self, size: str) -> float:
        """Send for a while in writes of `size` and return Gbit/s."""
        before = len(self._lines())
        seconds = self.lab.settings.transfer_s
        self.lab.procs.run(
            self.command(size, seconds), env=self.env, cpu=self.cpu, seconds=seconds + 15, must_print=True
        )

        def reported() -> str | None:
            if self.server.poll() is not None:
                raise Unavailable("the iperf server ended")
            lines = self._lines()
            return lines[before] if len(lines) > before else None

        return parse_csv(until(reported, "the iperf server's report", 5.0))

    def command(self, size: str, seconds: float) -> list[str]:
        """The client's command line for a write size."""
        return [*self.client, "-l", str(SIZES[size]), "-t", f"{seconds:g}", "-y", "C"]

    def _lines(self) -> list[str]:
        # A line counts when it is complete.
        return [line for line in self.report.read_text().splitlines(keepends=True) if line.endswith("\n")]


def run(lab: Lab) -> None:
    """Measure throughput, and then the traps between connect and close."""
    need("iperf")
    cells = [cell_name(size, placement) for placement in PLACEMENTS for size in SIZES]
    with ExitStack() as stack:
        variants: dict[str, Measure] = {}
        switches: list[Switch] = []
        programs: list[Iperf] = []

        def appswitch(own: ExitStack) -> Measure:
            switch = own.enter_context(lab.switch())
            servers = {place: _appswitch(lab, own, switch, place) for place in PLACEMENTS}
            switches.append(switch)
            programs.append(servers[FREE])
            return _choose(servers)

        lab.offer(variants, CASE, cells, BRIDGE, lambda own: _bridge(lab, own), stack)
        lab.offer(variants, CASE, cells, LOOPBACK, lambda own: _loopback(lab, own), stack)
        lab.offer(variants, CASE, cells, APPSWITCH, appswitch, stack)
        lab.offer(variants, CASE, cells, UNIX, lambda own: _unix_pair(lab, own), stack)
        lab.alternate(CASE, cells, variants, lambda cell, name, taken: lab.results.put(CASE, cell, name, taken))
        for size in list(SIZES)[: lab.settings.trap_sizes]:
            try:
                if not programs:
                    raise Unavailable(lab.results.get(CASE, cells[0], APPSWITCH).reason)
                _count_traps(lab, size, switches[0], programs[0])
            except Unavailable as error:
                lab.results.put(TRAPS, size, TRAPS, reason=str(error))


def _choose(servers: dict[str, Iperf]) -> Measure:
    def measure(cell: str) -> float:
        size, _, placement = cell.partition(", ")
        return servers[placement].transfer(size)

    return measure


def _iperf(
    lab: Lab,
    own: ExitStack,
    name: str,
    placement: str,
    server: Sequence[str],
    client: Sequence[str],
    env: Mapping[str, str] | None = None,
) -> Iperf:
    """Start a server (`-s` and what follows is the caller's) that reports into a file of its own."""
    report = lab.folder / f"iperf-{name}-{placement.replace(' ', '-')}.csv"
    report.touch()
    cpu = PLACEMENTS[placement]
    process = lab.procs.spawn(server, out=report, err=report.with_suffix(".err"), env=env, cpu=cpu)
    own.callback(lab.procs.stop, process)
    return Iperf(lab, process, report, client, env or {}, cpu)


def _loopback(lab: Lab, own: ExitStack) -> Measure:
    servers = {}
    for placement in PLACEMENTS:
        port = free_port()
        server = ["iperf", "-s", "-B", "127.0.0.1", "-p", str(port), "-y", "C"]
        client = ["iperf", "-c", "127.0.0.1", "-p", str(port)]
        servers[placement] = _iperf(lab, own, "loopback", placement, server, client)
        wait_listening(servers[placement].server.pid, port)
    return _choose(servers)


def _bridge(lab: Lab, own: ExitStack) -> Measure:
    net = Bridge(lab.procs)
    servers = {}
    for number, placement in enumerate(PLACEMENTS):
        port = SERVICE_PORT + number
        server = [*net.server, "iperf", "-s", "-p", str(port), "-y", "C"]
        client = [*net.client, "iperf", "-c", SERVER_ADDRESS, "-p", str(port)]
        servers[placement] = _iperf(lab, own, "bridge", placement, server, client)
        wait_listening(servers[placement].server.pid, port)
    return _choose(servers)


def _unix_pair(lab: Lab, own: ExitStack) -> Measure:
    servers = {}
    for number, placement in enumerate(PLACEMENTS):
        path = lab.folder / f"pair{number}.sock"
        env = {"UNIXPAIR_PATH": str(path), "UNIXPAIR_SNDBUF": str(SNDBUF)}
        if lab.shim is None:
            lab.results.notes["unix pair"] = (
                "No C compiler here: the Unix pair was filled and emptied by a Python program instead of "
                "iperf, which is slower at small writes; the ratio to it says little."
            )
            server = [*lab.peer, "sink", str(path)]
            client = [*lab.peer, "source", str(path)]
        else:
            env["LD_PRELOAD"] = str(lab.shim)
            # The shim replaces the sockets at listen() and connect(); the address is only what iperf is told.
            port = str(free_port())
            server = ["iperf", "-s", "-B", "127.0.0.1", "-p", port, "-y", "C"]
            client = ["iperf", "-c", "127.0.0.1", "-p", port]
        servers[placement] = _iperf(lab, own, "unix", placement, server, client, env)
        until(path.exists, "the Unix listener")
    return _choose(servers)


def _appswitch(lab: Lab, own: ExitStack, switch: Switch, placement: str) -> Iperf:
    name = f"bench-iperf-{placement.replace(' ', '-')}"
    port = SERVICE_PORT + list(PLACEMENTS).index(placement)
    server = switch.run("iperf", "-s", "-p", str(port), "-y", "C", name=name)
    client = switch.run("iperf", "-c", name, "-p", str(port))
    iperf = _iperf(lab, own, "appswitch", placement, server, client, switch.env)
    switch.wait_service(name, iperf.server)
    return iperf


def _count_traps(lab: Lab, size: str, switch: Switch, iperf: Iperf) -> None:
    """Count the traps of a second in the middle of a transfer, by the switch's word and by the kernel's.

    A trap wakes a process of the switch, so the context switches of these processes are a second witness.
    They are read between the two questions to the switch, which wake it too.
    """
    client = lab.procs.spawn(iperf.command(size, 4.0), env=iperf.env)
    try:

        def flowing() -> bool:
            if client.poll() is not None:
                raise Unavailable("iperf ended before its traps could be counted")
            return _written(client.pid) >= 16 << 20

        until(flowing, "data in flight")
        pids = list(switch.pids())
        traps_before = switch.traps()
        # The question itself must have died away: the switch is quiet when nothing moves for a moment.
        switches_before = _quiet(pids)
        bytes_before = _written(client.pid)
        try:
            client.wait(1.0)
        except subprocess.TimeoutExpired:
            pass
        moved = _written(client.pid) - bytes_before
        switches_after = context_switches(pids)
        traps_after = switch.traps()
        if client.poll() is not None:
            raise Unavailable("iperf ended before its traps had been counted")
    finally:
        lab.procs.stop(client)
    lab.results.put(TRAPS, size, TRAPS, [traps_after - traps_before])
    lab.results.put(TRAPS, size, SWITCHES, [switches_after - switches_before])
    lab.results.put(TRAPS, size, BYTES, [moved])


def _quiet(pids: list[int]) -> int:
    """Context switches of these processes, read after a tenth of a second without one (or after a second)."""
    seen = context_switches(pids)
    for _ in range(10):
        time.sleep(0.1)
        before, seen = seen, context_switches(pids)
        if before == seen:
            break
    return seen


def _written(pid: int) -> int:
    """Bytes that a process has passed to write(2) (proc_pid_io(5))."""
    try:
        for line in Path(f"/proc/{pid}/io").read_text().splitlines():
            if line.startswith("wchar:"):
                return int(line.split()[1])
    except OSError:
        pass
    if not os.path.exists(f"/proc/{pid}"):
        raise Unavailable("iperf ended before its traps could be counted")
    return 0
