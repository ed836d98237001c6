"""Scores, intervals and tests on samples: how a figure and its uncertainty are computed, in one place for all.

NumPy throughout; SciPy only inside the functions that need a quantile, because agents have none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fleetfit.core.errors import InvalidData
from fleetfit.core.metrics import metric_info

Floats = NDArray[np.floating[Any]]
_Z95: Final = 1.959963984540054


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


def score_samples(metric: str, outputs: Mapping[str, NDArray[Any]], targets: NDArray[Any]) -> NDArray[np.float32]:
    """One score per sample: 1 or 0 for accuracy, the sample's mean error for regressions.

    The first output is judged. For accuracy it is logits of shape (N, classes), or (N,) or (N, 1) for two classes; for
    errors it has the targets' number of values per sample. Raises InvalidData where the shapes do not fit.
    """
    info = metric_info(metric)
    output = next(iter(outputs.values()))
    if len(output) != len(targets):
        raise InvalidData(f"the model gave {len(output)} outputs for {len(targets)} targets; its batch is not kept")
    if info.task == "classification":
        if output.ndim >= 2 and output.shape[-1] > 1:
            chosen = output.reshape(len(output), -1, output.shape[-1])[:, -1].argmax(axis=-1)
        else:
            chosen = (output.reshape(len(output), -1)[:, 0] > 0).astype(np.int64)
        right: NDArray[np.float32] = (chosen == targets.reshape(len(targets), -1)[:, 0]).astype(np.float32)
        return right
    flat, wanted = output.reshape(len(output), -1), targets.reshape(len(targets), -1)
    if flat.shape != wanted.shape:
        raise InvalidData(
            f"the model gives {flat.shape[1]} values per sample but the targets have {wanted.shape[1]}; "
            "give targets of the first output's shape"
        )
    difference = flat.astype(np.float64) - wanted.astype(np.float64)
    errors = np.abs(difference) if metric == "mean_absolute_error" else difference**2
    result: NDArray[np.float32] = errors.mean(axis=1).astype(np.float32)
    return result


def metric_value(metric: str, scores: Floats) -> Interval:
    """The metric over per-sample scores, with its interval: Wilson's for accuracy, the normal one for errors.

    Accuracy is in points, 0 to 100. Source of the interval: E. B. Wilson, JASA 22 (1927).
    """
    n = len(scores)
    mean = float(np.mean(scores, dtype=np.float64))
    if metric_info(metric).task == "classification":
        centre = (mean + _Z95**2 / (2 * n)) / (1 + _Z95**2 / n)
        half = _Z95 / (1 + _Z95**2 / n) * math.sqrt(mean * (1 - mean) / n + _Z95**2 / (4 * n * n))
        return Interval(100 * mean, 100 * min(centre - half, mean), 100 * max(centre + half, mean))
    half = _Z95 * float(np.std(scores, ddof=1, dtype=np.float64)) / math.sqrt(n) if n > 1 else math.inf
    return Interval(mean, mean - half, mean + half)


def paired_drop(metric: str, scores: Floats, reference: Floats) -> Interval:
    """How much worse `scores` are than `reference`, sample by sample, in the metric's units (positive: worse)."""
    info = metric_info(metric)
    if len(scores) != len(reference):
        raise InvalidData(f"{len(scores)} scores cannot be compared with {len(reference)}; both need the same split")
    worse = (
        (reference.astype(np.float64) - scores) if info.higher_is_better else (scores.astype(np.float64) - reference)
    )
    scale = 100.0 if info.task == "classification" else 1.0
    mean = float(worse.mean()) * scale
    half = _Z95 * float(worse.std(ddof=1)) / math.sqrt(len(worse)) * scale if len(worse) > 1 else math.inf
    return Interval(mean, mean - half, mean + half)


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

    One value gives an interval without bounds: a single process says nothing about the spread between processes.
    """
    logs = np.log(np.asarray(values, dtype=np.float64))
    mean = float(logs.mean())
    if len(logs) < 2:
        return Interval(math.exp(mean), 0.0, math.inf)
    from scipy import stats

    half = float(stats.t.ppf(0.975, len(logs) - 1)) * float(logs.std(ddof=1)) / math.sqrt(len(logs))
    return Interval(math.exp(mean), math.exp(mean - half), math.exp(mean + half))


def median_interval(processes: Sequence[Floats]) -> Interval:
    """The median over several fresh processes, each with its own samples: both levels of spread are in the interval."""
    return geometric_interval([float(np.median(samples)) for samples in processes])


def ratio_interval(pairs: Sequence[tuple[Sequence[Floats], Sequence[Floats]]]) -> Interval:
    """How many times faster than its baseline a candidate is.

    `pairs` has one entry per fresh process: the candidate's blocks of samples and the baseline's, interleaved in that
    process. A process gives one ratio, of the medians of its blocks' medians; drift that is slower than a block cancels.
    The interval is Student's over processes, so it holds the spread between processes and that within.
    """
    ratios = []
    for candidate, baseline in pairs:
        ours = float(np.median([np.median(block) for block in candidate]))
        theirs = float(np.median([np.median(block) for block in baseline]))
        ratios.append(theirs / ours)
    return geometric_interval(ratios)


def is_tie(a: Interval, b: Interval) -> bool:
    """Whether two ratios against the same baseline cannot be told apart at 95 %."""
    if min(a.low, b.low) <= 0 or math.isinf(a.high) or math.isinf(b.high):
        return True
    halves = [(math.log(x.high) - math.log(x.low)) / 2 for x in (a, b)]
    return abs(math.log(a.value) - math.log(b.value)) <= math.hypot(*halves)
