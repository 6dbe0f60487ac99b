"""Whom a program waits for before its first line runs, and for how long."""

import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from appswitch.switch.beginnings import RELAY_PATIENCE, Beginnings

ONE, TWO = cast(Any, "client one"), cast(Any, "client two")


class Desk:
    """Notes whose programs have begun."""

    def __init__(self) -> None:
        self.begun: list[Any] = []
        self.beginnings = Beginnings(cast(Any, SimpleNamespace(pid=99)), self.begun.append)


def test_a_program_begins_when_all_have_taken_it() -> None:
    desk = Desk()
    desk.beginnings.wait(1, ONE, shared=True)
    desk.beginnings.wait(2, TWO, shared=False)
    assert [desk.beginnings.awaits_relay(number) for number in (1, 2, 3)] == [True, False, False]
    desk.beginnings.taken(1, "worker")
    assert desk.begun == []
    desk.beginnings.taken(2, "worker")
    desk.beginnings.taken(1, "relay")
    assert desk.begun == [TWO, ONE]
    desk.beginnings.taken(1, "relay")  # by another, that was started later
    assert desk.begun == [TWO, ONE]
    assert desk.beginnings.moments() == []


def test_a_relay_that_hangs_is_not_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk()
    desk.beginnings.wait(1, ONE, shared=True)
    desk.beginnings.wait(2, TWO, shared=True)
    desk.beginnings.taken(1, "worker")
    [moment] = desk.beginnings.moments()
    assert 0 < moment - time.monotonic() <= RELAY_PATIENCE
    desk.beginnings.due(moment - 0.001)
    assert desk.begun == []
    desk.beginnings.due(moment + RELAY_PATIENCE)
    assert desk.begun == [ONE]  # the other has no worker yet
    assert desk.beginnings.moments() == []
    assert [record.getMessage()[:24] for record in caplog.records] == ["the relay (process 99) h"] * 2
    desk.beginnings.taken(2, "worker")
    assert desk.begun == [ONE, TWO]


def test_who_has_gone_is_not_waited_for() -> None:
    desk = Desk()
    desk.beginnings.wait(1, ONE, shared=True)
    assert desk.beginnings.forget(1) is ONE
    assert desk.beginnings.moments() == []
    desk.beginnings.taken(1, "worker")
    desk.beginnings.taken(1, "relay")
    assert desk.begun == []
