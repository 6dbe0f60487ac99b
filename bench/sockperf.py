"""Two tools that others measure UDP with: sockperf, both ways, and iperf 2. What they print is what is taken."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from .lab import Lab, need
from .procs import Unavailable, until
from .report.udp import IPERF, IPERF_SIZE, PERF, PERF_CAME, PERF_SENT, PERF_SIZES, cell

ROUNDS = 1
_PORTS = {"ping": "7100", **{f"flow{size}": str(7101 + n) for n, size in enumerate(PERF_SIZES)}}
_IPERF_PORT = "7110"


class Place(Protocol):
    """Where a tool's server and client run."""

    def serve(self, kind: str, argv: list[str], port: str, out: Path | None = None) -> subprocess.Popen[bytes]:
        """Start a server; it has its port when this returns."""

    def call(self, *argv: str) -> str:
        """What the client prints."""

    def address(self, kind: str) -> str:
        """Where the client finds that server, as a number."""


def measure(lab: Lab, placement: str, places: Mapping[str, Place]) -> None:
    """All figures of one placement; what is not installed, or fails, is marked as not measured."""
    for what, cells, run in (
        ("sockperf", [(case, size) for size in PERF_SIZES for case in (PERF, PERF_CAME, PERF_SENT)], _sockperf),
        ("iperf", [(IPERF, IPERF_SIZE), (PERF_SENT + IPERF, IPERF_SIZE)], _iperf),
    ):
        for name, place in places.items():
            try:
                need(what)
                lab.say(f"{what}, {placement}: {name}")
                run(lab, placement, name, place)
            except Unavailable as error:
                for case, size in cells:
                    lab.skip(case, [cell(size, placement)], name, str(error))


def _sockperf(lab: Lab, placement: str, name: str, place: Place) -> None:
    place.serve("ping", ["sockperf", "sr", "-p", _PORTS["ping"]], _PORTS["ping"])
    for size in PERF_SIZES:
        words = ("-t", "1", "-m", str(size), "-i")
        taken = [
            number(place.call("sockperf", "pp", "-p", _PORTS["ping"], *words, place.address("ping")), "percentile 50")
            for _ in range(ROUNDS)
        ]
        kind = f"flow{size}"
        log = lab.folder / f"sockperf-{len(list(lab.folder.iterdir()))}"
        server = place.serve(kind, ["sockperf", "sr", "-p", _PORTS[kind]], _PORTS[kind], log)
        said = [
            place.call("sockperf", "tp", "-p", _PORTS[kind], *words, place.address(kind)) for _ in range(ROUNDS)
        ]
        # The client knows what it sent; the server tells at its end what came.
        os.killpg(server.pid, signal.SIGINT)
        came = until(lambda log=log: received(log.read_text()), "what sockperf's server says at its end")  # type: ignore[misc]
        rates = [number(text, "Message Rate") for text in said]
        sent = sum(number(text, "Total of") for text in said)
        where = cell(size, placement)
        lab.results.put(PERF, where, name, taken)
        lab.results.put(PERF_SENT, where, name, rates)
        lab.results.put(PERF_CAME, where, name, arrived(rates, came, sent))


def _iperf(lab: Lab, placement: str, name: str, place: Place) -> None:
    place.serve("iperf", ["iperf", "-s", "-u", "-p", _IPERF_PORT], _IPERF_PORT)
    words = ("-u", "-b", "100g", "-t", "1", "-l", str(IPERF_SIZE), "-p", _IPERF_PORT, "-c")
    taken = [counted(place.call("iperf", *words, place.address("iperf"))) for _ in range(ROUNDS)]
    where = cell(IPERF_SIZE, placement)
    lab.results.put(IPERF, where, name, [came for came, _ in taken])
    lab.results.put(PERF_SENT + IPERF, where, name, [sent for _, sent in taken])


def number(text: str, after: str) -> float:
    """The first number after these words, on their line, in what a tool printed. Unavailable when there is none."""
    # Of a share as in "percentile 50.000" the words have but the beginning.
    found = re.search(re.escape(after) + r"(?:\.0+)?+(?![\d.])[^\d\n]*(\d+(?:\.\d+)?)", text)
    if found is None:
        raise Unavailable(f"there is no {after!r} in what sockperf printed")
    return float(found[1])


def received(text: str) -> float | None:
    """What sockperf's server says at its end to have received; None when it has said nothing yet."""
    found = re.search(r"Total (\d+) messages received", text)
    return float(found[1]) if found else None


def arrived(rates: list[float], came: float, sent: float) -> list[float]:
    """Of each rate of sending the part that came, by what came and was sent in all. Unavailable when nothing was."""
    if not sent:
        raise Unavailable("sockperf sent nothing")
    return [rate * min(1.0, came / sent) for rate in rates]  # the server counts those of the warm-up, too


def counted(text: str) -> tuple[float, float]:
    """Datagrams a second that came, and that were sent, by iperf's "Server Report" (of the server's own time)."""
    report = text.partition("Server Report")[2]
    found = re.search(r"-\s*(\d+\.\d+) sec .*\s(\d+)/\s*(\d+) \(", report)
    if found is None or not float(found[1]):
        raise Unavailable("iperf's server did not report")
    seconds, lost, total = float(found[1]), int(found[2]), int(found[3])
    return (total - lost) / seconds, total / seconds
