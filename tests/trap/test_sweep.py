"""Listeners that their programs have closed go a few at a time: a worker answers calls meanwhile."""

import itertools
import os
import time
from types import SimpleNamespace

import pytest

from appswitch.model.service import Service
from appswitch.table.counters import Counters
from appswitch.table.store import Table
from appswitch.trap.events import Events
from appswitch.trap.hosts import Node
from appswitch.trap.listeners import GO_AT_ONCE, Listeners
from appswitch.trap.program import Failure
from appswitch.trap.sockets import Listener

MANY = 5 * GO_AT_ONCE + 3


class Supervisor:
    """Takes note of what it is to forget."""

    def __init__(self):
        self.forgotten = []

    def forget(self, key):
        self.forgotten.append(key)


@pytest.fixture
def scene(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "l").mkdir()
    table, events, supervisor = Table(str(tmp_path / "table")), Events(Counters("counters")), Supervisor()
    changed = []
    listeners = Listeners(
        table,
        events,
        pending=None,
        supervisor=supervisor,
        diag=None,
        hosts=SimpleNamespace(node=Node()),
        alone=True,
        per_user=1000,
        arrived=None,
        at_real_port=None,
        changed=changed.append,
    )
    scene = SimpleNamespace(table=table, events=events, supervisor=supervisor, listeners=listeners, changed=changed)
    scene.live, numbers = {}, itertools.count(1)
    monkeypatch.setattr(listeners, "live", lambda: scene.live)

    def listen(program=1, uid=0):
        number = next(numbers)
        path = f"l/{number:x}"
        (tmp_path / path).touch()
        row = Service(
            b"\1" * 16, number, number, program, "web", (), bytes(16), True, path, ("", 0), "random", "auto",
            1.0, uid, cookie=number, alone=True,
        )  # fmt: skip
        native = os.open(os.devnull, os.O_RDONLY)
        listener = Listener(number, 1 << 32 | number, program, 2, (bytes(16), number), row, native, -1)
        listeners.add(listener)
        table.put_service(row)
        scene.live[number] = True
        return listener

    scene.listen = listen
    yield scene
    table.close()


def turns(scene):
    """How many rows went, and in how many transactions, at each turn of the loop until nothing happens any more."""
    found = []
    while True:
        before, rows = scene.table.version(), len(scene.table.services())
        scene.events.after(time.monotonic(), lambda: None)  # so that it does not wait
        scene.events.wait()
        if scene.table.version() == before:
            return found
        found.append((rows - len(scene.table.services()), scene.table.version() - before))


def test_a_sweep_of_many_lets_calls_in_between(scene):
    open_ones = [scene.listen() for _ in range(3)]
    closed = [scene.listen() for _ in range(MANY)]
    for listener in closed:
        del scene.live[listener.cookie]
    before = scene.table.version()
    scene.listeners._forget_closed()
    assert scene.table.version() == before + 1  # one transaction for all of them
    assert len(scene.table.services()) == 3 + MANY - GO_AT_ONCE
    scene.listeners._forget_closed()  # another meanwhile: nothing is done twice
    assert len(scene.table.services()) == 3 + MANY - GO_AT_ONCE
    assert turns(scene) == [(GO_AT_ONCE, 1)] * 4 + [(3, 1)]
    assert sorted(scene.supervisor.forgotten) == sorted(f"native-{listener.cookie}" for listener in closed)
    assert sorted(row.cookie for row in scene.changed) == [listener.cookie for listener in closed]
    assert {row.cookie for row in scene.table.services()} == {listener.cookie for listener in open_ones}
    assert len(os.listdir("l")) == 3
    assert [listener.native for listener in closed] == [-1] * MANY


def test_those_of_a_program_that_has_ended_go_likewise(scene):
    scene.listen(program=2)
    for _ in range(MANY):
        scene.listen(program=1)
    scene.listeners.drop_program(SimpleNamespace(number=1))
    assert len(scene.table.services(1)) == MANY - GO_AT_ONCE
    assert turns(scene) == [(GO_AT_ONCE, 1)] * 4 + [(3, 1)]
    assert [row.program for row in scene.table.services()] == [2]


def test_one_that_is_wanted_before_its_turn_goes_at_once(scene):
    closed = [scene.listen() for _ in range(MANY)]
    scene.live.clear()
    scene.listeners._forget_closed()
    last = closed[-1]
    scene.listeners.drop(last)
    assert last.cookie not in {row.cookie for row in scene.table.services()}
    turns(scene)
    assert scene.supervisor.forgotten.count(f"native-{last.cookie}") == 1
    assert scene.table.services() == []


def test_a_user_who_has_as_many_as_one_may_have_need_not_wait_for_those_of_others(scene, monkeypatch):
    monkeypatch.setattr(scene.listeners, "_per_user", 2)
    for _ in range(MANY):
        scene.listen()
    mine = [scene.listen(uid=7) for _ in range(2)]
    program = SimpleNamespace(identity=SimpleNamespace(uid=7))
    with pytest.raises(Failure):
        scene.listeners.check_room(program)
    monkeypatch.setattr(scene.listeners, "_swept", -1.0)
    scene.live.clear()
    scene.listeners.check_room(program)
    assert not {listener.cookie for listener in mine} & {row.cookie for row in scene.table.services()}
