"""Who a program is: a name, a virtual address, tags, an owner (paper, section 4).

Pure: the live identities come in as values, the answer goes out as a value or as a `Refusal`.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from .address import MAPPED, is_any, is_loopback, is_multicast, is_v4, pack, unpack

DEFAULT_RANGE = "100.64.0.0/10"
#: Left out of every range: network address, resolver (+53) and neighbours, for the switch itself.
RESERVED = 256
DOMAIN = "appswitch"
#: Unique local prefix (RFC 4193) under which IPv4-only identities show themselves to IPv6 peers.
ULA = b"\xfdappswitch\0\0"


def behind(address: bytes) -> bytes:
    """The virtual IP that an address stands for: itself, unless an IPv4 one is shown to IPv6 peers by it."""
    return MAPPED + address[len(ULA) :] if address.startswith(ULA) else address


_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_TAG = re.compile(r"[A-Za-z0-9_.-]{1,63}=[^\s,=]{1,255}")
#: Characters of a name, and those of a text that is shown because it is wrong.
_NAME_MOST, _SHOWN = 200, 80
Tags = tuple[tuple[str, str], ...]
#: Bytes that a program's tags may have together, as "key=value,key=value": they travel with its connections.
TAGS_MOST = 1024


class Refusal(Exception):
    """An identity that cannot be had; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a program is called and reached by.

    `vip` is 16 bytes; `named` is False for link-local clients; `derived`: the address was made of the name.
    """

    name: str | None
    vip: bytes
    tags: Tags
    uid: int
    named: bool = True
    derived: bool = False

    @property
    def source4(self) -> bytes:
        """The IPv4 address this identity shows to IPv4 peers."""
        return self.vip if is_v4(self.vip) else link_local(self.vip)

    @property
    def source6(self) -> bytes:
        """The IPv6 address this identity shows to IPv6 peers: its own, or a ULA (RFC 4193) made of its IPv4 one."""
        return self.vip if not is_v4(self.vip) else ULA + self.vip[12:]

    def source_for(self, peer: bytes) -> bytes:
        return self.source4 if is_v4(peer) else self.source6

    @property
    def label(self) -> str:
        return self.name or unpack(self.vip)


@dataclass(frozen=True, slots=True)
class Claim:
    """A live identity, as far as others must respect it.

    `derived`: the address was made of the name; `open`: everybody may join the name. `stamp` orders the claims of
    all hosts (model.claims); `host` is the member name of the host where it lives, "" for this one.
    """

    name: str | None
    vip: bytes
    uid: int
    derived: bool = False
    open: bool = False
    stamp: int = 0
    host: str = ""


def check_name(name: str) -> str:
    """A name in its stored form: lower case, DNS labels (RFC 1123, underscore allowed), no `.appswitch`."""
    low = name.lower().rstrip(".")
    low = low.removesuffix("." + DOMAIN)
    if len(low) > _NAME_MOST or not all(_LABEL.fullmatch(part) for part in low.split(".")):
        raise Refusal(
            f"{_shown(name)} cannot be a name: use letters, digits and, between them, '-', in parts of at most 63 "
            f"joined by dots, {_NAME_MOST} characters in all"
        )
    if low == "localhost" or low.endswith(".localhost") or low == DOMAIN:
        raise Refusal(f"{name!r} cannot be a name: it is reserved (RFC 6761); choose another")
    if re.fullmatch(r"[0-9.]+", low):
        raise Refusal(f"{name!r} cannot be a name: it reads as an address; give it as --ip")
    return low


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")


def check_address(text: str) -> bytes:
    try:
        address = pack(text)
    except ValueError:
        raise Refusal(
            f"{_shown(text)} is not an IPv4 or IPv6 address; give --ip as 10.1.2.3 or 2001:db8::1, "
            "without port, prefix or interface"
        ) from None
    if is_any(address) or is_loopback(address) or is_multicast(address):
        raise Refusal(
            f"{text} cannot be a virtual IP: it is a loopback, multicast or wildcard address; choose another"
        )
    if address[0] == 0xFE and address[1] & 0xC0 == 0x80:
        raise Refusal(f"{text} cannot be a virtual IP: link-local IPv6 addresses need an interface; choose another")
    if address.startswith(ULA):
        raise Refusal(f"{text} cannot be a virtual IP: it stands for {unpack(behind(address))}; give that as --ip")
    return address


def check_tags(texts: Iterable[str]) -> Tags:
    """`k=v` texts as sorted pairs; the same key may carry several values."""
    texts = list(texts)
    for text in texts:
        if not (_TAG.fullmatch(text) and text.isprintable()):
            several = "; for several values give --tag several times" if "," in text else ""
            raise Refusal(f"{_shown(text)} is not a tag: write key=value, such as --tag group=1{several}")
    pairs = {tuple(text.split("=", 1)) for text in texts}
    if len(",".join("=".join(pair) for pair in pairs).encode()) > TAGS_MOST:
        raise Refusal(f"the tags are longer than {TAGS_MOST} bytes together; they travel with connections: use fewer")
    return tuple(sorted((key, value) for key, value in pairs))


def check_range(text: str) -> ipaddress.IPv4Network:
    try:
        network = ipaddress.IPv4Network(text)
    except ValueError:
        raise Refusal(f"{_shown(text)} is not an IPv4 range; write it as {DEFAULT_RANGE}") from None
    if network.num_addresses < 4 * RESERVED:
        raise Refusal(f"{text} is too small a range for virtual IPs: give at least a /22")
    return network


def resolver_address(network: ipaddress.IPv4Network) -> str:
    """Where programs send their DNS queries."""
    return str(network.network_address + 53)


def derived_vip(name: str, network: ipaddress.IPv4Network, attempt: int = 0) -> bytes:
    """The name's virtual IP: a hash into the range, so the same on every host; `attempt` counts collisions."""
    digest = hashlib.sha256(f"{attempt}:{name}".encode()).digest()
    offset = RESERVED + int.from_bytes(digest[:8], "big") % (network.num_addresses - RESERVED - 1)
    return MAPPED + (network.network_address + offset).packed


def link_local(seed: bytes) -> bytes:
    """An address of 169.254.1.0 - 169.254.254.255 (RFC 3927, 2.1) made of a seed."""
    number = int.from_bytes(hashlib.sha256(seed).digest()[:4], "big") % (254 * 256)
    return MAPPED + bytes((169, 254, 1 + number // 256, number % 256))


def assign(
    *,
    name: str | None,
    ip: bytes | None,
    tags: Tags,
    uid: int,
    live: Mapping[bytes, Iterable[Claim]],
    network: ipaddress.IPv4Network,
    seed: bytes,
    shared: Iterable[str] = (),
) -> Identity:
    """The identity a request gets, given the live ones by virtual IP; `Refusal` when it would take another's.

    A name stands for one address and an address belongs to one user (root may join any; `shared` holds
    patterns of names that everybody may join). Of two names that hash to one address the first to live keeps
    it and the other takes the next of its own sequence.
    """
    if ip is None and name is None:
        vip = link_local(seed)
        while vip in live:
            seed += b"+"
            vip = link_local(seed)
        return Identity(None, vip, tags, uid, named=False)
    by_name = {claim.name: claim for claims in live.values() for claim in claims if claim.name}
    holder = by_name.get(name) if name else None
    if holder is not None and ip is not None and holder.vip != ip:
        raise Refusal(
            f"the name {name!r} already stands for {unpack(holder.vip)}, not {unpack(ip)}: "
            "leave --ip out, give that address, or choose another name"
        )
    derived = False
    if ip is not None:
        vip = ip
    elif holder is not None:
        vip, derived = holder.vip, holder.derived
    else:
        assert name is not None
        attempt = 0
        vip = derived_vip(name, network, attempt)
        while any(claim.name != name for claim in live.get(vip, ())):
            attempt += 1
            vip = derived_vip(name, network, attempt)
        derived = True
    open_to_all = name is not None and any(fnmatchcase(name, pattern) for pattern in shared)
    if uid != 0 and not open_to_all:
        claims = list(live.get(vip, ()))
        joined = any(claim.uid == uid for claim in claims)
        for claim in claims:
            # root may have joined this user's programs: they are still this user's
            if claim.uid != uid and not (claim.uid == 0 and joined):
                what = f"the name {name!r}" if claim.name == name and name else f"the address {unpack(vip)}"
                where = f" on host {claim.host}" if claim.host else ""
                raise Refusal(
                    f"{what} belongs to a running program of user {claim.uid}{where}: choose another, "
                    "or have the switch started with --share for it"
                )
    return Identity(name, vip, tags, uid, derived=derived)
