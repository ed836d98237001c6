"""The figures of scaling curves: what a point's raw samples carry. Needs NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from fleetfit.core.statistics_latency import Floats, geometric_interval, percentile, quotient_interval
from fleetfit.core.statistics_student import Interval
from fleetfit.proto.figures import milliseconds
from fleetfit.proto.v1 import measurement_pb2

_UNITY: Final = Interval(1.0, 1.0, 1.0)


@dataclass(frozen=True)
class PointFigures:
    """One point. Each interval is over its rounds, every one of fresh processes; one round has no bounds (0 to infinity).

    `throughput` is in samples a second, of all instances together; `gain` is that over the throughput of the curve's first
    point. Latency is that of a call while the others run, `memory` in bytes what one instance holds, with shared pages in part.
    """

    throughput: Interval
    gain: Interval
    p50_ms: Interval
    p95_ms: Interval | None
    memory: Interval | None
    rounds: int
    calls: int


def curve_points(
    run: measurement_pb2.ScalingRun, curve: measurement_pb2.ScalingCurve
) -> list[tuple[measurement_pb2.ScalingPoint, PointFigures | None]]:
    """The points of a curve in their order, each with its figures; None where it was not measured."""
    first: Interval | None = None
    found: list[tuple[measurement_pb2.ScalingPoint, PointFigures | None]] = []
    for at in curve.points:
        if not 0 <= at < len(run.points):
            continue
        point = run.points[at]
        rounds = _rounds(point)
        found.append((point, _figures(point, rounds, first) if rounds else None))
        if first is None and rounds:
            first = _throughput(point, rounds)
    return found


def round_throughput(point: measurement_pb2.ScalingPoint, at: int) -> float:
    """Samples a second in one round, over all its processes; 0 where it has none."""
    return _per_second(point, point.rounds[at].processes) if _is_whole(point, point.rounds[at]) else 0.0


def _rounds(point: measurement_pb2.ScalingPoint) -> list[Sequence[measurement_pb2.ScalingProcess]]:
    """The rounds that can be counted: what a device sends is not believed to be whole."""
    if point.status != measurement_pb2.MEASUREMENT_STATUS_MEASURED:
        return []
    return [one.processes for one in point.rounds if _is_whole(point, one)]


def _is_whole(point: measurement_pb2.ScalingPoint, one: measurement_pb2.ScalingRound) -> bool:
    return (
        point.batch > 0
        and 0 < point.instances == len(one.processes)
        and all(p.every > 0 and len(p.latency_ns) and _elapsed_ns(p) > 0 for p in one.processes)
    )


def _elapsed_ns(process: measurement_pb2.ScalingProcess) -> int:
    return sum(process.elapsed_ns if process.every > 1 else process.latency_ns)


def _per_second(point: measurement_pb2.ScalingPoint, processes: Sequence[measurement_pb2.ScalingProcess]) -> float:
    return sum(point.batch * p.every * len(p.latency_ns) / (_elapsed_ns(p) / 1e9) for p in processes)


def _throughput(
    point: measurement_pb2.ScalingPoint, rounds: Sequence[Sequence[measurement_pb2.ScalingProcess]]
) -> Interval:
    return geometric_interval([_per_second(point, processes) for processes in rounds])


def _figures(
    point: measurement_pb2.ScalingPoint,
    rounds: Sequence[Sequence[measurement_pb2.ScalingProcess]],
    first: Interval | None,
) -> PointFigures:
    pooled: list[Floats] = [np.concatenate([milliseconds(p.latency_ns) for p in processes]) for processes in rounds]
    tails = [percentile(95, samples) for samples in pooled]
    carried = [tail for tail in tails if tail is not None]
    held = [float(np.mean([p.shared_in_part_bytes for p in processes])) for processes in rounds]
    throughput = _throughput(point, rounds)
    return PointFigures(
        throughput=throughput,
        gain=_UNITY if first is None else quotient_interval(throughput, first),
        p50_ms=geometric_interval([float(np.median(samples)) for samples in pooled]),
        p95_ms=geometric_interval(carried) if len(carried) == len(tails) else None,
        memory=geometric_interval(held) if min(held) > 0 else None,
        rounds=len(rounds),
        calls=sum(p.every * len(p.latency_ns) for processes in rounds for p in processes),
    )
