"""docs/scale.svg: time until all know, and octets per host, by the number of hosts. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from html import escape

from .plot import FAINT, GRID, INK
from .scale_report import SHARES, Results, columns, percent, serf

WIDTH, HEIGHT = 920, 420
LEFT, TOP, PANEL, TALL, GAP = 60, 84, 360, 250, 90
COLOURS = ("#0072b2", "#009e73", "#d55e00")  # Okabe and Ito
Line = tuple[str, str, bool, list[tuple[float, float]]]
"""Its label, colour, whether it is dashed, and its points."""


def svg(results: Results) -> str:
    """The plot: ours drawn through, Serf's formula dashed."""
    time: list[Line] = []
    losses = sorted({arguments["loss"] for arguments, _ in results.all("rows")})
    for colour, loss in zip(COLOURS, losses, strict=False):
        cells = results.all("rows", loss=loss)
        ours = [(a["size"], statistics.fmean(columns(f["times"])[-1])) for a, f in cells]
        theirs = [(a["size"], serf(a["size"], loss, SHARES[-1])) for a, _ in cells]
        time.append((f"{percent(loss)} loss", colour, False, ours))
        time.append(("", colour, True, theirs))
    digests, whole = results.all("idle", whole=False), results.all("idle", whole=True)
    octets: list[Line] = [
        ("in datagrams", COLOURS[0], False, [(a["size"], f["datagram_octets"]) for a, f in digests]),
        ("in streams", COLOURS[2], False, [(a["size"], f["stream_octets"]) for a, f in digests]),
        ("", COLOURS[2], True, [(a["size"], f["stream_octets"]) for a, f in whole]),
    ]
    at_rest = "Octets per second and host at rest (dashed: whole states)"
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'role="img" aria-labelledby="title" font-family="Helvetica, Arial, sans-serif">',
        '<title id="title">Time until 99.99 % of hosts have a new row, and octets sent per host</title>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _text(LEFT, 28, "Simulated clusters, by the number of hosts", size=18, weight="bold"),
        *_panel(LEFT, "Seconds until 99.99 % of hosts have a new row (dashed: Serf's formula)", time, _steps(4)),
        *_panel(LEFT + PANEL + GAP, at_rest, octets, _powers(0, 4), log=True),
        "</svg>",
    ]
    return "\n".join(out) + "\n"


def _steps(top: int) -> list[float]:
    return [float(step) for step in range(top + 1)]


def _powers(low: int, high: int) -> list[float]:
    return [10.0**power for power in range(low, high + 1)]


def _panel(left: float, title: str, lines: Sequence[Line], ticks: Sequence[float], log: bool = False) -> list[str]:
    def scaled(value: float) -> float:
        return math.log10(max(value, ticks[0])) if log else value

    low, high = scaled(ticks[0]), scaled(ticks[-1])

    def y(value: float) -> float:
        return TOP + TALL * (1 - (min(scaled(value), high) - low) / (high - low))

    def x(size: float) -> float:
        return left + PANEL * (math.log10(size) - 0.9) / (3.8 - 0.9)

    out = [_text(left, TOP - 26, title, size=12, colour=FAINT)]
    for tick in ticks:
        out.append(f'<line x1="{left}" y1="{y(tick):.1f}" x2="{left + PANEL}" y2="{y(tick):.1f}" stroke="{GRID}"/>')
        out.append(_text(left - 6, y(tick) + 4, f"{tick:,.0f}", size=12, anchor="end", colour=FAINT))
    for size in (10, 100, 1000, 5000):
        out.append(_text(x(size), TOP + TALL + 20, f"{size:,}", size=12, anchor="middle", colour=FAINT))
    out.append(_text(left + PANEL / 2, TOP + TALL + 40, "hosts", size=12, anchor="middle", colour=FAINT))
    out += [part for line in lines for part in _line(line, x, y)]
    for number, (label, colour, _, _) in enumerate(line for line in lines if line[0]):
        at = left + 110 * number
        y1 = HEIGHT - 18
        out.append(f'<line x1="{at}" y1="{y1}" x2="{at + 18}" y2="{y1}" stroke="{colour}" stroke-width="3"/>')
        out.append(_text(at + 24, HEIGHT - 14, label, size=12))
    return out


def _line(line: Line, x: Callable[[float], float], y: Callable[[float], float]) -> list[str]:
    _, colour, dashed, points = line
    places = " ".join(f"{x(size):.1f},{y(value):.1f}" for size, value in points)
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    out = [f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>']
    if not dashed:
        out += [f'<circle cx="{x(size):.1f}" cy="{y(value):.1f}" r="3.5" fill="{colour}"/>' for size, value in points]
    return out


def _text(
    x: float, y: float, words: str, *, size: float, anchor: str = "start", weight: str = "normal", colour: str = INK
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" font-weight="{weight}" '
        f'fill="{colour}">{escape(words)}</text>'
    )
