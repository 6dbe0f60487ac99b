"""`appswitch resolve`: what a connect() of somebody would come to, found by the very functions that a worker asks."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from random import Random
from typing import Any

from ..model import balance
from ..model.address import pack, unpack
from ..model.egress import Nobody, Virtual, leave
from ..model.identity import Identity, Refusal, behind, check_name, check_tags, link_local
from ..model.policy import check
from ..model.resolve import Deny, Reach, Refuse, resolve, where
from ..model.service import TCP, Service
from ..table.store import Table
from ..trap import options
from ..trap.delivery import Buffers
from .paths import SwitchError
from .registry import Entry
from .view import View

Row = dict[str, Any]

_DNS = 53


def resolution(view: View, table: Table, live: list[Service], message: dict[str, Any]) -> Row:
    """The document; SwitchError when nobody has the name, or the request is not right. `live`: this host's rows."""
    name, vip, port = _target(table, view.entries, message.get("target"))
    client, entry = _client(view.entries, message)
    ports = [port] if port else sorted({row.port for row in table.under(vip) if row.proto == TCP})
    if name is None and not ports:
        raise SwitchError(f"nobody serves {unpack(vip)} here: give a port too, to see where a connect would go")
    cookies = {row.cookie for row in live}
    return {
        "name": name or ", ".join(table.names_of(behind(vip)) or ()) or None,
        "vip": unpack(vip),
        "client": {
            "program": entry.number if entry is not None else None,
            "name": client.name,
            "vip": unpack(client.vip),
            "tags": [f"{key}={value}" for key, value in client.tags],
        },
        "ports": [_at(view, table, cookies, client, entry, vip, port) for port in ports],
    }


def unknown(what: str, names: Iterable[str]) -> SwitchError:
    """Nobody has that name; perhaps another was meant."""
    near = difflib.get_close_matches(what, sorted(set(names)), 1)
    meant = f"did you mean {near[0]!r}?" if near else "`appswitch services` and `appswitch ps` show what there is"
    return SwitchError(f"nobody has the name {what!r}: {meant}")


def known_names(table: Table, entries: Iterable[Entry]) -> set[str]:
    """Of all programs and services."""
    names = {entry.identity.name for entry in entries} | {row.name for row in table.all_services()}
    return {name for name in names if name}


def _target(table: Table, entries: list[Entry], text: object) -> tuple[str | None, bytes, int]:
    """(name, virtual IP, port or 0) of NAME[:PORT], ADDRESS[:PORT] or [ADDRESS]:PORT."""
    if not isinstance(text, str):
        raise SwitchError("the request is not as this switch knows it: use `appswitch` of the same version")
    try:
        return None, pack(text), 0
    except ValueError:
        pass
    host, colon, digits = text.rpartition(":")
    if not colon:
        host, digits = text, ""
    if (colon and not digits) or (digits and not (digits.isascii() and digits.isdecimal() and int(digits) <= 65535)):
        raise SwitchError(f"resolve takes NAME or NAME:PORT with a port from 1 to 65535, not {text!r}")
    port = int(digits or 0)
    try:
        return None, pack(host.removeprefix("[").removesuffix("]")), port
    except ValueError:
        pass
    try:
        name = check_name(host)
    except Refusal as refusal:
        raise SwitchError(str(refusal)) from None
    vip = table.vip_of(name)
    if vip is None:
        raise unknown(name, known_names(table, entries))
    return name, vip, port


def _client(entries: list[Entry], message: dict[str, Any]) -> tuple[Identity, Entry | None]:
    """Who asks: a program that runs here, or a nobody with some tags."""
    wanted, tags = message.get("as"), message.get("tags", [])
    if wanted is None:
        try:
            return Identity(None, link_local(b"resolve"), check_tags(map(str, tags)), 0, named=False), None
        except Refusal as refusal:
            raise SwitchError(str(refusal)) from None
    for entry in entries:
        if wanted in (entry.identity.name, unpack(entry.identity.vip), str(entry.number)):
            return entry.identity, entry
    names = [entry.identity.name for entry in entries if entry.identity.name]
    near = difflib.get_close_matches(str(wanted), names, 1)
    raise SwitchError(
        f"no program {wanted!r} runs on this host: "
        + (f"did you mean {near[0]!r}?" if near else "give its tags with --tag instead")
    )


def _at(
    view: View, table: Table, live: set[int], client: Identity, entry: Entry | None, destination: bytes, port: int
) -> Row:
    vip, _ = where(client, destination)
    rows, known = table.lookup(vip, port, client=client)
    # what a worker learns at its first try: a listener that its program has closed is passed over
    rows = [row for row in rows if row.remote or row.cookie in live]
    decision = resolve(client, destination, port, rows, known=known)
    found: Row = {"port": port, "decision": "", "rule": "", "error": None, "balance": None, "instances": []}
    if port == _DNS:
        return found | {"decision": "switch", "rule": "DNS, which the switch answers"}
    if isinstance(decision, Reach):
        chosen = balance.order(decision.instances, 0, Random(0))
        return found | {
            "decision": "allowed",
            "rule": check(client.tags, chosen[0].tags).rule,
            "balance": balance.method(decision.instances),
            "instances": [_instance(view, row, entry) for row in chosen],
        }
    if isinstance(decision, Deny):
        return found | {"decision": "denied", "rule": decision.rule, "error": "EACCES"}
    if isinstance(decision, Refuse):
        return found | {"decision": "refused", "rule": "nothing listens there for it", "error": "ECONNREFUSED"}
    denied = entry is not None and entry.options.egress == options.DENY
    outcome = leave(vip, Virtual(str(view.network)), denied=denied)
    if isinstance(outcome, Deny):
        return found | {"decision": "denied", "rule": f"{outcome.service}, and {outcome.rule}", "error": "EACCES"}
    if isinstance(outcome, Nobody):
        return found | {"decision": "refused", "rule": "nobody has this virtual IP", "error": "EHOSTUNREACH"}
    return found | {"decision": "outside", "rule": "not an address of AppSwitch's: straight to the network"}


def _instance(view: View, row: Service, client: Entry | None) -> Row:
    asked = client.options.transport if client is not None else options.AUTO
    if row.remote:
        transport = "remote"
    else:
        transport = "unix" if options.unix_is_wanted(asked, row.transport, Buffers.probe().enough) else "tcp"
    return {
        "instance": row.instance,
        "program": row.program,
        "host": row.host or (view.cluster["name"] if view.cluster else None),
        "address": f"[{row.real[0]}]:{row.real[1]}" if ":" in row.real[0] else f"{row.real[0]}:{row.real[1]}",
        "transport": transport,
        "weight": row.weight,
    }
