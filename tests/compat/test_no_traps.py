"""No data call is ever trapped: gRPC's calls over a channel that stands (memcached's requests: test_quick.py)."""

import sys
from pathlib import Path

import pytest

from compat.lanes import LANES, NATIVE
from compat.scene import Scene
from support import modes
from support.command import installed_command

CALLS = "1000"


@pytest.mark.parametrize("lane", [lane for lane in LANES if lane != NATIVE])
def test_no_call_of_grpc_is_trapped(lane: str, tmp_path: Path) -> None:
    if modes.MYSELF.uid != 0:
        pytest.skip("network namespaces for hosts need root")
    with LANES[lane](lambda person: installed_command()) as place:
        scene = Scene(place, tmp_path)
        source = scene.source("grpc_blob.py")
        server = scene.server("rpc", [sys.executable, source, "serve_sync", scene.work / "blob", "5000"], 5000)
        scene.no_traps(f"{CALLS} calls", [sys.executable, source, "get_calls", "rpc:5000", CALLS, "1", "-"])
        scene.stop(server)


def test_what_is_trapped_is_counted(tmp_path: Path) -> None:
    """The count tells: a program that asks for its name each time is seen."""
    if modes.MYSELF.uid != 0:
        pytest.skip("network namespaces for hosts need root")
    asks = "import socket, sys\ns = socket.socket(); print('ready', flush=True)\n"
    asks += "for _ in sys.stdin: s.getsockname(); print('done', flush=True)"
    with LANES["one host"](lambda person: installed_command()) as place, pytest.raises(AssertionError, match="1 traps"):
        Scene(place, tmp_path).no_traps("asking", [sys.executable, "-c", asks])
