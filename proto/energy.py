"""The energy of a call from a meter's values: work above rest, round by round."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Final

from fleetfit.core.statistics_student import Interval, student_quantile
from fleetfit.proto.v1 import measurement_pb2

# Left out at the begin of each stretch, with the meter's own lag: clocks rise, and counters are not read at its very begin.
_SETTLE_NS: Final = 60_000_000
_FEWEST_VALUES: Final = 3
_FEWEST_ROUNDS: Final = 3


@dataclass(frozen=True)
class Energy:
    """Energy of one call above the device at rest, in joules, from `rounds` rounds; watts at rest and at work."""

    joules: Interval
    idle_watts: float
    busy_watts: float
    rounds: int


def energy_of_a_call(run: measurement_pb2.EnergyRun) -> Energy | None:
    """Joules of a call above the device at rest, with a 95 % interval over rounds (Student's t); None where too little was read.

    A round is work between two rests: their mean is subtracted, so that a drift that is even in time cancels.
    """
    stretches = list(run.stretches)
    watts = [_mean_watts(run, stretch.window) for stretch in stretches]
    joules, work, rest = [], [], []
    for at in range(1, len(stretches) - 1, 2):
        before, busy, after = watts[at - 1 : at + 2]
        calls = stretches[at].calls
        if before is None or busy is None or after is None or calls <= 0:
            continue
        window = stretches[at].window
        seconds = (window.end_monotonic_ns - window.begin_monotonic_ns) / 1e9
        joules.append((busy - (before + after) / 2) * seconds / calls)
        work.append(busy)
        rest += [before, after]
    if not joules:
        return None
    return Energy(_mean_with_interval(joules), fmean(rest), fmean(work), len(joules))


def _mean_watts(run: measurement_pb2.EnergyRun, window: measurement_pb2.Window) -> float | None:
    begin, end = window.begin_monotonic_ns + _SETTLE_NS + max(run.lag_ns, 0), window.end_monotonic_ns
    times, values = run.monotonic_ns, run.value
    if end <= begin or len(times) != len(values):
        return None
    first, last = bisect_left(times, begin), bisect_left(times, end)
    if last - first < _FEWEST_VALUES:
        return None
    if run.counts:
        # From the first to the last value within: no interpolation, so nothing of the neighbours comes in.
        return float((values[last - 1] - values[first]) / ((times[last - 1] - times[first]) / 1e3))
    return _mean_over_time(times[first:last], values[first:last]) / 1e6


def _mean_over_time(times: Sequence[int], values: Sequence[int]) -> float:
    """The trapezoid rule: values are not read at even distances."""
    pairs = range(len(times) - 1)
    area = sum((values[at] + values[at + 1]) / 2 * (times[at + 1] - times[at]) for at in pairs)
    return area / (times[-1] - times[0])


def _mean_with_interval(values: Sequence[float]) -> Interval:
    mean = fmean(values)
    if len(values) < _FEWEST_ROUNDS:
        return Interval(mean, -math.inf, math.inf)
    half = student_quantile(0.975, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)
