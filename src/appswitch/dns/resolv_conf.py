"""The host's resolv.conf(5): what it says to this switch, and what programs are to see in its place."""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass
from typing import Any

HOST = "/etc/resolv.conf"
MOST = 3  # servers that are asked: MAXNS of <resolv.h>

Server = tuple[int, tuple[Any, ...]]
"""An address family and a socket address of that family."""


@dataclass(frozen=True, slots=True)
class ResolvConf:
    """One file's contents. `timeout`: seconds; `options`: its lines of options as they are."""

    servers: tuple[Server, ...]
    search: tuple[str, ...] | None
    options: tuple[str, ...]
    timeout: float
    attempts: int
    rotate: bool
    over_tcp: bool


def parse_server(text: str) -> Server:
    """`192.0.2.1`, `192.0.2.1:5353`, `2001:db8::1`, `[2001:db8::1]:5353`, `fe80::1%eth0`; no port means 53.

    Raises ValueError when the text is no numeric address.
    """
    parts = re.fullmatch(r"\[(?P<six>[^]]+)\](:(?P<port6>\d+))?|(?P<four>[^:]+):(?P<port4>\d+)|(?P<bare>.+)", text)
    if parts is None:
        raise ValueError("a DNS server's address is empty")
    host = parts["six"] or parts["four"] or parts["bare"]
    port = int(parts["port6"] or parts["port4"] or 53)
    try:
        if port > 65535:
            raise OverflowError("no such port")
        found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST)
    except (OSError, OverflowError, UnicodeError):
        raise ValueError(f"{text!r} is no DNS server's address: write it as 192.0.2.1 or 192.0.2.1:53") from None
    return int(found[0][0]), found[0][4]


def parse(text: str) -> ResolvConf:
    """Read a file as the C library does; without a usable server it names this host's own."""
    servers: list[Server] = []
    search: tuple[str, ...] | None = None
    options: list[str] = []
    for line in text.splitlines():
        words = line.split()
        if len(words) < 2:
            continue
        if words[0] == "nameserver" and len(servers) < MOST:
            try:
                servers.append(parse_server(words[1]))
            except ValueError:
                continue
        elif words[0] == "search":  # of this and the next the last instance counts
            search = tuple(words[1:])
        elif words[0] == "domain":
            search = (words[1],)
        elif words[0] == "options":
            options.append(" ".join(words))
    said = [word for line in options for word in line.split()[1:]]
    return ResolvConf(
        tuple(servers) or (parse_server("127.0.0.1"),),
        search,
        tuple(options),
        timeout=_number("timeout", said, 5, 30),
        attempts=_number("attempts", said, 2, 5),
        rotate="rotate" in said,
        over_tcp="use-vc" in said,
    )


def _number(name: str, said: list[str], usual: int, most: int) -> int:
    """The last `name:n` among the options, within bounds."""
    for word in reversed(said):
        found = re.fullmatch(rf"{name}:(\d+)", word)
        if found:
            return max(1, min(int(found[1]), most))
    return usual


def compose(host: ResolvConf, nameserver: str, domain: str, hostname: str) -> str:
    """What programs see: our resolver, our domain before the host's, its options as they are.

    Where the host names no domain the C library takes that of its `hostname`; so does this, since naming ours would
    make it forget the other.
    """
    search = host.search
    if search is None:
        search = tuple(hostname.partition(".")[2:]) if "." in hostname else ()
    domains = " ".join(dict.fromkeys([domain, *(name for name in search if name)]))
    return "\n".join([f"nameserver {nameserver}", f"search {domains}", *host.options]) + "\n"


class Followed:
    """A file that is read again when it has changed. One that is missing for a moment says what it said before."""

    def __init__(self, path: str = HOST) -> None:
        self._path = path
        self._version: tuple[int, int, int, int] | None = None
        self._read = parse("")

    def now(self) -> ResolvConf:
        """What it says; the same object until it changes."""
        try:
            found = os.stat(self._path)
            version = (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)
            if version != self._version:
                with open(self._path, encoding="utf-8", errors="replace") as file:
                    self._read = parse(file.read())
                self._version = version
        except OSError:
            pass
        return self._read


def write_over(path: str, text: str) -> None:
    """Give the file, which programs have bound over their own, new contents in one write.

    It never gets shorter, for a reader would find the end of the old text after the new one: empty lines fill the rest.
    """
    data = text.encode()
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        old = os.pread(fd, 65536, 0)
        data += b"\n" * (len(old) - len(data))
        if data != old:
            os.pwrite(fd, data, 0)
        os.fchmod(fd, 0o644)
    finally:
        os.close(fd)
