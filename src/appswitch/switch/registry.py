"""Which identities are taken: pure bookkeeping of programs, from their request until their end."""

from __future__ import annotations

import ipaddress
import itertools
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Protocol

from ..model import balance, exposure, policy
from ..model.address import unpack
from ..model.exposure import Place
from ..model.identity import (
    Claim,
    Identity,
    Refusal,
    Tags,
    assign,
    check_address,
    check_name,
    check_tags,
    derived_vip,
    resolver_address,
)
from ..model.number import whole
from ..trap import options as trap_options
from ..trap.options import ProgramOptions, WaitFor
from .kept import Kept, below

#: What is kept of a command line, for `appswitch ps`.
COMMAND_KEPT = 4096
#: The number that means nobody (setresuid(2)).
_NO_USER = 2**32 - 1
_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
#: Programs of one user at a time, but root's and those of the switch's own; listeners may be so many times as many.
PER_USER, LISTENERS_EACH = 1000, 4
#: Services that a program may wait for.
WAITS = 64
#: Ports of this host that a program may publish.
EXPOSURES = 64


@dataclass(frozen=True, slots=True)
class Request:
    """What `appswitch run` asks for, checked. `user`: for whom, if not for who asks."""

    name: str | None
    ip: bytes | None
    tags: Tags
    options: ProgramOptions
    argv: tuple[str, ...]
    user: int | None = None


@dataclass(slots=True)
class Entry:
    """A program that has an identity: first claimed, then attached, when it has become a program.

    `since`: seconds since the epoch; `device`: the kind of its device; `fds`: our duplicates, by what they are.
    `places`: the ports of this host that are its own or shared with its like, one for each of `fds["ports"]`.
    `fenced`: why it has a worker that serves nobody else's programs (fences.py).
    """

    number: int
    identity: Identity
    options: ProgramOptions
    argv: tuple[str, ...]
    pid: int
    attached: bool = False
    since: float = 0.0
    worker: int = 0
    fds: dict[str, list[int]] = field(default_factory=dict)
    device: str = ""
    places: list[Place] = field(default_factory=list)
    fenced: str = ""

    def document(self) -> dict[str, Any]:
        """All of it but the descriptors themselves, for the supervisor after this one."""
        who = self.identity
        return {
            "identity": [who.name, who.vip.hex(), who.tags, who.uid, who.named, who.derived],
            "options": self.options.message(),
            "argv": self.argv,
            "pid": self.pid,
            "since": self.since,
            "worker": self.worker,
            "fds": {kind: len(fds) for kind, fds in self.fds.items()},
            "device": self.device,
            "places": self.places,
            "fenced": self.fenced,
        }

    @classmethod
    def of(cls, number: int, document: dict[str, Any], fds: list[int]) -> Entry:
        """An attached program, from its document and descriptors."""
        name, vip, tags, uid, named, derived = document["identity"]
        identity = Identity(name, bytes.fromhex(vip), tuple((key, value) for key, value in tags), uid, named, derived)
        options = ProgramOptions.of(document["options"])
        entry = cls(number, identity, options, tuple(document["argv"]), document["pid"], True, document["since"])
        entry.worker, entry.device = document["worker"], document["device"]
        entry.fenced = document.get("fenced", "")
        entry.places = [Place(*place) for place in document["places"]]
        rest = iter(fds)
        entry.fds = {kind: list(itertools.islice(rest, count)) for kind, count in document["fds"].items()}
        return entry

    def record(self) -> dict[str, Any]:
        """The table's record of the program."""
        who = self.identity
        return {
            "pid": self.pid,
            "uid": who.uid,
            "name": who.name,
            "vip": unpack(who.vip),
            "tags": [f"{key}={value}" for key, value in who.tags],
            "argv": list(self.argv),
            "since": self.since,
            "worker": self.worker,
            "options": self.options.message(),
        }


def check_request(message: dict[str, Any]) -> Request:
    """The request in a client's message, which may be anything; Refusal when it is not right."""
    name, ip = message.get("name"), message.get("ip")
    tags, argv = message.get("tags", []), message.get("argv", [])
    wanted = message.get("options", {})
    if not (name is None or isinstance(name, str)) or not (ip is None or isinstance(ip, str)):
        raise Refusal("the request's name or address is not a text: use `appswitch run` of the same version")
    if not _texts(tags) or not _texts(argv) or not isinstance(wanted, dict):
        raise Refusal("the request is not as this switch knows it: use `appswitch run` of the same version")
    user = message.get("user")
    if user is not None and (type(user) is not int or not 0 <= user < _NO_USER):
        raise Refusal("the request's user is no number of a user: use `appswitch run` of the same version")
    if len(tags) > 64:
        raise Refusal(f"{len(tags)} tags are too many: give at most 64")
    checked = check_tags(tags)
    for key, value in checked:
        if policy.is_slip(key):
            raise Refusal(
                f"{key}={value} is no `group` tag and would keep nobody out: write --tag {policy.GROUP}={value}, "
                "or choose a key that is less like it"
            )
    options = _options(wanted)
    if options.expose and name is None and ip is None:
        raise Refusal("--expose publishes a service, and a program without a name offers none: give it one with --name")
    return Request(
        check_name(name) if name is not None else None,
        check_address(ip) if ip is not None else None,
        checked,
        options,
        _shortened(argv),
        user,
    )


def _texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _options(wanted: dict[str, Any]) -> ProgramOptions:
    known = {
        "transport": (trap_options.TRANSPORTS, trap_options.AUTO),
        "balance": (balance.METHODS, balance.ROUND_ROBIN),
        "egress": (trap_options.EGRESS, trap_options.ALLOW),
    }
    values = {}
    for option, (choices, default) in known.items():
        values[option] = wanted.get(option, default)
        if values[option] not in choices:
            raise Refusal(f"{values[option]!r} is no value of --{option}: give one of {', '.join(choices)}")
    waits = wanted.get("wait_for", [])
    if not _texts(waits) or len(waits) > WAITS:
        raise Refusal(f"--wait-for: give at most {WAITS} names, as NAME or NAME:PORT")
    exposed = wanted.get("expose", [])
    if not _texts(exposed) or len(exposed) > EXPOSURES:
        raise Refusal(f"--expose: give at most {EXPOSURES}, each as HOSTPORT:PORT")
    return ProgramOptions(
        **values,
        wait_for=tuple(map(_wait_for, waits)),
        wait_timeout=_timeout(wanted.get("wait_timeout")),
        expose=tuple(dict.fromkeys(map(exposure.parse, exposed))),
    )


def _wait_for(text: str) -> WaitFor:
    """A service as NAME or NAME:PORT; the address is not known yet."""
    name, colon, port = text.partition(":")
    number = whole(port, 1, 65535) if colon else 0
    if number is None:
        raise Refusal(f"--wait-for takes NAME or NAME:PORT with a port from 1 to 65535, not {text[:80]!r}")
    try:
        return WaitFor(check_name(name), number, b"")
    except Refusal as refusal:
        raise Refusal(f"--wait-for: {refusal}") from None


def _timeout(text: object) -> float:
    if text is None:
        return trap_options.WAIT_TIMEOUT
    seconds = float(text) if isinstance(text, str) and _SECONDS.fullmatch(text) else -1.0
    if not 0 < seconds <= trap_options.WAIT_MOST:
        raise Refusal(f"--wait-timeout takes a number of seconds such as 60, not {str(text)[:80]!r}")
    return seconds


def _shortened(argv: list[str]) -> tuple[str, ...]:
    """So much of it as is kept, as texts that can be stored: an argument may be any bytes."""
    kept, room = [], COMMAND_KEPT
    for word in argv:
        text = word[:room].encode(errors="backslashreplace").decode()
        if len(word) > room:
            kept.append(text + "…")
            break
        kept.append(text)
        room -= len(word) + 1
        if room < 0:
            break
    return tuple(kept)


class Hosts(Protocol):
    """The claims of all hosts, as far as they hold (`table.store.Table`)."""

    def vip_of(self, name: str) -> bytes | None: ...
    def claims(self, vip: bytes) -> list[Claim]: ...


class Registry:
    """The programs of this switch, and the identities that they hold."""

    def __init__(
        self, network: ipaddress.IPv4Network, shared: Iterable[str] = (), per_user: int = PER_USER
    ) -> None:
        self.network = network
        self._per_user = per_user
        self._unlimited = {0, os.geteuid()}
        self._shared = tuple(shared)
        self._numbers = itertools.count(1)
        self.entries: dict[int, Entry] = {}

    def resume(self, kept: Kept) -> None:
        """Have the programs that a supervisor before this one had."""
        for number, item in below(kept, "program/").items():
            self.entries[int(number)] = Entry.of(int(number), item.document, item.fds)
        if "numbers" in kept:
            self._numbers = itertools.count(kept["numbers"].document["next"])

    def claim(self, request: Request, *, uid: int, pid: int, hosts: Hosts | None = None) -> Entry:
        """Hold an identity for a program to be; Refusal when it would take another's.

        `hosts` tells what is claimed on all hosts of the cluster, if this one is in one.
        """
        if uid not in self._unlimited:
            count = sum(entry.identity.uid == uid for entry in self.entries.values())
            if count >= self._per_user:
                raise Refusal(
                    f"user {uid} has {count} programs under this switch, which is as many as one user may: end some, "
                    "or have the switch started with a higher --per-user"
                )
        live = self._live(request, hosts)
        reserved = resolver_address(self.network)
        if request.ip is not None and unpack(request.ip) == reserved:
            raise Refusal(f"{reserved} is the address of AppSwitch's resolver: choose another --ip")
        number = next(self._numbers)
        identity = assign(
            name=request.name,
            ip=request.ip,
            tags=request.tags,
            uid=uid,
            live=live,
            network=self.network,
            seed=f"{uid}:{pid}:{number}".encode(),
            shared=self._shared,
        )
        waits = tuple(
            wanted._replace(vip=derived_vip(wanted.name, self.network)) for wanted in request.options.wait_for
        )
        entry = Entry(number, identity, replace(request.options, wait_for=waits), request.argv, pid)
        self.entries[number] = entry
        return entry

    def _live(self, request: Request, hosts: Hosts | None) -> dict[bytes, list[Claim]]:
        """The identities that the request must respect, by virtual IP; the address of its name comes last."""
        live: dict[bytes, list[Claim]] = {}
        for entry in self.entries.values():
            live.setdefault(entry.identity.vip, []).append(self._claim(entry))
        if hosts is None:
            return live
        concerned = set() if request.ip is None else {request.ip}
        attempt, held = 0, True
        while request.name is not None and held:  # whatever addresses `assign` may look at
            vip = derived_vip(request.name, self.network, attempt)
            concerned.add(vip)
            held = any(claim.name != request.name for claim in [*live.get(vip, ()), *hosts.claims(vip)])
            attempt += 1
        settled = hosts.vip_of(request.name) if request.name is not None else None
        for vip in [*concerned, *([] if settled is None else [settled])]:
            admitted = hosts.claims(vip)
            if any(claim.host for claim in admitted):
                ours = {(claim.name, claim.uid) for claim in admitted if not claim.host}
                mine = [claim for claim in live.pop(vip, ()) if (claim.name, claim.uid) in ours]
                live[vip] = [*(claim for claim in admitted if claim.host), *mine]
        if settled in live:
            live[settled] = live.pop(settled)
        return live

    def _claim(self, entry: Entry) -> Claim:
        who = entry.identity
        shared = who.name is not None and any(fnmatchcase(who.name, pattern) for pattern in self._shared)
        return Claim(who.name, who.vip, who.uid, who.derived, shared)

    def release(self, number: int) -> Entry | None:
        """Give the identity up."""
        return self.entries.pop(number, None)

    def attached(self) -> list[Entry]:
        return [entry for entry in self.entries.values() if entry.attached]

    def claims(self, vip: bytes) -> list[Claim]:
        """Those of attached programs under a virtual IP, for the table."""
        return [self._claim(entry) for entry in self.sharing(vip)]

    def sharing(self, vip: bytes) -> list[Entry]:
        """The attached programs under a virtual IP."""
        return [entry for entry in self.attached() if entry.identity.vip == vip]

    def programs_of(self, worker: int) -> list[Entry]:
        return [entry for entry in self.attached() if entry.worker == worker]
