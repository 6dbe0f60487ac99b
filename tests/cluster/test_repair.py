"""Whom to ask for what is missing, and when."""

import math
import random

from appswitch.cluster.repair import ASKED, FETCH, FETCH_MOST, GREET, WANTED, Ask, Repair
from appswitch.cluster.replica import Replica


def made(hosts: int) -> tuple[Replica, Repair]:
    """A host that knows so many members, and nothing of their rows."""
    replica = Replica("me", 1 << 32)
    names = [f"h{number}" for number in range(hosts)]
    for name in names:
        replica.alive(name)
    return replica, Repair(replica, random.Random(1), lambda: names)


def heard_of(replica: Replica, *hosts: str) -> None:
    for host in hosts:
        replica.message(Replica(host, 7 << 32).head())


def test_what_may_still_come_is_not_fetched() -> None:
    replica, repair = made(3)
    heard_of(replica, "h1")
    repair.look(10.0)
    due = repair.due()
    assert 10.0 < due <= 10.0 + FETCH
    author = Replica("h1", 7 << 32)
    author.change({b"k": b"v"})
    replica.merge(author.states())
    assert repair.tick(due) == []
    assert repair.due() == math.inf


def test_rows_are_fetched_from_their_author_then_from_others_and_ever_more_rarely() -> None:
    replica, repair = made(3)
    heard_of(replica, "h1")
    repair.look(0.0)
    asked: list[Ask] = []
    waits, now = [], 0.0
    for _ in range(40):
        waits.append(repair.due() - now)
        now = repair.due()
        [ask] = repair.tick(now)
        asked.append(ask)
    wanted = {"h1": bytes(16)}
    assert asked[0] == Ask("h1", wanted)
    assert asked[2::2] == [Ask("h1")] * 19, "it is told what is said of it"
    assert {ask.whom for ask in asked[1::2]} == {"h0", "h1", "h2"}
    assert all(ask.wanted == wanted for ask in asked[1::2])
    assert max(waits) <= FETCH_MOST
    assert waits[9] >= FETCH_MOST / 2


def test_many_are_fetched_from_one_then_a_few_from_themselves() -> None:
    replica, repair = made(600)
    heard_of(replica, *(f"h{number}" for number in range(500)))
    repair.look(0.0)
    [ask] = repair.tick(repair.due())
    assert len(ask.wanted) == WANTED
    asks = repair.tick(repair.due())
    assert [list(ask.wanted) for ask in asks] == [[ask.whom] for ask in asks]
    assert len(asks) == ASKED


def test_as_long_as_it_goes_on_well_no_time_is_lost() -> None:
    """Half of a large cluster comes back, and one member knows all of its rows."""
    replica, repair = made(2000)
    knowing = Replica("h1999", 1 << 32)
    for number in range(1500):
        author = Replica(f"h{number}", 7 << 32)
        author.change({b"k": b"v"})
        knowing.alive(f"h{number}")
        knowing.merge(author.states())
    replica.told(knowing.versions())
    now = 0.0
    repair.look(now)
    while replica.behind():
        now = repair.due()
        for ask in repair.tick(now):
            replica.merge(knowing.part(ask.wanted))
    assert now <= 2 * FETCH * (1500 / WANTED + 1)


def test_a_newcomer_that_tells_its_rows_is_not_asked() -> None:
    replica, repair = made(3)
    replica.alive("new")
    repair.joined("new", 5.0)
    due = repair.due()
    assert 5.0 < due <= 5.0 + GREET
    [told] = Replica("new", 7 << 32).change({b"k": b"v"}).broadcasts
    replica.message(told)
    assert replica.rows("new") == {b"k": b"v"}, "its first change is all that it has"
    assert replica.behind() == []
    assert repair.tick(due) == []


def test_of_many_that_come_back_a_few_are_asked() -> None:
    _, repair = made(300)
    for number in range(200):
        repair.joined(f"h{number}", 5.0)
    repair.gone("h7")
    asks = repair.tick(repair.due())
    assert len(asks) == len({ask.whom for ask in asks}) == ASKED
    assert asks == [Ask(ask.whom) for ask in asks]
    assert "h7" not in {ask.whom for ask in asks}
    assert repair.due() == math.inf
    assert repair.tick(1e6) == []
