"""Metrics from scores, each with its uncertainty: how they are computed, in one place for all. Times: statistics_latency.

NumPy throughout and no SciPy: agents have none.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fleetfit.core.errors import InvalidData
from fleetfit.core.metrics import CLASSIFICATION, metric_info
from fleetfit.core.statistics_auroc import auroc_drop, auroc_value
from fleetfit.core.statistics_detection import map_drop, map_point, map_value
from fleetfit.core.statistics_f1 import f1_drop, f1_value
from fleetfit.core.statistics_scores import score_samples as score_samples
from fleetfit.core.statistics_student import Interval as Interval
from fleetfit.core.statistics_student import mean_bounds

Floats = NDArray[np.floating[Any]]
_Z95: Final = 1.959963984540054


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
    low, high = mean_bounds(np.asarray(scores, dtype=np.float64))
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
        return Interval(mean, *mean_bounds(worse))
    lost, won = float((worse > 0).sum()) + 0.5, float((worse < 0).sum()) + 0.5
    n = len(worse) + 2
    centre = (lost - won) / n
    half = _Z95 * math.sqrt(max(lost + won - (lost - won) ** 2 / n, 0.0)) / n
    return Interval(100 * mean, 100 * max(min(centre - half, mean), -1), 100 * min(max(centre + half, mean), 1))
