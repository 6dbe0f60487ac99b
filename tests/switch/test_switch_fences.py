"""Where programs are served that held a worker up: bounded, and nobody else's harm."""

from typing import Any

import pytest

from appswitch.switch.fences import IN_ALL, OF_USER, STRIKES, WITHIN, Fences, Strikes


def test_strikes_count_for_a_while() -> None:
    strikes = Strikes()
    for moment in range(STRIKES):
        assert not strikes.out(1000, moment)
        strikes.add(1000, float(moment))
    assert strikes.out(1000, float(STRIKES))
    assert not strikes.out(1001, float(STRIKES))
    assert not strikes.out(1000, WITHIN)
    strikes.add(1000, WITHIN)  # the first is too old to count, the others are not
    assert strikes.out(1000, WITHIN)


class Entry:
    def __init__(self, uid: int) -> None:
        self.identity, self.attached, self.worker, self.pid, self.fenced = self, True, 0, 1, ""
        self.uid, self.label = uid, "x"


class Switch:
    """As much of one as Fences asks for: two shared workers, and what it adds."""

    def __init__(self) -> None:
        self.workers: list[Any] = [self.Child(), self.Child()]
        self.entries: dict[int, Any] = {}
        self.fences = Fences(self.workers, lambda: self.workers.append(self.Child()), self, self, self)  # type: ignore

    class Child:
        role, alive = "worker", False

    def attached(self) -> list[Any]:
        return list(self.entries.values())

    def programs_of(self, worker: int) -> list[Any]:
        return [entry for entry in self.entries.values() if entry.worker == worker]

    def move(self, entry: Any, worker: int) -> None:
        entry.worker = worker

    def introduce_again(self, entry: Any) -> None:
        assert self.workers[entry.worker].alive

    def start(self, child: Any) -> None:
        child.alive = True

    def dismiss(self, child: Any) -> None:
        child.alive = False

    def strike(self, uid: int) -> int:
        """A program of the user holds a worker up; where it is served now."""
        number = len(self.entries) + 1
        self.entries[number] = Entry(uid)
        self.fences.held_up(self.workers[0], number, "test")
        where: int = self.entries[number].worker
        return where


def test_each_gets_a_worker_of_its_own_up_to_a_bound() -> None:
    switch = Switch()
    assert [switch.strike(1000) for _ in range(OF_USER)] == [2 + n for n in range(OF_USER)]
    # What is more shares them, evenly.
    assert sorted(switch.strike(1000) for _ in range(OF_USER)) == [2 + n for n in range(OF_USER)]
    # Others' have their own, until there are as many as there may be at all.
    places = [switch.strike(uid) for uid in range(1001, 1100)]
    assert len(switch.workers) == 2 + IN_ALL
    assert places[: IN_ALL - OF_USER] == [2 + n for n in range(OF_USER, IN_ALL)]


def test_a_worker_goes_with_its_last_program_and_its_place_is_used_again() -> None:
    switch = Switch()
    place = switch.strike(1000)
    child = switch.workers[place]
    assert child.alive
    assert switch.fences.wanted(child)
    entry = switch.entries.pop(1)
    switch.fences.left(entry)
    assert not child.alive
    assert not switch.fences.wanted(child)
    assert switch.fences.wanted(switch.workers[0])
    assert switch.strike(1001) == place


@pytest.mark.parametrize("attached", [True, False])
def test_one_that_is_gone_is_no_matter(attached: bool) -> None:
    switch = Switch()
    if attached:
        switch.entries[7] = Entry(1000)
        switch.entries[7].attached = False
    switch.fences.held_up(switch.workers[0], 7, "test")
    assert len(switch.workers) == 2
