"""Who holds a virtual IP when several hosts have claims to it: one rule, the same on every host.

Claims are made on each host by what it knows then (`identity.assign`), so two hosts that did not know of each other
may have given one address to different users, or to two names that hash to it. The earliest claim holds the
address. Which is the earliest is told by stamps: a claim's is larger than all that its host knew (Lamport,
"Time, Clocks, and the Ordering of Events in a Distributed System", 1978), and no clock has a say. Claims made in
ignorance of each other may have one stamp; then the host's name decides.

An owner is a user id, taken for the same person on every host of a cluster (as NFS takes it, RFC 5531, appendix A).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from .identity import Claim


class Settlement(NamedTuple):
    """`admitted`: the earliest first; `barred`: those whose programs nobody else reaches while the others live."""

    admitted: list[Claim]
    barred: list[Claim]


def settle(claims: Iterable[Claim]) -> Settlement:
    """Of the claims to one virtual IP, whose hosts are all named."""
    admitted: list[Claim] = []
    barred: list[Claim] = []
    owner: int | None = None
    derived: str | None = None
    for claim in sorted(claims, key=_order):
        if owner is None:
            owner = claim.uid
        # Root may join anybody, and everybody a shared name: as when a program is started.
        foreign = claim.uid not in (owner, 0) and not claim.open
        collides = claim.derived and derived not in (None, claim.name)
        if foreign or collides:
            barred.append(claim)
            continue
        if claim.derived:
            derived = claim.name
        admitted.append(claim)
    return Settlement(admitted, barred)


def _order(claim: Claim) -> tuple[int, str, int, str]:
    return claim.stamp, claim.host, claim.uid, claim.name or ""
