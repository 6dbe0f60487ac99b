"""Whether, how and with which agents a host is a member of a Serf cluster, too: read from texts, and kept."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..model.number import whole
from .ring import KeyRefused, parse
from .underlay import can_be_reached

#: Serf's own.
PORT = 7946
#: What stands for a key where there is none.
PLAIN, OFF = "plain", "off"

#: An address and perhaps a port; one of IPv6 with a port in brackets.
_SEED = re.compile(r"\[(?P<six>[^]]+)\](:(?P<port>\d+))?|(?P<four>[^:]+)(:(?P<after>\d+))?|(?P<bare>[^\[\]]+)")

Address = tuple[str, int]


class SerfRefused(ValueError):
    """A setting that is none; one sentence, which does not repeat a key."""


@dataclass(frozen=True, slots=True)
class SerfSettings:
    """`given`: the key that was set, empty for a cluster that is not encrypted.

    `keys`: that one, or what `serf keys` has changed it to; the first seals. `seeds`: agents to join by.
    """

    given: bytes = field(repr=False)
    keys: tuple[bytes, ...] = field(repr=False)
    port: int = PORT
    seeds: tuple[Address, ...] = ()

    def document(self) -> dict[str, Any]:
        """As it is kept and told."""
        keys = [key.hex() for key in self.keys]
        return {"given": self.given.hex(), "keys": keys, "port": self.port, "seeds": self.seeds}

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> SerfSettings:
        """From such a document; KeyError, TypeError or ValueError."""
        return cls(
            bytes.fromhex(document["given"]),
            tuple(bytes.fromhex(key) for key in document["keys"]),
            int(document["port"]),
            tuple((str(address), int(port)) for address, port in document["seeds"]),
        )


def resolve(
    which: str | None, port: str | None, seeds: str | None, remembered: SerfSettings | None
) -> SerfSettings | None:
    """The settings for these texts; what is None stays as it is remembered. None: no Serf. SerfRefused."""
    found = remembered
    if which == OFF:
        return None
    if which is not None:
        given = _key(which)
        keys = (given,) if given else ()
        if found is None:
            found = SerfSettings(given, keys)
        elif found.given != given:
            found = replace(found, given=given, keys=keys)
    if found is None:
        if port is not None or seeds is not None:
            raise SerfRefused("--serf-port and --serf-join need --serf: the key of the agents' -encrypt, or plain")
        return None
    if port is not None:
        number = whole(port, 1, 65535)
        if number is None:
            raise SerfRefused(f"--serf-port takes a number from 1 to 65535, not {port!r}")
        found = replace(found, port=number)
    if seeds is not None:
        found = replace(found, seeds=tuple(dict.fromkeys(_address(seed) for seed in seeds.split(","))))
    return found


def _key(text: str) -> bytes:
    if text == PLAIN:
        return b""
    try:
        return parse(text)
    except KeyRefused as error:
        raise SerfRefused(f"--serf takes {PLAIN}, {OFF} or the key of the agents' -encrypt: {error}") from None


def _address(text: str) -> Address:
    found = _SEED.fullmatch(text.strip())
    host = found and (found["six"] or found["four"] or found["bare"])
    port = found and (found["port"] or found["after"])
    number = whole(port or str(PORT), 1, 65535)
    try:
        address = str(ipaddress.ip_address(host or ""))
    except ValueError:
        address = ""
    if number is None or not address or not can_be_reached(address):
        raise SerfRefused(f"--serf-join takes an agent's address and port, such as 10.0.0.5:{PORT}, not {text!r}")
    return address, number
