"""Charts as SVG, written by hand: bars with whiskers, and lines. Nothing to install, text that a diff can show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from figures import Spread

COLOURS = ("#2f6f9f", "#d9822b", "#5b8c5a", "#8a6fb0")
INK, FAINT, PAPER = "#24292f", "#d0d7de", "#ffffff"
FONT = "font-family='system-ui,sans-serif'"
PANEL_WIDTH, PANEL_HEIGHT = 380, 210
MARGIN_LEFT, MARGIN_TOP, GAP, MARGIN_BOTTOM = 62, 84, 74, 56


@dataclass(frozen=True)
class Bars:
    """One panel: groups along the bottom, a bar a series in each; None where nothing was measured."""

    title: str
    groups: Sequence[str]
    series: Mapping[str, Sequence[Spread | None]]


@dataclass(frozen=True)
class Lines:
    """One panel: points (x, y) of each series, joined in their order. The y axis is logarithmic."""

    title: str
    x_title: str
    series: Mapping[str, Sequence[tuple[float, float]]]


def nice_ceiling(value: float) -> float:
    """The next 1, 2, 2.5 or 5 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if value <= step * power * (1 + 1e-9))


def chart(title: str, note: str, panels: Sequence[Bars | Lines]) -> str:
    """The panels side by side under one title and one legend."""
    names = list(dict.fromkeys(name for panel in panels for name in panel.series))
    colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(names)}
    width = MARGIN_LEFT + len(panels) * (PANEL_WIDTH + GAP)
    height = MARGIN_TOP + PANEL_HEIGHT + MARGIN_BOTTOM
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' height='{height}'>",
        f"<rect width='{width}' height='{height}' fill='{PAPER}'/>",
        _text(16, 26, title, size=16, weight="bold"),
        _text(16, height - 10, note, size=11),
        *_legend(colours, 46),
    ]
    for number, panel in enumerate(panels):
        left = MARGIN_LEFT + number * (PANEL_WIDTH + GAP)
        parts.append(_text(left, MARGIN_TOP - 12, panel.title, size=12, weight="bold"))
        parts += _bars(panel, left, colours) if isinstance(panel, Bars) else _lines(panel, left, colours)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _legend(colours: Mapping[str, str], top: int) -> list[str]:
    parts, left = [], 16
    for name, colour in colours.items():
        parts.append(f"<rect x='{left}' y='{top - 10}' width='12' height='12' fill='{colour}'/>")
        parts.append(_text(left + 18, top, name, size=12))
        left += 36 + 7 * len(name)
    return parts


def _bars(panel: Bars, left: float, colours: Mapping[str, str]) -> list[str]:
    seen = [bar for bars in panel.series.values() for bar in bars if bar is not None]
    top_value = nice_ceiling(max((bar.high for bar in seen), default=1.0))
    bottom = MARGIN_TOP + PANEL_HEIGHT

    def y(value: float) -> float:
        return bottom - value / top_value * PANEL_HEIGHT

    parts = [_rule(left, y(top_value * share), _short(top_value * share)) for share in (0, 0.25, 0.5, 0.75, 1)]
    group_width = PANEL_WIDTH / len(panel.groups)
    bar_width = group_width * 0.8 / len(panel.series)
    for group, label in enumerate(panel.groups):
        middle = left + (group + 0.5) * group_width
        parts.append(_text(middle, bottom + 18, label, size=11, anchor="middle"))
        for number, (name, bars) in enumerate(panel.series.items()):
            bar = bars[group]
            if bar is None:
                continue
            x = middle + (number - len(panel.series) / 2) * bar_width
            where = f"x='{x:.1f}' y='{y(bar.middle):.1f}' width='{bar_width - 2:.1f}'"
            parts.append(f"<rect {where} height='{bottom - y(bar.middle):.1f}' fill='{colours[name]}'/>")
            centre = x + bar_width / 2 - 1
            parts.append(_line(centre, y(bar.low), centre, y(bar.high), INK))
            parts.append(_text(centre, y(bar.high) - 4, _short(bar.middle), size=10, anchor="middle"))
    return parts


def _lines(panel: Lines, left: float, colours: Mapping[str, str]) -> list[str]:
    points = [point for line in panel.series.values() for point in line]
    x_max = nice_ceiling(max((x for x, _ in points), default=1.0))
    low = math.floor(math.log10(min((y for _, y in points), default=1.0)))
    high = max(math.ceil(math.log10(max((y for _, y in points), default=10.0))), low + 1)
    bottom = MARGIN_TOP + PANEL_HEIGHT

    def place(x: float, y: float) -> tuple[float, float]:
        return left + x / x_max * PANEL_WIDTH, bottom - (math.log10(y) - low) / (high - low) * PANEL_HEIGHT

    parts = [_rule(left, place(0, 10.0**power)[1], f"{10.0**power:g}") for power in range(low, high + 1)]
    parts += [
        _text(left + share * PANEL_WIDTH, bottom + 18, _short(x_max * share), size=10, anchor="middle")
        for share in (0, 0.5, 1)
    ]
    parts.append(_text(left + PANEL_WIDTH / 2, bottom + 32, panel.x_title, size=11, anchor="middle"))
    for name, line in panel.series.items():
        placed = [place(x, y) for x, y in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(f"<polyline points='{path}' fill='none' stroke='{colours[name]}' stroke-width='2'/>")
        parts += [f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3' fill='{colours[name]}'/>" for x, y in placed]
    return parts


def _rule(left: float, y: float, label: str) -> str:
    return _line(left, y, left + PANEL_WIDTH, y, FAINT) + _text(left - 6, y + 4, label, size=10, anchor="end")


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f"<line x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}' stroke='{colour}'/>"


def _text(x: float, y: float, text: str, *, size: int, anchor: str = "start", weight: str = "normal") -> str:
    style = f"font-size='{size}' font-weight='{weight}' text-anchor='{anchor}' fill='{INK}' {FONT}"
    return f"<text x='{x:.1f}' y='{y:.1f}' {style}>{escape(text)}</text>"


def _short(value: float) -> str:
    """12.3k for 12,345; at most three digits that mean something."""
    if value >= 1000:
        return f"{value / 1000:.3g}k"
    return f"{value:.3g}"
