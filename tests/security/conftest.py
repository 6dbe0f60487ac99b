"""A switch for all of these tests, a service in it, and canaries outside."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from security.outside import Canary, Silent, host_interface
from service.sharing import actor, actor_file, idle, shared, shared_mode
from support.switch import Switch

__all__ = ["actor", "actor_file", "idle", "shared", "shared_mode"]

SERVICE = ("10.99.0.1", 80)
"""Closes at once."""

_SERVE = """
import socket
server = socket.create_server(("", 80), backlog=4096)
while True:
    server.accept()[0].close()
"""

_SIT_STILL = """
import ctypes, sys
ctypes.CDLL(None).prctl(0x59616D61, -1, 0, 0, 0)  # PR_SET_PTRACER, PR_SET_PTRACER_ANY
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="session")
def pry(public: Path) -> Path:
    """pry.py where every user can read it."""
    target = public / "pry.py"
    shutil.copyfile(Path(__file__).parent / "src" / "pry.py", target)
    target.chmod(0o644)
    return target


@pytest.fixture(scope="session")
def service(shared: Switch, python: str) -> tuple[str, int]:
    """A service under the switch that everybody may reach."""
    shared.run([python, "-S", "-c", _SERVE], ip=SERVICE[0])
    shared.wait_service(*SERVICE)
    return SERVICE


@pytest.fixture(scope="session")
def device_and_address() -> tuple[str, str]:
    """A network device of the host and its address, besides loopback."""
    found = host_interface()
    if found is None:
        pytest.skip("this host has no IPv4 address besides loopback")
    return found


@pytest.fixture(scope="session")
def host_address(device_and_address: tuple[str, str]) -> str:
    return device_and_address[1]


@pytest.fixture(scope="module")
def canary() -> Iterator[Canary]:
    """On the host's loopback: no program may ever reach it."""
    made = Canary("127.0.0.1")
    yield made
    made.close()


@pytest.fixture(scope="module")
def far_canary(host_address: str) -> Iterator[Canary]:
    """On the host's other address: only programs that may leave AppSwitch reach it."""
    made = Canary(host_address)
    yield made
    made.close()


@pytest.fixture(scope="module")
def silent(host_address: str) -> Iterator[Silent]:
    made = Silent(host_address)
    yield made
    made.close()


@pytest.fixture(scope="module")
def neighbour(shared: Switch, python: str) -> Iterator[int]:
    """The process id of a program of the same user outside AppSwitch that anybody of that user may look into."""
    owner = shared.mode.program_owner
    program = shared.start([python, "-S", "-c", _SIT_STILL], "neighbour", owner, stdin=subprocess.PIPE)
    program.wait_output("ready")
    yield program.pid
    program.stop()
