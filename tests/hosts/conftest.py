"""Hosts for the scenarios of a cluster."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.acting import Actor, start_actor
from service.sharing import actor_file
from service.test_service_udp import HELP
from support import modes
from support.hosts import Host, Hosts
from support.modes import Person

__all__ = ["actor_file"]


AGAIN = """
def comes_back(sock, data, wanted=None):
    "Whether a connected socket hears this, or what it sent; said again each second, so that answers may be double."
    sock.settimeout(1)
    for _ in range(60):
        try:
            sock.send(data)
            while sock.recv(65535) != (data if wanted is None else wanted):
                pass
            return True
        except TimeoutError:
            pass
    return False

def answer_of(sock, data, to):
    "(what comes back, from whom) when an unconnected socket has said it there; again when that takes a second."
    sock.settimeout(1)
    for _ in range(60):
        try:
            sock.sendto(data, to)
            return sock.recvfrom(100)
        except TimeoutError:
            pass
    raise TimeoutError("no answer")
"""


@pytest.fixture
def hosts(appswitch_command: Callable[[Person], Path]) -> Iterator[Callable[..., Hosts]]:
    """Makes hosts on a network of their own, with no switch up: `hosts(3)`; keywords go to Hosts."""
    if modes.MYSELF.uid != 0:
        pytest.skip("network namespaces for hosts need root")
    made: list[Hosts] = []

    def make(count: int, **keywords: object) -> Hosts:
        made.append(Hosts(count, appswitch_command, **keywords))  # type: ignore[arg-type]
        return made[-1]

    yield make
    problems = []
    for one in reversed(made):
        try:
            one.close()
        except AssertionError as error:
            problems.append(str(error))
    assert not problems, "\n".join(problems)


def _shared(command: Callable[[Person], Path], count: int) -> Iterator[Hosts]:
    if modes.MYSELF.uid != 0:
        pytest.skip("network namespaces for hosts need root")
    lab = Hosts(count, command)
    try:
        lab.up()
        yield lab
    finally:
        lab.close()


@pytest.fixture(scope="module")
def pair(appswitch_command: Callable[[Person], Path]) -> Iterator[Hosts]:
    """A cluster of two for all tests of a module that leave it as it was."""
    yield from _shared(appswitch_command, 2)


@pytest.fixture(scope="module")
def trio(appswitch_command: Callable[[Person], Path]) -> Iterator[Hosts]:
    """A cluster of three for all tests of a module that leave it as it was."""
    yield from _shared(appswitch_command, 3)


@pytest.fixture
def actor_on(actor_file: Path, python: str) -> Iterator[Callable[..., Actor]]:
    """Starts actors: `actor_on(host, "web", tags=["group=1"])`; they end with the test."""
    started: list[Actor] = []

    def start(host: Host, name: str | None = None, **keywords: object) -> Actor:
        started.append(start_actor(host, actor_file.parent, python, name, **keywords))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for one in reversed(started):
        one.close()


@pytest.fixture
def udp_on(actor_on: Callable[..., Actor]) -> Callable[..., Actor]:
    """Starts actors that know the functions of HELP."""

    def start(host: Host, name: str | None = None, **keywords: object) -> Actor:
        started = actor_on(host, name, **keywords)
        started(HELP)
        started(AGAIN)
        return started

    return start
