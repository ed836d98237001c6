"""A report as the template shows it: every cell as text, every chart as SVG."""

from __future__ import annotations

from dataclasses import dataclass

from fleetfit.core.figures import joules, number, size
from fleetfit.server.report.chart import Axes, Point, scatter
from fleetfit.server.report.model import (
    Bounds,
    CandidateReport,
    DeviceReport,
    DropFigure,
    EndToEndFigure,
    EnergyFigure,
    MetricFigure,
    PartsFigure,
    RatioFigure,
    Report,
)
from fleetfit.server.report.profile_page import ProfiledPage, profile_page
from fleetfit.server.report.scaling_page import ScalingPage, scaling_page
from fleetfit.server.selection.words import losses

_NONE = ""


@dataclass(frozen=True)
class Cell:
    """A figure, its interval below it, and what else belongs to it; all empty where it was not measured."""

    figure: str = _NONE
    below: str = _NONE
    more: str = _NONE


@dataclass(frozen=True)
class Row:
    """One candidate as text. `kind` is that of its point in the chart."""

    number: int
    candidate: CandidateReport
    kind: str
    verdict: str
    condition: str
    p50: Cell
    tail: Cell
    versus_original: Cell
    versus_best: Cell
    drop: Cell
    metric: Cell
    test: Cell
    size: Cell
    memory: Cell
    energy: Cell
    whole: Cell
    whole_versus_original: Cell
    parts: str


@dataclass(frozen=True)
class DevicePage:
    """One device: its rows and its charts, wide and narrow."""

    report: DeviceReport
    anchor: str
    rows: list[Row]
    chosen: Row | None
    charts: str
    chart_caption: str
    has_metric: bool
    has_energy: bool
    has_parts: bool
    scaling: ScalingPage
    profile: list[ProfiledPage]


def device_pages(report: Report) -> list[DevicePage]:
    """The devices of a report."""
    return [_device(report, device, f"device-{at}") for at, device in enumerate(report.devices, start=1)]


def _device(report: Report, device: DeviceReport, anchor: str) -> DevicePage:
    originals = {c.runtime: c for c in reversed(device.candidates) if c.role == "original"}
    rows = [_row(report, device, c, originals.get(c.runtime), at) for at, c in enumerate(device.candidates, start=1)]
    charts, caption = _charts(report, rows)
    return DevicePage(
        report=device,
        anchor=anchor,
        rows=rows,
        chosen=next((row for row in rows if row.candidate.selected), None),
        charts=charts,
        chart_caption=caption,
        has_metric=bool(report.metric.name),
        scaling=scaling_page(device.candidates),
        profile=profile_page(device.candidates),
        has_energy=any(c.energy is not None for c in device.candidates),
        has_parts=any(c.end_to_end_ms is not None for c in device.candidates),
    )


def _row(report: Report, device: DeviceReport, c: CandidateReport, original: CandidateReport | None, at: int) -> Row:
    latency = c.latency_ms
    return Row(
        number=at,
        candidate=c,
        kind=_kind(c),
        verdict=_verdict(report, c),
        condition=_condition(c, device),
        p50=Cell(f"{number(latency.p50)} ms", _interval(latency.ci95), _warm(c)) if latency else Cell(),
        tail=Cell(_or_dash(latency.p95), _or_dash(latency.p99)) if latency else Cell(),
        versus_original=_ratio(c.speedup.original),
        versus_best=_ratio(c.speedup.best_uncompressed),
        drop=_drop(c.drop),
        metric=_metric(c.metric),
        test=_metric(c.test_metric, c.test_drop),
        size=_amount(c.size_bytes, original.size_bytes if original else None),
        memory=_amount(c.peak_memory_bytes, original.peak_memory_bytes if original else None),
        energy=_energy(c.energy),
        whole=_whole(c.end_to_end_ms),
        whole_versus_original=_ratio(c.end_to_end_ms.speedup if c.end_to_end_ms is not None else None),
        parts=_parts(c.parts_ms),
    )


def _whole(found: EndToEndFigure | None) -> Cell:
    if found is None:
        return Cell()
    tail = f"p95 {number(found.p95)} ms" if found.p95 is not None else ""
    return Cell(f"{number(found.p50)} ms", _interval(found.ci95), tail)


def _parts(found: PartsFigure | None) -> str:
    """Each part alone, in a line."""
    if found is None:
        return ""
    parts = (("pre", found.pre), ("core", found.core), ("post", found.post))
    return ", ".join(
        f"{name} {number(part.p50)} ms ({_interval(part.ci95)})" for name, part in parts if part is not None
    )


def _warm(c: CandidateReport) -> str:
    return f"warm {number(c.sustained_ms.p50)} ms" if c.sustained_ms is not None else ""


def _kind(c: CandidateReport) -> str:
    if c.selected:
        return "selected"
    return "baseline" if c.baseline else "rejected" if c.rejected_because else "meets"


def _verdict(report: Report, c: CandidateReport) -> str:
    if c.selected:
        return "chosen"
    if c.status != "measured":
        return c.status
    if c.baseline:
        return "original" if c.role == "original" else "control"
    return "not chosen" if report.kind == "compress" else ""


def _condition(c: CandidateReport, device: DeviceReport) -> str:
    runtimes = {one.runtime for one in device.candidates}
    threads, batch = c.condition.threads, c.condition.batch
    text = f"{threads} thread{'' if threads == 1 else 's'}, batch {batch}"
    return f"{text}, {c.runtime}" if len(runtimes) > 1 else text


def _interval(bounds: Bounds, digits: int = 3) -> str:
    low, high = bounds
    if low is None or high is None:
        return "interval unknown"
    return f"{number(low, digits)} to {number(high, digits)}"


def _or_dash(value: float | None) -> str:
    return "–" if value is None else f"{number(value)} ms"


def _ratio(figure: RatioFigure | None) -> Cell:
    if figure is None:
        return Cell()
    # A build against itself has no interval.
    below = "" if figure.ci95 == (1.0, 1.0) else _interval(figure.ci95)
    return Cell(f"× {number(figure.ratio)}", below, "tie" if figure.tie else "")


def _drop(drop: DropFigure | None) -> Cell:
    if drop is None:
        return Cell()
    value, low, high = losses(drop.value, *drop.ci95)
    return Cell(value, f"{low} to {high}" if low else "" if drop.ci95[0] is not None else "interval unknown")


def _metric(metric: MetricFigure | None, drop: DropFigure | None = None) -> Cell:
    if metric is None:
        return Cell()
    more = f"loss {_drop(drop).figure}" if drop is not None and drop.value else ""
    return Cell(number(metric.value, 4), _interval(metric.ci95, 4), more)


def _energy(energy: EnergyFigure | None) -> Cell:
    if energy is None:
        return Cell()
    low, high = energy.ci95
    bounds = "interval unknown" if low is None or high is None else f"{joules(low)} to {joules(high)}"
    return Cell(joules(energy.joules), bounds)


def _amount(ours: int | None, original: int | None) -> Cell:
    if ours is None:
        return Cell()
    share = f"{100 * ours / original:.3g} %" if original else ""
    return Cell(size(ours), share)


def _charts(report: Report, rows: list[Row]) -> tuple[str, str]:
    measured = [row for row in rows if row.candidate.latency_ms is not None]
    with_drop = [row for row in measured if row.candidate.drop is not None]
    if len(measured) < 2:
        return "", ""
    if with_drop:
        name = report.metric.name.replace("_", " ")
        limit = _allowed(report, [row.candidate for row in rows])
        axes = Axes(
            "p50 of one call, ms (left is faster)",
            f"loss of {name}, {report.metric.unit}" if len(report.metric.unit) < 12 else f"rise of {name}",
            limit,
            f"limit: {number(limit, 2)}" if limit is not None else "",
        )
        points = [_point(row, row.candidate.drop) for row in with_drop]
    else:
        axes = Axes("p50 of one call, ms (left is faster)", "size of the build, MB")
        points = [_point(row, None) for row in measured if row.candidate.size_bytes is not None]
    charts = scatter(points, axes, width=760, height=380, css="chart wide") + scatter(
        points, axes, width=350, height=330, css="chart narrow"
    )
    caption = "Each point is a row of the table, named by its number; the lines are 95 % intervals."
    return charts, caption


def _allowed(report: Report, candidates: list[CandidateReport]) -> float | None:
    """The largest loss allowed, in the metric's unit."""
    limits = report.limits
    if limits.max_drop_points is not None or limits.max_drop_percent is None:
        return limits.max_drop_points
    against = next((c.drop.against for c in candidates if c.drop is not None), "")
    reference = next((c.metric for c in candidates if c.recipe == against and c.baseline), None)
    return None if reference is None else limits.max_drop_percent / 100 * abs(reference.value)


def _point(row: Row, drop: DropFigure | None) -> Point:
    c = row.candidate
    if c.latency_ms is None:
        raise ValueError("only a candidate with a latency has a point")
    y = drop.value if drop else (c.size_bytes or 0) / 1e6
    return Point(
        label=f"{row.number} {c.recipe}" if row.kind == "selected" else str(row.number),
        title=f"{row.number} {c.recipe}, {row.condition}: {row.p50.figure}, {row.drop.figure or row.size.figure}",
        kind=row.kind,
        x=c.latency_ms.p50,
        y=y,
        x_bounds=c.latency_ms.ci95,
        y_bounds=drop.ci95 if drop else (None, None),
    )
