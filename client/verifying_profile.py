"""Profiles of operators computed again from what the device sent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fleetfit.proto import profile
from fleetfit.proto.v1 import measurement_pb2


def profile_figures(
    printed: Mapping[str, Any] | None, raw: measurement_pb2.MeasurementResult | None
) -> Iterator[tuple[str, Any, Any]]:
    """Every figure of a profile: its name, as it is printed, and as it comes out of `raw`."""
    run = raw.profile if raw is not None and raw.HasField("profile") else None
    if printed is None or run is None:
        if (printed is None) != (run is None):
            yield "profile", printed, "times" if run is not None else None
        return
    computed, shown = profile.profile_figures(run), printed.get("operators") or []
    if computed is None:
        yield "profile.operators", len(shown), 0
        return
    yield "profile.count", printed.get("count"), len(computed.operators)
    for key in ("operators_ms", "call_ms", "calls"):
        yield f"profile.{key}", printed.get(key), getattr(computed, key)
    for at, (one, figures) in enumerate(zip(shown, computed.operators, strict=False)):
        for key in ("name", "operator", "placed", "number_format", "runs", "ms", "share"):
            yield f"profile.{at}.{key}", one.get(key), getattr(figures, key)
