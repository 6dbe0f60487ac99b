"""An attached program, as the relay knows it."""

from __future__ import annotations

import os
import socket
from typing import Any, Protocol

from appswitch.linux import device
from appswitch.linux.udp_diag import UdpDiag
from appswitch.linux.vnet import FINISHED, Unfinished
from appswitch.model.address import is_v4
from appswitch.model.identity import Identity
from appswitch.model.service import UDP, Service

from .packets import Whole

#: Source of IPv6 packets of a program without an IPv6 address, in its namespace alone (trap.surroundings).
LINK_LOCAL = b"\xfe\x80" + bytes(13) + b"\1"


class Program:
    """Its device, its addresses (packed), its sockets for DNS on loopback, and who it is.

    `identity` is None where the supervisor did not tell it: then no datagrams of the program are carried. `diag` is
    None where it cannot be asked which ports are bound, `route` where no rules can be set in its namespace.
    """

    def __init__(self, message: dict[str, Any], fds: list[int]) -> None:
        """Takes over `fds` if it returns. KeyError, TypeError, ValueError or OSError: a bad message."""
        self.id = str(message["id"])
        self.name = str(message.get("name") or self.id)
        self.kind = str(message["kind"])
        asked, routed = bool(message.get("diag")), bool(message.get("route"))
        if self.kind not in device.LINK or len(fds) < 1 + asked + routed:
            raise ValueError(f"no device, or of unknown kind {self.kind!r}")
        expected = dict(message.get("expected") or {})
        self.expected = {str(name): str(address) for name, address in expected.items()}
        self.addresses = {_packed(text) for text in message["vips"]}
        self.identity = _identity(message["identity"]) if message.get("identity") else None
        self.may_leave = message.get("egress") != "deny"
        self.balance = str(message.get("balance", ""))
        self.since = float(message.get("since", 0.0))
        #: Hops of datagrams whose first fragment has been seen, by addresses and identification; and what there is of
        #: them, for a hop to another host.
        self.fragments: dict[bytes, tuple[Any, Whole]] = {}
        #: The turn of the loop in which packets of its came last.
        self.turn = -1
        #: Until when conversations wait for the relay to have nothing left of what it sent (`offload`); 0: none do.
        self.settling = 0.0
        self.fd = fds[0]
        self.sockets: list[socket.socket] = []
        self.diag: UdpDiag | None = None
        self.route: socket.socket | None = None
        try:
            for fd in fds[1:]:
                self.sockets.append(socket.socket(fileno=fd))
            os.set_blocking(self.fd, False)
        except OSError:
            for sock in self.sockets:
                sock.detach()
            raise
        if routed:
            self.route = self.sockets.pop()
        if asked:
            self.diag = UdpDiag(self.sockets.pop())

    def close_netlink(self) -> None:
        """Close `diag` and `route`."""
        if self.diag is not None:
            self.diag.socket.close()
        if self.route is not None:
            self.route.close()

    def may_send_from(self, address: bytes) -> bool:
        """Whether packets of this program may come from `address`.

        Besides its own: loopback and IPv6 link-local addresses, its source where it has none of the family.
        They mean nothing outside its namespace.
        """
        if address in self.addresses:
            return True
        if len(address) == 4:
            return address[0] == 127
        return address[0] == 0xFE and address[1] & 0xC0 == 0x80

    def local(self, address: bytes) -> bytes:
        """Where an address of the table that stands for this program is found in its namespace, packed."""
        assert self.identity is not None
        if is_v4(address):
            return address[12:]
        return LINK_LOCAL if is_v4(self.identity.vip) else address

    def takes(self, source: bytes, source_port: int, destination: bytes, port: int) -> bool:
        """Has it a socket for such a datagram (packed addresses)? Where that cannot be asked: yes, and it will tell."""
        return self.diag is None or self.diag.takes(source, source_port, destination, port)

    def row(
        self, port: int, bound: bytes, *, instance: int = 0, dual: bool = False, cookie: int = 0, since: float = 0.0
    ) -> Service:
        """A UDP port of its own: a row of the table with a cookie, or without one a stand-in for any of its sockets."""
        who, number = self.identity, int(self.id)
        assert who is not None
        return Service(
            vip=who.vip,
            port=port,
            instance=instance or number << 24,
            program=number,
            name=who.name,
            tags=who.tags,
            bound=bound,
            dual=dual,
            listener="",
            real=("", 0),
            balance=self.balance,
            transport="auto",
            since=since or self.since,
            uid=who.uid,
            cookie=cookie,
            proto=UDP,
            alone=not who.named,
        )


class Write(Protocol):
    """Delivers a packet to a program's namespace, and has done what was left to be done for it."""

    def __call__(self, program: Program, packet: bytes, left: Unfinished = FINISHED, /) -> object: ...


def _identity(message: dict[str, Any]) -> Identity:
    return Identity(
        message["name"],
        bytes.fromhex(message["vip"]),
        tuple((str(key), str(value)) for key, value in message["tags"]),
        int(message["uid"]),
        bool(message["named"]),
    )


def _packed(text: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
