"""Ports of this host that tests serve."""

import errno
import socket


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
