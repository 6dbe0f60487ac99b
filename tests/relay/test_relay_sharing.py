"""Programs whose rules cannot be set, and strange files, cost the others nothing."""

import errno
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from appswitch.linux import rules
from appswitch.linux.udp_diag import UdpSocket
from appswitch.model.address import ANY4, pack
from appswitch.relay import sharing
from appswitch.relay.bound import Bound
from appswitch.relay.oneself import SHOWN, Retries, Socket
from appswitch.relay.program import Program
from appswitch.relay.sharing import Sharing

VIP = pack("10.1.2.3")


@pytest.fixture
def sockets() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


class Standing:
    """For a program; they are told apart by what they are."""

    def __init__(self, name: str, route: socket.socket) -> None:
        self.name, self.route = name, route
        self.identity, self.diag, self.id = SimpleNamespace(vip=VIP), object(), name


def program(sockets: ExitStack, name: str) -> Program:
    """One whose socket is none of the kernel's: nobody answers."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    sockets.enter_context(ours)
    sockets.enter_context(theirs)
    return cast(Program, Standing(name, ours))


def markers(where: Path) -> list[str]:
    return os.listdir(where / sharing.DIRECTORY)


def test_who_cannot_have_rules_is_left_out(tmp_path: Path, sockets: ExitStack) -> None:
    shared = Sharing(str(tmp_path))
    programs = [program(sockets, str(number)) for number in range(20)]
    for each in programs:
        shared.attach(each)
    assert markers(tmp_path) == [VIP.hex()]
    assert not shared.bound(programs[0], [Socket(ANY4, 5000, False)])
    assert not any(shared.is_own(each, VIP) for each in programs)
    assert markers(tmp_path) == []
    shared.announce(programs[0], 5001)
    for each in programs:
        shared.detach(each)


class Kernel:
    """Takes all rules, or none while `error` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error = 0
        self.cleared: list[rules.Rules] = []
        monkeypatch.setattr(rules.Rules, "set", lambda one, wanted: self._set(one, wanted))
        monkeypatch.setattr(rules.Rules, "clear", lambda one: self._clear(one))

    def _set(self, one: rules.Rules, wanted: frozenset[rules.Rule]) -> None:
        one.now = wanted
        if self.error:
            raise OSError(self.error, "not now")

    def _clear(self, one: rules.Rules) -> None:
        one.now = frozenset()
        self.cleared.append(one)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(monkeypatch)


def ports(shared: Sharing, one: Program) -> set[int]:
    """What leaves its namespace, but for what clients are shown with."""
    return {rule.first for rule in cast(Any, shared)._rules[one].now} - {SHOWN.start}


def test_rules_that_could_not_be_set_are_tried_again(
    tmp_path: Path, sockets: ExitStack, kernel: Kernel, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    shared = Sharing(str(tmp_path))
    one, two = (program(sockets, name) for name in ("one", "two"))
    for each in (one, two):
        shared.attach(each)
    assert shared.moments() == []
    kernel.error = errno.ENOBUFS
    shared.bound(one, [Socket(ANY4, 5000, False)])
    assert not shared.is_own(one, VIP)
    assert not shared.is_own(two, VIP)
    assert len(kernel.cleared) == 2  # nothing leads out that the relay would not take
    for _ in range(2):  # and fails again
        moment = max(shared.moments())
        assert shared.overdue(min(shared.moments()) - 0.001) == {}
        assert shared.overdue(moment).keys() == {one, two}
        shared.bound(one, [Socket(ANY4, 5000, False)])
    assert markers(tmp_path) == []
    kernel.error = 0
    assert shared.overdue(max(shared.moments())).keys() == {one, two}
    assert markers(tmp_path) == [VIP.hex()]
    shared.bound(one, [Socket(ANY4, 5000, False)])
    assert ports(shared, two) == {5000}
    assert shared.is_own(one, VIP)
    assert shared.is_own(two, VIP)
    assert shared.moments() == []
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 4  # once for each, and once that it is over
    assert all("until its rules can be set" in line for line in said[:2])
    assert all("again" in line for line in said[2:])


def test_rules_are_not_tried_without_end(
    tmp_path: Path, sockets: ExitStack, kernel: Kernel, caplog: pytest.LogCaptureFixture
) -> None:
    shared = Sharing(str(tmp_path))
    one, two = (program(sockets, name) for name in ("one", "two"))
    for each in (one, two):
        shared.attach(each)
    kernel.error = errno.ENOBUFS
    tries = 0
    while True:
        shared.bound(one, [Socket(ANY4, 5000, False)])
        if not shared.moments():
            break
        tries += 1
        shared.overdue(max(shared.moments()))
    assert tries == len(Retries.PAUSES)
    assert [record.getMessage().count("any more") for record in caplog.records] == [0, 0, 1, 1]
    # Nor at all when its owner keeps the kernel busy, or when it has ended.
    for error, waiting in ((errno.ETIMEDOUT, 0), (errno.ENOBUFS, 2)):
        kernel.error = 0
        three, four = (program(sockets, name) for name in ("three", "four"))
        for each in (three, four):
            shared.attach(each)
        kernel.error = error
        shared.bound(three, [Socket(ANY4, 5000, False)])
        assert len(shared.moments()) == waiting
        for each in (three, four):
            shared.detach(each)
        assert shared.moments() == []


def test_a_bind_whose_end_is_not_told_is_over_some_time(
    tmp_path: Path, sockets: ExitStack, kernel: Kernel
) -> None:
    shared = Sharing(str(tmp_path))
    one, two = (program(sockets, name) for name in ("one", "two"))
    for each in (one, two):
        shared.attach(each)
    shared.announce(one, 5000)
    assert ports(shared, two) == {5000}
    shared.over(one, 5000)
    shared.bound(one, [])
    assert ports(shared, two) == set()
    assert shared.moments() == []  # nothing is waited for as a rule
    shared.announce(one, 5001)
    [moment] = shared.moments()
    shared.announce(one, 5002)
    shared.over(one, 5002)
    shared.bound(one, [])
    assert ports(shared, two) == {5001}
    assert shared.overdue(moment - 0.001) == {}
    assert shared.overdue(moment) == {one: {5001}}
    assert shared.moments() == []
    shared.bound(one, [])
    assert ports(shared, two) == set()


def test_each_bind_has_its_time(
    tmp_path: Path, sockets: ExitStack, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = Sharing(str(tmp_path))
    one = program(sockets, "one")
    shared.attach(one)
    now = time.monotonic()
    for later in (0.0, 1.0, 2.0):
        monkeypatch.setattr(sharing.time, "monotonic", lambda: now + later)  # noqa: B023
        shared.announce(one, 5000 + int(later))
    [first] = shared.moments()
    assert shared.overdue(first + 0.5) == {one: {5000}}
    [second] = shared.moments()
    assert second == first + 1
    assert shared.overdue(first + 3) == {one: {5001, 5002}}
    assert shared.moments() == []


def test_what_is_no_virtual_ip_s_is_left_alone(tmp_path: Path) -> None:
    directory = tmp_path / sharing.DIRECTORY
    (directory / "aa").mkdir(parents=True)
    for name in (".strange", VIP.hex()):
        (directory / name).touch()
    Sharing(str(tmp_path))
    assert sorted(markers(tmp_path)) == [".strange", "aa"]


def test_announcements_that_are_never_over_are_few(
    tmp_path: Path, sockets: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "_AT_ONCE", 1000.0)
    shared = Sharing(str(tmp_path))
    one = program(sockets, "one")
    shared.attach(one)
    for _ in range(1000):
        shared.announce(one, 5000)
    assert len(cast(Any, shared)._announced[one][5000]) <= 16


def test_rules_that_do_not_end_are_left(sockets: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def ask(_: rules.Rules, messages: list[Any]) -> list[int]:
        asked.append(messages)
        return [0] * len(messages)

    monkeypatch.setattr(rules.Rules, "_ask", ask)
    rules.Rules(cast(Any, program(sockets, "")).route, used=True)
    assert 100 < len(asked) < 10_000


def test_what_one_has_bound_alone_is_looked_at_when_another_comes(
    tmp_path: Path, sockets: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Any] = []
    monkeypatch.setattr(Bound, "_read", lambda self, program, *_: read.append(program))
    poller = cast(Any, SimpleNamespace(watch=lambda *_: None, forget=lambda *_: None))
    shared, nothing = Sharing(str(tmp_path)), cast(Any, None)
    bound = Bound(poller, nothing, str(tmp_path), nothing, shared, nothing)
    programs = [program(sockets, str(number)) for number in range(3)]
    for each in programs:
        shared.attach(each)
        bound.attach(each)
        cast(Any, bound)._changed(each)  # later, for it has read much
    one, two, three = programs
    bound.close()
    assert read == [one, two, one, three]


class Diag:
    """Tells of these sockets."""

    def __init__(self, *found: UdpSocket) -> None:
        self._found = list(found)
        self.socket = SimpleNamespace(fileno=lambda: 9)

    def hear(self) -> None: ...

    def watch_ends(self) -> None: ...

    def bound(self) -> list[UdpSocket]:
        return self._found


def test_a_bind_of_which_nothing_more_was_told_is_looked_for(
    tmp_path: Path, sockets: ExitStack, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    poller = cast(Any, SimpleNamespace(watch=lambda *_: None, change=lambda *_: None, forget=lambda *_: None))
    table = cast(Any, SimpleNamespace(services=lambda *_: []))
    shared, nothing = Sharing(str(tmp_path)), cast(Any, None)
    bound = Bound(poller, table, str(tmp_path), nothing, shared, nothing)
    one, two = (program(sockets, str(number)) for number in range(2))
    connected = [UdpSocket(port, bytes(4), port, False, True) for port in (40000, 40001)]
    cast(Any, one).diag, cast(Any, two).diag = Diag(*connected), Diag()
    for each in (one, two):
        shared.attach(each)
        bound.attach(each)
    assert bound.timeout() is None
    for port in (40000, 5000):
        shared.announce(one, port)
    assert ports(shared, two) == {40000, 5000}
    [moment] = shared.moments()
    assert bound.timeout() is not None
    monkeypatch.setattr("appswitch.relay.bound.time.monotonic", lambda: moment + 1)
    bound.expire()
    assert ports(shared, two) == {40000}  # which has been bound; 5000 has not, and 40001 is the kernel's choice
    assert bound.timeout() is None
    bound.close()
