"""Rules of a namespace on the real kernel, and a hostile socket."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
from typing import Any

import pytest

from appswitch.linux import namespace
from appswitch.linux.rules import Rule, Rules
from linux import children
from linux.children import AS_ROOT, NOBODY

USERS = [pytest.param(True, id="user")] + [pytest.param(False, id="root")] * AS_ROOT
V4, V6 = socket.inet_aton("10.1.2.3"), socket.inet_pton(socket.AF_INET6, "2001:db8::1")
ONE, TWO, SIX = Rule(V4, 5000, 5000), Rule(V4, 61000, 65534), Rule(V6, 5000, 5000)
BEFORE = ["0: from all lookup local"]


def shown() -> list[list[str]]:
    """The rules but those that every namespace has, of both families."""
    found = []
    for family in ("-4", "-6"):
        lines = subprocess.run(["ip", family, "rule"], capture_output=True, text=True, check=True).stdout.splitlines()
        found.append([" ".join(line.split()) for line in lines if int(line.split(":")[0]) < 32766])
    return found


def route_socket() -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)


def set_in_turn() -> list[Any]:
    rules = Rules(route_socket(), used=False)
    steps = [shown()]
    for wanted in ({ONE, SIX}, {ONE, TWO}, set(), {Rule(V4, 1000 + n, 1000 + n) for n in range(100)}):
        rules.set(frozenset(wanted))
        steps.append(shown())
    Rules(route_socket(), used=True)
    return [*steps, shown()]


@pytest.mark.parametrize("user", USERS)
def test_what_is_set_is_there(user: bool) -> None:
    def work() -> list[Any]:
        namespace.enter(user=user)
        return set_in_turn()

    first, both, four, none, many, after = children.in_child(work, drop=user)
    one = "50: from all to 10.1.2.3 iif lo ipproto udp dport 5000 lookup 77"
    later = "100: from all lookup local"
    assert first == none == after == [BEFORE, BEFORE]
    assert both == [[one, later], ["50: from all to 2001:db8::1 iif lo ipproto udp dport 5000 lookup 77", later]]
    assert [sorted(each) for each in four] == [sorted([one, one.replace("5000", "61000-65534"), later]), BEFORE]
    assert len(many[0]) == 101


@pytest.mark.parametrize("user", USERS)
def test_what_failed_halfway_is_cleared_and_can_be_set_again(user: bool) -> None:
    many = frozenset(Rule(V4, 1000 + n, 1000 + n) for n in range(100))

    def work() -> list[Any]:
        namespace.enter(user=user)
        with route_socket() as sock:
            rules, room = Rules(sock, used=False), sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)  # has room for half of the answers
            code = 0
            try:
                rules.set(many)
            except OSError as error:
                code = error.errno
            steps = [code, shown()]
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
            rules.clear()
            steps.append(shown())
            rules.set(many)
            return [*steps, shown()]

    code, halfway, cleared, again = children.in_child(work, drop=user)
    assert code == errno.ENOBUFS
    assert len(halfway[0]) > 2
    assert cleared == [BEFORE, BEFORE]
    assert len(again[0]) == 101


def test_nothing_is_waited_for() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:  # who has a copy of the socket may take the answers away, or send what is none
        rules = Rules(ours, used=True)
        with pytest.raises(BlockingIOError):
            rules.set(frozenset([ONE]))
        for _ in range(100):
            theirs.send(bytes(20))
        with pytest.raises(OSError, match="no answers"):
            rules.set(frozenset([TWO]))


@pytest.mark.skipif(not AS_ROOT, reason="only root has what an ordinary user must not reach")
def test_a_stranger_s_socket_sets_nothing_here() -> None:
    def work() -> int | None:
        namespace.enter(user=False)
        before = shown()
        read, write = socket.socketpair()
        if os.fork() == 0:
            os.setuid(NOBODY)
            with route_socket() as theirs:
                socket.send_fds(write, [b"x"], [theirs.fileno()])
            os._exit(0)
        _, (fd,), _, _ = socket.recv_fds(read, 1, 1)
        code = None
        try:
            Rules(socket.socket(fileno=fd), used=False).set(frozenset([ONE]))
        except OSError as error:
            code = error.errno
        assert shown() == before
        return code

    assert children.in_child(work) == 1  # EPERM
