"""Scaling curves computed again from their raw samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fleetfit.core.statistics_student import Interval
from fleetfit.proto.figures import bounds
from fleetfit.proto.scaling import PointFigures, curve_points
from fleetfit.proto.v1 import measurement_pb2


def scaling_figures(
    printed: Mapping[str, Any] | None, raw: measurement_pb2.MeasurementResult | None
) -> Iterator[tuple[str, Any, Any]]:
    """Every figure of the curves: its name, as it is printed, and as it comes out of `raw`."""
    run = raw.scaling if raw is not None and raw.HasField("scaling") else None
    if printed is None or run is None:
        if (printed is None) != (run is None):
            yield "scaling", printed, "samples" if run is not None else None
        return
    for name, curve in (("threads", run.threads), ("batch", run.batch), ("instances", run.instances)):
        shown = (printed.get(name) or {}).get("points") or []
        points = curve_points(run, curve)
        yield f"scaling.{name}.points", len(shown), len(points)
        for at, (one, (point, figures)) in enumerate(zip(shown, points, strict=False)):
            place = f"scaling.{name}.{at}"
            for part in ("threads", "batch", "instances"):
                yield f"{place}.{part}", one.get(part), getattr(point, part)
            for key, interval in _computed(figures).items():
                yield from _figure(f"{place}.{key}", one.get(key), interval)
            yield f"{place}.rounds", one.get("rounds"), figures.rounds if figures else 0
            yield f"{place}.calls", one.get("calls"), figures.calls if figures else 0


def _computed(figures: PointFigures | None) -> dict[str, Interval | None]:
    if figures is None:
        return dict.fromkeys(("throughput", "gain", "p50_ms", "p95_ms", "memory_bytes"))
    return {
        "throughput": figures.throughput,
        "gain": figures.gain,
        "p50_ms": figures.p50_ms,
        "p95_ms": figures.p95_ms,
        "memory_bytes": figures.memory,
    }


def _figure(name: str, printed: Mapping[str, Any] | None, computed: Interval | None) -> Iterator[tuple[str, Any, Any]]:
    if printed is None or computed is None:
        yield name, printed, None if computed is None else "samples"
        return
    yield f"{name}.value", printed.get("value"), computed.value
    yield f"{name}.ci95", printed.get("ci95"), list(bounds(computed))
