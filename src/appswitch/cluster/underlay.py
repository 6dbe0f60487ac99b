"""Which of a host's addresses the others reach it by: a choice among those that its interfaces have."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Sequence

from ..linux.addresses import Assigned

_ANY_PORT = 9  # nothing is sent


class NoAddress(Exception):
    """There is none; one sentence that says why and what to do."""


def is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def can_be_reached(text: str) -> bool:
    """Could other hosts connect to this address? Not if it is the wildcard, a group, or needs an interface."""
    address = ipaddress.ip_address(text)
    return not (address.is_unspecified or address.is_multicast or "%" in text or text == "255.255.255.255")


def choose(wanted: str, there: Sequence[Assigned], now: str = "") -> str:
    """The address for an interface's name, or an address itself, among those that are there. NoAddress.

    An interface's IPv4 address comes before IPv6 ones. `now`, the one used last, is kept as long as it is there, and
    another must be of the same family: the gossip's sockets are.
    """
    if is_address(wanted):
        text = str(ipaddress.ip_address(wanted))
        if any(item.address == text for item in there):
            return text
        have = ", ".join(item.address for item in there if not item.link_local and item.interface != "lo")
        raise NoAddress(f"this host has no address {wanted}: choose one that it has ({have or 'it has none'})")
    here = [item for item in there if item.interface == wanted]
    if not here:
        names = ", ".join(dict.fromkeys(item.interface for item in there))
        raise NoAddress(f"there is no interface {wanted} with an address: choose one of {names or 'none'}")
    usable = [item for item in here if not item.link_local and (not now or (":" in item.address) == (":" in now))]
    if not usable:
        what = "other than link-local ones" if not now else f"of the family of {now}"
        raise NoAddress(f"the interface {wanted} has no address {what}: give it one, or choose another interface")
    if any(item.address == now for item in usable):
        return now
    return min(usable, key=lambda item: (":" in item.address, not item.preferred)).address


def towards(targets: Iterable[tuple[str, int]], now: str = "") -> str:
    """The source address that the kernel picks towards the first target that it has a route to. NoAddress.

    Of the same family as `now`, the one used last.
    """
    found = None
    for address, _ in targets:
        if now and (":" in address) != (":" in now):
            continue
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
                probe.connect((address, _ANY_PORT))
                return str(probe.getsockname()[0])
        except OSError as error:
            found = error.strerror
    raise NoAddress(
        f"this host has no route to the cluster's members ({found or 'none is known'}): "
        "see to its network, or name its own address with --node-interface"
    )
