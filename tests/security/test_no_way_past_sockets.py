"""Sockets that the switch put into a program, asked about the host and used for something else."""

import ipaddress
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from security.outside import Canary, Pry, Silent, listening_on_host, prying, user_of_socket
from support.switch import Switch

Found = dict[str, Any]

USED_BEFORE = {"native", "egress", "end", "shut down", "disconnected", "refused", "refused later", "ended"}
FAILURES = {"ECONNREFUSED", "EISCONN", "EINPROGRESS", "EALREADY", "EINVAL", "ECONNABORTED"}


@pytest.fixture(scope="module")
def given(canary: Canary, far_canary: Canary, silent: Silent) -> Iterator[Found]:
    with socket.socket() as closed:
        closed.bind((far_canary.address[0], 0))  # nothing listens there
        yield {
            "canary": canary.address,
            "outside": far_canary.address,
            "silent": silent.address,
            "closed": closed.getsockname(),
        }


@pytest.fixture(scope="module")
def inside(
    shared: Switch, python: str, pry: Path, given: Found, service: tuple[str, int], device_and_address: tuple[str, str]
) -> Iterator[Pry]:
    """A program that may leave AppSwitch, has tried everything with its sockets, and holds them still."""
    all_given = given | {"service": service, "device": device_and_address[0]}
    with prying(shared, [python, "-S", pry, "sockets", json.dumps(all_given)]) as program:
        yield program


def each(again: dict[str, Found], *, listen_first: bool) -> Iterator[tuple[str, Found]]:
    """(what the socket was before, outcomes)"""
    for name, outcomes in again.items():
        before, _, way = name.partition(", ")
        assert before in USED_BEFORE
        if bool(way) == listen_first:
            yield before, outcomes


def test_natively_used_sockets_lead_anywhere(
    shared: Switch, python: str, pry: Path, given: Found, canary: Canary
) -> None:
    """The same natively, as far as it needs no service: what is tried below is good for something."""
    canary.connections()
    all_given = given | {"service": given["outside"]}
    with prying(shared, [python, "-S", pry, "sockets", json.dumps(all_given)], native=True) as native:
        connected = dict(each(native.seen["again"], listen_first=False))
        listening = dict(each(native.seen["again"], listen_first=True))
        assert set(connected) == set(listening) == USED_BEFORE
        free = ("native", "egress", "end", "shut down", "disconnected", "refused")
        assert all(connected[name]["connect"] in ("done", "EINPROGRESS") for name in free)
        assert canary.connections() >= len(free)
        assert all(listening[name]["listen"] == "done" for name in free)
        assert len(listening_on_host([native.pid])) >= len(free)


def test_used_sockets_lead_nowhere(inside: Pry, canary: Canary) -> None:
    for listen_first in (False, True):
        tried = dict(each(inside.seen["again"], listen_first=listen_first))
        assert set(tried) == USED_BEFORE
        for before, outcomes in tried.items():
            if before == "native":
                # It may: in its own namespace, for others under the switch.
                assert (outcomes["bind"], outcomes["listen"]) == ("done", "done")
            else:
                assert (outcomes["bind"], outcomes["listen"]) == ("EINVAL", "EINVAL"), before
            assert {outcomes["connect"], outcomes["connect again"]} <= FAILURES, before
            assert outcomes["fast open"] == "ENOTSUP"
            assert outcomes["sendto"] is False
    assert canary.connections() == 0


def test_no_port_of_the_host_is_open(inside: Pry, shared: Switch) -> None:
    assert listening_on_host([inside.pid]) == []
    # What the switch itself has open are the services' real ports, on loopback (little endian in the table).
    assert all(address.startswith("0100007F:") for address in listening_on_host(shared.processes()))


def test_interfaces_are_the_programs_own(inside: Pry, device_and_address: tuple[str, str]) -> None:
    for sock, told in inside.seen["questions"].items():
        names, addresses = told["interfaces"]
        assert set(names) == {"lo", "as0"}, sock
        others = {ipaddress.ip_address(address) for address in addresses} - {ipaddress.ip_address("127.0.0.1")}
        assert all(address.is_link_local for address in others)
        assert device_and_address[1] not in addresses
        assert told["address"] == "ENODEV"
        assert told["wireless"] == "EPERM"


def test_no_namespace_and_no_device_of_the_host(inside: Pry) -> None:
    for sock, told in inside.seen["questions"].items():
        assert told["namespace"] == "EPERM", sock
        # Whether the host has such a device is not told, and nothing can be bound to it.
        assert told["device"] == ("EPERM" if sock == "egress" else "ENODEV"), sock


def test_no_firewall_of_the_host(inside: Pry, shared: Switch) -> None:
    """These options would be carried out by root's switch, on the host's rules (linux/netfilter_ipv4/ip_tables.h)."""
    for sock, told in inside.seen["questions"].items():
        outcomes = {told[what] for what in ("firewall", "counters", "firewall 6")}
        # On a socket of its own, root may try: EINVAL is of the rules of its own namespace.
        own = sock == "native" and shared.mode.program_owner.uid == 0
        assert outcomes <= {"EPERM", "ENOPROTOOPT", *(("EINVAL",) if own else ())}, sock


def test_a_socket_to_outside_is_the_users(inside: Pry, shared: Switch) -> None:
    """Rules of the host that go by the user of a socket must not take it for root's."""
    assert user_of_socket(inside.seen["inode"]) == shared.mode.program_owner.uid
