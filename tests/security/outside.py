"""What lies outside AppSwitch, where nothing of a program may arrive, and a look at the host's sockets."""

import contextlib
import json
import os
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from support.needs import need
from support.ports import udp_and_tcp
from support.program import DEADLINE, Program
from support.switch import Switch

_LISTEN = "0A"


class Canary:
    """Listens on an address of the host by TCP and UDP, and counts what has arrived."""

    def __init__(self, host: str) -> None:
        self._udp, self._tcp = udp_and_tcp(host)
        self._tcp.listen(4096)
        self._tcp.setblocking(False)
        self.address: tuple[str, int] = self._tcp.getsockname()

    @property
    def words(self) -> list[str]:
        """Host and port as words of a command line."""
        return [self.address[0], str(self.address[1])]

    def connections(self) -> int:
        """How many came since the last look."""
        count = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                self._tcp.accept()[0].close()
                count += 1
        return count

    def datagrams(self) -> int:
        """How many came since the last look."""
        count = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                self._udp.recv(100)
                count += 1
        return count

    def close(self) -> None:
        self._tcp.close()
        self._udp.close()


class Silent:
    """A listener whose queue is full, so that a connection to it stays under way."""

    def __init__(self, host: str) -> None:
        self._server = socket.socket()
        self._server.bind((host, 0))
        self._server.listen(0)
        self.address: tuple[str, int] = self._server.getsockname()
        self._clients = [socket.socket() for _ in range(3)]
        for client in self._clients:
            client.setblocking(False)
            client.connect_ex(self.address)

    def close(self) -> None:
        for sock in (self._server, *self._clients):
            sock.close()


def host_interface() -> tuple[str, str] | None:
    """(device, IPv4 address) of the host besides loopback; None when it has none."""
    listing = subprocess.run([need("ip"), "-j", "-4", "addr"], check=True, capture_output=True, text=True).stdout
    for link in json.loads(listing):
        for info in link["addr_info"] if link["ifname"] != "lo" else ():  # other tests lend `lo` addresses
            if info["scope"] == "global":
                return link["ifname"], info["local"]
    return None


def _tcp_sockets() -> Iterator[list[str]]:
    """The fields of /proc/net/tcp and tcp6 (proc_net(5)) of the host's namespace."""
    for name in ("tcp", "tcp6"):
        path = Path("/proc/self/net", name)
        if path.exists():
            yield from (line.split() for line in path.read_text().splitlines()[1:])


def listening_on_host(pids: Sequence[int]) -> list[str]:
    """The local addresses (as /proc/net/tcp writes them) at which these processes have ports of the host open."""
    held: set[str] = set()
    for link in (link for pid in pids for link in Path(f"/proc/{pid}/fd").iterdir()):
        with contextlib.suppress(FileNotFoundError):  # it was closed just now
            held.add(os.readlink(link))
    return [fields[1] for fields in _tcp_sockets() if fields[3] == _LISTEN and f"socket:[{fields[9]}]" in held]


def user_of_socket(inode: int) -> int:
    """The user to whom a TCP socket of the host belongs."""
    # The kernel may show one twice when others come while it is read.
    [uid] = {int(fields[7]) for fields in _tcp_sockets() if int(fields[9]) == inode}
    return uid


class Pry:
    """A program that pries: `seen` is what it said; its sockets are open until `end`."""

    def __init__(self, program: Program, timeout: float = 2 * DEADLINE) -> None:
        self.program = program
        self.seen: dict[str, Any] = json.loads(program.wait_output(r"\{.*\}\n", timeout).group())

    @property
    def pid(self) -> int:
        return self.program.pid

    def end(self) -> None:
        self.program.stop()


@contextlib.contextmanager
def prying(
    switch: Switch, argv: Sequence[str | Path], *, options: Sequence[str] = (), native: bool = False, **popen: Any
) -> Iterator[Pry]:
    """Run such a program under the switch, or as it stands, with the same user."""
    popen["stdin"] = subprocess.PIPE
    if native:
        words = [os.fspath(word) for word in argv]
        program = switch.start(words, "native", switch.mode.program_owner, **popen)
    else:
        program = switch.run(argv, options=options, **popen)
    try:
        yield Pry(program)
    finally:
        program.stop()
        if program in switch.programs:
            switch.programs.remove(program)
