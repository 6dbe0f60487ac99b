"""Network namespaces joined by veth pairs and a Linux bridge, as Docker's default network does it.

The bridge lives in a namespace of its own, so nothing of the host is touched, and all have no name: each
belongs to one sleeping process and is gone with it, however the benchmark ends. An ordinary user gets them
in a user namespace.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from .lab import need
from .procs import Procs, Unavailable, until

ADDRESSES = ("192.168.77.1", "192.168.77.2", "192.168.77.3")
SERVER_ADDRESS = ADDRESSES[0]


class Bridge:
    """Two namespaces, or three; `ends` are what a command that is to run in each begins with, by address."""

    def __init__(self, procs: Procs, count: int = 2) -> None:
        """Build it. Raises Unavailable when a tool or the permission is missing."""
        need("unshare", "nsenter", "ip")
        self._procs = procs
        self._root = os.geteuid() == 0
        middle = self._namespace([] if self._root else ["--user", "--map-root-user"], [])
        inside = self._enter(middle)
        namespaces = [self._namespace([], inside) for _ in range(count)]
        self._ip(middle, "link add bench0 type bridge")
        self._ip(middle, "link set bench0 up")
        for number, (end, address) in enumerate(zip(namespaces, ADDRESSES, strict=False)):
            self._ip(middle, f"link add port{number} type veth peer name eth0 netns {end.pid}")
            self._ip(middle, f"link set port{number} master bench0 up")
            self._ip(end, f"addr add {address}/24 dev eth0")
            self._ip(end, "link set lo up")
            self._ip(end, "link set eth0 up")
        self.ends = [self._enter(end) for end in namespaces]
        self.server, self.client = self.ends[0], self.ends[-1]

    def _namespace(self, more: list[str], prefix: list[str]) -> subprocess.Popen[bytes]:
        proc = self._procs.spawn([*prefix, "unshare", *more, "--net", "sleep", "infinity"])

        def inside() -> bool:
            if proc.poll() is not None:
                raise Unavailable("a network namespace could not be made (no permission?)")
            # It is in its namespace, with its user mapped, once it has become `sleep`.
            return Path(f"/proc/{proc.pid}/comm").read_text().strip() == "sleep"

        until(inside, "a new network namespace")
        return proc

    def _enter(self, proc: subprocess.Popen[bytes]) -> list[str]:
        user = [] if self._root else ["--user", "--preserve-credentials"]
        return ["nsenter", f"--target={proc.pid}", *user, "--net", "--"]

    def _ip(self, where: subprocess.Popen[bytes], command: str) -> None:
        self._procs.run([*self._enter(where), "ip", *command.split()])
