"""Who is answered at a time, when answers take long: nobody can take all places."""

import os
import signal
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from appswitch.switch.asking import Asking
from appswitch.switch.loop import Loop
from appswitch.switch.paths import RunDir
from appswitch.switch.view import View
from support.program import wait_until

ME = os.geteuid()


class Desk:
    """Queries whose answers end when they are told to; `asked` are the users whose answers were begun."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.asked: list[int] = []
        self.pids: list[int] = []
        self.gone: set[int] = set()
        view = View(RunDir("/nonexistent"), 0.0, [], 0, 1, [])
        self.asking = Asking(self.loop, self, lambda: view, self)  # type: ignore[arg-type]

    def __contains__(self, client: Any) -> bool:
        return id(client) not in self.gone

    def drop(self, client: Any) -> None:
        client.sock.close()

    def fork(self, name: str, body: object, keep: object, orphaned: object) -> int:
        pid = os.fork()
        if pid == 0:
            signal.pause()
        self.pids.append(pid)
        return pid

    def ask(self, uid: int) -> Any:
        class Client:
            sock, busy = socket.socket(), False

        Client.uid = uid  # type: ignore[attr-defined]
        before = len(self.pids)
        self.asking.ask(Client, {"op": "status"})  # type: ignore[arg-type]
        self.asked += [uid] * (len(self.pids) - before)
        return Client

    def end(self, index: int) -> None:
        """An answer has been read."""
        os.kill(self.pids[index], signal.SIGKILL)

        def noticed() -> bool:
            self.loop.turn(0.1)
            return sum(self.asking._running.values()) + self.ended == len(self.pids)

        self.ended += 1
        wait_until(noticed, lambda: "the end of an answer")

    ended = 0


@pytest.fixture
def desk() -> Iterator[Desk]:
    made = Desk()
    yield made
    for pid in made.pids:
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def test_one_user_has_two_places_and_all_but_the_switchs_own_have_six(desk: Desk) -> None:
    for uid in (70001, 70002, 70003, 70004):
        for _ in range(3):
            desk.ask(uid)
    assert desk.asked == [70001, 70001, 70002, 70002, 70003, 70003]
    desk.ask(ME)
    desk.ask(0)
    desk.ask(0)
    assert desk.asked[6:] == [ME, 0], "eight in all"


def test_whoever_may_be_next_is_next(desk: Desk) -> None:
    for _ in range(3):
        desk.ask(70001)
    third = desk.ask(70002)
    assert desk.asked == [70001, 70001, 70002]
    desk.gone.add(id(third))
    desk.end(2)
    assert len(desk.pids) == 3, "the third of the first user still waits"
    desk.end(0)
    assert len(desk.pids) == 4
    desk.end(1)
    desk.end(3)
    assert not desk.asking._running
    assert not desk.asking._queued
