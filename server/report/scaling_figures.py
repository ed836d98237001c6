"""Scaling curves as they are stored: see fleetfit.proto.scaling."""

from __future__ import annotations

from fleetfit.core.statistics_student import Interval
from fleetfit.proto.scaling import curve_points
from fleetfit.proto.v1 import measurement_pb2
from fleetfit.server.report.figures import figure
from fleetfit.server.report.summary import Figure, Scaling, ScalingCurve, ScalingPoint


def scaling_of(raw: measurement_pb2.MeasurementResult) -> Scaling | None:
    """All curves with the figures of their points; None where they were not asked for."""
    if not raw.HasField("scaling"):
        return None
    run = raw.scaling
    return Scaling(
        threads=_curve(run, run.threads),
        batch=_curve(run, run.batch),
        instances=_curve(run, run.instances),
        cores=run.cores,
    )


def _curve(run: measurement_pb2.ScalingRun, curve: measurement_pb2.ScalingCurve) -> ScalingCurve:
    points = []
    for point, figures in curve_points(run, curve):
        status = measurement_pb2.MeasurementStatus.Name(point.status).removeprefix("MEASUREMENT_STATUS_").lower()
        # What was measured and carries no figure was cut off on its way.
        status = "crashed" if figures is None and status in ("measured", "unspecified") else status
        points.append(
            ScalingPoint(
                threads=point.threads,
                batch=point.batch,
                instances=point.instances,
                status=status,
                message=point.message,
                throughput=_figure(figures.throughput) if figures else None,
                gain=_figure(figures.gain) if figures else None,
                p50_ms=_figure(figures.p50_ms) if figures else None,
                p95_ms=_figure(figures.p95_ms) if figures else None,
                memory_bytes=_figure(figures.memory) if figures else None,
                rounds=figures.rounds if figures else 0,
                calls=figures.calls if figures else 0,
            )
        )
    return ScalingCurve(points=points, ended=curve.ended)


def _figure(interval: Interval | None) -> Figure | None:
    return None if interval is None else figure(interval)
