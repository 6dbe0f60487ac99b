"""A quick part of CPython's own network tests, natively and under the switch; `make suites` runs all of them."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from suites.compare import beside
from suites.exceptions import TCP, TRANSPORTS, UNIX
from suites.lanes import NATIVE, Place, are_there
from suites.modules import PACKAGE, PYTHON, Part
from suites.outcomes import Outcome, differences

from support import needs
from support.modes import Mode, Person, possible

#: What takes a second or two each, and has most kinds of calls and of programs in it.
QUICK = (
    Part(
        "test_socket",
        only=(
            "test_socket.BasicTCP",
            "test_socket.BufferIOTest",
            "test_socket.ContextManagersTest",
            "test_socket.CreateServer",
            "test_socket.InheritanceTest",
            "test_socket.NetworkConnectionAttributesTest",
            "test_socket.NonBlockingTCPTests",
            "test_socket.RecvmsgIntoTCPTest",
            "test_socket.RecvmsgTCPTest",
            "test_socket.SendmsgTCPTest",
            "test_socket.SendfileUsingSendfileTest",
            "test_socket.TCPCloserTest",
            "test_socket.TestExceptions",
        ),
        without=("imeout",),
    ),
    Part("test_asyncio", only=("test_asyncio.test_server", "test_asyncio.test_sock_lowlevel.EPoll")),
    Part("test_asyncore", without=("Poll",)),
    Part("test_epoll"),
    Part("test_httplib"),
    Part("test_smtplib"),
    Part("test_socketserver"),
)


MODES = [mode for mode in possible() if mode.name in ("root", "user-own")]
#: One transport as root, the other as a user: half the time, and each of both is seen.
OVER = {"root": (UNIX,), "user-own": (TCP,)} if len(MODES) > 1 else {"user-own": TRANSPORTS}


@pytest.fixture(scope="module", params=MODES, ids=str)
def place(request: pytest.FixtureRequest, appswitch_command: Callable[[Person], Path]) -> Iterator[Place]:
    if PACKAGE in needs.left_out():
        pytest.skip(f"{PACKAGE} could not be installed")
    assert are_there(), f"{PYTHON} has no tests: run `make test`, or apt-get install {PACKAGE}"
    mode: Mode = request.param
    made = Place(mode, appswitch_command)
    yield made
    made.close()


@pytest.mark.parametrize("part", QUICK, ids=lambda part: part.module)
def test_passes_what_passes_natively(place: Place, part: Part) -> None:
    transports = OVER[place.mode.name]
    with ThreadPoolExecutor() as pool:
        natively, *played = pool.map(lambda transport: place.play(part, transport), (NATIVE, *transports))
    assert sum(outcome.passed for outcome in natively.values()) >= 8, "it is not the part that it was"
    for transport, here in zip(transports, played, strict=True):
        judged = beside(place, part.module, transport, natively, here)
        assert not judged.new, _told(judged.new)


def test_a_test_that_hangs_is_told_and_left_behind(place: Place) -> None:
    outcomes = place.play(Part("test_time", only=("test_time.TimeTestCase.test_s",)), NATIVE, limit=0.02)
    assert outcomes["test_time.TimeTestCase.test_sleep"].what == "hung"  # for 1.2 s
    assert {"test_time.TimeTestCase.test_strftime", "test_time.TimeTestCase.test_strptime"} <= outcomes.keys()


def test_differences_are_seen(place: Place) -> None:
    listed = "test_socket.ContextManagersTest.testCreateConnectionClose"
    part = Part("test_socket", only=(listed,))
    assert list(differences(place.play(part, NATIVE), place.play(part, UNIX))) == [listed]


def _told(new: dict[str, Outcome]) -> str:
    return "\n".join(f"{name}: {outcome.what}, and passes natively\n{outcome.told}" for name, outcome in new.items())
