"""Calls that would go past the trap handler, made from inside, and natively to see that they are good for something."""

import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from security.outside import Canary, prying
from support.needs import compile_c
from support.switch import Switch

Found = dict[str, Any]


@dataclass(frozen=True)
class Tried:
    """What the program said, and how many connections and datagrams arrived at the two canaries meanwhile."""

    said: Found
    connections: list[int]
    datagrams: list[int]


@dataclass(frozen=True)
class Both:
    inside: Tried
    native: Tried


def sysctl(name: str, default: int) -> int:
    path = Path("/proc/sys", name)
    return int(path.read_text()) if path.exists() else default


@pytest.fixture(scope="module")
def unix_canaries(public: Path) -> Iterator[tuple[str, str]]:
    """(abstract name, path) of Unix sockets that anybody of the host may connect to."""
    name, path = f"appswitch-canary-{os.getpid()}", public / "canary.sock"
    with socket.socket(socket.AF_UNIX) as abstract, socket.socket(socket.AF_UNIX) as named:
        abstract.bind(f"\0{name}")
        named.bind(str(path))
        path.chmod(0o666)
        abstract.listen()
        named.listen()
        yield name, str(path)
    path.unlink()


@pytest.fixture(scope="module")
def tried(
    shared: Switch,
    python: str,
    pry: Path,
    canary: Canary,
    far_canary: Canary,
    unix_canaries: tuple[str, str],
    neighbour: int,
) -> Both:
    """All the calls, made by a program that may not leave, and by the same program natively."""
    namespace = os.open("/proc/self/ns/net", os.O_RDONLY)
    given = {
        "canaries": [canary.address, far_canary.address],
        "process": neighbour,
        "namespace": namespace,
        "abstract": unix_canaries[0],
        "path": unix_canaries[1],
    }

    def attempt(native: bool) -> Tried:
        argv: list[str | Path] = [python, "-S", pry, "calls", json.dumps(given)]
        options = ("--egress", "deny")
        with prying(shared, argv, options=options, native=native, pass_fds=[namespace]) as program:
            both = (canary, far_canary)
            return Tried(program.seen, [one.connections() for one in both], [one.datagrams() for one in both])

    try:
        found = Both(attempt(False), attempt(True))
        assert found.inside.said["open"] == found.native.said["open"] == [0, 1, 2, namespace]
        return found
    finally:
        os.close(namespace)


def test_nothing_arrives_outside(tried: Both) -> None:
    assert (tried.inside.connections, tried.inside.datagrams) == ([0, 0], [0, 0])
    assert all(tried.native.connections)
    assert tried.native.datagrams == [2, 2]


def test_io_uring_is_not_there(tried: Both) -> None:
    assert set(tried.inside.said["io_uring"].values()) == {"ENOSYS"}
    if sysctl("kernel/io_uring_disabled", 0) == 0:
        assert tried.native.said["io_uring"] == {"setup": "done", "enter": "EBADF", "register": "EINVAL"}


def test_no_sockets_but_tcp_udp_and_local_ones(tried: Both) -> None:
    inside, native = tried.inside.said["families"], tried.native.said["families"]
    assert set(inside.values()) <= {"EPERM", "EAFNOSUPPORT", "ESOCKTNOSUPPORT", "EPROTONOSUPPORT"}
    assert "done" in native.values()


def test_no_data_goes_with_a_connect(tried: Both) -> None:
    for outcomes in tried.inside.said["fast open"].values():
        assert outcomes == ["ENOTSUP", "ENOTSUP"]
    # One canary is on loopback, which is the program's own; to the other the program may not go.
    assert tried.inside.said["fast open at connect"] == ["ECONNREFUSED", "EACCES"]
    if sysctl("net/ipv4/tcp_fastopen", 1) & 1:
        assert tried.native.said["fast open"] == {how: ["done"] * 2 for how in ("sendto", "sendmsg", "sendmmsg")}
        assert tried.native.connections == [4, 4]


def test_an_address_given_to_sendto_is_no_way(tried: Both) -> None:
    assert tried.inside.said["sendto"] == tried.native.said["sendto"] == ["EPIPE", "EPIPE"]


def test_other_processes_are_out_of_reach(tried: Both) -> None:
    inside, native = tried.inside.said["other process"], tried.native.said["other process"]
    assert set(inside.values()) <= {"EPERM", "EACCES", "EFAULT"}
    assert [native[how] for how in ("ptrace", "memory", "descriptor", "namespace")] == ["done"] * 4


def test_no_way_back_into_the_hosts_namespace(tried: Both, shared: Switch) -> None:
    assert tried.inside.said["setns"] == {"any": "EPERM", "network": "EPERM"}
    assert tried.inside.said["other process"]["setns by pidfd"] == "EPERM"
    if shared.mode.program_owner.uid == 0:
        assert tried.native.said["setns"] == {"any": "done", "network": "done"}


def test_unix_sockets_by_name_are_the_programs_own_and_by_path_the_hosts(tried: Both) -> None:
    """The second is a way out that is not closed: docs/security.md says so."""
    assert tried.inside.said["unix"] == {"abstract": "ECONNREFUSED", "path": "done"}
    assert tried.native.said["unix"] == {"abstract": "done", "path": "done"}


def test_call_tables_of_i386_and_x32(shared: Switch, c_program: Callable[..., Path], canary: Canary) -> None:
    program = c_program("pry")
    canary.connections()
    with prying(shared, [program, "tables", *canary.words]) as inside:
        assert set(inside.seen.values()) <= {"ENOSYS", ""}
        assert canary.connections() == 0
    with prying(shared, [program, "tables", *canary.words], native=True) as native:
        # As many arrive as this kernel has tables for.
        assert canary.connections() == list(native.seen.values()).count("done")


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="x86-64's")
def test_a_program_built_for_i386_does_not_even_get_to_its_end(shared: Switch, public: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "i386.c", public / "i386"
    source.write_text(_EXIT_WITH_7)
    if not target.exists():
        compile_c(str(source), str(target), "-m32", "-nostdlib", "-static", "-fno-pic", "-no-pie")
        target.chmod(0o755)
    assert subprocess.run([target], check=False).returncode in (7, -11)  # as this kernel runs such programs or not
    assert shared.check([target]).returncode == -11


_EXIT_WITH_7 = """
void _start(void)
{
	__asm__ volatile("int $0x80" : : "a"(1), "b"(7));
	for (;;)
		*(volatile int *)0;
}
"""
