"""Hosts of a test's own: network namespaces on a bridge, each with a switch, as a cluster has them.

Nothing of it has a name in the system and nothing is in the host's own namespace: a namespace lives as long as a
descriptor of this process or a process inside, and takes its devices with it. The machine's hostname and
/etc/machine-id are the same on all of them. Needs root.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from .modes import MODES, Mode, Person
from .needs import need
from .program import DEADLINE, Program, wait_until
from .switch import Row, Switch, watch

T = TypeVar("T")

PATIENCE = 60.0
"""Seconds for what takes gossip several of its periods, such as giving a dead host up; far more than it needs."""

_CLONE_NEWNET = 0x40000000
_NAMESPACE = "/proc/thread-self/ns/net"


GOSSIP = tuple(f"meta l4proto {{ tcp, udp }} th {port} 7942" for port in ("dport", "sport"))
"""Rules for `drop`: all that other hosts say, and what they answer on connections of this host's own."""

class Namespace:
    """A network namespace with `lo` up."""

    def __init__(self) -> None:
        def enter_new_one() -> int:
            _system_call("unshare", _CLONE_NEWNET)
            return os.open(_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC)

        self._fd = _in_thread(enter_new_one)
        self.path = f"/proc/{os.getpid()}/fd/{self._fd}"
        # Addresses are there at once, without duplicate address detection (RFC 4862, 5.4).
        for which in ("all", "default"):
            self.sysctl(f"net/ipv6/conf/{which}/accept_dad", 0)
        self.ip("link set lo up")

    def close(self) -> None:
        """Let go of it; it ends when nothing runs in it any more."""
        os.close(self._fd)

    def enter(self, person: Person | None = None) -> list[str]:
        """What a command that is to run in here begins with; the same process becomes it."""
        words = [need("nsenter"), f"--net={self.path}"]
        if person is not None and person.uid != os.geteuid():
            words += [f"--setuid={person.uid}", f"--setgid={person.gid}"]
        return [*words, "--"]

    def call(self, function: Callable[[], T]) -> T:
        """What a function gives whose thread is in here; sockets that it makes stay in here."""

        def inside() -> T:
            _system_call("setns", self._fd, _CLONE_NEWNET)
            return function()

        return _in_thread(inside)

    def do(self, *argv: str, text: str | None = None) -> str:
        """Run a command in here, which must succeed; what it prints."""
        done = subprocess.run([*self.enter(), *argv], input=text, capture_output=True, text=True, timeout=DEADLINE)
        assert done.returncode == 0, f"{' '.join(argv)}: exit code {done.returncode}\n{done.stderr}"
        return done.stdout

    def ip(self, words: str) -> str:
        """Run ip(8)."""
        return self.do(need("ip"), *words.split())

    def sysctl(self, name: str, value: object) -> None:
        """Set one of the namespace's own settings, such as net/ipv4/tcp_fastopen."""
        # Which namespace's /proc/sys shows is decided by who opens the file.
        self.call(lambda: Path("/proc/sys", name).write_text(str(value)))

    def drop(self, *rules: str, verdict: str = "drop") -> None:
        """Drop what comes in and matches one of these nft(8) rules, such as `ip saddr 10.77.0.2`; counted.

        Another verdict: say `reject with tcp reset`. Rules of an earlier call are gone.
        """
        lines = ["table inet lab {", " chain arrivals {", "  type filter hook input priority filter; policy accept;"]
        lines += [f"  {rule} counter {verdict}" for rule in rules]
        self.do(need("nft"), "-f", "-", text="\n".join([*self._emptied(), *lines, " }", "}"]))

    def dropped(self) -> int:
        """How many packets the rules have dropped or refused."""
        words = self.do(need("nft"), "list", "table", "inet", "lab").split()
        return sum(int(number) for word, number in pairwise(words) if word == "packets")

    def pass_all(self) -> None:
        """No more dropping."""
        self.do(need("nft"), "-f", "-", text="\n".join(self._emptied()))

    def _emptied(self) -> list[str]:
        # Declared first, for what is not there cannot be deleted.
        return ["table inet lab", "delete table inet lab"]


class Host(Switch):
    """One host: a namespace and a switch whose run directory is its own; commands and programs run inside."""

    def __init__(
        self,
        number: int,
        mode: Mode,
        command: Callable[[Person], Path],
        env: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(mode, command, env)
        self.number = number
        self.namespace = Namespace()
        self.addresses: list[str] = []
        """Its addresses on the networks that it is on, in the order of `eth0`, `eth1` …"""
        self._port: Namespace | None = None
        self._killed = False

    @property
    def address(self) -> str:
        """Its address on its first network."""
        return self.addresses[0]

    def __repr__(self) -> str:
        return f"host {self.number} ({', '.join(self.addresses)})"

    def start(
        self,
        argv: Sequence[str],
        label: str,
        person: Person,
        env: Mapping[str, str] | None = None,
        **popen: Any,
    ) -> Program:
        # nsenter needs root to enter; it changes the user itself.
        root = {"user": None, "group": None, "extra_groups": None}
        return super().start([*self.namespace.enter(person), *argv], label, person, env, **(root | popen))

    # The switch and its cluster.

    def up(self, *options: str, env: Mapping[str, str] | None = None) -> None:
        """Start the switch; returns when it serves. `env` is for its processes alone."""
        words = [str(self._command(self.mode.switch_owner)), "up", *self.mode.up_options, *options]
        program = self.start(words, "up", self.mode.switch_owner, env)
        assert program.wait() == 0, f"{self!r}: {program}"
        self._killed = False

    def members(self, state: str | None = None) -> list[Row]:
        """Rows of `appswitch members`, all or those in one state, such as alive."""
        rows: list[Row] = self.cli("members", "-o", "json")
        return [row for row in rows if state in (None, row["state"])]

    def table(self) -> list[Row]:
        """All rows of the service table, sorted, with what every host should know alike."""
        keys = ("host", "name", "vip", "port", "instance", "address", "tags")
        rows = [{key: row[key] for key in keys} for row in self.services()]
        return sorted(rows, key=lambda row: [str(row[key]) for key in keys])

    def token(self) -> str:
        """The string by which others join."""
        return str(self.cli("token")).strip()

    def counters(self) -> dict[str, int]:
        """What the switch has counted."""
        found: dict[str, int] = self.cli("status", "-o", "json")["counters"]
        return found

    def role(self, role: str) -> int:
        """The pid of one of the switch's processes, such as the router; 0 while there is none."""
        processes = self.cli("status", "-o", "json")["processes"]
        return next((int(process["pid"]) for process in processes if process["role"] == role), 0)

    def kill(self) -> None:
        """SIGKILL to every process of the switch, as if the power had gone; returns when they are gone."""
        watched = watch(self.processes())
        for number in (signal.SIGSTOP, signal.SIGKILL):  # or those that are left would start others again
            for pid in watched:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        for pidfd in watched.values():
            _await_end(pidfd)
        self._killed = True

    def _down(self) -> list[str]:
        if not self._killed:
            return super()._down()
        return []

    def describe(self) -> str:
        return f"===== {self!r} =====\n{super().describe()}"

    def close(self) -> None:
        try:
            super().close()
        except AssertionError as error:
            raise AssertionError(f"{self!r}: {error}") from None
        finally:
            self.namespace.close()

    # Its network.

    def cut(self) -> None:
        """Pull the cable of `eth0`."""
        self._cable("down")

    def mend(self) -> None:
        """Plug it in again."""
        self._cable("up")

    def _cable(self, state: str) -> None:
        assert self._port is not None
        self._port.ip(f"link set port{self.number} {state}")


class Hosts:
    """Hosts on one bridge: 10.77.0.N/24 and fd77::N/64 on `eth0`, one of them alone with `family` 4 or 6.

    With `networks`=2 there is a second bridge: 10.78.0.N and fd78::N on `eth1`.
    """

    def __init__(
        self,
        count: int,
        command: Callable[[Person], Path],
        *,
        mode: Mode = MODES[0],
        env: Mapping[str, str] | None = None,
        family: int = 0,
        networks: int = 1,
    ) -> None:
        self._bridges = [bridge_of_ports() for _ in range(networks)]
        self._hosts: list[Host] = []
        try:
            for number in range(1, count + 1):
                host = Host(number, mode, command, env)
                self._hosts.append(host)
                for network, bridge in enumerate(self._bridges):
                    self._plug_in(host, network, bridge, family)
        except BaseException:
            self.close()
            raise

    def _plug_in(self, host: Host, network: int, bridge: Namespace, family: int) -> None:
        port, device, number = f"port{host.number}", f"eth{network}", host.number
        bridge.ip(f"link add {port} type veth peer name {device} netns {host.namespace.path}")
        bridge.ip(f"link set {port} master lab0 up")
        host.namespace.ip(f"link set {device} up")
        four, six = f"10.{77 + network}.0.{number}", f"fd{77 + network}::{number:x}"
        if family != 6:
            host.namespace.ip(f"addr add {four}/24 dev {device}")
        if family != 4:
            host.namespace.ip(f"addr add {six}/64 dev {device} nodad")
        host.addresses.append(six if family == 6 else four)
        if network == 0:
            host._port = bridge

    def __len__(self) -> int:
        return len(self._hosts)

    def __iter__(self) -> Iterator[Host]:
        return iter(self._hosts)

    def __getitem__(self, index: int) -> Host:
        return self._hosts[index]

    def up(self, *options: str) -> None:
        """A cluster of all hosts: the first begins it, the others join with its token; returns when all know all."""
        first, *others = self._hosts
        first.up("--node-interface", "eth0", *options)
        token = first.token()
        self.at_once(lambda host: host.up("--join", token, *options), others)
        self.await_members()

    def await_members(self, hosts: Sequence[Host] | None = None) -> None:
        """Wait until each of these hosts (all) knows as many live members as they are."""
        chosen = self._hosts if hosts is None else hosts
        for host in chosen:
            wait_until(
                lambda host=host: len(host.members("alive")) == len(chosen),  # type: ignore[misc]
                lambda host=host: f"{len(chosen)} live members on {host!r}: {host.members()}",  # type: ignore[misc]
                PATIENCE,
            )

    def await_same_tables(self, look: Callable[[list[Row]], bool] = bool) -> list[Row]:
        """Wait until all hosts have the same rows and these are as wished (some, at least); the rows."""

        def same() -> list[list[Row]]:
            tables = self.at_once(Host.table)
            return tables if all(table == tables[0] for table in tables) and look(tables[0]) else []

        def different() -> str:
            return "the same tables:\n" + "\n".join(f"{host!r}: {host.table()}" for host in self._hosts)

        return wait_until(same, different, PATIENCE)[0]

    def at_once(self, do: Callable[[Host], T], hosts: Sequence[Host] | None = None) -> list[T]:
        """Do the same on all hosts, or on some, at the same time; the first error is raised when all have ended."""
        chosen = self._hosts if hosts is None else hosts
        with ThreadPoolExecutor(max(1, len(chosen))) as pool:
            futures = [pool.submit(do, host) for host in chosen]
        return [future.result() for future in futures]

    def split(self, *groups: Sequence[Host]) -> None:
        """A partition: hosts hear those of their own group alone; hosts that are named nowhere hear everybody."""
        for group in groups:
            others = [host for other in groups if other is not group for host in other]
            for host in group:
                host.namespace.drop(*(_from(address) for other in others for address in other.addresses))

    def heal(self) -> None:
        """Everybody hears everybody again."""
        for host in self._hosts:
            host.namespace.pass_all()

    def close(self) -> None:
        """End everything; AssertionError if anything stays, or a log has a traceback."""

        def end(host: Host) -> str:
            try:
                host.close()
            except AssertionError as error:
                return str(error)
            return ""

        problems = list(filter(None, self.at_once(end)))
        for bridge in self._bridges:
            bridge.close()
        assert not problems, "\n".join(problems)


def _from(address: str) -> str:
    return f"{'ip6' if ':' in address else 'ip'} saddr {address}"


def bridge_of_ports() -> Namespace:
    """A namespace with a bridge `lab0` in it, for the ports of others."""
    namespace = Namespace()
    # Without spanning tree a port forwards at once; without snooping no neighbour solicitation is held back.
    namespace.ip("link add lab0 type bridge stp_state 0 mcast_snooping 0")
    namespace.ip("link set lab0 up")
    return namespace


def _system_call(name: str, *arguments: int) -> None:
    if ctypes.CDLL(None, use_errno=True)[name](*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _in_thread(function: Callable[[], T]) -> T:
    """What a function gives in a thread of its own: the namespace that it enters is that thread's alone."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    for error in errors:
        raise error
    return results[0]


def _await_end(pidfd: int) -> None:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    ended = poll.poll(1000 * DEADLINE)
    os.close(pidfd)
    assert ended, "a process did not end when it was killed"
