"""Clusters without a router: switches are told of each other, and their rows carried, by the test itself."""

import dataclasses
import json
import os
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from appswitch.header.identity import Sender
from appswitch.header.keys import KeyRing
from appswitch.model.address import pack, unpack
from appswitch.model.identity import Claim
from appswitch.model.service import Service
from appswitch.table.store import Table
from appswitch.trap.options import Node
from support.hosts import Host, Hosts
from support.modes import MYSELF
from support.program import DEADLINE, wait_until

KEY = bytes(range(32))
_UP = Path(__file__).parent / "src" / "up_by_hand.py"


def name_of(host: Host) -> str:
    return f"host-{host.number}"


def node_of(host: Host, /, **changes: Any) -> Node:
    return dataclasses.replace(Node(name_of(host), host.address, host.address, None, (KEY,)), **changes)


def up(host: Host, /, *options: str, senders: int | None = None, **changes: Any) -> None:
    """Start a switch that takes itself for a member; `changes` to its Node. `senders`: see header.window.SENDERS."""
    python = host._command(MYSELF).with_name("python")
    words = [str(python), str(_UP), json.dumps(node_of(host, **changes).message()), str(senders or 0), "up", *options]
    program = host.start(words, "up", MYSELF)
    assert program.wait() == 0, f"{host!r}: {program}"
    host._killed = False


def up_all(hosts: Hosts, /, *options: str, **changes: Any) -> None:
    hosts.at_once(lambda host: up(host, *options, **changes))


def tell(host: Host, /, **changes: Any) -> None:
    """Tell the workers of a running switch what they are now."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(json.dumps(node_of(host, **changes).message()).encode(), f"{host.base}/node.sock")


def with_table(host: Host, do: Callable[[Table], Any]) -> Any:
    table = Table(str(host.run_dir / "table"))
    try:
        return do(table)
    finally:
        table.close()


def rows_of(host: Host, name: str | None = None) -> list[Service]:
    """The rows of a host's own services."""
    rows: list[Service] = with_table(host, lambda table: list(table.services()))
    return [row for row in rows if name in (None, row.name)]


def row_of(host: Host, name: str) -> Service:
    [row] = wait_until(lambda: rows_of(host, name), lambda: f"a row of {name}")
    return row


def carry(source: Host, *targets: Host, **changes: Any) -> None:
    """Give other hosts the rows that a host has now, and no others of it, and what it claims."""
    rows = [
        dataclasses.replace(row, host=name_of(source), listener="", cookie=0, **changes)
        for row in rows_of(source)
        if not row.alone
    ]
    claims: dict[bytes, list[Claim]] = with_table(source, lambda table: table.claims_of_host(""))
    for target in targets:
        put(target, name_of(source), rows)
        with_table(
            target,
            lambda table: table.apply_host_claims(
                name_of(source),
                {vip: [dataclasses.replace(one, host=name_of(source)) for one in of] for vip, of in claims.items()},
            ),
        )


def put(target: Host, author: str, rows: Iterable[Service]) -> None:
    with_table(target, lambda table: table.replace_host_rows(author, list(rows)))


def remote_row(vip: str, port: int, real: tuple[str, int], **changes: Any) -> Service:
    """A row of some other host's."""
    row = Service(
        vip=pack(vip),
        port=port,
        instance=int.from_bytes(os.urandom(7), "big"),
        program=1,
        name=None,
        tags=(),
        bound=pack("0.0.0.0"),
        dual=False,
        listener="",
        real=real,
        balance="round-robin",
        transport="auto",
        since=1.0,
        uid=0,
        cookie=0,
        host="elsewhere",
        epoch=os.urandom(8),
    )
    return dataclasses.replace(row, **changes)


class Caller:
    """A host with the cluster's key, or another, that writes its headers itself."""

    def __init__(self, host: Host, key: bytes = KEY) -> None:
        self.host = host
        self._ring = KeyRing([key])
        self._sender = Sender(os.urandom)

    def header(
        self,
        row: Service,
        *,
        client: tuple[str, int] = ("100.64.9.9", 40000),
        server: tuple[str, int] | None = None,
        tags: tuple[tuple[str, str], ...] = (),
    ) -> bytes:
        to, port = (pack(server[0]), server[1]) if server else (row.vip, row.port)
        return self._sender.write(self._ring, row, pack(client[0]), client[1], to, port, tags)

    def connect(self, row: Service) -> socket.socket:
        """A connection to the row's real port."""
        return self.host.namespace.call(lambda: socket.create_connection(row.real, timeout=DEADLINE))

    def send(self, row: Service, data: bytes) -> socket.socket:
        sock = self.connect(row)
        sock.sendall(data)
        return sock


def fate(sock: socket.socket, timeout: float = DEADLINE) -> bytes | str:
    """What comes until the end, or how it ended otherwise."""
    sock.settimeout(timeout)
    data = b""
    try:
        while piece := sock.recv(4096):
            data += piece
    except ConnectionResetError:
        return "reset"
    except TimeoutError:
        return "open"
    return data


def counters(host: Host) -> dict[str, int]:
    found: dict[str, int] = host.cli("status", "-o", "json")["counters"]
    return found


def vip_of(host: Host, name: str) -> str:
    return unpack(row_of(host, name).vip)
