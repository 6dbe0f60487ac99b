"""The settings of a switch, and what of them outlives its supervisor."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Any

from . import membership
from .paths import RunDir
from .registry import PER_USER


@dataclass(frozen=True, slots=True)
class Settings:
    """Of a switch. `upstreams`: DNS servers to ask instead of the host's; `shared`: names that everybody may join.

    `cluster`: of which it is to be a member from the start, with `must_join` only if one of the seeds takes it;
    `memory`: the file that keeps the membership. `missing`: features that this kernel lacks, and what follows.
    `per_user`: programs that a user may have at a time.
    """

    run_dir: RunDir
    network: ipaddress.IPv4Network
    workers: int
    socket_mode: int = 0o600
    socket_gid: int | None = None
    shared: tuple[str, ...] = ()
    upstreams: tuple[str, ...] = ()
    cluster: membership.Membership | None = None
    must_join: bool = False
    memory: str = ""
    missing: tuple[tuple[str, str], ...] = ()
    per_user: int = PER_USER

    def document(self) -> dict[str, Any]:
        """For the supervisors after the first, of whatever version; the cluster is told them apart from it."""
        return {
            "run_dir": self.run_dir.path,
            "network": str(self.network),
            "workers": self.workers,
            "shared": self.shared,
            "upstreams": self.upstreams,
            "memory": self.memory,
            "missing": self.missing,
            "per_user": self.per_user,
        }

    @classmethod
    def of(cls, document: dict[str, Any]) -> Settings:
        """From such a document."""
        return cls(
            RunDir(document["run_dir"]),
            ipaddress.IPv4Network(document["network"]),
            document["workers"],
            shared=tuple(document["shared"]),
            upstreams=tuple(document["upstreams"]),
            memory=document["memory"],
            missing=tuple((name, without) for name, without in document.get("missing", ())),
            per_user=document.get("per_user", PER_USER),
        )
