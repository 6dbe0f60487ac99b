"""Real servers at a port of the host: curl that is not under AppSwitch gets what they serve, and is seen."""

import contextlib
import hashlib
import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from programs.test_http import Argv, nginx
from support import modes
from support.needs import need
from support.ports import quiet_ports
from support.program import DEADLINE
from support.switch import Switch


@pytest.fixture
def port() -> int:
    """A port of the host that is free in both families, and that the kernel gives nobody by itself."""
    for found in quiet_ports():
        with contextlib.suppress(OSError):
            socket.create_server(("::", found), family=socket.AF_INET6, dualstack_ipv6=True).close()
            return found
    raise AssertionError("no port is free")


def fetch(url: str) -> bytes:
    """What curl gets, on the host."""
    command = [need("curl"), "--silent", "--show-error", "--fail", "--max-time", str(DEADLINE), url]
    done = subprocess.run(command, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.mark.parametrize("mode", modes.possible()[-1:], ids=str)
@pytest.mark.parametrize("server", ["python", "nginx", "node"])
def test_curl_on_the_host_reaches_a_published_server(
    request: pytest.FixtureRequest, switch: Switch, server: str, site: Path, digest: str, python: str, port: int
) -> None:
    """A blocking server, one that polls in two processes, and one that polls for both families."""
    commands: dict[str, Callable[[], Argv]] = {
        "python": lambda: [python, "-u", "-m", "http.server", "80", "--bind", "0.0.0.0", "--directory", site],
        "nginx": lambda: nginx(switch, site),
        "node": lambda: [need("node"), request.getfixturevalue("node_http"), "serve", "80", site],
    }
    program = switch.run(commands[server](), name="web", tags=["group=1"], options=["--expose", f"{port}:80"])
    switch.wait_service("web", 80, 2 if server == "nginx" else 1)
    urls = [f"http://127.0.0.1:{port}"] + ([f"http://[::1]:{port}"] if server != "python" else [])
    for url in urls:
        assert hashlib.sha256(fetch(f"{url}/blob")).hexdigest() == digest
    if server == "python":
        assert program.wait_output(r'(\S+) - - .*"GET /blob').group(1) == "127.0.0.1"
    elif server == "nginx":
        assert [re.split(rb"\s", fetch(f"{url}/worker"))[1] for url in urls] == [b"127.0.0.1", b"::1"]
    # Without a worker clients wait for the next, and lose nothing.
    [worker] = [p["pid"] for p in switch.cli("status", "-o", "json")["processes"] if p["role"] == "worker-0"]
    os.kill(worker, signal.SIGKILL)
    for url in urls:
        assert hashlib.sha256(fetch(f"{url}/blob")).hexdigest() == digest
