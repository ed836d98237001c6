"""How candidates scale, as the report says it. No NumPy: the server's process builds reports."""

from __future__ import annotations

from typing import Literal, cast

from fleetfit.server.report.facts import CandidateFacts, DeviceFacts, JobFacts
from fleetfit.server.report.model import ScaledFigure, ScalingCurveReport, ScalingPointReport, ScalingReport
from fleetfit.server.report.summary import Figure, ScalingCurve, ScalingPoint


def scaling_report(c: CandidateFacts) -> ScalingReport | None:
    """The curves of a candidate; None where they were not measured."""
    found = c.scaling.scaling if c.scaling is not None else None
    if c.scaling is None or found is None:
        return None
    return ScalingReport(
        threads=_curve(found.threads),
        batch=_curve(found.batch),
        instances=_curve(found.instances),
        cores=found.cores,
        trust=cast(Literal["clean", "noisy", "throttled"], c.scaling.trust),
        notes=list(c.scaling.notes),
    )


def scaling_notes(job: JobFacts, device: DeviceFacts, c: CandidateFacts, *, finalist: bool) -> list[str]:
    """Why curves that were asked for are missing."""
    if not job.scaling or not finalist or c.scaling is not None:
        return []
    return [f"how it scales was not measured: {device.why_not_last(c.no_scaling_because, able=device.scales)}"]


def _curve(curve: ScalingCurve) -> ScalingCurveReport:
    return ScalingCurveReport(points=[_point(point) for point in curve.points], ended=curve.ended)


def _point(point: ScalingPoint) -> ScalingPointReport:
    return ScalingPointReport(
        threads=point.threads,
        batch=point.batch,
        instances=point.instances,
        status=point.status,
        message=point.message,
        throughput=_figure(point.throughput),
        gain=_figure(point.gain),
        p50_ms=_figure(point.p50_ms),
        p95_ms=_figure(point.p95_ms),
        memory_bytes=_figure(point.memory_bytes),
        rounds=point.rounds,
        calls=point.calls,
    )


def _figure(figure: Figure | None) -> ScaledFigure | None:
    return None if figure is None else ScaledFigure(value=figure.value, ci95=(figure.low, figure.high))
