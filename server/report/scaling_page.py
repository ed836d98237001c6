"""How candidates scale, as the page shows it: four small charts, and every point as text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from fleetfit.core.figures import number, size
from fleetfit.server.report.curves import Line, Spot, curves
from fleetfit.server.report.model import (
    CandidateReport,
    ScaledFigure,
    ScalingCurveReport,
    ScalingPointReport,
    ScalingReport,
)

_MB: Final = 1e6


@dataclass(frozen=True)
class PointRow:
    """A point as text; a cell is a figure and its interval."""

    at: str
    throughput: tuple[str, str]
    gain: tuple[str, str]
    p50: tuple[str, str]
    p95: tuple[str, str]
    memory: tuple[str, str]
    failed: str


@dataclass(frozen=True)
class Scaled:
    """One candidate's points, by curve, each curve with why it ended."""

    name: str
    css: str
    curves: list[tuple[str, str, list[PointRow]]]
    notes: list[str]


@dataclass(frozen=True)
class ScalingPage:
    """The charts of a device, and what is in them."""

    charts: list[str]
    scaled: list[Scaled]


def scaling_page(candidates: Sequence[CandidateReport]) -> ScalingPage:
    """What a device's candidates show of scaling; empty lists where nothing does."""
    found = [(c, c.scaling) for c in candidates if c.scaling is not None]
    several = len({c.runtime for c, _ in found}) > 1
    names = [f"{c.recipe} in {c.runtime}" if several else c.recipe for c, _ in found]
    others = iter(range(len(found)))
    css = ["selected" if c.selected else f"line-{next(others)}" for c, _ in found]
    charts = [
        _chart(found, css, "samples a second", "threads", lambda s: s.threads, lambda p: p.threads, _throughput),
        _chart(found, css, "samples a second", "samples in a batch", lambda s: s.batch, lambda p: p.batch, _throughput),
        _chart(
            found, css, "samples a second, all processes", "processes that share the cores",
            lambda s: s.instances, lambda p: p.instances, _throughput,
        ),
        _chart(
            found, css, "memory of each process, MB", "processes that share the cores",
            lambda s: s.instances, lambda p: p.instances, _megabytes,
        ),
    ]  # fmt: skip
    scaled = [_scaled(name, one, scaling) for name, one, (_, scaling) in zip(names, css, found, strict=True)]
    return ScalingPage([chart for chart in charts if chart], scaled)


def _chart(
    found: Sequence[tuple[CandidateReport, ScalingReport]],
    css: Sequence[str],
    heading: str,
    x: str,
    curve_of: Callable[[ScalingReport], ScalingCurveReport],
    step_of: Callable[[ScalingPointReport], int],
    figure_of: Callable[[ScalingPointReport], ScaledFigure | None],
) -> str:
    lines = []
    for one, (_, scaling) in zip(css, found, strict=True):
        spots = []
        for point in curve_of(scaling).points:
            figure, step = figure_of(point), step_of(point)
            # Another thread's count beside those of the curve would be no step of it.
            if figure is None and point.status == "measured":
                continue
            title = f"{_at(point)}: {number(figure.value) if figure else point.message or point.status}"
            spots.append(Spot(step, figure.value if figure else None, title, figure.ci95 if figure else (None, None)))
        lines.append(Line(one, spots))
    return curves(lines, heading=heading, x=x)


def _throughput(point: ScalingPointReport) -> ScaledFigure | None:
    return point.throughput


def _megabytes(point: ScalingPointReport) -> ScaledFigure | None:
    found = point.memory_bytes
    if found is None:
        return None
    low, high = (None if bound is None else bound / _MB for bound in found.ci95)
    return ScaledFigure(value=found.value / _MB, ci95=(low, high))


def _scaled(name: str, css: str, scaling: ScalingReport) -> Scaled:
    by_name = {"threads": scaling.threads, "batch": scaling.batch, "processes": scaling.instances}
    made = [(what, curve.ended, [_row(point) for point in curve.points]) for what, curve in by_name.items()]
    return Scaled(name, css, made, list(scaling.notes))


def _row(point: ScalingPointReport) -> PointRow:
    return PointRow(
        at=_at(point),
        throughput=_cell(point.throughput),
        gain=_cell(point.gain, prefix="× "),
        p50=_cell(point.p50_ms, " ms"),
        p95=_cell(point.p95_ms, " ms"),
        memory=_memory(point.memory_bytes),
        failed="" if point.status == "measured" else point.message or point.status.replace("_", " "),
    )


def _at(point: ScalingPointReport) -> str:
    processes = "1 process" if point.instances == 1 else f"{point.instances} processes"
    return f"{processes}, {point.threads} thread{'' if point.threads == 1 else 's'}, batch {point.batch}"


def _cell(figure: ScaledFigure | None, unit: str = "", prefix: str = "") -> tuple[str, str]:
    if figure is None:
        return "–", ""
    low, high = figure.ci95
    itself = (low, high) == (figure.value, figure.value)
    below = "" if itself else "interval unknown" if low is None or high is None else f"{number(low)} to {number(high)}"
    return f"{prefix}{number(figure.value)}{unit}", below


def _memory(figure: ScaledFigure | None) -> tuple[str, str]:
    if figure is None:
        return "–", ""
    low, high = figure.ci95
    ends = [] if low is None or high is None else [size(low), size(high)]
    return size(figure.value), "" if len(set(ends)) < 2 else " to ".join(ends)
