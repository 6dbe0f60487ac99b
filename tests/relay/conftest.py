"""Real surroundings, a real relay process, and a resolver of the host's to forward to."""

import contextlib
import inspect
import json
import os
import select
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dnslib
import pytest

from appswitch.table import counters
from support.ports import udp_and_tcp
from support.program import DEADLINE, wait_until

HERE = Path(__file__).parent
NAMES = {
    "web": ["100.64.1.2", "fd00::2"],
    "db": ["100.64.1.3"],
    "many": [f"100.65.0.{number}" for number in range(1, 101)],
}
RESOLV_CONF = "nameserver 100.64.0.53\noptions timeout:30 attempts:2\n"


def until(condition: Callable[[], Any]) -> None:
    wait_until(condition, lambda: inspect.getsource(condition).strip())


class Upstream:
    """A resolver on 127.0.0.1, UDP and TCP: `*.test` has an address, `large.test` a hundred and is cut on UDP,
    `silent.test` gets no answer; nothing else exists."""

    def __init__(self) -> None:
        self.udp, self.tcp = udp_and_tcp("127.0.0.1")
        self.tcp.listen()
        self.address = f"127.0.0.1:{self.udp.getsockname()[1]}"
        self.asked: list[str] = []
        self._end, self._ended = os.pipe()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        os.close(self._ended)
        self._thread.join()
        os.close(self._end)
        self.udp.close()
        self.tcp.close()

    def _serve(self) -> None:
        while True:
            ready, _, _ = select.select([self._end, self.udp.fileno(), self.tcp.fileno()], [], [])
            if self._end in ready:
                return
            if self.udp.fileno() in ready:
                data, client = self.udp.recvfrom(65535)
                answer = self._answer(data, over_tcp=False)
                if answer is not None:
                    self.udp.sendto(answer, client)
            if self.tcp.fileno() in ready:
                connection, _ = self.tcp.accept()
                # A relay that has waited too long, or ends, takes its question back.
                with connection, contextlib.suppress(ConnectionError), connection.makefile("rb") as file:
                    length = int.from_bytes(file.read(2), "big")
                    question = file.read(length)
                    answer = self._answer(question, over_tcp=True) if len(question) == length > 0 else None
                    if answer is not None:
                        connection.sendall(struct.pack("!H", len(answer)) + answer)

    def _answer(self, data: bytes, over_tcp: bool) -> bytes | None:
        query = dnslib.DNSRecord.parse(data)
        name = str(query.q.qname).rstrip(".").lower()
        self.asked.append(name)
        reply = query.reply(aa=0)
        if name == "silent.test":
            return None
        if not name.endswith(".test"):
            reply.header.rcode = dnslib.RCODE.NXDOMAIN
            reply.add_auth(dnslib.RR(".", dnslib.QTYPE.SOA, ttl=60, rdata=dnslib.SOA("a.root", "b.root")))
        elif name == "large.test" and not over_tcp:
            reply.header.tc = 1
        elif query.q.qtype == dnslib.QTYPE.A:
            for number in range(1, 101 if name == "large.test" else 2):
                reply.add_answer(dnslib.RR(query.q.qname, ttl=60, rdata=dnslib.A((192, 0, 2, number))))
        return bytes(reply.pack())


class Inhabitant:
    """A process in surroundings of its own, attached to a relay or not."""

    def __init__(self, name: str, addresses: list[str], kind: str, directory: Path) -> None:
        self.name, self.addresses = name, addresses
        resolv_conf = directory / "resolv.conf"
        resolv_conf.write_text(RESOLV_CONF)
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        wanted = {"addresses": addresses, "resolv_conf": str(resolv_conf), "kind": kind}
        command = [sys.executable, str(HERE / "inhabitant.py"), str(theirs.fileno()), json.dumps(wanted)]
        self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        theirs.close()
        data, self.fds, _, _ = socket.recv_fds(self._control, 4096, 8)
        assert data, "the surroundings could not be made"
        self.kind = json.loads(data)["kind"]
        assert self.kind == kind

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command there."""
        self._control.send(json.dumps({"run": command}).encode())
        done = json.loads(self._control.recv(1 << 20))
        return subprocess.CompletedProcess(command, done["code"], done["out"], done["err"])

    def python(self, code: str) -> str:
        """Run Python there; what it prints."""
        done = self.run(sys.executable, "-c", code)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_DGRAM, protocol: int = 0) -> socket.socket:
        """A socket of that namespace in our hands."""
        self._control.send(json.dumps({"socket": [family, kind, protocol]}).encode())
        _, fds, _, _ = socket.recv_fds(self._control, 100, 1)
        made = socket.socket(fileno=fds[0])
        made.settimeout(DEADLINE)
        return made

    def remove_device(self) -> None:
        """Its device goes."""
        self._control.send(json.dumps({"remove": "as0"}).encode())
        assert self._control.recv(100) == b"{}"

    def close(self) -> None:
        self._control.close()
        self.process.wait(DEADLINE)
        for fd in self.fds:
            os.close(fd)


class Relay:
    """A relay process."""

    def __init__(self, directory: Path, upstreams: list[str]) -> None:
        self.run_dir = directory
        self._log, self._counters = directory / "log", directory / "counters"
        self.host_file = directory / "host.conf"
        self.host_file.write_text("search example.com\n")
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        config = {
            "names": NAMES,
            "run_dir": str(directory),
            "upstreams": upstreams,
            "counters": str(self._counters),
            "host_file": str(self.host_file),
        }
        command = [sys.executable, str(HERE / "relay_process.py"), str(theirs.fileno()), json.dumps(config)]
        with self._log.open("w") as log:
            self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stderr=log)
        theirs.close()
        until(lambda: (directory / "dns.sock").exists())  # the last step of its start

    def attach(self, inhabitant: Inhabitant) -> None:
        message = {"op": "attach", "id": inhabitant.name, "kind": inhabitant.kind, "ifindex": 0}
        self.send(message | {"vips": inhabitant.addresses}, inhabitant.fds)

    def send(self, message: Any, fds: list[int] | None = None) -> None:
        data = message if isinstance(message, bytes) else json.dumps(message).encode()
        socket.send_fds(self.control, [data], fds or [])

    def log(self) -> list[str]:
        return self._log.read_text().splitlines()

    def count(self, name: str) -> int:
        return counters.read(str(self._counters))[name]

    def status(self, field: str) -> str:
        """A field of the process's /proc/PID/status."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(line.split()[1] for line in lines if line.startswith(field + ":"))

    def stream(self, program: str) -> socket.socket:
        """A DNS connection as a trap worker makes one."""
        ours, theirs = socket.socketpair()
        with theirs, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as worker:
            worker.connect(str(self.run_dir / "dns.sock"))
            socket.send_fds(worker, [json.dumps({"program": program}).encode()], [theirs.fileno()])
        ours.settimeout(DEADLINE)
        return ours

    def close(self) -> None:
        self.control.close()
        assert self.process.wait(DEADLINE) == 0
        assert not [line for line in self.log() if "Traceback" in line]


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    made = Upstream()
    yield made
    made.close()


@pytest.fixture(scope="module")
def make(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[..., Any]]:
    """Makes inhabitants and relays that end with the module."""
    made: list[Inhabitant | Relay] = []

    def create(what: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        made.append(what(*arguments, directory=tmp_path_factory.mktemp("relay"), **keywords))
        return made[-1]

    yield create
    for each in reversed(made):
        each.close()


def kinds() -> list[str]:
    """The kinds of device that this user can make."""
    tun = ["tun-vnet", "tun"] if os.access("/dev/net/tun", os.R_OK | os.W_OK) else []
    return [*tun, "packet-vnet", "packet"]


@pytest.fixture(scope="module")
def relay(make: Callable[..., Any], upstream: Upstream) -> Relay:
    made: Relay = make(Relay, upstreams=[upstream.address])
    return made


@pytest.fixture(scope="module", params=kinds())
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def web(make: Callable[..., Any], relay: Relay, kind: str) -> Inhabitant:
    """A program with addresses of both families, attached to the relay."""
    made: Inhabitant = make(Inhabitant, f"web-{kind}", NAMES["web"], kind=kind)
    relay.attach(made)
    return made


@pytest.fixture(scope="module")
def new_inhabitant(make: Callable[..., Any], kind: str) -> Callable[..., Inhabitant]:
    """Makes more inhabitants."""
    return lambda name, addresses: make(Inhabitant, name, addresses, kind=kind)


@pytest.fixture(scope="module")
def any_inhabitant(make: Callable[..., Any]) -> Callable[..., Inhabitant]:
    """Makes one with whatever device, where that does not matter."""
    return lambda name, addresses: make(Inhabitant, name, addresses, kind=kinds()[0])


@pytest.fixture(scope="module")
def new_relay(make: Callable[..., Any]) -> Callable[..., Relay]:
    """Makes more relays."""
    return lambda upstreams: make(Relay, upstreams=upstreams)


@pytest.fixture(name="until")
def until_fixture() -> Callable[[Callable[[], Any]], None]:
    """Waits until something that gives no event holds."""
    return until
