"""Engines that a device built of one network: how many, how far apart, and what that leaves uncertain."""

from __future__ import annotations

from fleetfit.core.figures import number
from fleetfit.proto.figures import candidate_engines, engines_apart
from fleetfit.proto.v1 import measurement_pb2
from fleetfit.server.report.summary import Engines, Sampling


def engines_of(raw: measurement_pb2.MeasurementResult, notes: list[str]) -> Engines | None:
    """What was built, and a note on it; None of a runtime that builds nothing on the device, or an agent that does not say."""
    built = {engine for engine in candidate_engines(raw) if engine > 0}
    if not built:
        return None
    found = Engines(built=len(built), apart=engines_apart(raw), seconds=raw.solo.engine_ns / 1e9)
    if found.apart is None:
        notes.append(
            "one engine was built of it: how much another one of the same network would differ is in no interval"
        )
    else:
        notes.append(
            f"{found.built} engines were built of it, and the slowest takes {number(found.apart)} times as long as the fastest; "
            "each counts once, and the intervals hold what they differ by"
        )
    return found


def what_engines_left(sampling: Sampling) -> str:
    """Why sampling ended although the ratio is not known as asked: by what the engines differ."""
    return (
        f"its speed beside the original's is known within {100 * (sampling.reached or 0):.2g} % either way, not within the "
        f"{100 * sampling.asked:.2g} % asked for: engines of one network differ, more processes would not narrow it, and no more "
        "engines were built"
    )
