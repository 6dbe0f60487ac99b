"""Serf agents, and members of ours that speak Serf's own messages, which travel as the gossip's user messages."""

import asyncio
import base64
import contextlib
import json
import os
import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import msgpack

from appswitch.gossip import exchange, tags
from appswitch.gossip.settings import LOCAL, NodeSettings
from support.modes import MYSELF
from support.needs import need
from support.program import Program

from .nodes import DEADLINE, KEY, Peer, settings

VERSIONS = (2, 5, 4)  # of Serf's delegate
ADDRESS = "127.0.9.1"
# Serf's types of messages.
LEAVE, USER_EVENT, QUERY, RESPONSE, KEY_REQUEST, KEY_RESPONSE = 0, 3, 4, 5, 7, 8
_ACK = 1  # flag of a query and of its response


def _range() -> list[int]:
    """Ports that the kernel gives nobody by itself, other ones for each of the processes that run tests at a time."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    begin = 10000 + int(worker) % 10 * 1000
    first = os.getpid() % 1000
    return [*range(begin + first, begin + 1000), *range(begin, begin + first)]


_ports = iter(_range())


def free_port(address: str = ADDRESS) -> int:
    """One that is free for both UDP and TCP a moment before it is used, and that no connection gets by chance."""
    for port in _ports:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family) as tcp, socket.socket(family, socket.SOCK_DGRAM) as udp:
            try:
                tcp.bind((address, port))
                udp.bind((address, port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")


def encryption(encrypted: bool) -> tuple[tuple[bytes, ...], list[str]]:
    """Our setting and serf's."""
    return ((KEY,), [f"-encrypt={base64.b64encode(KEY).decode()}"]) if encrypted else ((), [])


class Agent:
    """A running serf agent, with the tag role=peer; `entering`: what a command begins with that is to run beside it."""

    def __init__(
        self, name: str, directory: Path, *options: str, address: str = ADDRESS, entering: tuple[str, ...] = ()
    ) -> None:
        self.where = (address, free_port(address))
        host = f"[{address}]" if ":" in address else address
        self._rpc = f"-rpc-addr={host}:{free_port(address)}"
        self._serf = [*entering, need("serf")]
        bind = f"-bind={host}:{self.where[1]}"
        argv = [*self._serf, "agent", f"-node={name}", bind, self._rpc, "-tag=role=peer", *options]
        self.program = Program(argv, directory=directory, label=name, person=MYSELF, env={"HOME": str(directory)})
        self.program.wait_output("Serf agent running!")

    def command(self, *words: str) -> str:
        """What `serf WORDS` says about this agent, in JSON where there is; it must succeed."""
        argv = [*self._serf, words[0], self._rpc, *words[1:]]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=DEADLINE)
        if done.returncode:
            raise AssertionError(f"serf {' '.join(words)}: {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def members(self) -> dict[str, dict[str, object]]:
        """By name, as `serf members` shows them."""
        return {one["name"]: one for one in json.loads(self.command("members", "-format=json"))["members"]}

    def sees(self) -> dict[str, str]:
        """Name → alive, leaving, left or failed."""
        return {name: str(one["status"]) for name, one in self.members().items()}

    async def until_sees(self, wanted: dict[str, str]) -> None:
        seen: dict[str, str] = {}

        async def look() -> None:
            nonlocal seen
            while wanted.items() - seen.items():
                await asyncio.sleep(0.1)
                seen = await asyncio.to_thread(self.sees)

        try:
            await asyncio.wait_for(look(), DEADLINE)
        except TimeoutError:
            raise AssertionError(f"serf sees {seen}, not {wanted}: {self.program}") from None

    def complaints(self) -> list[str]:
        """Errors that the agent has logged, but for those of reaching somebody who has gone, or of going itself."""
        lines = self.program.output().splitlines()
        return [line for line in lines if "[ERR]" in line and not UNREACHED.search(line)]


UNREACHED = re.compile(
    r"connection refused|connection reset|broken pipe|i/o timeout|EOF$|use of closed network connection"
)


@contextlib.contextmanager
def stopping(agents: list[Agent]) -> Iterator[list[Agent]]:
    """Stops those that were appended meanwhile."""
    try:
        yield agents
    finally:
        for agent in agents:
            agent.program.stop()


class SerfPeer(Peer):
    """A member of ours that passes on what it hears first, as serf does, and answers queries.

    It follows serf's changes of keys.
    """

    def __init__(self, of: NodeSettings) -> None:
        super().__init__(of)
        self.keys = list(of.keys)
        self.notes.pass_on = self._hear
        self.heard: list[str] = []
        """Names of events and queries."""

    def say(self, kind: int, **fields: object) -> None:
        """Broadcast a message of Serf's."""
        self.broadcast(_packed(kind, fields))

    async def go(self) -> None:
        """Leave as serf does: only who says so in its words, too, has left for serf."""
        self.say(LEAVE, LTime=100, Node=self.local.name, Prune=False)
        await self.leave()

    def _hear(self, payload: bytes) -> None:
        self.broadcast(payload, relay=True)
        kind, fields = payload[0], msgpack.unpackb(payload[1:], raw=True)
        if kind in (USER_EVENT, QUERY):
            self.heard.append(fields[b"Name"].decode())
        if kind == QUERY:
            asker = self._at((socket.inet_ntop(socket.AF_INET, fields[b"Addr"][-4:]), fields[b"Port"]))
            if fields[b"Flags"] & _ACK:
                self._respond(asker, fields, _ACK, b"")
            if fields[b"Name"].startswith(b"_serf_") and fields[b"Name"].endswith(b"-key"):
                self._respond(asker, fields, 0, self._change_keys(fields[b"Name"].decode(), fields[b"Payload"]))

    def _at(self, where: tuple[str, int]) -> str:
        [name] = [member.name for member in self.members() if (member.address, member.port) == where]
        return name

    def _respond(self, asker: str, query: dict[bytes, object], flags: int, payload: bytes) -> None:
        about = {"LTime": query[b"LTime"], "ID": query[b"ID"], "From": self.local.name}
        self.send(asker, _packed(RESPONSE, {**about, "Flags": flags, "Payload": payload}))

    def _change_keys(self, name: str, request: bytes) -> bytes:
        assert request[0] == KEY_REQUEST
        key = msgpack.unpackb(request[1:], raw=True)[b"Key"]
        change: dict[str, Callable[[], list[bytes]]] = {
            "_serf_install-key": lambda: [*self.keys, key],
            "_serf_use-key": lambda: [key, *(one for one in self.keys if one != key)],
            "_serf_remove-key": lambda: [one for one in self.keys if one != key],
        }
        self.keys = change[name]()
        self.set_keys(self.keys)
        return _packed(KEY_RESPONSE, {"Result": True, "Message": "", "Keys": [], "PrimaryKey": ""})


def _packed(kind: int, fields: dict[str, object]) -> bytes:
    return bytes([kind]) + bytes(msgpack.packb(fields, use_bin_type=False))


def ours(name: str, keys: tuple[bytes, ...], address: str = ADDRESS) -> NodeSettings:
    """A member among serf's, with the tag role=appswitch; patient, for the machine may be busy with other things.

    Ours compare what they know by digests; serf must not notice.
    """
    meta = tags.pack({"role": "appswitch", "of": name} | exchange.TAG)
    timings = replace(LOCAL, suspicion_mult=12)
    return settings(name, address, label="", keys=keys, versions=VERSIONS, meta=meta, timings=timings)
