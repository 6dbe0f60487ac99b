"""Programs whose rules cannot be set, and strange files, cost the others nothing."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from appswitch.linux import rules
from appswitch.model.address import ANY4, pack
from appswitch.relay import sharing
from appswitch.relay.bound import Bound
from appswitch.relay.oneself import Socket
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
    monkeypatch.setattr(Bound, "_read", lambda self, program: read.append(program))
    poller = cast(Any, SimpleNamespace(watch=lambda *_: None, forget=lambda *_: None))
    shared, nothing = Sharing(str(tmp_path)), cast(Any, None)
    bound = Bound(poller, nothing, str(tmp_path), nothing, shared, nothing)
    programs = [program(sockets, str(number)) for number in range(3)]
    for each in programs:
        shared.attach(each)
        bound.attach(each)
        cast(Any, bound)._changed(each)  # later, for it has read much
    bound.close()
    one, two, three = programs
    assert read == [one, two, one, three]
