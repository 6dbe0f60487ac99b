"""A second thread that changes what the handler has looked at, during the call: the address, or the descriptor.

The program is pry.c. Natively the same races are won, and the canary is reached: that is seen first.
"""

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from appswitch.linux import landlock
from security.outside import Canary, Pry, listening_on_host, prying
from support.modes import Person
from support.program import DEADLINE, Program
from support.switch import Switch

TRIES = "1000"
TCP_CLOSE = 7

TWO_CORES = len(os.sched_getaffinity(0)) > 1
"""On one the second thread hardly ever comes in between."""

GUARDED = pytest.mark.skipif(
    landlock.abi() < 4, reason="this kernel has no Landlock for TCP (< 6.7): docs/security.md says what is weaker then"
)

_UNGUARDED = """
import sys
from appswitch.linux import landlock
from appswitch.cli.main import main
landlock.deny_tcp_connect = lambda: False
sys.argv[0] = "appswitch"
sys.exit(main())
"""


@pytest.fixture(scope="module")
def program(c_program: Callable[..., Path]) -> Path:
    return c_program("pry")


def native(program: Path, *words: str) -> None:
    """Run it as it stands, to its end."""
    null = subprocess.DEVNULL
    subprocess.run([program, *words], stdin=null, stdout=null, check=True, timeout=2 * DEADLINE)


@pytest.fixture(autouse=True)
def _from_now_on(canary: Canary, far_canary: Canary) -> None:
    """What others have left does not count."""
    canary.connections()
    far_canary.connections()


# The address ------------------------------------------------------------------------------------------------


def test_natively_both_addresses_are_reached(program: Path) -> None:
    one, other = Canary("127.0.0.1"), Canary("127.0.0.1")
    try:
        native(program, "address", TRIES, *one.words, *other.words)
        assert one.connections() > 0
        assert other.connections() > 0
    finally:
        one.close()
        other.close()


def changing_address(shared: Switch, program: Path, service: tuple[str, int], other: list[str], *options: str) -> Pry:
    """Connections to a service whose address changes to another and back, all made."""
    words = [service[0], str(service[1]), *other]
    with prying(shared, [program, "address", TRIES, *words], options=options) as pry:
        connects = pry.seen["connect"]
        # It did change: some came through, some did not, and none as if the other had answered.
        assert connects["done"] > 0
        assert pry.seen["reached"] == [connects["done"], 0]
        return pry


def test_loopback_of_the_host_by_a_changing_address(
    shared: Switch, program: Path, service: tuple[str, int], canary: Canary
) -> None:
    pry = changing_address(shared, program, service, canary.words)
    assert set(pry.seen["connect"]) == {"done", "ECONNREFUSED"}
    assert canary.connections() == 0


def test_outside_by_a_changing_address(
    shared: Switch, program: Path, service: tuple[str, int], far_canary: Canary
) -> None:
    pry = changing_address(shared, program, service, far_canary.words, "--egress", "deny")
    assert set(pry.seen["connect"]) == {"done", "EACCES"}
    assert far_canary.connections() == 0


@pytest.fixture(scope="module")
def closed_service(shared: Switch, python: str) -> tuple[Program, list[str]]:
    """A service of a group, which says when anybody has come; and its host and port."""
    code = "import socket\ns = socket.create_server(('', 80))\nwhile True: s.accept(); print('somebody', flush=True)"
    started = shared.run([python, "-S", "-c", code], ip="10.99.0.2", tags=["group=9"])
    shared.wait_service("10.99.0.2", 80)
    return started, ["10.99.0.2", "80"]


def test_a_denied_service_by_a_changing_address(
    shared: Switch, program: Path, service: tuple[str, int], closed_service: tuple[Program, list[str]]
) -> None:
    server, address = closed_service
    pry = changing_address(shared, program, service, address)
    assert set(pry.seen["connect"]) == {"done", "EACCES"}
    assert server.output() == ""


# The descriptor ---------------------------------------------------------------------------------------------


def test_natively_an_exchanged_socket_is_connected(program: Path, canary: Canary, far_canary: Canary) -> None:
    native(program, "native", TRIES, *canary.words)
    assert canary.connections() > 0
    native(program, "outside", TRIES, *far_canary.words, *canary.words)
    assert canary.connections() > 0


def test_a_socket_of_its_own_instead_of_a_unix_one(shared: Switch, program: Path, canary: Canary) -> None:
    with prying(shared, [program, "native", TRIES, *canary.words]) as pry:
        assert pry.seen["connect"]["done"] == 0
        assert pry.seen["state"] == TCP_CLOSE
        if landlock.abi() >= 4 and TWO_CORES:
            assert pry.seen["connect"]["EACCES"] > 0  # the handler was deceived, and the guard was there
    assert canary.connections() == 0


def outside(shared: Switch, program: Path, far_canary: Canary, canary: Canary, cover: str) -> Iterator[Pry]:
    words = [*far_canary.words, *canary.words, cover]
    with prying(shared, [program, "outside", TRIES, *words]) as pry:
        if TWO_CORES:
            # Once the handler was deceived: the socket is the program's to connect anew, if nothing else forbids.
            assert pry.seen["AF_UNSPEC"]["done"] > 0
            assert pry.seen["state"] == TCP_CLOSE
        yield pry


@GUARDED
@pytest.mark.parametrize("cover", ["unix", "udp"])
def test_a_socket_of_the_host_instead_of_another(
    shared: Switch, program: Path, far_canary: Canary, canary: Canary, cover: str
) -> None:
    for pry in outside(shared, program, far_canary, canary, cover):
        seen = pry.seen
        assert (seen["host names"], seen["SIOCGSKNS"]["done"]) == (0, 0)
        assert seen["listen"]["done"] == 0
        assert seen["plain"]["done"] == 0
        if TWO_CORES:
            assert seen["connect"]["EACCES"] > 0
            assert seen["state then"] == seen["state at last"] == TCP_CLOSE
        assert listening_on_host([pry.pid]) == []
    assert canary.connections() == 0


def test_an_end_of_a_connection_instead_of_another(
    shared: Switch, program: Path, service: tuple[str, int], canary: Canary
) -> None:
    words = [service[0], str(service[1]), *canary.words, "end"]
    with prying(shared, [program, "outside", TRIES, *words]) as pry:
        seen = pry.seen
        assert (seen["host names"], seen["SIOCGSKNS"]["done"]) == (0, 0)
        assert seen["connect"]["done"] == seen["listen"]["done"] == seen["plain"]["done"] == 0
        assert listening_on_host([pry.pid]) == []
    assert canary.connections() == 0


@contextlib.contextmanager
def unguarded(
    shared: Switch, command: Callable[[Person], Path], program: Path, *words: str, options: Sequence[str] = ()
) -> Iterator[Pry]:
    """The same program, started by an `appswitch run` that leaves out Landlock."""
    owner = shared.mode.program_owner
    argv = [str(command(owner).with_name("python")), "-c", _UNGUARDED, "run", *options, "--", str(program), *words]
    started = shared.start(argv, "unguarded", owner, stdin=subprocess.PIPE)
    try:
        yield Pry(started)
    finally:
        started.stop()


@GUARDED
@pytest.mark.skipif(not TWO_CORES, reason="on one core the race is hardly ever won")
def test_without_the_guard_it_would_get_through(
    shared: Switch, program: Path, far_canary: Canary, canary: Canary, appswitch_command: Callable[[Person], Path]
) -> None:
    words = ["outside", TRIES, *far_canary.words, *canary.words]
    with unguarded(shared, appswitch_command, program, *words) as pry:
        assert pry.seen["connect"]["done"] > 0
        assert canary.connections() > 0


def test_a_program_that_may_not_leave_has_nothing_to_leave_by(
    shared: Switch, program: Path, canary: Canary, far_canary: Canary, appswitch_command: Callable[[Person], Path]
) -> None:
    """Even without the guard: no socket of the host ever gets into it."""
    for one in (canary, far_canary):
        words = ["native", TRIES, *one.words, "hasty"]
        with unguarded(shared, appswitch_command, program, *words, options=["--egress", "deny"]) as pry:
            assert pry.seen["connect"]["done"] == 0
        assert (canary.connections(), far_canary.connections()) == (0, 0)


def test_the_acceptor_is_no_way_and_comes_to_no_harm(
    shared: Switch, program: Path, service: tuple[str, int], appswitch_command: Callable[[Person], Path]
) -> None:
    """Port 1 of the program's loopback, where the switch takes its ends of TCP connections from."""
    words, options = ["acceptor", TRIES, service[0], str(service[1])], ["--transport", "tcp"]

    def connections() -> int:
        return int(shared.cli("status", "-o", "json")["counters"]["tcp"])

    before = connections()
    with prying(shared, [program, *words], options=options) as pry:
        # With the guard nothing reaches it.
        assert pry.seen["strangers"] == 0 or landlock.abi() < 4
        assert pry.seen["service"] == {"done": 20}
        assert pry.seen["ended"] == 20
    with unguarded(shared, appswitch_command, program, *words, options=options) as pry:
        # Without, it is full of strangers, and yet each connection gets to the service.
        assert pry.seen["strangers"] > 0 or not TWO_CORES
        assert pry.seen["service"] == {"done": 20}
        assert pry.seen["ended"] == 20
    assert connections() == before + 40
