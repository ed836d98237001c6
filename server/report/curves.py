"""Curves over doubling steps, such as throughput against threads, with 95 % intervals, as small inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from fleetfit.server.report.chart import ticks

_MARGIN: Final = (26.0, 14.0, 42.0, 52.0)
_WIDTH: Final = 360.0
_HEIGHT: Final = 240.0
# Two rounds have intervals of several times their figure; the line must not be pressed flat by them.
_ROOM: Final = 1.35


@dataclass(frozen=True)
class Spot:
    """A point at a step `x`; `y` is None where it could not be measured. A bound that is not known is None."""

    x: int
    y: float | None
    title: str
    bounds: tuple[float | None, float | None] = (None, None)


@dataclass(frozen=True)
class Line:
    """What belongs together. `css` names how it is drawn: `selected`, `line-0`, `line-1`, ..."""

    css: str
    spots: Sequence[Spot]


@dataclass(frozen=True)
class _Frame:
    steps: tuple[int, ...]
    top: float

    def x(self, step: int) -> float:
        left, right = _MARGIN[3] + 12, _WIDTH - _MARGIN[1] - 8
        low, high = math.log2(self.steps[0]), math.log2(self.steps[-1])
        share = (math.log2(step) - low) / (high - low) if high > low else 0.5
        return left + (right - left) * share

    def y(self, value: float) -> float:
        upper, lower = _MARGIN[0], _HEIGHT - _MARGIN[2]
        return lower - (lower - upper) * min(max(value / self.top, 0.0), 1.0)


def curves(lines: Sequence[Line], *, heading: str, x: str) -> str:
    """One `<svg>`; empty where nothing was measured. Steps stand at equal distances where each doubles the one before."""
    spots = [spot for line in lines for spot in line.spots]
    values = [spot.y for spot in spots if spot.y is not None]
    if not values:
        return ""
    highest = max([*values, *(spot.bounds[1] or 0.0 for spot in spots)])
    frame = _Frame(tuple(sorted({spot.x for spot in spots})), min(highest * 1.06, max(values) * _ROOM) or 1.0)
    said = f"{heading} against {x}; the table below has every figure"
    parts = [
        f'<svg class="chart small" viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" role="img" '
        f'aria-label="{escape(said, quote=True)}">',
        f'<text class="heading" x="{_MARGIN[3]:.0f}" y="14">{escape(heading)}</text>',
        *_grid(frame, x),
    ]
    for line in lines:
        parts += _line(line, frame)
    return "".join([*parts, "</svg>"])


def _grid(frame: _Frame, x: str) -> list[str]:
    left, right, lower = _MARGIN[3], _WIDTH - _MARGIN[1], _HEIGHT - _MARGIN[2]
    parts = []
    for value in ticks(0.0, frame.top, 5):
        y = frame.y(value)
        css = "zero" if value == 0 else "grid"
        parts.append(f'<line class="{css}" x1="{left:.1f}" x2="{right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{left - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{_tick(value)}</text>')
    for step in frame.steps:
        at = frame.x(step)
        parts.append(f'<text class="tick" x="{at:.1f}" y="{lower + 16:.1f}" text-anchor="middle">{step}</text>')
    middle = (left + right) / 2
    parts.append(f'<text class="axis" x="{middle:.1f}" y="{_HEIGHT - 8:.1f}" text-anchor="middle">{escape(x)}</text>')
    return parts


def _line(line: Line, frame: _Frame) -> list[str]:
    parts = [f'<g class="line {line.css}">']
    measured = [spot for spot in line.spots if spot.y is not None]
    way = " ".join(f"{frame.x(spot.x):.1f},{frame.y(spot.y or 0.0):.1f}" for spot in measured)
    if len(measured) > 1:
        parts.append(f'<polyline points="{way}"/>')
    for spot in line.spots:
        x = frame.x(spot.x)
        parts.append(f'<g class="point"><title>{escape(spot.title)}</title>')
        if spot.y is None:
            lower = _HEIGHT - _MARGIN[2]
            parts.append(f'<path class="missed" d="M{x - 4:.1f} {lower - 9:.1f}l8 8m0 -8l-8 8"/>')
        else:
            low, high = spot.bounds
            if low is not None and high is not None:
                ends = f'y1="{frame.y(low):.1f}" y2="{frame.y(high):.1f}"'
                parts.append(f'<line class="ci" x1="{x:.1f}" x2="{x:.1f}" {ends}/>')
            parts.append(f'<circle cx="{x:.1f}" cy="{frame.y(spot.y):.1f}" r="4"/>')
        parts.append("</g>")
    return [*parts, "</g>"]


def _tick(value: float) -> str:
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= limit:
            return f"{value / (1e3 if letter == 'k' else limit):g}{letter}"
    return f"{value:g}"
