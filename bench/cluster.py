"""Five hosts: `python -m bench.cluster [--quick] [--only CASE]… [--write DIR]` writes docs/cluster-benchmarks.md.

Hosts are network namespaces on a bridge, those of the tests (tests/support/hosts.py); needs root and a C compiler.
Native TCP is measured between the same two namespaces, in turn with AppSwitch.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from appswitch.model.address import pack
from appswitch.table.store import Table

from . import page
from .lab import HERE, Lab
from .procs import Unavailable, until
from .report import cluster as report
from .stats import quantile
from .switch import command
from .throughput import parse_csv
from .transactions import parse as parse_transactions

sys.path.insert(0, str(HERE.parent / "tests"))

from service.acting import SOURCES, Actor, start_actor
from support.hosts import Host, Hosts
from support.modes import MYSELF

HOSTS = 5
MARKDOWN = "cluster-benchmarks.md"
NATIVE, APPSWITCH = "native", Lab.APPSWITCH
PINNED, UNPINNED = "one core", "unpinned"
PLACEMENTS: dict[str, int | None] = {PINNED: 0, UNPINNED: None}
ROLES = {"blocking": 7000, "polling": 7001, "echo": 7002, "iperf": 5001}
"""What the server's host serves, and where."""
SIZES = {"8 KiB": 8 << 10, "128 KiB": 128 << 10}
_WATCH = 0.0003
"""Seconds between two looks into the tables of all hosts."""
_LONG = 60.0


@dataclass
class Cluster:
    """Five hosts, up and joined, and a look into the service table of each."""

    lab: Lab
    hosts: Hosts
    tables: list[Table] = field(default_factory=list)

    def up(self) -> None:
        """Start the first host's switch, then the others with its token."""
        first, *others = self.hosts
        first.up("--node-interface", "eth0")
        token = first.cli("token").strip()
        self.hosts.at_once(lambda host: host.up("--join", token), others)
        self.await_members(HOSTS)
        self.tables = [Table(f"{host.run_dir}/table", readonly=True) for host in self.hosts]

    def await_members(self, count: int) -> None:
        """Wait until every host that is up knows so many live members."""
        for host in list(self.hosts)[:count]:
            until(lambda host=host: len(host.members("alive")) >= count, "a joined cluster", _LONG, 0.1)  # type: ignore[misc]

    def known(self, vip: bytes, port: int, present: bool, hosts: int = HOSTS) -> list[int]:
        """Monotonic nanoseconds at which each host's table had (or had no more) a row; ends when all have."""
        times = [0] * hosts
        deadline = time.monotonic() + _LONG
        while not all(times):
            for number, table in enumerate(self.tables[:hosts]):
                if not times[number] and bool(table.lookup(vip, port)[0]) == present:
                    times[number] = time.monotonic_ns()
            if time.monotonic() > deadline:
                raise Unavailable(f"a row did not {'come to' if present else 'go from'} every host")
            time.sleep(_WATCH)
        return times

    def close(self) -> None:
        for table in self.tables:
            table.close()
        self.hosts.close()


def propagation(cluster: Cluster, samples: int) -> None:
    """New listeners of the first host, closed ones, and killed programs: until all five tables say so."""
    put = cluster.lab.results.put
    first = cluster.hosts[0]
    vip = pack("10.99.0.1")
    actor = _actor(cluster, first, "10.99.0.1")
    actor("found = {}")
    for name, act, present in (
        ("new listener", "found[{0}] = listen({0})", True),
        ("closed listener", "found.pop({0}).close()", False),
    ):
        taken = []
        for port in range(1000, 1000 + samples):
            began = actor(f"began = time.monotonic_ns(); {act.format(port)}") or actor("began")
            taken.append((max(cluster.known(vip, port, present)) - began) / 1e6)
        put("propagation", name, APPSWITCH, taken)
    actor.close()
    taken = []
    for start in range(0, samples, 10):
        killed = [_actor(cluster, first, "10.99.0.2") for _ in range(min(10, samples - start))]
        for port, one in enumerate(killed, 2000 + start):
            one(f"l = listen({port})")
            cluster.known(pack("10.99.0.2"), port, True)
        for port, one in enumerate(killed, 2000 + start):
            began = time.monotonic_ns()
            one.program.process.kill()
            taken.append((max(cluster.known(pack("10.99.0.2"), port, False)) - began) / 1e6)
            one.close()
    put("propagation", "killed program", APPSWITCH, taken)


def _actor(cluster: Cluster, host: Host, ip: str) -> Actor:
    return start_actor(host, SOURCES, sys.executable, ip=ip)


@dataclass
class Pair:
    """Client and server on two hosts, native and under AppSwitch, one core or free."""

    cluster: Cluster
    cpu: int | None

    @property
    def server(self) -> Host:
        return self.cluster.hosts[1]

    @property
    def client(self) -> Host:
        return self.cluster.hosts[0]

    def _placed(self, argv: Sequence[str]) -> list[str]:
        return list(argv) if self.cpu is None else ["taskset", "-c", str(self.cpu), *argv]

    def serve(self, stack: ExitStack) -> None:
        """Start all servers, native ones at the host's address and others as `peer`, and wait until they serve."""
        if self.cpu is not None:
            for host in (self.client, self.server):
                for pid in host.processes():
                    os.sched_setaffinity(pid, {self.cpu})
        else:
            for host in (self.client, self.server):
                for pid in host.processes():
                    os.sched_setaffinity(pid, range(os.cpu_count() or 1))
        transact = self.cluster.lab.transact
        for role, port in ROLES.items():
            argv = [*transact, "server", "0.0.0.0", str(port), role]
            if role == "iperf":
                argv = ["iperf", "-s", "-p", str(port), "-y", "C"]
            native = self.server.start(self._placed(argv), f"native-{role}", MYSELF)
            stack.callback(native.stop)
            name = f"peer-{role}"
            stack.callback(self.server.run(self._placed(argv), name=name).stop)
            for host in (self.server, self.client):
                host.wait_service(name, port)
            _await_native(self.server, port)

    def run(self, variant: str, argv: Sequence[str]) -> str:
        """Run a client and return what it prints; `{}` in its words is the server's name or address."""
        role = next(role for role, port in ROLES.items() if str(port) in argv)
        where = f"peer-{role}" if variant == APPSWITCH else self.server.address
        words = self._placed([word.format(where) for word in argv])
        if variant == APPSWITCH:
            return self.client.check(words, status=0, timeout=_LONG).stdout
        program = self.client.start(words, "native", MYSELF)
        if program.wait(_LONG):
            raise Unavailable(f"{program}")
        return program.output()


def _await_native(host: Host, port: int) -> None:
    def listening() -> bool:
        lines = host.namespace.do("ss", "-Hltn", f"sport = :{port}").splitlines()
        return bool(lines)

    until(listening, "a native server")


def between_two(cluster: Cluster) -> None:
    """Connect, exchange and throughput from one host to another, in turn with native TCP."""
    lab = cluster.lab
    count = lab.settings.transactions
    for placement, cpu in PLACEMENTS.items():
        pair = Pair(cluster, cpu)
        with ExitStack() as stack:
            pair.serve(stack)
            for number in range(lab.settings.rounds):
                lab.say(f"between two hosts, {placement}: round {number + 1} of {lab.settings.rounds}")
                for variant in (NATIVE, APPSWITCH):
                    _round(pair, placement, variant, count)


def _round(pair: Pair, placement: str, variant: str, count: int) -> None:
    lab, counts = pair.cluster.lab, [str(count // 10), str(count)]

    def add(case: str, cell: str, value: float) -> None:
        cell = f"{cell}, {placement}"
        lab.results.put(case, cell, variant, [*lab.results.get(case, cell, variant).samples, value])

    for role in ("blocking", "polling"):
        taken = parse_transactions(pair.run(variant, [*lab.transact, "client", "{}", str(ROLES[role]), *counts]))
        add("connect", f"{role} server", taken.connect)
        add("transaction", f"{role} server", taken.median)
    lines = pair.run(variant, [*lab.transact, "exchange", "{}", str(ROLES["echo"]), *counts]).split()
    add("exchange", "1 byte each way", quantile([int(line) / 1000 for line in lines], 0.5))
    for size, length in SIZES.items():
        seconds = f"{lab.settings.transfer_s:g}"
        argv = ["iperf", "-c", "{}", "-p", str(ROLES["iperf"]), "-l", str(length), "-t", seconds, "-y", "C"]
        add("throughput", size, parse_csv(pair.run(variant, argv).splitlines()[0]))


def failure(cluster: Cluster, times: int) -> None:
    """A host that is killed as if its power had gone: until its rows are gone from all the others."""
    *_, last = cluster.hosts
    vip = pack("10.99.0.3")
    taken = []
    for _ in range(times):
        actor = _actor(cluster, last, "10.99.0.3")
        actor("l = listen(80)")
        cluster.known(vip, 80, True)
        began = time.monotonic_ns()
        last.kill()
        taken.append((max(cluster.known(vip, 80, False, HOSTS - 1)) - began) / 1e9)
        actor.close()
        token = cluster.hosts[0].cli("token").strip()
        cluster.tables.pop().close()
        last.up("--join", token)
        cluster.tables.append(Table(f"{last.run_dir}/table", readonly=True))
        cluster.await_members(HOSTS)
    cluster.lab.results.put("failure", "killed host", APPSWITCH, taken)


def idle(cluster: Cluster, seconds: float) -> None:
    """What a cluster with nothing to do costs a host: processor time and bytes on the wire."""
    hosts = list(cluster.hosts)
    pids = [host.processes() for host in hosts]
    time.sleep(5.0)  # what came before has died away
    before = [(_cpu_ms(found), _wire_bytes(host)) for host, found in zip(hosts, pids, strict=True)]
    time.sleep(seconds)
    after = [(_cpu_ms(found), _wire_bytes(host)) for host, found in zip(hosts, pids, strict=True)]
    put = cluster.lab.results.put
    put("idle", "CPU", APPSWITCH, [(b[0] - a[0]) / seconds for a, b in zip(before, after, strict=True)])
    put("idle", "sent", APPSWITCH, [(b[1] - a[1]) / seconds for a, b in zip(before, after, strict=True)])


def _cpu_ms(pids: Sequence[int]) -> float:
    """User and system time of processes so far in ms (proc_pid_stat(5), fields 14 and 15)."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return 1000 * ticks / os.sysconf("SC_CLK_TCK")


def _wire_bytes(host: Host) -> int:
    """Bytes that a host has sent, link headers included."""
    lines = host.namespace.do("cat", "/proc/thread-self/net/dev").splitlines()
    [line] = [line for line in lines if line.strip().startswith("eth0:")]
    return int(line.split()[9])


CASES: dict[str, Callable[[Cluster, bool], None]] = {
    "propagation": lambda cluster, quick: propagation(cluster, 10 if quick else 100),
    "between": lambda cluster, quick: between_two(cluster),
    "failure": lambda cluster, quick: failure(cluster, 1 if quick else 5),
    "idle": lambda cluster, quick: idle(cluster, 5 if quick else 60),
}


def main(argv: list[str] | None = None) -> int:
    """Run the cases and write or print the report; exit code 1 when something could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m bench.cluster", description="Benchmarks of a cluster.")
    parser.add_argument("--quick", action="store_true", help="a short, rough run")
    parser.add_argument("--only", action="append", choices=list(CASES), metavar="CASE", help="one case; repeatable")
    parser.add_argument("--write", type=Path, metavar="DIR", help=f"where {MARKDOWN} goes (a whole, full run: docs)")
    args = parser.parse_args(argv)
    if os.geteuid() != 0:
        print("bench: the hosts of a cluster are namespaces on a bridge: run it as root", file=sys.stderr)
        return 1
    target: Path | None = args.write or (None if args.quick or args.only else HERE.parent / "docs")

    def measured(lab: Lab) -> None:
        _measure(lab, args.only or list(CASES), args.quick)

    return page.make(MARKDOWN, target, args.quick, measured, report.markdown)


def _measure(lab: Lab, cases: Sequence[str], quick: bool) -> None:
    cluster = Cluster(lab, Hosts(HOSTS, lambda person: Path(command())))
    try:
        cluster.up()
        for case in cases:
            lab.say(f"{case} …")
            try:
                CASES[case](cluster, quick)
            except (Unavailable, AssertionError) as error:
                lab.results.put(case, "all", APPSWITCH, reason=str(error))
    finally:
        cluster.close()


if __name__ == "__main__":
    sys.exit(main())
