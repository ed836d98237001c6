"""The chart of a device: what a call costs against what the metric loses, each with its 95 % interval, as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Final

from fleetfit.core.figures import number

_MARGIN: Final = (18.0, 16.0, 46.0, 64.0)
_DOT: Final = 5.0
_LABEL: Final = (7.5, 13.0)
"""Width of a character and height of a label, generous, in the units of the view box."""


@dataclass(frozen=True)
class Point:
    """One candidate: `kind` is `selected`, `baseline`, `meets` or `rejected`. A bound that is not known is None."""

    label: str
    title: str
    kind: str
    x: float
    y: float
    x_bounds: tuple[float | None, float | None] = (None, None)
    y_bounds: tuple[float | None, float | None] = (None, None)


@dataclass(frozen=True)
class Axes:
    """The words and the limit of a chart; the horizontal axis starts at 0."""

    x: str
    y: str
    y_limit: float | None = None
    limit_label: str = ""


@dataclass
class _Frame:
    width: float
    height: float
    x_top: float
    y_range: tuple[float, float]
    taken: list[tuple[float, float, float, float]] = field(default_factory=list)

    def x(self, value: float) -> float:
        left, right = _MARGIN[3], self.width - _MARGIN[1]
        return left + (right - left) * min(max(value / self.x_top, 0.0), 1.0)

    def y(self, value: float) -> float:
        low, high = self.y_range
        top, bottom = _MARGIN[0], self.height - _MARGIN[2]
        return bottom - (bottom - top) * min(max((value - low) / (high - low), 0.0), 1.0)


def scatter(points: Sequence[Point], axes: Axes, *, width: int, height: int, css: str) -> str:
    """The chart as one `<svg>`; empty without points. Points above the shown range sit on its upper edge as triangles."""
    if not points:
        return ""
    frame = _frame(points, axes, width, height)
    said = f"{axes.y} against {axes.x}; the table below has every figure"
    parts = [
        f'<svg class="{css}" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(said, quote=True)}">',
        *_grid(frame, axes),
    ]
    order = {"rejected": 0, "meets": 1, "baseline": 2, "selected": 3}
    # The selected one is drawn last, above the others, and its label is placed first.
    drawn = sorted(points, key=lambda p: order.get(p.kind, 0))
    for point in drawn:
        parts += _mark(point, frame)
    frame.taken += [_around(frame.x(p.x), frame.y(p.y)) for p in points]
    for point in reversed(drawn):
        parts.append(_label(point, frame))
    return "".join([*parts, "</svg>"])


def _frame(points: Sequence[Point], axes: Axes, width: float, height: float) -> _Frame:
    x_top = max([p.x for p in points] + [p.x_bounds[1] or 0.0 for p in points]) or 1.0
    values = [p.y for p in points]
    if axes.y_limit is not None:
        values.append(axes.y_limit)
    # One destroyed candidate must not press all others into a line.
    usual = sorted(values)[(len(values) - 1) * 3 // 4]
    ceiling = 4 * max(usual, axes.y_limit or 0.0, 1e-12)
    shown = [v for v in values if v <= ceiling]
    bounds = [b for p in points if p.y <= ceiling for b in p.y_bounds if b is not None]
    low, high = min([0.0, *shown, *bounds]), max([0.0, *shown, *(b for b in bounds if b <= ceiling)])
    room = 0.08 * (high - low) or 1.0
    return _Frame(width, height, x_top * 1.08, (low - (room if low < 0 else 0.0), high + room))


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values in [low, high], about `count` of them."""
    span = high - low
    if not (span > 0 and math.isfinite(span)):
        return [low]
    step = 10.0 ** math.floor(math.log10(span / count))
    step *= next(m for m in (1, 2, 5, 10) if span / (step * m) <= count)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _grid(frame: _Frame, axes: Axes) -> list[str]:
    left, right = _MARGIN[3], frame.width - _MARGIN[1]
    top, bottom = _MARGIN[0], frame.height - _MARGIN[2]
    parts = []
    for value in ticks(*frame.y_range):
        y = frame.y(value)
        css = "zero" if value == 0 else "grid"
        parts.append(f'<line class="{css}" x1="{left:.1f}" x2="{right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{left - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{_tick(value)}</text>')
    for value in ticks(0.0, frame.x_top, 4 if frame.width < 500 else 7):
        x = frame.x(value)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{bottom:.1f}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 16:.1f}" text-anchor="middle">{_tick(value)}</text>')
    middle_x, middle_y = (left + right) / 2, (top + bottom) / 2
    parts.append(
        f'<text class="axis" x="{middle_x:.1f}" y="{frame.height - 8:.1f}" text-anchor="middle">{escape(axes.x)}</text>'
    )
    parts.append(
        f'<text class="axis" transform="translate(13 {middle_y:.1f}) rotate(-90)" text-anchor="middle">'
        f"{escape(axes.y)}</text>"
    )
    if axes.y_limit is not None and frame.y_range[0] <= axes.y_limit <= frame.y_range[1]:
        y = frame.y(axes.y_limit)
        parts.append(f'<line class="limit" x1="{left:.1f}" x2="{right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text class="limit-label" x="{right - 4:.1f}" y="{y - 5:.1f}" text-anchor="end">'
            f"{escape(axes.limit_label)}</text>"
        )
        text_width = _LABEL[0] * len(axes.limit_label)
        frame.taken.append((right - 4 - text_width, y - 5 - _LABEL[1], right, y + 2))
    return parts


def _tick(value: float) -> str:
    return f"{value:g}"


def _mark(point: Point, frame: _Frame) -> list[str]:
    x, y = frame.x(point.x), frame.y(point.y)
    parts = [f'<g class="point {point.kind}"><title>{escape(point.title)}</title>']
    if None not in point.x_bounds:
        low, high = (frame.x(bound or 0.0) for bound in point.x_bounds)
        parts.append(f'<line class="ci" x1="{low:.1f}" x2="{high:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
    if point.y > frame.y_range[1]:
        parts.append(f'<path d="M{x - 6:.1f} {y + 9:.1f}h12l-6 -10z"/>')
    else:
        if None not in point.y_bounds:
            low, high = (frame.y(bound or 0.0) for bound in point.y_bounds)
            parts.append(f'<line class="ci" x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>')
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{_DOT + (point.kind == "selected") * 2:.0f}"/>')
    return [*parts, "</g>"]


def _around(x: float, y: float) -> tuple[float, float, float, float]:
    return x - _DOT - 1, y - _DOT - 1, x + _DOT + 1, y + _DOT + 1


def _label(point: Point, frame: _Frame) -> str:
    """The point's label at the free place nearest to it; where everything is taken, at the first."""
    x, y = frame.x(point.x), frame.y(point.y)
    beyond = f" ({number(point.y)})" if point.y > frame.y_range[1] else ""
    text = point.label + beyond
    w, h = _LABEL[0] * len(text), _LABEL[1]
    places = []
    for distance in (9.0, 18.0, 30.0, 44.0):
        for dx, dy in ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (-1, -1), (1, 1), (-1, 1)):
            left = x + dx * distance - (w if dx < 0 else w / 2 if dx == 0 else 0)
            upper = y + dy * distance - h / 2
            places.append((left, upper, left + w, upper + h))
    inside = [
        p
        for p in places
        if p[0] >= _MARGIN[3] and p[2] <= frame.width - 2 and p[1] >= 2 and p[3] <= frame.height - _MARGIN[2]
    ]
    best = min(inside or places, key=lambda p: sum(_overlap(p, other) for other in frame.taken))
    frame.taken.append(best)
    return f'<text class="label {point.kind}" x="{best[0]:.1f}" y="{best[3] - 3:.1f}">{escape(text)}</text>'


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
