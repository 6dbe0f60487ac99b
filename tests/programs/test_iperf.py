"""iperf 2 and iperf 3 over TCP, by name; what the two ends count must agree."""

import json

import pytest

from support.needs import need
from support.switch import Switch

SIZE = 16 << 20


def test_iperf2_transfers_what_was_asked(switch: Switch) -> None:
    # -P 1: serve one client, then end. -y C: one line of comma-separated values; the eighth is the bytes.
    server = switch.run([need("iperf"), "-s", "-P", "1", "-y", "C"], name="perf")
    switch.wait_service("perf", 5001)
    client = switch.check([need("iperf"), "-c", "perf", "-n", str(SIZE), "-y", "C"], status=0)
    assert server.wait() == 0
    sent, received = (int(text.split(",")[7]) for text in (client.stdout, server.output()))
    assert sent == received
    assert sent >= SIZE


@pytest.mark.parametrize("direction", [[], ["--reverse"]], ids=["up", "down"])
def test_iperf3_transfers_what_was_asked(switch: Switch, direction: list[str]) -> None:
    server = switch.run([need("iperf3"), "--server", "--one-off", "--json"], name="perf")
    switch.wait_service("perf", 5201)
    command = [need("iperf3"), "--client", "perf", "--bytes", str(SIZE), "--json", *direction]
    end = json.loads(switch.check(command, status=0).stdout)["end"]
    assert server.wait() == 0
    sent, received = end["sum_sent"]["bytes"], end["sum_received"]["bytes"]
    assert sent >= SIZE
    if direction:
        assert received >= SIZE
    else:
        # The client ends the test once it has sent; what is then on its way is not counted, natively neither.
        assert 1 << 20 <= received <= sent
        assert json.loads(server.output())["end"]["sum_received"]["bytes"] == received
