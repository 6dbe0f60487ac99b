"""Answers to queries, as far as they are decisions over values."""

from appswitch.model.address import pack
from appswitch.switch.queries import live_connections, summed
from appswitch.trap.sockets import EGRESS, TCP, UNIX, End


def end(cookie: int, program: int, kind: int, *, server: bool = False) -> End:
    return End(cookie, program, kind, 2, server, (pack("100.64.1.1"), 40000), (pack("2001:db8::1"), 80))


def test_only_ends_whose_sockets_exist_are_shown_and_of_live_programs() -> None:
    ends = [end(1, 1, UNIX), end(2, 1, UNIX), end(3, 2, TCP, server=True), end(4, 9, UNIX), end(5, 1, EGRESS)]
    live = {UNIX: {1, 4, 3}, TCP: {3}, EGRESS: {5}}
    rows = live_connections(ends, {1: "a", 2: "b"}, lambda kind: live[kind])
    assert [(row["program"], row["name"], row["side"], row["transport"]) for row in rows] == [
        (1, "a", "client", "unix"),
        (1, "a", "client", "egress"),
        (2, "b", "server", "tcp"),
    ]
    assert rows[0]["local"] == "100.64.1.1:40000"
    assert rows[0]["peer"] == "[2001:db8::1]:80"


def test_only_the_kinds_that_are_there_are_asked_for() -> None:
    asked = []
    live_connections([end(1, 1, UNIX)], {1: "a"}, lambda kind: asked.append(kind) or set())  # type: ignore[func-returns-value]
    assert asked == [UNIX]


def test_counters_of_all_processes_are_added() -> None:
    total = summed([{"traps": 2, "denied": 1}, {"traps": 40}])
    assert total["traps"] == 42
    assert total["denied"] == 1
    assert total["strangers"] == 0
