"""The figures that raw samples carry: what an agent decides by, a server prints, and anybody can compute again.

Needs NumPy; the resident agent and the server's process keep away from it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fleetfit.core.statistics_latency import (
    Floats,
    batch_median,
    percentile,
    quotient_interval,
    ratio_interval,
    spread_within_engines,
)
from fleetfit.core.statistics_student import Interval
from fleetfit.proto.v1 import measurement_pb2

_MS = 1e-6


def milliseconds(samples_ns: Sequence[int]) -> Floats:
    """Samples in milliseconds, (N,) float64. A clock that did not move between two looks gives 1 ns: 0 has no logarithm."""
    return np.maximum(np.asarray(samples_ns, dtype=np.float64), 1.0) * _MS


def candidate_samples(raw: measurement_pb2.MeasurementResult) -> list[Floats]:
    """The candidate's samples in milliseconds, one array for each fresh process: the solo child first, then the pairs."""
    processes = [milliseconds(raw.solo.latency_ns)] if raw.HasField("solo") else []
    processes += [milliseconds([ns for b in run.blocks if b.candidate for ns in b.latency_ns]) for run in raw.pairs]
    return [samples for samples in processes if len(samples)]


def candidate_engines(raw: measurement_pb2.MeasurementResult) -> list[int]:
    """Which engine each process of `candidate_samples` ran, from 1; 0 where the runtime makes none."""
    found = [(raw.solo.engine, len(raw.solo.latency_ns))] if raw.HasField("solo") else []
    found += [(run.candidate_engine, sum(len(b.latency_ns) for b in run.blocks if b.candidate)) for run in raw.pairs]
    return [engine for engine, samples in found if samples]


def engines_apart(raw: measurement_pb2.MeasurementResult) -> float | None:
    """How many times as long the slowest of the candidate's engines takes as the fastest, by their medians; None below two."""
    by_engine: dict[int, list[float]] = {}
    for samples, engine in zip(candidate_samples(raw), candidate_engines(raw), strict=True):
        by_engine.setdefault(engine, []).append(math.log(float(np.median(samples))))
    means = [sum(logs) / len(logs) for logs in by_engine.values()]
    return math.exp(max(means) - min(means)) if len(means) > 1 else None


@dataclass(frozen=True)
class Warmth:
    """What a build does cool (`burst`, its first seconds) and warm (`sustained`, the last third of a long run), in ms.

    `slowdown` is how many times as long a warm call takes. All are of one process: the spread between processes is in none.
    """

    burst: Interval
    sustained: Interval
    sustained_p95: float | None
    slowdown: Interval
    seconds: float


def warmth(raw: measurement_pb2.MeasurementResult) -> Warmth | None:
    """Burst and sustained figures; None where nothing was sustained."""
    run = raw.solo.sustained
    if not len(run.latency_ns) or not len(raw.solo.latency_ns):
        return None
    samples = milliseconds(run.latency_ns)
    passed = np.cumsum(samples)
    last = samples[int(np.searchsorted(passed, 2 / 3 * passed[-1])) :]
    burst, sustained = batch_median(milliseconds(raw.solo.latency_ns)), batch_median(last)
    return Warmth(
        burst=burst,
        sustained=sustained,
        sustained_p95=percentile(95, last),
        slowdown=quotient_interval(sustained, burst),
        seconds=(run.window.end_monotonic_ns - run.window.begin_monotonic_ns) / 1e9,
    )


def pair_ratio(runs: Iterable[measurement_pb2.PairRun]) -> Interval | None:
    """How many times faster than the baseline, over the fresh processes that hold both builds; None where none does.

    Where several engines were built of one of them, over the pairs of engines: see `ratio_interval`.
    """
    pairs, candidate_first, engines = _whole(runs)
    return ratio_interval(pairs, candidate_first, engines) if pairs else None


def pair_spread_within_engines(runs: Iterable[measurement_pb2.PairRun]) -> float:
    """What more processes could narrow of `pair_ratio`, as half a width: see `spread_within_engines`. Infinite for none."""
    pairs, candidate_first, engines = _whole(runs)
    return spread_within_engines(pairs, candidate_first, engines) if pairs else math.inf


def _whole(
    runs: Iterable[measurement_pb2.PairRun],
) -> tuple[list[tuple[list[Floats], list[Floats]]], list[bool], list[int]]:
    """The processes that hold both builds: their blocks, whether the candidate was loaded first, and the pair of engines."""
    pairs, candidate_first, engines = [], [], []
    known: dict[tuple[int, int], int] = {}
    for run in runs:
        ours = [milliseconds(b.latency_ns) for b in run.blocks if b.candidate and len(b.latency_ns)]
        theirs = [milliseconds(b.latency_ns) for b in run.blocks if not b.candidate and len(b.latency_ns)]
        if ours and len(ours) == len(theirs):
            pairs.append((ours, theirs))
            candidate_first.append(run.candidate_loaded_first)
            engines.append(known.setdefault((run.candidate_engine, run.baseline_engine), len(known)))
    return pairs, candidate_first, engines


def scores_of(raw: measurement_pb2.MeasurementResult) -> NDArray[np.float32]:
    """A result's scores, one row per sample: (N,), or (N, several) where the metric needs more than one number of each."""
    values, count = np.asarray(raw.metric.scores, dtype=np.float32), raw.metric.count
    return values.reshape(count, -1) if 0 < count < len(values) and len(values) % count == 0 else values


def peak_memory(raw: measurement_pb2.MeasurementResult) -> int | None:
    """Bytes at the peak of the solo child over its floor; None where the device does not tell them."""
    if not raw.HasField("solo") or raw.solo.peak_memory_bytes <= 0 or raw.solo.floor_memory_bytes <= 0:
        return None
    return max(0, raw.solo.peak_memory_bytes - raw.solo.floor_memory_bytes)


def bounds(interval: Interval | None) -> tuple[float | None, float | None]:
    """Both bounds of an interval, or None twice where one is infinite."""
    known = interval is not None and math.isfinite(interval.low) and math.isfinite(interval.high)
    return (interval.low, interval.high) if interval is not None and known else (None, None)
