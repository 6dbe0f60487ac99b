"""The ways to get from a client to a server: natively, and by each of the switch's transports."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from support.hosts import Hosts
from support.modes import MODES, Person
from support.switch import Switch

from .native import Bridged

ROOT = MODES[0]
Command = Callable[[Person], Path]


@dataclass(frozen=True)
class Place:
    """Where servers and clients of a case run; the same in both, but on two hosts."""

    servers: Switch
    clients: Switch
    options: tuple[str, ...] = ()
    """Options of `appswitch run` for all programs."""


@contextlib.contextmanager
def _native(command: Command) -> Iterator[Place]:
    native = Bridged()
    try:
        yield Place(native, native)
    finally:
        native.close()


@contextlib.contextmanager
def _one_host(command: Command, *options: str) -> Iterator[Place]:
    switch = Switch(ROOT, command)
    try:
        switch.up()
        yield Place(switch, switch, options)
    finally:
        switch.close()


@contextlib.contextmanager
def _tcp(command: Command) -> Iterator[Place]:
    with _one_host(command, "--transport", "tcp") as place:
        yield place


@contextlib.contextmanager
def _two_hosts(command: Command) -> Iterator[Place]:
    hosts = Hosts(2, command)
    try:
        hosts.up("--timings", "local")
        yield Place(hosts[0], hosts[1])
    finally:
        hosts.close()


NATIVE, FORCED_TCP = "native", "one host, tcp"
LANES: dict[str, Callable[[Command], contextlib.AbstractContextManager[Place]]] = {
    NATIVE: _native,
    "one host": _one_host,
    FORCED_TCP: _tcp,
    "two hosts": _two_hosts,
}
"""By name. Native: every name has a network namespace and an address on a bridge, as a container would."""
