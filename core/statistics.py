"""Scores, intervals and tests on samples: how a figure and its uncertainty are computed, in one place for all.

NumPy throughout and no SciPy: agents have none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fleetfit.core.errors import InvalidData
from fleetfit.core.metrics import CLASSIFICATION, metric_info
from fleetfit.core.statistics_auroc import auroc_drop, auroc_value
from fleetfit.core.statistics_detection import map_drop, map_point, map_value
from fleetfit.core.statistics_f1 import f1_drop, f1_value
from fleetfit.core.statistics_scores import score_samples as score_samples
from fleetfit.core.statistics_student import student_quantile

Floats = NDArray[np.floating[Any]]
_Z95: Final = 1.959963984540054


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


def metric_value(metric: str, scores: Floats) -> Interval:
    """The metric over the scores of `score_samples`, with its 95 % interval.

    Wilson's for shares of right samples, Student's for means of errors, a bootstrap's for F1 and for boxes, DeLong's for
    AUROC; all but errors are in points, 0 to 100. Raises InvalidData where there are no scores, or where the metric is not
    defined for them.
    Source of the first: E. B. Wilson, JASA 22 (1927).
    """
    n, info = len(scores), metric_info(metric)
    if n == 0:
        raise InvalidData("a metric needs at least one sample; push a split that is not empty")
    if info.kind == "f1":
        return _points(*f1_value(scores, classes=CLASSIFICATION in info.tasks))
    if info.kind == "auroc":
        return _points(*auroc_value(scores))
    if info.kind == "map":
        return _points(*map_value(info, scores))
    mean = float(np.mean(scores, dtype=np.float64))
    if info.kind == "share":
        centre = (mean + _Z95**2 / (2 * n)) / (1 + _Z95**2 / n)
        half = _Z95 / (1 + _Z95**2 / n) * math.sqrt(mean * (1 - mean) / n + _Z95**2 / (4 * n * n))
        return _points(mean, min(centre - half, mean), max(centre + half, mean))
    low, high = _mean_bounds(np.asarray(scores, dtype=np.float64))
    if info.is_user:
        return Interval(mean, low, high)
    # Errors are never below 0, a cosine never above 1.
    return Interval(mean, low, min(high, 1.0)) if info.higher_is_better else Interval(mean, max(low, 0.0), high)


def metric_point(metric: str, scores: Floats) -> float:
    """`metric_value` without its interval, for where that takes long and nobody reads it."""
    info = metric_info(metric)
    if info.kind == "map" and len(scores):
        return 100 * map_point(info, scores)
    return metric_value(metric, scores).value


def _points(value: float, low: float, high: float) -> Interval:
    return Interval(100 * value, 100 * low, 100 * high)


def _mean_bounds(values: NDArray[np.float64]) -> tuple[float, float]:
    """Student's interval of the mean; unbounded for one value, which says nothing about the spread."""
    n, mean = len(values), float(values.mean())
    if n < 2:
        return -math.inf, math.inf
    half = student_quantile(0.975, n - 1) * float(values.std(ddof=1)) / math.sqrt(n)
    return mean - half, mean + half


def paired_drop(metric: str, scores: Floats, reference: Floats) -> Interval:
    """How much worse `scores` are than `reference`, sample by sample, in the metric's units (positive: worse).

    For shares half a sample is added to each of the four ways in which two builds can be right and wrong, so that two
    builds which never differ on a small split are not called equal without doubt; F1 and AUROC do likewise in their own
    way. Raises InvalidData where the two are not of the same split. Source: A. Agresti and Y. Min, Statistics in Medicine
    24 (2005).
    """
    info = metric_info(metric)
    if len(scores) != len(reference) or len(scores) == 0:
        raise InvalidData(f"{len(scores)} scores cannot be compared with {len(reference)}; both need the same split")
    if info.kind == "f1":
        return _points(*f1_drop(scores, reference, classes=CLASSIFICATION in info.tasks))
    if info.kind == "auroc":
        return _points(*auroc_drop(scores, reference))
    if info.kind == "map":
        return _points(*map_drop(info, scores, reference))
    ours, theirs = scores.astype(np.float64), reference.astype(np.float64)
    worse = theirs - ours if info.higher_is_better else ours - theirs
    mean = float(worse.mean())
    if info.kind == "mean":
        return Interval(mean, *_mean_bounds(worse))
    lost, won = float((worse > 0).sum()) + 0.5, float((worse < 0).sum()) + 0.5
    n = len(worse) + 2
    centre = (lost - won) / n
    half = _Z95 * math.sqrt(max(lost + won - (lost - won) ** 2 / n, 0.0)) / n
    return Interval(100 * mean, 100 * max(min(centre - half, mean), -1), 100 * min(max(centre + half, mean), 1))


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


def steady(samples: Sequence[float] | Floats, *, tolerance: float = 0.03) -> bool:
    """Whether samples have stopped drifting: the medians of their two halves differ by less than `tolerance`.

    Fewer than 8 samples are never steady. On a noisy machine twice the standard error of the difference counts too.
    """
    values = np.asarray(samples, dtype=np.float64)
    if len(values) < 8:
        return False
    first, second = values[: len(values) // 2], values[len(values) // 2 :]
    a, b = float(np.median(first)), float(np.median(second))
    # 1.2533 s / sqrt(n) is the median's standard error, 1.4826 MAD estimates s.
    error = math.hypot(
        *(1.2533 * 1.4826 * float(np.median(np.abs(h - np.median(h)))) / math.sqrt(len(h)) for h in (first, second))
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
    low, high = _mean_bounds(logs)
    return Interval(math.exp(float(logs.mean())), math.exp(low), math.exp(high))


def median_interval(processes: Sequence[Floats]) -> Interval:
    """The median over several fresh processes, each with its own samples: both levels of spread are in the interval."""
    return geometric_interval([float(np.median(samples)) for samples in processes])


def ratio_interval(pairs: Sequence[tuple[Sequence[Floats], Sequence[Floats]]]) -> Interval:
    """How many times faster than its baseline a candidate is.

    `pairs` has one entry per fresh process: the candidate's blocks of samples and the baseline's, each in the order they
    were taken, so that the blocks at one place in both lists stand next to each other in time. A process gives one ratio:
    the median over these neighbours, because what slows both down for longer than a block then cancels (on a shared
    machine the spread between processes of one build against itself was 0.4 of that of the ratio of two overall medians).
    The interval is Student's over processes, so it holds the spread between processes and that within.

    Raises InvalidData where a process has no blocks of one of the two.
    """
    return geometric_interval([_process_ratio(candidate, baseline) for candidate, baseline in pairs])


def _process_ratio(candidate: Sequence[Floats], baseline: Sequence[Floats]) -> float:
    ours = np.asarray([np.median(block) for block in candidate if len(block)], dtype=np.float64)
    theirs = np.asarray([np.median(block) for block in baseline if len(block)], dtype=np.float64)
    if not len(ours) or not len(theirs):
        raise InvalidData("a pair trial has samples of one build only; measure again")
    together = min(len(ours), len(theirs))
    return float(np.exp(np.median(np.log(theirs[:together] / ours[:together]))))


def is_tie(a: Interval, b: Interval) -> bool:
    """Whether two ratios against the same baseline cannot be told apart at 95 %."""
    if min(a.low, b.low) <= 0 or math.isinf(a.high) or math.isinf(b.high):
        return True
    halves = [(math.log(x.high) - math.log(x.low)) / 2 for x in (a, b)]
    return abs(math.log(a.value) - math.log(b.value)) <= math.hypot(*halves)
