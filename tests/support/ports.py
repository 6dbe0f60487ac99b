"""Ports of this host that tests serve."""

import errno
import os
import random
import socket
from collections.abc import Iterator


def quiet_ports() -> Iterator[int]:
    """Ports that the kernel gives nobody by itself, in any order.

    Processes that run tests at a time have other ones each, so that what one has found free no other takes meanwhile.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER", f"gw{os.getpid()}").removeprefix("gw")
    begin = 20000 + int(worker) % 10 * 1200
    return iter(random.sample(range(begin, begin + 1200), 1200))


def udp_and_tcp(host: str) -> tuple[socket.socket, socket.socket]:
    """A UDP socket and a TCP one, not listening yet, on one port that is free for both."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    while True:
        udp = socket.socket(family, socket.SOCK_DGRAM)
        tcp = socket.socket(family, socket.SOCK_STREAM)
        udp.bind((host, 0))
        try:
            tcp.bind(udp.getsockname()[:2])
        except OSError as error:
            udp.close()
            tcp.close()
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            udp.setblocking(False)
            return udp, tcp
