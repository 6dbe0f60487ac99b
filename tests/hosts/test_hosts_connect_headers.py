"""Connections at a service's real port, good and bad: a peer that writes its headers itself, byte by byte."""

import dataclasses
import os
import random
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appswitch.model.service import Service
from appswitch.trap import arrivals
from hosts.by_hand import KEY, Caller, counters, fate, row_of, rows_of, tell, up
from service.acting import Actor
from support import modes
from support.hosts import Host, Hosts
from support.modes import Person
from support.program import wait_until

Start = Callable[..., Actor]
Counted = Callable[[], dict[str, int]]


@pytest.fixture(scope="module")
def host(appswitch_command: Callable[[Person], Path]) -> Iterator[Hosts]:
    """A host with a switch; its neighbour has none, but a peer that writes its headers itself."""
    if modes.MYSELF.uid != 0:
        pytest.skip("network namespaces for hosts need root")
    lab = Hosts(2, appswitch_command)
    try:
        up(lab[0])
        yield lab
    finally:
        lab.close()


@pytest.fixture
def here(host: Hosts) -> Host:
    return host[0]


@pytest.fixture
def caller(host: Hosts) -> Caller:
    return Caller(host[1])


@pytest.fixture
def server(here: Host, actor_on: Start) -> Actor:
    """A program with a listener `l`."""
    program = actor_on(here, "server")
    program("l = listen(80)")
    return program


@pytest.fixture
def row(here: Host, server: Actor) -> Service:
    return row_of(here, "server")


@pytest.fixture
def counted(here: Host) -> Callable[[], dict[str, int]]:
    """Tells by how much the counters of arrivals have grown since the last time, those that have."""
    names = {"arrived", "denied", "strangers", "backlog_full"}
    last = counters(here)

    def look() -> dict[str, int]:
        nonlocal last
        before, last = last, counters(here)
        grown = {name: last[name] - before[name] for name in last}
        return {name: n for name, n in grown.items() if n and (name in names or name.startswith("header_"))}

    return look


def test_a_good_header_and_what_follows_it_to_the_byte(
    caller: Caller, row: Service, server: Actor, counted: Counted
) -> None:
    sock = caller.send(row, caller.header(row, client=("100.64.9.9", 4444), tags=(("a", "b"),)) + b"all of this")
    server("s, address = take(l)")
    assert server("[list(address), s.recv(100).decode()]") == [["100.64.9.9", 4444], "all of this"]
    assert server("story(s)") == [[server("gethostbyname('server')"), 80], ["100.64.9.9", 4444]]
    server("s.close()")
    assert fate(sock) == b""
    assert counted() == {"arrived": 1}


def test_a_header_may_come_byte_by_byte_and_the_server_speak_first(
    caller: Caller, row: Service, server: Actor, counted: Counted
) -> None:
    server("greet(l, 'first')")
    sock = caller.connect(row)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in caller.header(row, tags=(("k", "v" * 200),)):
        sock.sendall(bytes([byte]))
    assert fate(sock) == b"first"  # without one byte more from the client
    assert counted() == {"arrived": 1}


def other_instance(row: Service) -> Service:
    return dataclasses.replace(row, instance=row.instance ^ 1)


def earlier_epoch(row: Service) -> Service:
    return dataclasses.replace(row, epoch=os.urandom(8))


def changed(header: bytes) -> bytes:
    return header[:-1] + bytes([header[-1] ^ 1])


BAD: dict[str, tuple[str, Callable[[Caller, Service], bytes]]] = {
    "no header": ("header_missing", lambda caller, row: b"GET / HTTP/1.1\r\nHost: server\r\n\r\n"),
    "an older PROXY header": ("header_missing", lambda caller, row: b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\n"),
    "of no command known": ("header_malformed", lambda caller, row: caller.header(row)[:12] + b"\x20\x00\0\0"),
    "too long": ("header_malformed", lambda caller, row: caller.header(row)[:14] + b"\xff\xff"),
    "no identity in it": (
        "header_malformed",
        lambda caller, row: caller.header(row)[:14] + b"\0\x0c" + caller.header(row)[16:28],
    ),
    "of another key": ("header_forged", lambda caller, row: Caller(caller.host, b"?" * 32).header(row)),
    "changed": ("header_forged", lambda caller, row: changed(caller.header(row))),
    "for another instance": ("header_misdirected", lambda caller, row: caller.header(other_instance(row))),
    "for another port": (
        "header_misdirected",
        lambda caller, row: caller.header(row, server=("100.64.1.1", 81)),
    ),
    "for another address": (
        "header_misdirected",
        lambda caller, row: caller.header(row, server=("100.64.1.1", 80)),
    ),
    "for loopback from elsewhere": (
        "header_misdirected",
        lambda caller, row: caller.header(row, server=("127.0.0.1", 80)),
    ),
    "for an earlier epoch": ("header_stale", lambda caller, row: caller.header(earlier_epoch(row))),
}


@pytest.mark.parametrize("how", list(BAD), ids=lambda how: how.replace(" ", "-"))
def test_each_bad_header_is_closed_and_counted(
    caller: Caller, row: Service, server: Actor, counted: Counted, how: str
) -> None:
    counter, make = BAD[how]
    assert fate(caller.send(row, make(caller, row) + b"data")) == "reset"
    assert counted() == {counter: 1}
    assert server("events(l, select.POLLIN, 0)") == 0


def test_a_replay_is_closed_and_counted(caller: Caller, row: Service, server: Actor, counted: Counted) -> None:
    header = caller.header(row)
    first = caller.send(row, header)
    server("s, _ = take(l)")
    for _ in range(2):
        assert fate(caller.send(row, header)) == "reset"
    assert counted() == {"arrived": 1, "header_replayed": 2}
    server("s.sendall(b'mine'); s.close()")
    assert fate(first) == b"mine"


def test_single_changed_bits_are_refused(caller: Caller, row: Service, counted: Counted) -> None:
    header = caller.header(row)
    chosen = random.Random(3).sample(range(8 * len(header)), 60)
    for bit in chosen:
        changed = bytearray(header)
        changed[bit // 8] ^= 1 << bit % 8
        # as long as the longest header that it may announce
        assert fate(caller.send(row, bytes(changed) + bytes(2048))) == "reset", f"bit {bit}"
    found = counted()
    assert set(found) <= {"header_missing", "header_malformed", "header_forged"}
    assert sum(found.values()) == len(chosen)


def test_a_truncated_header_is_closed_and_counted(caller: Caller, row: Service, counted: Counted) -> None:
    header = caller.header(row)
    for length in (0, 1, 11, 12, 15, 16, 17, len(header) - 1):
        sock = caller.send(row, header[:length])
        sock.shutdown(socket.SHUT_WR)
        assert fate(sock) == "reset", length
    assert counted() == {"header_missing": 8}


def test_a_stalled_header_delays_nobody_and_is_closed_after_a_while(
    caller: Caller, row: Service, server: Actor, counted: Counted
) -> None:
    server("greet(l, 'served')")
    header = caller.header(row)
    begun = time.monotonic()
    stalled = [caller.send(row, header[:length]) for length in (0, 5, 16, len(header) - 1)]
    for _ in range(5):
        assert fate(caller.send(row, caller.header(row))) == b"served"
    found = Counter(counted())
    if time.monotonic() - begun < arrivals.HEADER_TIME / 2:  # else this took longer than a stalled one is given
        assert found == {"arrived": 5}
    begun = time.monotonic()
    assert [fate(sock) for sock in stalled] == ["reset"] * 4
    assert time.monotonic() - begun < 4 * arrivals.HEADER_TIME
    assert found + Counter(counted()) == {"arrived": 5, "header_timeout": 4}


def test_of_too_many_stalled_headers_the_oldest_is_closed_first(
    caller: Caller, row: Service, server: Actor, counted: Counted
) -> None:
    server("greet(l, 'served')")
    begun = time.monotonic()
    stalled = [caller.connect(row) for _ in range(arrivals.WAITING)]
    late = caller.send(row, caller.header(row)[:20])
    assert fate(stalled[0]) == "reset"
    if time.monotonic() - begun < arrivals.HEADER_TIME / 2:  # else time has closed others
        assert fate(late, 0.2) == "open"
        assert fate(stalled[1], 0.2) == "open"
        assert fate(caller.send(row, caller.header(row))) == b"served"
        # The good caller is one too many as well, if it was accepted before its header had come.
        assert counted()["header_timeout"] in (1, 2)
    for sock in (*stalled, late):
        sock.close()
    wait_until(lambda: fate(caller.send(row, caller.header(row))) == b"served", lambda: "service")


def test_the_policy_goes_by_the_header_s_tags(
    here: Host, caller: Caller, actor_on: Start, counted: Counted
) -> None:
    program = actor_on(here, "ruled", tags=["group=1"])
    program("greet(listen(80), 'in')")
    row = row_of(here, "ruled")
    assert fate(caller.send(row, caller.header(row, tags=(("group", "1"),)))) == b"in"
    for tags in ((), (("group", "2"),)):
        assert fate(caller.send(row, caller.header(row, tags=tags))) == "reset"
    assert counted() == {"arrived": 1, "denied": 2}
    rows = [row for row in here.cli("denials", "-o", "json") if row["service"] == "ruled"]
    assert [(row["client"], row["tags"]) for row in rows] == [("100.64.9.9", []), ("100.64.9.9", ["group=2"])]


def test_a_full_queue_is_given_time_then_connections_are_reset(
    here: Host, caller: Caller, actor_on: Start, counted: Counted
) -> None:
    program = actor_on(here, "crowded")
    program("l = listen(80, backlog=1)")
    row = row_of(here, "crowded")
    before, socks = counters(here)["arrived"], []
    # The first two are in the queue before others come: of several at once any may be the first.
    for n in range(2):
        socks.append(caller.send(row, caller.header(row, client=("100.64.9.9", 1000 + n))))
        wait_until(lambda: counters(here)["arrived"] == before + len(socks), lambda: f"{len(socks)} in the queue")
    socks += [caller.send(row, caller.header(row, client=("100.64.9.9", 1000 + n))) for n in range(2, 5)]
    ends = [fate(sock) for sock in socks[2:]]
    assert ends == ["reset"] * 3
    assert counted() == {"arrived": 2, "backlog_full": 3}
    # Those in the queue are served, and so is who comes when there is room again.
    assert program("[take(l)[1][1] for _ in range(2)]") == [1000, 1001]
    more = [caller.send(row, caller.header(row, client=("100.64.9.9", 2000 + n))) for n in range(4)]
    assert sorted(program("[take(l)[1][1] for _ in range(4)]")) == [2000, 2001, 2002, 2003]
    assert counted() == {"arrived": 4}
    for sock in (*socks, *more):
        sock.close()


def test_a_closed_listener_has_no_real_port_any_more(here: Host, caller: Caller, actor_on: Start) -> None:
    program = actor_on(here, "closing")
    program("l = listen(80)")
    row = row_of(here, "closing")
    waiting = caller.connect(row)
    program("l.close(); socket().getsockname()")
    wait_until(lambda: refused(caller, row), lambda: "the real port's end")
    assert fate(waiting) == "reset"


def refused(caller: Caller, row: Service) -> bool:
    try:
        caller.connect(row).close()
    except ConnectionRefusedError:
        return True
    return False


def test_after_too_many_senders_an_epoch_ends(hosts: Callable[..., Hosts], actor_on: Start) -> None:
    """Each sender is remembered, so there must be an end to it: all earlier headers are stale then."""
    lab = hosts(2)
    here, caller = lab[0], Caller(lab[1])
    up(here, senders=5)
    program = actor_on(here, "server")
    program("greet(listen(80), 'in')")
    row = row_of(here, "server")
    unused = caller.header(row)
    for n in range(5):
        assert row_of(here, "server") == row, n
        other = Caller(lab[1])
        assert fate(other.send(row, other.header(row))) == b"in"
    again = row_of(here, "server")
    assert (again.real, again.epoch != row.epoch, again.version > row.version) == (row.real, True, True)
    assert fate(caller.send(row, unused)) == "reset"
    assert fate(caller.send(row, caller.header(again))) == b"in"
    assert counters(here)["header_stale"] == 1


# places in a cluster ---------------------------------------------------------------------------------------


def test_joining_moving_and_leaving(hosts: Callable[..., Hosts], actor_on: Start) -> None:
    lab = hosts(2)
    here, caller = lab[0], Caller(lab[1])
    up(here, "--workers", "2", host="", address="", bind="", keys=())
    program, own, client = actor_on(here, "mover"), actor_on(here, "own"), actor_on(here)
    program("greet(listen(80), 'in')")
    own("l = listen(81, '127.0.0.1')")
    client("l = listen(82)")

    def rows_at(mover: str, own: str) -> bool:
        """Each worker opens its own programs' real ports anew: the two rows do not change at the same moment."""
        return {row.port: row.real[0] for row in rows_of(here) if not row.alone} == {80: mover, 81: own}

    [alone] = [row for row in rows_of(here) if row.alone]
    [before] = rows_of(here, "mover")
    assert (before.real[0], before.epoch) == ("127.0.0.1", b"")
    assert rows_of(here, "own")[0].real == ("", 0)
    assert here.namespace.call(lambda: fate(socket.create_connection(before.real))) == "reset"
    assert counters(here)["strangers"] == 1

    tell(here)
    wait_until(lambda: rows_at(here.address, here.address), lambda: "real ports at the host's address")
    [joined], [loopback] = rows_of(here, "mover"), rows_of(here, "own")
    assert joined.version > before.version
    assert fate(caller.send(joined, caller.header(joined))) == b"in"
    # A listener on loopback is for others of its virtual IP, on other hosts too.
    assert loopback.real[0] == here.address
    inside = caller.header(loopback, client=("127.0.0.1", 99), server=("127.0.0.1", 81))
    sock = caller.send(loopback, inside)
    assert own("take(l)[1][0]") == "127.0.0.1"
    sock.close()

    here.namespace.ip("addr add 10.77.0.51/24 dev eth0")
    tell(here, address="10.77.0.51", bind="10.77.0.51", port_range=(23000, 23001))
    wait_until(lambda: rows_at("10.77.0.51", "10.77.0.51"), lambda: "real ports at the new address")
    [moved] = rows_of(here, "mover")
    assert moved.real[1] in (23000, 23001)
    assert moved.epoch != joined.epoch
    assert refused(caller, joined)
    assert fate(caller.send(moved, caller.header(joined))) == "reset"
    assert fate(caller.send(moved, caller.header(moved))) == b"in"
    # There is a port for each of two services, and none for a third: that is reached on this host alone.
    program("more = listen(83)")
    [third] = [row for row in rows_of(here, "mover") if row.port == 83]
    assert (third.real, third.epoch) == (("", 0), b"")
    client(f"call('{program('gethostbyname(chr(109)+chr(111)+chr(118)+chr(101)+chr(114))')}', 83).close()")

    tell(here, host="", address="", bind="", keys=())
    program("more.close()")
    wait_until(lambda: rows_at("127.0.0.1", ""), lambda: "real ports on loopback")
    assert rows_of(here, "mover")[0].epoch == b""
    assert rows_of(here, "own")[0].real == ("", 0)
    assert alone in rows_of(here)


def test_keys_change_without_a_pause(here: Host, caller: Caller, row: Service, server: Actor) -> None:
    server("greet(l, 'in')")
    other = Caller(caller.host, b"n" * 32)
    try:
        tell(here, keys=(KEY, b"n" * 32))
        wait_until(lambda: fate(other.send(row, other.header(row))) == b"in", lambda: "the second key")
        assert fate(caller.send(row, caller.header(row))) == b"in"
        tell(here, keys=(b"n" * 32,))
        wait_until(lambda: fate(caller.send(row, caller.header(row))) == "reset", lambda: "the first key's end")
        assert fate(other.send(row, other.header(row))) == b"in"
    finally:
        tell(here)
    wait_until(lambda: fate(caller.send(row, caller.header(row))) == b"in", lambda: "the first key again")
    assert row_of(here, "server") == row
