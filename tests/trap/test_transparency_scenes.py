"""The same scenes natively and under the switch: a program must see the same (issue points 2 and 3)."""

import os
from collections.abc import Callable

import pytest

from support.program import wait_until
from support.switch import Switch

FILES = ("listeners.py", "connecting.py", "registered.py", "interrupted.py", "settings.py", "streams.py")

OVER_TCP = (
    "backlog_without_blocking",
    "backlog_without_blocking_then_blocking",
    "backlog_send_timeout",
    "backlog_listener_closed",
    "backlog_of_none",
    "connect_without_restart",
    "connect_by_python_with_a_handler",
    "waiting_connection_of_a_closed_listener",
)
"""Scenes with a connection that waits for room in the accept queue, and over TCP stands at once (tcp.py); and with one
whose listener is closed, which over TCP gets an end, not a reset."""


@pytest.mark.parametrize("file", FILES)
def test_scenes_are_as_natively(switch: Switch, compare: Callable[..., None], file: str) -> None:
    def descriptors() -> int:
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in switch.processes())

    switch.check(["true"], status=0)
    before = descriptors()
    compare(switch, file)
    assert counters(switch)["accepted"] > 0
    # What the scenes left half done, by signals above all, must not stay with the switch.
    wait_until(lambda: descriptors() <= before + FOR_GOOD, lambda: f"{before} descriptors, not {descriptors()}")


FOR_GOOD = 16
"""Descriptors that the workers may open at need and keep: the sockets they ask the kernel with."""


def test_scenes_over_tcp_are_as_natively(switch: Switch, compare: Callable[..., None]) -> None:
    for file in FILES:
        compare(switch, file, options=("--transport", "tcp"), differing=OVER_TCP)
    assert counters(switch)["tcp"] > 0
    assert counters(switch)["unix"] == 0


def counters(switch: Switch) -> dict[str, int]:
    found: dict[str, int] = switch.cli("status", "-o", "json")["counters"]
    return found


DIFFERENCES = {
    "peer_has_closed": ["IN|OUT|HUP|RDHUP", "EPIPE"],
    "peer_reads_no_more": "EPIPE",
    "reset_asked_for_after_connect": "",
    "connect_waiting_for_a_listener_that_closes": "Connection reset by peer",
    "listener_read_and_written": ["EINVAL", "ENOTCONN"],
    "listener_of_a_child_polled_by_its_parent": "-",
    "options_of_a_listener_set_late": [0, False],
    "accept_with_timeout_and_restart": "fd",
    "other_calls_are_interrupted": True,
}
"""What docs/transparency.md owns up to. Who cures one moves its scene to the others."""


def test_known_differences_are_those_and_no_others(
    switch: Switch, native: Callable[..., dict[str, object]], play: Callable[..., dict[str, object]]
) -> None:
    expected = native("differences.py")
    assert [name for name in expected if expected[name] == DIFFERENCES[name]] == []
    assert play(switch, "differences.py", options=("--transport", "unix")) == DIFFERENCES
