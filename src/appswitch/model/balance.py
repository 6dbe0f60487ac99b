"""In which order the instances of a service are tried."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from random import Random

from .service import Service

ROUND_ROBIN = "round-robin"
RANDOM = "random"
#: In turn, without regard to where an instance is; the other methods take this host's instances first.
SPREAD = "spread"
METHODS = (ROUND_ROBIN, RANDOM, SPREAD)


def method(instances: Sequence[Service]) -> str:
    """What the service asked for: the word of its first instance rules."""
    return min(instances, key=lambda row: (row.since, row.instance)).balance


def order(
    instances: Sequence[Service], turn: int, random: Random, silent: Collection[str] = ()
) -> Sequence[Service]:
    """Every instance once, the picked one first; the others follow for when it refuses.

    `turn` counts the connections to this service before (round robin). `silent`: real addresses of hosts that did
    not answer lately; theirs come last.
    """
    if len(instances) == 1:
        return instances
    chosen = method(instances)
    near = instances if chosen == SPREAD else [row for row in instances if not row.remote]
    ordered = _rotated(near, chosen, turn, random)
    if len(near) < len(instances):
        ordered += _rotated([row for row in instances if row.remote], chosen, turn, random)
    if silent:
        ordered.sort(key=lambda row: row.remote and row.real[0] in silent)
    return ordered


def _rotated(instances: Sequence[Service], chosen: str, turn: int, random: Random) -> list[Service]:
    if len(instances) < 2:
        return list(instances)
    start = random.randrange(len(instances)) if chosen == RANDOM else turn % len(instances)
    return [*instances[start:], *instances[:start]]
