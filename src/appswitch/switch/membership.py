"""What makes a switch a member of a cluster: settings, from a wish and from what is remembered of the last time."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, NamedTuple

from ..cluster import keys, serf, underlay
from ..cluster.ring import Ring, name_of
from ..cluster.serf import SerfSettings
from ..cluster.token import ADDRESSES, Token, TokenError, decode, encode, new_label
from ..linux import addresses
from ..model.number import whole
from . import paths
from .paths import RunDir, SwitchError

GOSSIP_PORT = 7942
LAN, WAN, LOCAL = "lan", "wan", "local"
TIMINGS = (LAN, WAN, LOCAL)
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_STATE = "/var/lib/appswitch"

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Wish:
    """What was asked for: None where nothing was said. `interface` is an interface's name or an address."""

    token: str | None = field(default=None, repr=False)
    interface: str | None = None
    advertise: str | None = None
    port_range: str | None = None
    name: str | None = None
    gossip_port: str | None = None
    timings: str | None = None
    serf: str | None = field(default=None, repr=False)
    serf_port: str | None = None
    serf_join: str | None = None

    def __bool__(self) -> bool:
        return any(value is not None for value in asdict(self).values())


@dataclass(frozen=True, slots=True)
class Membership:
    """A member's settings. `interface` "": the address is that from which `seeds` are reached.

    `advertise` "": the address is told to others as it is. `seeds`: where other members listen for gossip.
    `serf`: None unless this host is a member of a Serf cluster, too.
    """

    name: str
    label: str
    ring: Ring = field(repr=False)
    interface: str = ""
    advertise: str = ""
    port_range: tuple[int, int] | None = None
    gossip_port: int = GOSSIP_PORT
    timings: str = LAN
    seeds: tuple[Address, ...] = ()
    serf: SerfSettings | None = None

    def token(self, own: Address, others: Sequence[Address]) -> str:
        """The token that lets others join: this host's address first."""
        found = tuple(dict.fromkeys([own, *others]))[:ADDRESSES]
        return encode(Token(self.label, self.ring.secret, found))

    def document(self) -> dict[str, Any]:
        """As it is kept in a file and told to the router."""
        told = {"ring": self.ring.document(), "serf": self.serf and self.serf.document()}
        return {item.name: getattr(self, item.name) for item in fields(self)} | told

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Membership:
        """From such a document, perhaps of the time of a single key; KeyError, TypeError or ValueError."""
        ports = document["port_range"]
        return cls(
            str(document["name"]),
            str(document["label"]),
            Ring.of(document["ring"]) if "ring" in document else Ring.founded(bytes.fromhex(document["secret"])),
            str(document["interface"]),
            str(document["advertise"]),
            (int(ports[0]), int(ports[1])) if ports else None,
            int(document["gossip_port"]),
            str(document["timings"]),
            tuple((str(address), int(port)) for address, port in document["seeds"]),
            SerfSettings.of(document["serf"]) if document.get("serf") else None,
        )


def resolve(wish: Wish, remembered: Membership | None, default_name: Callable[[], str]) -> Membership:
    """The settings for a wish. SwitchError with one sentence when it cannot be granted.

    What the wish leaves open is as it was the last time in the same cluster. Without a token and a memory a new
    cluster is made, with a new secret.
    """
    token = _token(wish.token) if wish.token is not None else None
    if remembered is not None and token is not None and token.label != remembered.label:
        remembered = None
    if remembered is None:
        label, secret = (token.label, token.secret) if token is not None else (new_label(), keys.new_secret())
        remembered = Membership("", label, Ring.founded(secret))
    elif token is not None and not remembered.ring.has(name_of(token.secret)):
        remembered = replace(remembered, ring=Ring.founded(token.secret))  # the key was changed meanwhile
    found = replace(
        remembered,
        name=_checked_name(wish.name) if wish.name is not None else remembered.name or default_name(),
        interface=wish.interface if wish.interface is not None else remembered.interface,
        advertise=_address("--advertise", wish.advertise) if wish.advertise is not None else remembered.advertise,
        port_range=_ports(wish.port_range) if wish.port_range is not None else remembered.port_range,
        gossip_port=_port(wish.gossip_port) if wish.gossip_port is not None else remembered.gossip_port,
        timings=wish.timings if wish.timings is not None else remembered.timings,
        seeds=tuple(dict.fromkeys([*(token.addresses if token is not None else ()), *remembered.seeds])),
        serf=_serf(wish, remembered.serf),
    )
    if wish.timings is not None and wish.timings not in TIMINGS:
        raise SwitchError(f"--timings takes {', '.join(TIMINGS[:-1])} or {TIMINGS[-1]}, not {wish.timings!r}")
    if wish.advertise is not None and wish.interface is None:
        # An address of this host's is the one to listen at; another is what a translator in between shows.
        own = any(item.address == found.advertise for item in addresses.assigned())
        found = replace(found, interface=found.advertise if own else found.interface)
    here(found)
    return found


class Here(NamedTuple):
    """Where a member is: the address that others are told, and the host's own that takes their connections."""

    address: str
    bind: str


def here(membership: Membership, now: str = "") -> Here:
    """Where this host is; `now` is the address of its own that was used last. SwitchError when it has none."""
    try:
        if membership.interface:
            bind = underlay.choose(membership.interface, addresses.assigned(), now)
        elif membership.seeds:
            bind = underlay.towards(membership.seeds, now)
        else:
            raise SwitchError(
                "the address at which others reach this host is not known: name it, or its interface, with "
                "--node-interface"
            )
    except underlay.NoAddress as error:
        raise SwitchError(str(error)) from None
    return Here(membership.advertise or bind, bind)


def _serf(wish: Wish, remembered: SerfSettings | None) -> SerfSettings | None:
    try:
        return serf.resolve(wish.serf, wish.serf_port, wish.serf_join, remembered)
    except serf.SerfRefused as error:
        raise SwitchError(str(error)) from None


def _token(text: str) -> Token:
    try:
        return decode(text)
    except TokenError as error:
        raise SwitchError(str(error)) from None


def _checked_name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise SwitchError(
            f"{text!r} cannot be a host's name: use letters, digits, '-', '_' and '.', at most 63 of them"
        )
    return text


def _address(option: str, text: str) -> str:
    if not underlay.is_address(text) or not underlay.can_be_reached(text):
        raise SwitchError(f"{option} takes an IPv4 or IPv6 address at which other hosts reach this one, not {text!r}")
    return text


def _port(text: str) -> int:
    number = whole(text, 1, 65535)
    if number is None:
        raise SwitchError(f"--gossip-port takes a number from 1 to 65535, not {text!r}")
    return number


def _ports(text: str) -> tuple[int, int]:
    low, high = (whole(word, 1, 65535) for word in (text.partition("-")[0], text.partition("-")[2]))
    if low is None or high is None or low > high:
        raise SwitchError(f"--port-range takes two ports such as 40000-41000, not {text!r}")
    return low, high


def default_name(run_dir: RunDir) -> str:
    """Stable, and another for each switch of a machine: the host's name and 4 hex digits."""
    try:
        with open("/etc/machine-id", encoding="ascii") as file:
            machine = file.read().strip()
    except (OSError, UnicodeDecodeError):
        machine = ""
    namespace = os.stat("/proc/self/ns/net").st_ino
    digits = hashlib.sha256(os.fsencode(f"{machine} {namespace} {run_dir}")).hexdigest()[:4]
    short = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname().partition(".")[0]).strip("-")[:50] or "host"
    return f"{short}-{digits}"


# memory ----------------------------------------------------------------------------------------------------


def memory_path(run_dir: RunDir, environ: Mapping[str, str], uid: int) -> str:
    """Where the switch of a run directory remembers its cluster, over its ends: a secret file."""
    if run_dir != paths.own(environ, uid):
        return f"{run_dir}.cluster"
    if uid == 0:
        return f"{_STATE}/cluster.json"
    base = environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(base):
        base = os.path.join(environ.get("HOME", "/nonexistent"), ".local/state")
    return f"{base}/appswitch/cluster.json"


def recall(path: str) -> Membership | None:
    """What is remembered; None when nothing is. SwitchError when it cannot be read, or is another user's."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SwitchError(f"cannot read {path}, which has the cluster's key: {error.strerror}") from None
    with open(fd, encoding="utf-8") as file:
        if os.fstat(fd).st_uid != os.geteuid():
            raise SwitchError(f"{path}, which has the cluster's key, belongs to another user: remove it")
        try:
            return Membership.of(json.load(file))
        except (ValueError, KeyError, TypeError, IndexError):
            raise SwitchError(f"{path} does not hold a cluster's key any more: remove it, and join again") from None


def remember(path: str, membership: Membership) -> None:
    """Keep it, readable by this user alone. OSError."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    new = f"{path}.new"
    try:
        os.unlink(new)
    except FileNotFoundError:
        pass
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "w", encoding="utf-8") as file:
        json.dump(membership.document(), file)
    os.replace(new, path)


def forget(path: str) -> bool:
    """Whether there was anything to forget."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True
