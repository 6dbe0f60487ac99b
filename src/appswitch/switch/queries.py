"""Answers to `status`, `ps`, `services`, `inspect` and others, put together in a process of their own.

Times go out as ISO 8601 in UTC, lengths of time in seconds, addresses as text.
"""

from __future__ import annotations

import datetime
import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from .. import __version__
from ..linux import features, sock_diag
from ..model.address import show, unpack
from ..model.identity import Tags
from ..model.service import TCP, UDP, Service
from ..table import counters
from ..table.store import Table
from ..trap.sockets import KINDS, OF_HOST, UNIX, End, read_ends
from . import inspection, resolution, roll
from .paths import SwitchError
from .view import View

Row = dict[str, Any]
_PROTOCOLS = {TCP: "tcp", UDP: "udp"}

def answer(view: View, operation: str, message: dict[str, Any]) -> Any:
    """The document for one operation; SwitchError when there is nothing of the kind that was asked for."""
    table = Table(view.run_dir.table, readonly=True)
    try:
        if operation == "ps":
            return connections(view) if message.get("connections") else programs(view, live_services(table))
        if operation == "resolve":
            return resolution.resolution(view, table, live_services(table), message)
        if operation == "inspect":
            return inspect(view, table, message)
        answers = {"status": status, "services": services, "denials": denials, "members": members}
        return answers[operation](view, table)
    finally:
        table.close()  # gives its reader's slot back


OPERATIONS = frozenset({"status", "ps", "services", "denials", "members", "inspect", "resolve"})


def status(view: View, table: Table) -> Row:
    total = summed(_each_counter(view.run_dir.stats))
    return {
        "version": __version__,
        "run_dir": view.run_dir.path,
        "uptime_s": round(time.monotonic() - view.started, 1),
        "programs": len(view.entries),
        "services": len(live_services(table)),
        "traps": total.get("traps", 0),
        "denied": total.get("denied", 0),
        "strangers": total.get("strangers", 0),
        "workers": view.workers,
        "restarts": view.restarts,
        "processes": [{"role": role, "pid": pid} for role, pid in view.processes],
        "counters": total,
        "cluster": view.cluster,
        "missing": [
            {"feature": name, "since": features.FEATURES[name].since, "without": without}
            for name, without in view.missing
        ],
        "fenced": [
            {
                "program": entry.number,
                "name": entry.identity.name,
                "pid": entry.pid,
                "uid": entry.identity.uid,
                "reason": entry.fenced,
            }
            for entry in view.entries
            if entry.fenced
        ],
    }


def summed(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    """Counters of several processes as one."""
    total = dict.fromkeys(counters.MEANING, 0)
    for count in counts:
        for name, value in count.items():
            total[name] = total.get(name, 0) + value
    return total


def _each_counter(stats: str) -> Iterable[dict[str, int]]:
    for name in sorted(os.listdir(stats)):
        yield counters.read(f"{stats}/{name}")


def live_services(table: Table) -> list[Service]:
    """This host's rows whose listeners still take connections: a worker notices a program's close() only later."""
    rows = table.services()
    if not rows:
        return []
    with sock_diag.open_socket() as netlink:
        listeners = sock_diag.unix_listeners(netlink)
    return [row for row in rows if row.proto == UDP or listeners.get(row.cookie)]


def _own(view: View) -> str | None:
    """This host's name in its cluster."""
    return view.cluster["name"] if view.cluster else None


def _is_published(row: Service) -> bool:
    """Can a port of this host lead to it?"""
    return not row.remote and row.proto == TCP


def services(view: View, table: Table) -> list[Row]:
    now = time.time()
    own = _own(view)
    rows = live_services(table) + [row for row in table.all_services() if row.remote]
    rows.sort(key=lambda row: (row.vip, row.port, row.proto, row.since, row.host, row.instance))
    places = {entry.number: entry.places for entry in view.entries}
    return [
        {
            "name": row.name,
            "vip": unpack(row.vip),
            "port": row.port,
            "protocol": _PROTOCOLS.get(row.proto, str(row.proto)),
            "instance": row.instance,
            "program": row.program,
            "bound": unpack(row.bound),
            "address": _endpoint(row.real),
            "listener": row.listener or None,
            "transport": row.transport,
            "balance": row.balance,
            "tags": _tags(row.tags),
            "since_s": round(max(0.0, now - row.since), 1),
            "host": row.host or own,
            "weight": row.weight,
            "uid": row.uid,
            "published": [str(p) for p in places.get(row.program, ()) if p.is_for(row)] if _is_published(row) else [],
        }
        for row in rows
    ]


def inspect(view: View, table: Table, message: dict[str, Any]) -> Row:
    """What all the listings tell of one thing."""
    target = message.get("target")
    if not isinstance(target, str):
        raise SwitchError("the request is not as this switch knows it: use `appswitch` of the same version")
    entries, rows = inspection.select(target, view.entries, services(view, table), table, _own(view))
    chosen = replace(view, entries=entries)
    return inspection.compose(
        entries, programs(chosen, live_services(table)), rows, connections(chosen), denials(view, table)
    )


def members(_: View, table: Table) -> list[Row]:
    found = table.members()
    if not found:
        return []
    count = table.counts()
    own = len(live_services(table))
    return [
        {
            "name": name,
            "address": record["address"],
            "port": record["port"],
            "state": record["state"],
            "since": iso(record["since"]),
            "services": None if _is_foreign(record) else own if record["own"] else count[name],
            "programs": None if _is_foreign(record) else record["programs"],
            "own": record["own"],
            "version": record["version"],
            "kind": record.get("kind", roll.SWITCH),
            "tags": record.get("tags", {}),
        }
        for name, record in sorted(found.items())
    ]


def _is_foreign(record: Mapping[str, Any]) -> bool:
    return bool(record.get("kind", roll.SWITCH) != roll.SWITCH)


def programs(view: View, rows: list[Service]) -> list[Row]:
    ports: dict[int, set[int]] = {}
    for row in rows:
        ports.setdefault(row.program, set()).add(row.port)
    return [
        {
            "id": entry.number,
            "pid": entry.pid,
            "uid": entry.identity.uid,
            "name": entry.identity.name,
            "vip": unpack(entry.identity.vip),
            "tags": _tags(entry.identity.tags),
            "command": list(entry.argv),
            "since": iso(entry.since),
            "services": sorted(ports.get(entry.number, ())),
            "fenced": entry.fenced or None,
        }
        for entry in view.entries
    ]


def connections(view: View) -> list[Row]:
    """Every open end of a connection in a program's hands."""
    ends = []
    for name in sorted(os.listdir(view.run_dir.state)):
        if name.startswith("ends-"):
            ends += list(read_ends(f"{view.run_dir.state}/{name}"))
    if not ends:
        return []
    names = {entry.number: entry.identity.label for entry in view.entries}
    return live_connections(ends, names, lambda kind: _live(view, kind))


def live_connections(ends: list[End], names: dict[int, str], live: Callable[[int], set[int]]) -> list[Row]:
    """Rows of the ends whose sockets still exist; `live` gives the cookies of those of a kind."""
    cookies = {kind: live(kind) for kind in {end.kind for end in ends}}
    return [
        {
            "program": end.program,
            "name": names[end.program],
            "local": show(*end.local),
            "peer": show(*end.peer),
            "side": "server" if end.server else "client",
            "transport": KINDS[end.kind],
        }
        for end in sorted(ends, key=lambda end: (end.program, end.local, end.peer))
        if not end.closed and end.program in names and end.cookie in cookies[end.kind]
    ]


def _live(view: View, kind: int) -> set[int]:
    if kind == UNIX or kind in OF_HOST:
        with sock_diag.open_socket() as netlink:
            return sock_diag.unix_cookies(netlink) if kind == UNIX else sock_diag.tcp_cookies(netlink)
    found: set[int] = set()
    # The programs' own sock_diag sockets are shared with other queries: one at a time.
    with open(f"{view.run_dir.state}/diag.lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for entry in view.entries:
            # It came from a client, who may still have it.
            with socket.socket(fileno=os.dup(entry.fds["diags"][1])) as netlink, suppress(OSError):
                found |= sock_diag.tcp_cookies(netlink)
    return found


def denials(_: View, table: Table) -> list[Row]:
    return [
        {
            "time": iso(row["time"]),
            "client": row["client"],
            "service": row["service"],
            "destination": row["destination"],
            "port": row["port"],
            "rule": row["rule"],
            "program": row["program"],
            "tags": row["tags"],
        }
        for row in table.denials()
    ]


def iso(moment: float) -> str:
    return datetime.datetime.fromtimestamp(moment, datetime.UTC).isoformat(timespec="milliseconds")


def _tags(tags: Tags) -> list[str]:
    return [f"{key}={value}" for key, value in tags]


def _endpoint(real: tuple[str, int]) -> str | None:
    host, port = real
    if not host:
        return None
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"



