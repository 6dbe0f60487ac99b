"""A pipe through busybox nc, by name: the end of the input must reach the other side."""

import hashlib
import subprocess
from pathlib import Path

from support.needs import need
from support.switch import Switch


def test_netcat_carries_a_file_and_its_end(switch: Switch, site: Path, digest: str) -> None:
    # Its input stays open: at the end of that it would close its direction, and the client would stop.
    server = switch.run([need("busybox"), "nc", "-l", "-p", "9000"], name="sink", stdin=subprocess.PIPE)
    switch.wait_service("sink", 9000)
    with (site / "blob").open("rb") as blob:
        client = switch.run([need("busybox"), "nc", "sink", "9000"], stdin=blob)
    assert server.wait() == 0
    assert client.wait() == 0
    assert hashlib.sha256(server.output_bytes()).hexdigest() == digest
