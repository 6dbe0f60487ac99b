"""A cluster's keys, which every host has alike: the primary seals, all open. Pure: values in, values out.

A ring is changed on any host and spreads as a whole. Each key, and the choice of the primary, carries a stamp larger
than all that its host knew when it was changed; two rings are merged by taking the later of each, so that all hosts
come to the same ring in whatever order they hear of changes. A key that was removed stays as a name without its
secret, lest a host that was away bring it back.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .keys import SIZES, derive

#: Keys at a time, and removed ones that are remembered.
MOST, REMOVED = 8, 32
_NAMED = b"appswitch key name 1"
_NAME_SIZE = 6
_STAMP_MOST = 1 << 62


class KeyRefused(ValueError):
    """A change of the ring that cannot be made; one sentence."""


def name_of(secret: bytes) -> str:
    """What a key is called in public: 12 hex digits, from which nothing of it can be learned."""
    return derive(secret, _NAMED)[:_NAME_SIZE].hex()


def parse(text: str) -> bytes:
    """A key from its base64 text. KeyRefused; the sentence does not repeat it."""
    try:
        found = base64.b64decode(text.strip(), validate=True)
    except (ValueError, binascii.Error):
        found = b""
    if len(found) not in SIZES:
        raise KeyRefused("a key is 16, 24 or 32 bytes in base64, such as `head -c 32 /dev/urandom | base64` prints")
    return found


@dataclass(frozen=True, slots=True)
class Key:
    """`secret` None: it was removed."""

    stamp: int
    secret: bytes | None = field(repr=False)

    @property
    def _order(self) -> tuple[int, bool]:
        return self.stamp, self.secret is not None


@dataclass(frozen=True, slots=True)
class Ring:
    """`known`: keys by their names; `primary`: the name of the one that seals, chosen at `stamp`; it is there."""

    known: Mapping[str, Key]
    primary: str
    stamp: int

    @classmethod
    def founded(cls, secret: bytes) -> Ring:
        """Of a new cluster, or of a host that knows no more than a token; any other ring is later."""
        name = name_of(secret)
        return cls({name: Key(0, secret)}, name, 0)

    @property
    def names(self) -> list[str]:
        """The keys that are there, the primary first, then the latest first."""
        there = [name for name, key in self.known.items() if key.secret is not None and name != self.primary]
        return [self.primary, *sorted(there, key=lambda name: (-self.known[name].stamp, name))]

    @property
    def secrets(self) -> list[bytes]:
        """In the order of `names`."""
        return [secret for name in self.names if (secret := self.known[name].secret) is not None]

    @property
    def secret(self) -> bytes:
        """The primary."""
        return self.secrets[0]

    def has(self, name: str) -> bool:
        """Is there a key of this name?"""
        key = self.known.get(name)
        return key is not None and key.secret is not None

    # changes -------------------------------------------------------------------------------------------

    def add(self, secret: bytes) -> Ring:
        """With one more key. KeyRefused when there are too many."""
        if self.has(name_of(secret)):
            return self
        if len(self.names) >= MOST:
            raise KeyRefused(f"there are {MOST} keys already: remove one that is of no more use")
        return self._with(name_of(secret), Key(self._next(), secret))

    def use(self, name: str) -> Ring:
        """With another primary. KeyRefused when there is none of this name."""
        self._check(name)
        return self if name == self.primary else Ring(self.known, name, self._next())

    def remove(self, name: str) -> Ring:
        """Without this key. KeyRefused for the primary, or when there is none of this name."""
        self._check(name)
        if name == self.primary:
            raise KeyRefused(f"key {name} is the one that seals: let another do so first, with `appswitch key use`")
        return self._with(name, Key(self._next(), None))

    def merge(self, other: Ring) -> Ring:
        """What both know."""
        chosen = max(self, other, key=lambda ring: (ring.stamp, ring.primary))
        known = dict(self.known)
        for name, key in other.known.items():
            if name not in known or key._order > known[name]._order:
                known[name] = key
        primary = known[chosen.primary]
        if primary.secret is None:
            # Removed on one side while it was chosen on the other: the choice holds.
            known[chosen.primary] = Key(primary.stamp + 1, chosen.secret)
        return Ring(_bounded(known, chosen.primary), chosen.primary, chosen.stamp)

    def _check(self, name: str) -> None:
        if not self.has(name):
            raise KeyRefused(f"there is no key {name!r}: see `appswitch key list`")

    def _next(self) -> int:
        return 1 + max(self.stamp, *(key.stamp for key in self.known.values()))

    def _with(self, name: str, key: Key) -> Ring:
        return Ring(_bounded({**self.known, name: key}, self.primary), self.primary, self.stamp)

    # as a document -------------------------------------------------------------------------------------

    def document(self) -> dict[str, Any]:
        """As it is kept and told: {"keys": [[name, stamp, secret in hex | null], ...], "primary": [name, stamp]}."""
        keys = [[name, key.stamp, key.secret and key.secret.hex()] for name, key in sorted(self.known.items())]
        return {"keys": keys, "primary": [self.primary, self.stamp]}

    @classmethod
    def of(cls, document: Any) -> Ring:
        """From such a document, which anybody may have written. ValueError when it is none."""
        try:
            keys, (primary, stamp) = document["keys"], document["primary"]
            if len(keys) > MOST + REMOVED:
                raise ValueError("too many keys")
            known = {name: _key(name, at, secret) for name, at, secret in keys}
            ring = cls(known, primary, _stamp(stamp))
            if not ring.has(primary):
                raise ValueError("a ring without its primary")
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a ring of keys: {error}") from None
        return ring


def _key(name: object, stamp: object, secret: object) -> Key:
    if not isinstance(name, str) or len(name) != 2 * _NAME_SIZE or set(name) - set("0123456789abcdef"):
        raise ValueError("not a key's name")
    if secret is None:
        return Key(_stamp(stamp), None)
    if not isinstance(secret, str) or len(secret) not in {2 * size for size in SIZES}:
        raise ValueError("not a key")
    found = bytes.fromhex(secret)
    if name_of(found) != name:
        raise ValueError("a key under another's name")
    return Key(_stamp(stamp), found)


def _stamp(value: object) -> int:
    if type(value) is not int or not 0 <= value < _STAMP_MOST:
        raise ValueError("not a stamp")
    return value


def _bounded(known: Mapping[str, Key], primary: str) -> dict[str, Key]:
    """Without the oldest where there are too many."""

    def latest(names: Iterable[str], most: int) -> list[str]:
        return sorted(names, key=lambda name: (name == primary, known[name].stamp, name), reverse=True)[:most]

    there = latest((name for name, key in known.items() if key.secret is not None), MOST)
    gone = latest((name for name, key in known.items() if key.secret is None), REMOVED)
    return {name: known[name] for name in (*there, *gone)}
