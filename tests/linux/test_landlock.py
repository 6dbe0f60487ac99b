"""Landlock's TCP rule on the real kernel: what it denies, what it leaves, what it costs the process."""

from __future__ import annotations

import errno
import os
import select
import socket
import subprocess
import sys
from typing import Any

import pytest

from appswitch.linux import landlock, libc, namespace
from linux.children import AS_ROOT, in_child

PYTHON = os.path.realpath(sys.executable)  # a virtual environment may lie where others cannot read

pytestmark = pytest.mark.skipif(landlock.abi() < 4, reason="this kernel has no Landlock for TCP (< 6.7)")


USERS = [pytest.param(True, id="user")] + [pytest.param(False, id="root")] * AS_ROOT


@pytest.fixture
def server() -> Any:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(90)
        yield listener


def connects(address: tuple[str, int], family: int = socket.AF_INET) -> int:
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        return sock.connect_ex(address)


def no_new_privs() -> str:
    with open("/proc/self/status") as file:
        return next(line.split()[1] for line in file if line.startswith("NoNewPrivs:"))


def test_the_version_is_the_kernels_own() -> None:
    assert landlock.abi() == libc.syscall(444, None, 0, 1) >= 4


@pytest.mark.parametrize("drop", USERS)
def test_connect_is_denied_and_nothing_else(server: socket.socket, drop: bool) -> None:
    address = server.getsockname()

    def work() -> dict[str, object]:
        seen: dict[str, object] = {"before": connects(address), "denied": landlock.deny_tcp_connect()}
        seen["v4"] = connects(address)
        seen["v6"] = connects(("::1", 9), socket.AF_INET6)
        with socket.create_server(("127.0.0.1", 0)) as own:
            seen["own listener"] = connects(own.getsockname())
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
            seen["udp"] = datagrams.connect_ex(address)
        left, right = socket.socketpair()
        left.send(b"x")
        seen["unix"] = right.recv(1)
        return seen

    assert in_child(work, drop=drop) == {
        "before": 0,
        "denied": True,
        "v4": errno.EACCES,
        "v6": errno.EACCES,
        "own listener": errno.EACCES,
        "udp": 0,
        "unix": b"x",
    }


def test_an_executed_program_inherits_it(server: socket.socket) -> None:
    host, port = server.getsockname()

    def work() -> str:
        landlock.deny_tcp_connect()
        script = f"import socket; print(socket.socket().connect_ex(({host!r}, {port})))"
        return subprocess.run([PYTHON, "-I", "-c", script], capture_output=True, text=True, check=True).stdout

    assert int(in_child(work, drop=True)) == errno.EACCES


def test_another_process_may_connect_its_sockets(server: socket.socket) -> None:
    """What the trap worker does: it connects a copy, and the denied process owns the connection."""
    here, there = socket.socketpair()

    def work() -> bytes:
        landlock.deny_tcp_connect()
        with socket.socket() as sock:
            socket.send_fds(there, [b"s"], [sock.fileno()])
            there.recv(1)
            return sock.recv(5)

    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writer, work())
        os._exit(0)
    try:
        here.settimeout(90)
        _, descriptors, _, _ = socket.recv_fds(here, 1, 1)
        with socket.socket(fileno=descriptors[0]) as copy:
            copy.connect(server.getsockname())
        connection, _ = server.accept()
        connection.sendall(b"hello")
        here.send(b"x")
        assert select.select([reader], [], [], 90)[0]
        assert os.read(reader, 5) == b"hello"
        connection.close()
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        for end in (here, there):
            end.close()
        os.close(reader)
        os.close(writer)


def test_no_new_privs_only_without_the_capability() -> None:
    def plain() -> tuple[str, bool, str]:
        return no_new_privs(), landlock.deny_tcp_connect(), no_new_privs()

    def in_user_namespace() -> tuple[str, bool, str]:
        namespace.enter(user=True)
        return plain()

    assert in_child(plain, drop=True) == ("0", True, "1")
    assert in_child(in_user_namespace, drop=True) == ("0", True, "0")
    if AS_ROOT:
        assert in_child(plain) == ("0", True, "0")


def test_an_older_kernel_denies_nothing(server: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landlock, "abi", lambda: 3)
    address = server.getsockname()
    assert in_child(lambda: (landlock.deny_tcp_connect(), connects(address))) == (False, 0)


@pytest.mark.parametrize(("number", "version"), [(errno.ENOSYS, 0), (errno.EOPNOTSUPP, 0)])
def test_a_kernel_without_landlock_has_version_0(monkeypatch: pytest.MonkeyPatch, number: int, version: int) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, "no")

    monkeypatch.setattr(libc, "syscall", refuse)
    assert landlock.abi() == version
