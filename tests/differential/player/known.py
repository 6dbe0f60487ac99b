"""Differences that no trap can hide, by name: where a program would meet one, the step is left out, or the difference
taken out of the result, natively too. Each is told in docs/transparency.md, and tested in
tests/trap/scenes/differences.py or in test_differential_known.py.
"""

UNIX, TCP = "unix", "tcp"

DIFFERENCES: dict[str, tuple[tuple[str, ...], str]] = {
    "hang_up": ((UNIX,), "poll adds HUP once the peer has closed or has shut both directions"),
    "send_to_gone": ((UNIX,), "the first send to a peer that has closed, or reads no more, gives EPIPE"),
    "reset_after_end": ((UNIX,), "a reset after the peer's end is seen as ECONNRESET; TCP tells of the end only"),
    "state": ((UNIX,), "TCP_INFO tells of the peer's end, and of nothing else that has happened"),
    "over": ((UNIX,), "shutdown(), getpeername() on a connection that both sides have ended succeed"),
    "linger_late": ((UNIX,), "SO_LINGER {1, 0} set after connect() makes no reset"),
    "listener_data": ((UNIX, TCP), "recv() and send() on a listener give other errors"),
    "disconnected": ((UNIX,), "connect(AF_UNSPEC) makes no reset; data calls then tell of an end"),
    "shut_unasked": ((UNIX,), "shutdown() before connect() has succeeded is forgotten, or the next one gives 0"),
    "shut_listener": ((UNIX, TCP), "a listener that was shut down: poll tells of data, connect() gives EISCONN"),
    "listener_late": ((UNIX, TCP), "four options that are set on a listener are not inherited by what it accepts"),
    "disconnected_name": ((TCP,), "after connect(AF_UNSPEC) getsockname() tells another port than before"),
    "edge": ((UNIX,), "EPOLLET reports OUT once more when the peer has read or accepted"),
    "refused_name": ((UNIX, TCP), "after a refused connect() getsockname() may tell a loopback address"),
    "rebind": ((UNIX, TCP), "a port that connections use may be bound again"),
}


def for_lane(lane: str) -> list[str]:
    """Those of a transport."""
    return [name for name, (lanes, _) in DIFFERENCES.items() if lane in lanes]
