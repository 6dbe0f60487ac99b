"""What `appswitch run` and `appswitch up` ask of the trap handler, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from ..model.balance import ROUND_ROBIN
from ..model.exposure import Exposure
from ..model.identity import DEFAULT_RANGE

AUTO, TCP, UNIX = "auto", "tcp", "unix"
TRANSPORTS = (AUTO, TCP, UNIX)
ALLOW, DENY = "allow", "deny"
EGRESS = (ALLOW, DENY)
#: Seconds that a connect() waits for a service, unless something else was said; and the most.
WAIT_TIMEOUT, WAIT_MOST = 60.0, 366 * 86400.0


def unix_is_wanted(by_client: str, by_service: str, roomy: bool) -> bool:
    """Is a connection on this host to be a Unix pair, if it can? `roomy`: such a pair takes as much as TCP does."""
    asked = (by_client, by_service)
    return TCP not in asked and (UNIX in asked or roomy)


class WaitFor(NamedTuple):
    """A service that a program's connects wait for. `port` 0: any. `vip`: the address made of the name."""

    name: str
    port: int
    vip: bytes


@dataclass(frozen=True, slots=True)
class ProgramOptions:
    """Of one program: transport on this host, order of its instances, and whether it may leave the table.

    `wait_for`: services to which its connects wait, each at most `wait_timeout` seconds. `expose`: where its services
    are to be reached from outside.
    """

    transport: str = AUTO
    balance: str = ROUND_ROBIN
    egress: str = ALLOW
    wait_for: tuple[WaitFor, ...] = ()
    wait_timeout: float = WAIT_TIMEOUT
    expose: tuple[Exposure, ...] = ()

    def message(self) -> dict[str, Any]:
        """As the supervisor tells it to a worker."""
        return {
            "transport": self.transport,
            "balance": self.balance,
            "egress": self.egress,
            "wait_for": [[name, port, vip.hex()] for name, port, vip in self.wait_for],
            "wait_timeout": self.wait_timeout,
            "expose": [list(item) for item in self.expose],
        }

    @classmethod
    def of(cls, message: dict[str, Any]) -> ProgramOptions:
        """From what was told."""
        waits = tuple(WaitFor(name, port, bytes.fromhex(vip)) for name, port, vip in message["wait_for"])
        expose = tuple(Exposure(*item) for item in message["expose"])
        return cls(**(message | {"wait_for": waits, "expose": expose}))


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """Of one trap worker. Paths are below the run directory, which is also its working directory.

    `listeners_per_user`: at a time, but for root's and the switch's own user's.
    """

    run_dir: str
    index: int
    workers: int
    virtual_range: str = DEFAULT_RANGE
    listeners_per_user: int = 4000

    @property
    def table(self) -> str:
        return f"{self.run_dir}/table"

    @property
    def counters(self) -> str:
        return f"{self.run_dir}/stats/worker-{self.index}"

    @property
    def ends(self) -> str:
        return f"{self.run_dir}/state/ends-{self.index}"

    @property
    def others_ends(self) -> list[str]:
        """The other workers'."""
        return [f"{self.run_dir}/state/ends-{index}" for index in range(self.workers) if index != self.index]

    @property
    def pending(self) -> str:
        return f"{self.run_dir}/state/pending-{self.index}"


@dataclass(frozen=True, slots=True)
class Node:
    """This host as a member of a cluster, as the supervisor tells its workers, at their start and at each change:

        {"op": "node", "host": NAME, "address": TEXT, "bind": TEXT, "port_range": [LO, HI] | null, "keys": [HEX, ...]}

    `address`: where other hosts reach this one's real listeners, for their rows; "" when there is none now. `bind`:
    the local address that real listeners are bound to, which is another behind address translation. `port_range`:
    from which real listeners take their ports (both ends included). `keys`: 32 bytes each, already derived for headers
    (cluster.keys.HEADER); the first signs, all are tried. `host` "" means that the cluster was left: real listeners
    go back to loopback.
    """

    host: str = ""
    address: str = ""
    bind: str = ""
    port_range: tuple[int, int] | None = None
    keys: tuple[bytes, ...] = ()

    def message(self) -> dict[str, Any]:
        """As it is told."""
        return {
            "op": "node",
            "host": self.host,
            "address": self.address,
            "bind": self.bind,
            "port_range": self.port_range and list(self.port_range),
            "keys": [key.hex() for key in self.keys],
        }

    @classmethod
    def of(cls, message: dict[str, Any]) -> Node:
        """From what was told."""
        ports = message["port_range"]
        return cls(
            message["host"],
            message["address"],
            message["bind"],
            (ports[0], ports[1]) if ports else None,
            tuple(bytes.fromhex(key) for key in message["keys"]),
        )
