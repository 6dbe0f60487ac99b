"""iperf 2 and iperf 3 over TCP and UDP; both ends must count the same."""

import json
import re
from typing import Any

from ..program import Program
from ..scene import Scene

IPERF2 = Program("iperf 2", "deb:iperf")
IPERF3 = Program("iperf 3", "deb:iperf3")
SIZE = "4M"


@IPERF2.case("TCP, reverse, both ways at once")
def two(scene: Scene) -> None:
    server = scene.server("perf", ["iperf", "-s"], 5001)
    for words in ([], ["-r"], ["-d"], ["--reverse"], ["--full-duplex"]):
        # With a name: in some of these tests the server connects to the client.
        told = scene.client(["iperf", "-c", "perf", "-n", SIZE, *words], name="client", seconds=30)
        assert "bits/sec" in told, f"{words}: {told}"
    loop = f"for i in $(seq {scene.effort.one_after_the_other}); do iperf -c perf -n 64K -y C || exit 1; done"
    told = scene.client(["sh", "-c", loop], trace=False, seconds=180)
    assert len(told.splitlines()) == scene.effort.one_after_the_other, told
    scene.stop(server)


@IPERF2.case("TCP, 10 in parallel")
def two_parallel(scene: Scene) -> None:
    # The server of 2.1.8 corrupts its heap when parallel clients end, natively too (aborts, or hangs): the likelier,
    # the longer its calls take.
    rounds, good = 5, 0
    for _ in range(rounds):
        server = scene.server("perf", ["iperf", "-s"], 5001)
        client = scene.background(["timeout", "15", "iperf", "-c", "perf", "-n", "1M", "-P", "10", "-y", "C"])
        client.wait()
        good += sum(int(line.split(",")[7]) >= 1 << 20 for line in client.output().splitlines()) >= 10
        server.kill()
    scene.facts["rounds of 10 clients that were not met by a bug of the server's"] = f"{good} of {rounds}"
    assert good, "not one round passed"


@IPERF2.case("UDP, 1 MiB at 8 Mbit/s, three times: no datagram is lost", udp=True)
def two_udp(scene: Scene) -> None:
    for _ in range(3):
        # A server for each: that of 2.1.8 aborts or hangs after its first client over UDP, natively too.
        server = scene.server("perf", ["iperf", "-s", "-u"], 5001)
        told = scene.client(["iperf", "-c", "perf", "-u", "-b", "8M", "-n", "1M"], seconds=30)
        # As the server counted: `Lost/Total Datagrams`, `0/713 (0%)`.
        [(lost, count)] = re.findall(r"(\d+)/(\d+) \(", told.partition("Server Report")[2]) or [("", "")]
        assert lost == "0", told
        assert int(count) >= 713, told
        server.kill()
        scene.until(lambda: not scene.place.clients.services("perf", 5001), "the server's row is gone")


def _three(scene: Scene, *words: str) -> Any:
    """What a client of iperf 3 tells.

    Again where its test has not begun: the server serves one client at a time, and does not listen between two.
    """
    found: dict[str, Any] = {}

    def look() -> bool:
        told = scene.client(["iperf3", "-c", "perf", "-J", *words], status=None, trace=not found)
        found.update({"error": None} | json.loads(told))
        return "test_start" in found["start"]

    scene.until(look, f"a test of {words} to begin")
    assert not found["error"], f"{words}: {found['error']}"
    return found


@IPERF3.case("TCP, parallel, reverse, both ways at once")
def three(scene: Scene) -> None:
    server = scene.server("perf", ["iperf3", "-s"], 5201)
    for words in ([], ["-P", "10"], ["-R"], ["-R", "-P", "10"], ["--bidir"], ["--zerocopy"]):
        told = _three(scene, "-n", SIZE, *words)
        # both ways at once it ends when both together have sent as much
        sent = sum(told["end"].get(key, {"bytes": 0})["bytes"] for key in ("sum_sent", "sum_sent_bidir_reverse"))
        assert sent >= 4 << 20, words
    # Not ready at once for the next, as above.
    again = "[ $((n=n+1)) -lt 500 ] || { cat last >&2; exit 1; }; sleep 0.01"
    once = f"until iperf3 -c perf -n 64K >last 2>&1; do {again}; done"
    loop = f"for i in $(seq {scene.effort.one_after_the_other}); do {once}; done"
    scene.client(["sh", "-c", loop], trace=False, seconds=180)
    scene.stop(server)


@IPERF3.case("UDP at 8 Mbit/s, parallel, reverse, both ways at once: no datagram is lost", udp=True)
def three_udp(scene: Scene) -> None:
    server = scene.server("perf", ["iperf3", "-s"], 5201)
    for words in (["-b", "8M"], ["-b", "2M", "-P", "4"], ["-b", "8M", "-R"], ["-b", "4M", "--bidir"]):
        told = _three(scene, "-u", "-n", "1M", *words)
        count = told["end"]["sum"]
        assert count["lost_packets"] == 0 < count["packets"], f"{words}: {count}"
    scene.stop(server)
