"""The control socket's clients: time limits without a clock of their own, and what is told to whom."""

import gc
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appswitch.switch import control, wire
from appswitch.switch.control import PATIENCE, Client, Control
from appswitch.switch.loop import Loop
from appswitch.switch.paths import SwitchError


class Desk:
    """A control socket whose requests are noted and answered with what they say."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.loop = Loop()
        self.late: list[Client] = []
        self.gone: list[Client] = []
        self.asked: list[wire.Message] = []
        listener = control.listen(path, 0o600, None)
        self.control = Control(self.loop, self._handle, self.late.append, self.gone.append)
        self.control.open(listener)

    def _handle(self, client: Client, message: wire.Message, fds: list[int]) -> None:
        self.asked.append(message)
        if "error" in message:
            raise SwitchError(message["error"])
        client.busy = True

    def client(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(self.path)
        self.loop.turn(0)
        return sock


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(str(tmp_path / "control.sock"))
    yield made
    made.control.close("the end")
    made.loop.turn(0)


def test_nothing_is_due_while_nobody_is_there(desk: Desk) -> None:
    assert desk.control.moments() == []
    with desk.client() as sock:
        [moment] = desk.control.moments()
        assert 0 < moment - time.monotonic() <= PATIENCE
        sock.close()
        desk.loop.turn(0)
    assert desk.control.moments() == []
    assert len(desk.gone) == 1


def test_a_client_that_says_nothing_is_dropped_in_time(desk: Desk) -> None:
    with desk.client() as sock, desk.client() as other:
        [first] = desk.control.moments()
        desk.control.due(first - 0.001)
        assert desk.late == []
        desk.control.due(first)
        desk.loop.turn(0)
        assert len(desk.late) == len(desk.gone) == 1
        assert sock.recv(1) == b""
        assert other.fileno() >= 0


def test_a_new_wait_begins_at_the_end_of_the_line(desk: Desk) -> None:
    with desk.client(), desk.client():
        first, second = desk.control._clients
        desk.control.renew(first)
        assert list(desk.control._clients) == [second, first]


def test_a_refusal_is_told_and_the_connection_ended(desk: Desk) -> None:
    with desk.client() as sock:
        wire.send(sock, {"op": "x", "error": "not today"})
        desk.loop.turn(0)
        assert wire.receive(sock) == {"ok": False, "error": "not today"}
        assert sock.recv(1) == b""


def test_a_second_request_before_the_answer_ends_the_connection(desk: Desk) -> None:
    with desk.client() as sock, open(os.devnull) as null:
        gc.collect()  # or what earlier tests have left is closed meanwhile
        before = len(os.listdir("/proc/self/fd"))
        wire.send(sock, {"op": "x"})
        desk.loop.turn(0)
        wire.send(sock, {"op": "y"}, [null.fileno()])
        desk.loop.turn(0)
        assert [message["op"] for message in desk.asked] == ["x"]
        assert sock.recv(1) == b""
        assert len(os.listdir("/proc/self/fd")) == before - 1


def test_an_error_in_a_handler_ends_nothing(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("a bug")

    with desk.client() as sock, desk.client() as other:
        monkeypatch.setattr(desk.control, "_handle", fail)
        wire.send(sock, {"op": "x"})
        desk.loop.turn(0)
        assert "failed on this request" in wire.receive(sock)["error"]
        monkeypatch.undo()
        wire.send(other, {"op": "y"})
        desk.loop.turn(0)
        assert [message["op"] for message in desk.asked] == ["y"]


def test_too_many_at_once_are_told_to_come_again(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "CLIENTS", 2)
    with desk.client(), desk.client(), desk.client() as third:
        assert "too many requests" in wire.receive(third)["error"]
        assert third.recv(1) == b""


def test_one_user_cannot_take_all_places(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "CLIENTS_OF_USER", 1)
    me = os.geteuid()
    monkeypatch.setattr(wire, "credentials", lambda _: (1, me + 1))
    with desk.client(), desk.client() as second:
        assert "too many requests" in wire.receive(second)["error"]
        monkeypatch.setattr(wire, "credentials", lambda _: (1, me))
        with desk.client() as third:
            wire.send(third, {"op": "x"})
            desk.loop.turn(0)
            assert [message["op"] for message in desk.asked] == ["x"]
