"""Getting into a cluster: what may fail of it, in sentences that tell what to do."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Iterator

from ..gossip.node import Node
from ..gossip.refused import GossipRefused, NameTaken

#: Seconds for a join that somebody waits for.
JOIN = 8.0


class Failure(Exception):
    """The cluster cannot be joined; one sentence."""


async def join(node: Node, seeds: list[tuple[str, int]], name: str) -> bool:
    """Get into the cluster by one of these; False when this host is the only one of them. Failure says why not.

    `name`: this host's.
    """
    own = (node.local.address, node.local.port)
    others = [seed for seed in seeds if seed != own]
    if not others:
        return False  # our own token: we are the first
    where = " or ".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in others)
    try:
        async with asyncio.timeout(JOIN):
            answered = await node.join(others)
    except NameTaken as taken:
        raise Failure(
            f"the name {name} is taken by the host at {taken.address}: choose another with --node-name"
        ) from None
    except GossipRefused as refused:
        raise Failure(
            f"the cluster would not take this host: {refused.reason}; "
            "have a new token printed there by `appswitch token`"
        ) from None
    except TimeoutError:
        answered = 0
    if not answered:
        raise Failure(
            f"no member of the cluster can be reached at {where}: see that a switch of it is up there, and that "
            "TCP and UDP to that port are let through"
        )
    return True


@contextlib.contextmanager
def listening(port: int, user: str) -> Iterator[None]:
    """Failure in the place of an OSError; `user`: who may have the port already, and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise Failure(f"the gossip cannot use port {port}: {error.strerror}") from None
        raise Failure(f"port {port} is in use, by {user}") from None
