"""Run as a process: the relay over a directory that is a dict.

Arguments: the number of the control socket, and {"names", "run_dir", "upstreams", "counters", "host_file"} in JSON.
"""

import json
import logging
import socket
import sys

from appswitch.relay.relay import run
from appswitch.table.counters import Counters


class Names:
    """The directory: names to addresses; the name `broken` stands for a broken table."""

    def __init__(self, names: dict[str, list[str]]) -> None:
        self._names = names

    def addresses(self, name: str) -> list[str] | None:
        if name == "broken":
            raise RuntimeError("the table is broken")
        return self._names.get(name)

    def names(self, address: str) -> list[str]:
        return [name for name, addresses in self._names.items() if address in addresses]

    def below(self, name: str) -> bool:
        return any(other.endswith("." + name) for other in self._names)

    def serves(self, name: str, protocol: int, port: int) -> bool:
        return name in self._names and (protocol, port) == (socket.IPPROTO_TCP, 80)


def main() -> None:
    config = json.loads(sys.argv[2])
    logging.basicConfig(level=logging.INFO, format="%(name)s %(levelname)s %(message)s")
    run(
        socket.socket(fileno=int(sys.argv[1])),
        lambda: (Names(config["names"]), None),
        domain="appswitch",
        virtual_range="100.64.0.0/10",
        run_dir=config["run_dir"],
        upstreams=config["upstreams"],
        stats=Counters(config["counters"]),
        host_file=config["host_file"],
    )


main()
