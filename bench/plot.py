"""docs/benchmarks.svg: throughput by write size as grouped bars, after the paper's Figure 3. Pure."""

from __future__ import annotations

import math
from html import escape

from . import throughput as t
from .stats import Results, ratio

WIDTH, LEFT, RIGHT = 920, 56, 20
HEAD, PANEL, FOOT = 88, 336, 24
PANEL_TOP, PANEL_BOTTOM = 44, 52  # inside a panel: title above the bars, captions below
BAR, GAP = 32, 5
INK, FAINT, GRID = "#222222", "#555555", "#e4e4e4"
TIMES = "\N{MULTIPLICATION SIGN}"
# Okabe and Ito's palette: told apart by colour-blind readers, and in grey print by lightness.
COLOURS = {t.BRIDGE: "#999999", t.LOOPBACK: "#56b4e9", t.APPSWITCH: "#d55e00", t.UNIX: "#009e73"}
LABELS = {
    t.BRIDGE: "veth + Linux bridge",
    t.LOOPBACK: "native TCP loopback",
    t.APPSWITCH: "AppSwitch",
    t.UNIX: "same iperf over a Unix pair (reference)",
}
LEGEND_X = {t.BRIDGE: 0, t.LOOPBACK: 170, t.APPSWITCH: 340, t.UNIX: 450}
PANELS = {t.FREE: "Client and server placed by the scheduler", t.PINNED: "Client and server on one core"}


def step(top: float, lines: int = 5) -> float:
    """A round distance (1, 2 or 5 times a power of ten) that divides 0…top into about `lines` parts."""
    raw = max(top, 1e-9) / lines
    power = 10.0 ** math.floor(math.log10(raw))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)


def number(value: float) -> str:
    """A label with two or three significant figures."""
    if value >= 9.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 0.995 else f"{value:.2f}"


def svg(results: Results) -> str:
    """The plot. Bars are medians, thin lines reach from the lowest to the highest run; gaps say so."""
    samples = [s for (case, _, _), one in results.figures.items() if case == t.CASE for s in one.samples]
    tick = step(max(samples, default=1.0))
    top = tick * math.ceil(max(samples, default=1.0) / tick + 0.2)
    height = HEAD + PANEL * len(PANELS) + FOOT
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" role="img" aria-labelledby="title" font-family="Helvetica, Arial, sans-serif">',
        '<title id="title">iperf 2 throughput on one host by write size</title>',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        _text(LEFT, 28, "iperf 2 throughput on one host, by write size", size=18, weight="bold"),
        _text(LEFT, 48, "Gbit/s; bar: median, thin line: lowest to highest run", size=12, colour=FAINT),
    ]
    for name, colour in COLOURS.items():
        x = LEFT + LEGEND_X[name]
        out.append(f'<rect x="{x}" y="64" width="12" height="12" rx="2" fill="{colour}"/>')
        out.append(_text(x + 18, 74.5, LABELS[name], size=13, weight=_weight(name)))
    for index, (placement, title) in enumerate(PANELS.items()):
        out += _panel(results, placement, title, HEAD + PANEL * index, top, tick)
    out.append(
        _text(
            (LEFT + WIDTH - RIGHT) / 2,
            height - 12,
            "size of each write",
            size=12,
            anchor="middle",
            colour=FAINT,
        )
    )
    out.append("</svg>")
    return "\n".join(out) + "\n"


def _panel(results: Results, placement: str, title: str, above: float, top: float, tick: float) -> list[str]:
    base = above + PANEL - PANEL_BOTTOM
    per_unit = (PANEL - PANEL_TOP - PANEL_BOTTOM) / top
    out = [_text(LEFT, above + 28, title, size=14, weight="bold", colour=FAINT)]
    for count in range(round(top / tick) + 1):
        y = base - count * tick * per_unit
        colour = "#444444" if count == 0 else GRID
        out.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="{colour}"/>')
        out.append(_text(LEFT - 8, y + 4, f"{count * tick:g}", size=12, anchor="end", colour=FAINT))
    group = (WIDTH - LEFT - RIGHT) / len(t.SIZES)
    for index, size in enumerate(t.SIZES):
        cell = t.cell_name(size, placement)
        middle = LEFT + group * (index + 0.5)
        left = middle - (len(COLOURS) * BAR + (len(COLOURS) - 1) * GAP) / 2
        for place, (name, colour) in enumerate(COLOURS.items()):
            x = left + place * (BAR + GAP)
            centre = x + BAR / 2
            one = results.get(t.CASE, cell, name)
            if one.median is None:
                out.append(
                    f'<text transform="translate({centre + 4:.1f} {base - 6:.1f}) rotate(-90)" '
                    f'font-size="11" font-style="italic" fill="{FAINT}">not measured</text>'
                )
                continue
            tall = one.median * per_unit
            low, high = (base - edge(one.samples) * per_unit for edge in (min, max))
            out.append(
                f'<rect x="{x:.1f}" y="{base - tall:.1f}" width="{BAR}" height="{tall:.1f}" rx="1.5" fill="{colour}"/>'
            )
            out.append(
                f'<line x1="{centre:.1f}" y1="{low:.1f}" x2="{centre:.1f}" y2="{high:.1f}" stroke="{INK}" '
                'stroke-opacity="0.65"/>'
            )
            label = number(one.median)
            out.append(_text(centre, high - 5, label, size=11.5, anchor="middle", weight=_weight(name)))
        out.append(_text(middle, base + 21, size, size=14, anchor="middle", weight="bold"))
        times = ratio(results.median(t.CASE, cell, t.APPSWITCH), results.median(t.CASE, cell, t.BRIDGE))
        if times is not None:
            words = f"AppSwitch: {number(times)} {TIMES} bridge"
            out.append(_text(middle, base + 39, words, size=11.5, anchor="middle", colour=FAINT))
    return out


def _weight(name: str) -> str:
    return "bold" if name == t.APPSWITCH else "normal"


def _text(
    x: float,
    y: float,
    words: str,
    *,
    size: float,
    anchor: str = "start",
    weight: str = "normal",
    colour: str = INK,
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" font-weight="{weight}" '
        f'fill="{colour}">{escape(words)}</text>'
    )
