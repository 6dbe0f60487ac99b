"""The differences that random programs leave out (player/known.py) are there: who cures one takes it off the list.

Each is in docs/transparency.md.
"""

from typing import Any

import pytest

from support import modes

from .lanes import REPLAYS, Lanes
from .player.known import DIFFERENCES, for_lane
from .programs import Program

RESET, ON = "0100000000000000", "01000000"
SERVER: Program = [[0, "socket", 1, "v4", False], [0, "bind", 1, "own", None], [0, "listen", 1, 4]]
CLIENT: Program = [[0, "socket", 2, "v4", False], [0, "connect", 2, "own", 1]]
PAIR: Program = [*SERVER, *CLIENT, [0, "accept", 1, 3, 0]]
CALLER: Program = [[0, "socket", 2, "v4", True]]


def at(act: str, *rest: Any) -> Program:
    return [[0, act, *rest]]


SHOWN: dict[str, Program] = {
    "hang_up": PAIR + at("close", 3) + at("poll", 2),
    "send_to_gone": PAIR + at("close", 3) + at("send", 2, 1, 0),
    "reset_after_end": PAIR + at("shutdown", 3, 1) + at("send", 2, 9, 0) + at("close", 3) + at("recv", 2, 9, 0),
    "state": PAIR + at("shutdown", 2, 1) + at("getsockopt", 2, 6, 11, 1),
    "over": PAIR + at("shutdown", 3, 1) + at("shutdown", 2, 1) + at("getpeername", 2),
    "linger_late": PAIR + at("setsockopt", 2, 1, 13, RESET) + at("close", 2) + at("recv", 3, 1, 0),
    "listener_data": SERVER + at("recv", 1, 1, 0),
    "disconnected": PAIR + at("disconnect", 2) + at("recv", 3, 1, 0),
    "shut_unasked": SERVER + CALLER + at("connect", 2, "own", 1) + at("shutdown", 2, 0) + at("connect", 2, "own", 1),
    "shut_listener": SERVER + at("shutdown", 1, 0) + at("poll", 1),
    "listener_late": SERVER + at("setsockopt", 1, 1, 9, ON) + PAIR[3:] + at("getsockopt", 3, 1, 9, 4),
    "disconnected_name": PAIR + at("getsockname", 2) + at("disconnect", 2) + at("getsockname", 2),
    "edge": SERVER
    + CALLER
    + at("epoll_create", 5)
    + at("epoll_ctl", 5, 1, 2, "OUT|ET")
    + at("connect", 2, "own", 1)
    + at("epoll_wait", 5)
    + at("accept", 1, 3, 0)
    + at("epoll_wait", 5),
    "refused_name": CALLER + at("connect", 2, "own", -1) + at("getsockname", 2),
    "rebind": PAIR + at("close", 1) + at("socket", 4, "v4", False) + at("bind", 4, "own", 3),
}


@pytest.mark.parametrize("mode", modes.possible()[:1], ids=str, indirect=True)
def test_known_differences_are_there_and_are_left_out(lanes: Lanes) -> None:
    assert SHOWN.keys() == DIFFERENCES.keys()
    for name, program in SHOWN.items():
        for transport in DIFFERENCES[name][0]:
            natively, here = lanes.both(program, transport, [])
            assert natively != here, f"{name} is no difference over {transport}: {here}"
            # On a busy machine the kernel itself shows now this, now that (lanes.py).
            for _ in range(1 + REPLAYS):
                natively, here = lanes.both(program, transport, for_lane(transport))
                if natively == here:
                    break
            assert natively == here, f"{name} is not left out over {transport}: {natively}, {here}"
