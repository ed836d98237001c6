"""Times of calls: medians, percentiles and ratios with intervals that know both levels of spread, between processes and within.

NumPy throughout and no SciPy: agents have none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fleetfit.core.errors import InvalidData
from fleetfit.core.statistics_student import Interval, mean_bounds, student_quantile
from fleetfit.core.ties import is_even

Floats = NDArray[np.floating[Any]]
_Z95: Final = 1.959963984540054
# A median's standard error is 1.2533 s / sqrt(n), and 1.4826 times the median absolute deviation estimates s.
_MEDIAN_ERROR: Final = 1.2533 * 1.4826


def percentile_supported(percent: float, samples: int) -> bool:
    """Whether `samples` can carry this percentile: with 99 % confidence at least two of them lie beyond it.

    The binomial bound of MLPerf Inference's early stopping: 64 samples for p90, 662 for p99.
    """
    beyond = 1 - percent / 100
    if samples < 1:
        return False
    none, one = (1 - beyond) ** samples, samples * beyond * (1 - beyond) ** (samples - 1)
    return none + one <= 0.01


def percentile(percent: float, samples: Floats) -> float | None:
    """The percentile, or None where the samples cannot carry it."""
    if not percentile_supported(percent, len(samples)):
        return None
    return float(np.percentile(samples, percent))


def percentile_interval(percent: float, processes: Sequence[Floats], engines: Sequence[int] = ()) -> Interval | None:
    """The percentile of a process of usual speed, or None where the samples cannot carry it.

    A process is taken to be faster or slower as a whole. Its samples, as multiples of its median, tell the percentile beside
    the median, with the bounds of order statistics; the medians tell how fast processes are, with Student's interval. So the
    percentile and `median_interval` speak of the same process, whichever process gave the most samples. One process has no
    bounds (0 to infinity). Empty processes do not count; `engines` is as for `median_interval`.
    """
    if len(engines) == len(processes):
        engines = [engine for engine, samples in zip(engines, processes, strict=True) if len(samples)]
    processes = [samples for samples in processes if len(samples)]
    if not percentile_supported(percent, sum(map(len, processes))):
        return None
    relative = np.sort(np.concatenate([samples / np.median(samples) for samples in processes]))
    beside, usual = float(np.percentile(relative, percent)), median_interval(processes, engines)
    if math.isinf(usual.high):
        return Interval(usual.value * beside, 0.0, math.inf)
    low, high = order_bounds(percent, relative)
    down = math.hypot(math.log(usual.value / usual.low), math.log(beside / low))
    up = math.hypot(math.log(usual.high / usual.value), math.log(high / beside))
    return Interval(usual.value * beside, usual.value * beside * math.exp(-down), usual.value * beside * math.exp(up))


def order_bounds(percent: float, ordered: Floats) -> tuple[float, float]:
    """Distribution-free 95 % bounds of a percentile from sorted independent samples; infinite where there are too few.

    The sample at a rank lies below the percentile with a binomial probability: the bounds are those samples that do and do
    not, each with 97.5 %. Source: H. A. David and H. N. Nagaraja, Order Statistics, 3rd edition, 7.1.
    """
    n, share = len(ordered), percent / 100
    counts = np.arange(n + 1, dtype=np.float64)
    factorials = np.concatenate([[0.0], np.cumsum(np.log(np.maximum(counts[1:], 1)))])
    logs = factorials[n] - factorials - factorials[::-1] + counts * math.log(share) + (n - counts) * math.log1p(-share)
    below = np.cumsum(np.exp(logs))
    # The sample of rank r (from 1) is at most the percentile where at least r samples are: with probability 1 - below[r - 1].
    low_rank = int(np.searchsorted(below, 0.025, side="right"))
    high_rank = int(np.searchsorted(below, 0.975)) + 1
    low = float(ordered[low_rank - 1]) if low_rank >= 1 else -math.inf
    return low, float(ordered[high_rank - 1]) if high_rank <= n else math.inf


def median_spread(samples: Sequence[float] | Floats) -> float:
    """How far the median of one process's samples may be off, as a share of it: half the width of its interval, within."""
    ordered = np.sort(np.asarray(samples, dtype=np.float64))
    if not len(ordered):
        return math.inf
    return half_width(Interval(1.0, *order_bounds(50, ordered)))


def half_width(interval: Interval) -> float:
    """Half the width of a positive figure's interval as a share of the figure, on the scale of ratios: 0.01 is within 1 %."""
    if interval.low <= 0 or not math.isfinite(interval.high):
        return math.inf
    return math.sqrt(interval.high / interval.low) - 1


def steady(samples: Sequence[float] | Floats, *, tolerance: float = 0.03) -> bool:
    """Whether samples have stopped drifting: the medians of their two halves differ by less than `tolerance`.

    Fewer than 8 samples are never steady. On a noisy machine twice the standard error of the difference counts too.
    """
    values = np.asarray(samples, dtype=np.float64)
    if len(values) < 8:
        return False
    first, second = values[: len(values) // 2], values[len(values) // 2 :]
    a, b = float(np.median(first)), float(np.median(second))
    error = math.hypot(
        *(_MEDIAN_ERROR * float(np.median(np.abs(h - np.median(h)))) / math.sqrt(len(h)) for h in (first, second))
    )
    return abs(a - b) <= max(tolerance * b, 2 * error)


def geometric_interval(values: Sequence[float]) -> Interval:
    """The geometric mean of independent repetitions, with Student's interval of their logarithms.

    One value gives an interval without bounds (0 to infinity): a single process says nothing about the spread between
    processes. Raises InvalidData for no values.
    """
    if not len(values):
        raise InvalidData("there is nothing to compare: no trial was measured")
    logs = np.log(np.asarray(values, dtype=np.float64))
    low, high = mean_bounds(logs)
    return Interval(math.exp(float(logs.mean())), math.exp(low), math.exp(high))


def median_interval(processes: Sequence[Floats], engines: Sequence[int] = ()) -> Interval:
    """The median over several fresh processes, each with its own samples: both levels of spread are in the interval.

    `engines` says of each process which of several engines that were built of one network it ran. Where there is more than
    one, engines are what repeats: each counts once, by the mean of its processes, and the interval is Student's over engines.
    """
    medians = [float(np.median(samples)) for samples in processes]
    return geometric_interval(_by_engine(medians, engines))


def _by_engine(values: Sequence[float], engines: Sequence[int]) -> list[float]:
    """One value for each engine, the geometric mean of its processes'; the values as they are where engines are not told apart.

    The spread of these means holds all that varies below: between engines, processes, samples. Source: T. Kalibera and
    R. Jones, Rigorous Benchmarking in Reasonable Time, ISMM 2013, where the confidence interval is of the highest level's means.
    """
    if len(engines) != len(values) or len(set(engines)) < 2:
        return list(values)
    logs, which = np.log(np.asarray(values, dtype=np.float64)), np.asarray(engines)
    return [math.exp(float(logs[which == engine].mean())) for engine in dict.fromkeys(engines)]


def batch_median(samples: Floats, batches: int = 10) -> Interval:
    """The median of samples that depend on their neighbours, as those of one long run do.

    Consecutive batches are taken as independent, and their medians have Student's interval; fewer than two samples have no
    bounds. Source: the method of batch means, A. M. Law, Simulation Modeling and Analysis, 9.5.3.
    """
    parts = [float(np.median(part)) for part in np.array_split(samples, batches) if len(part)]
    found = geometric_interval(parts)
    return Interval(float(np.median(samples)), found.low, found.high) if len(samples) else found


def quotient_interval(a: Interval, b: Interval) -> Interval:
    """`a` over `b`, measured independently: the half-widths of their logarithms add as errors do."""
    value = a.value / b.value
    if min(a.low, b.low) <= 0 or math.isinf(a.high) or math.isinf(b.high):
        return Interval(value, 0.0, math.inf)
    down = math.hypot(math.log(a.value / a.low), math.log(b.high / b.value))
    up = math.hypot(math.log(a.high / a.value), math.log(b.value / b.low))
    return Interval(value, value * math.exp(-down), value * math.exp(up))


def ratio_interval(
    pairs: Sequence[tuple[Sequence[Floats], Sequence[Floats]]],
    candidate_first: Sequence[bool] = (),
    engines: Sequence[int] = (),
) -> Interval:
    """How many times faster than its baseline a candidate is.

    `pairs` has one entry per fresh process: the candidate's blocks of samples and the baseline's, each in the order they
    were taken, so that the blocks at one place in both lists stand next to each other in time. A process gives one ratio:
    the median over these neighbours, because what slows both down for longer than a block then cancels (on a shared
    machine the spread between processes of one build against itself was 0.4 of that of the ratio of two overall medians).
    The interval is Student's over processes, so it holds the spread between processes and that within.

    `candidate_first` says of each process whether it loaded the candidate first. Where both orders came twice or more they
    count alike, however often each came, and what the order alone does is kept out of the interval: a build that is loaded
    first can be faster or slower by a percent, always the same way.

    `engines` says of each process which pair of engines it ran, where several were built of either build. Where there is more
    than one pair, each counts once, and the interval is Student's over the pairs: how fast an engine comes out is then in
    it, and the order of loading is not looked at, since each pair has both orders.

    Raises InvalidData where a process has no blocks of one of the two.
    """
    ratios = [process_ratio(candidate, baseline) for candidate, baseline in pairs]
    logs = np.log(np.asarray(ratios, dtype=np.float64))
    if len(engines) == len(ratios) and len(set(engines)) > 1:
        return geometric_interval(_by_engine(ratios, engines))
    first = np.asarray(candidate_first, dtype=bool)
    if len(first) != len(logs) or min(int(first.sum()), int((~first).sum())) < 2:
        return geometric_interval(ratios)
    groups = logs[first], logs[~first]
    middle = sum(float(group.mean()) for group in groups) / 2
    freedom = len(logs) - 2
    variance = sum(float(((group - group.mean()) ** 2).sum()) for group in groups) / freedom
    half = student_quantile(0.975, freedom) * math.sqrt(variance * sum(1 / len(group) for group in groups)) / 2
    return Interval(math.exp(middle), math.exp(middle - half), math.exp(middle + half))


def spread_within_engines(
    pairs: Sequence[tuple[Sequence[Floats], Sequence[Floats]]], candidate_first: Sequence[bool], engines: Sequence[int]
) -> float:
    """Half the width of the interval that a ratio would have if these engines were all there are, as a share of it.

    More processes narrow this, and nothing else. What engines and the order of loading do is taken out by least squares;
    infinite where that leaves nothing to judge by.
    """
    logs = np.log(np.asarray([process_ratio(*pair) for pair in pairs], dtype=np.float64))
    kinds = list(dict.fromkeys(engines))
    columns = [[float(engine == kind) for engine in engines] for kind in kinds]
    design = np.array([*columns, [float(first) for first in candidate_first]]).T
    freedom = len(logs) - int(np.linalg.matrix_rank(design))
    if freedom < 1:
        return math.inf
    left = logs - design @ np.linalg.lstsq(design, logs, rcond=None)[0]
    error = math.sqrt(float((left**2).sum()) / freedom / len(logs))
    return math.expm1(student_quantile(0.975, freedom) * error)


def process_ratio(candidate: Sequence[Floats], baseline: Sequence[Floats]) -> float:
    """The ratio that one process gives: see `ratio_interval`. Raises InvalidData where it has blocks of one build only."""
    return float(np.exp(np.median(_neighbours(candidate, baseline))))


def process_spread(candidate: Sequence[Floats], baseline: Sequence[Floats]) -> float:
    """How far one process's ratio may be off by what happens within it, as a share: half its 95 % interval."""
    logs = _neighbours(candidate, baseline)
    if len(logs) < 3:
        return math.inf
    deviation = float(np.median(np.abs(logs - np.median(logs))))
    return math.expm1(_Z95 * _MEDIAN_ERROR * deviation / math.sqrt(len(logs)))


def _neighbours(candidate: Sequence[Floats], baseline: Sequence[Floats]) -> NDArray[np.float64]:
    ours = np.asarray([np.median(block) for block in candidate if len(block)], dtype=np.float64)
    theirs = np.asarray([np.median(block) for block in baseline if len(block)], dtype=np.float64)
    if not len(ours) or not len(theirs):
        raise InvalidData("a pair trial has samples of one build only; measure again")
    together = min(len(ours), len(theirs))
    return np.asarray(np.log(theirs[:together] / ours[:together]), dtype=np.float64)


def is_tie(a: Interval, b: Interval) -> bool:
    """Whether two ratios against the same baseline cannot be told apart at 95 %, or differ by nothing worth the name."""
    if min(a.low, b.low) <= 0 or math.isinf(a.high) or math.isinf(b.high):
        return True
    half = math.hypot(*((math.log(x.high) - math.log(x.low)) / 2 for x in (a, b)))
    apart = math.log(a.value) - math.log(b.value)
    return is_even(math.exp(apart - half), math.exp(apart + half))
