"""Work on a switch's table from processes of their own; each prints what it measured, nanoseconds a line.

    fill TABLE HOST COUNT       write COUNT services and names of a host, as the router does
    look TABLE HOST COUNT N     N look-ups of random ones of them: "address name", two numbers a line
    stir TABLE SECONDS          change a row of another host ten times a second
    listen TABLE FILE           under the switch: bind, listen, close until FILE is there; the time in listen(), and
                                how many transactions of others the table saw meanwhile
    write TABLE FILE            the same of writing one row, without a switch
"""

from __future__ import annotations

import os
import random
import socket
import sys
import time
from collections.abc import Callable

from appswitch.model.address import pack
from appswitch.model.identity import Claim, Identity
from appswitch.model.service import Service
from appswitch.table.codec import service_key
from appswitch.table.store import Table

PORT = 80
TAGS = (("group", "bench"),)


def vip(number: int) -> bytes:
    """The virtual IP of a made-up service."""
    return pack(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")


def name(host: str, number: int) -> str:
    """Its name."""
    return f"{host}-service-{number}"


def row(host: str, number: int, since: float = 1.0) -> Service:
    """Its row."""
    return Service(
        vip(number),
        PORT,
        1,
        number,
        name(host, number),
        TAGS,
        bytes(16),
        True,
        "",
        ("192.0.2.1", 40000),
        "round-robin",
        "auto",
        since,
        os.geteuid(),
        0,
        host=host,
        epoch=b"8 octets",
    )


def fill(path: str, host: str, count: str) -> None:
    """Services first, then names."""
    table = Table(path)
    rows = [row(host, number) for number in range(int(count))]
    changes = {service_key(one): one for one in rows}
    claims = {
        one.vip: [Claim(one.name, one.vip, one.uid, True, False, number + 1, host)] for number, one in enumerate(rows)
    }
    for write in (lambda: table.apply_host_changes(host, changes), lambda: table.apply_host_claims(host, claims)):
        print(_taken(write))
    table.close()


def look(path: str, host: str, count: str, times: str) -> None:
    """As a connect() looks, and as DNS does."""
    table = Table(path, readonly=True)
    client = Identity("bench", vip(1 << 23), TAGS, os.geteuid())
    numbers = random.choices(range(int(count)), k=2 * int(times))
    for done, wanted in enumerate([(vip(number), name(host, number)) for number in numbers]):
        address = _taken(lambda w=wanted: table.lookup(w[0], PORT, client=client))  # type: ignore[misc]
        alias = _taken(lambda w=wanted: table.vip_of(w[1]))  # type: ignore[misc]
        if done >= int(times):  # the first ones brought the pages in
            print(address, alias)
    table.close()


def stir(path: str, seconds: str) -> None:
    """Somebody else's row; its virtual IP is none that is connected to."""
    table = Table(path)
    end = time.monotonic() + float(seconds)
    while time.monotonic() < end:
        one = row("stirred", 1 << 22, time.time())
        table.apply_host_changes("stirred", {service_key(one): one})
        time.sleep(0.1)
    table.close()


def listen(path: str, until: str) -> None:
    """A new port each time. Its own row is one transaction."""
    table = Table(path, readonly=True)
    port = 1024
    while not os.path.exists(until):
        with socket.socket() as sock:
            sock.bind(("", port))
            before = table.version()
            taken = _taken(sock.listen)
            print(taken, max(0, table.version() - before - 1), flush=True)
        port = port + 1 if port < 60000 else 1024
        time.sleep(0.002)
    table.close()


def write(path: str, until: str) -> None:
    """What a worker does to the table in listen()."""
    table = Table(path)
    own = row("", 1 << 22)
    while not os.path.exists(until):
        before = table.version()
        taken = _taken(lambda: table.put_service(own))
        print(taken, max(0, table.version() - before - 1), flush=True)
        time.sleep(0.002)
    table.close()


def _taken(do: Callable[[], object]) -> int:
    begin = time.perf_counter_ns()
    do()
    return time.perf_counter_ns() - begin


if __name__ == "__main__":
    {"fill": fill, "look": look, "stir": stir, "listen": listen, "write": write}[sys.argv[1]](*sys.argv[2:])
