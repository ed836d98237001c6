"""Whether one build does the same in two places, over the same samples: on a device and on the server that made it.

A metric that was only computed where a build was made is a promise about other kernels, other instruction sets, another
runtime. Both runs are paired sample by sample, so that chance in the choice of samples cancels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fleetfit.core.errors import InvalidData
from fleetfit.core.metrics import MetricInfo, metric_info
from fleetfit.core.statistics import paired_drop
from fleetfit.core.statistics_student import Interval, student_tails
from fleetfit.core.ties import ROUNDING, outputs_tolerance

Floats = NDArray[np.floating[Any]]
SURE: Final = 0.01
"""A gap with a smaller probability by chance is flagged."""
MOST_COMPARED: Final = 1 << 19
"""So many output values of one build are compared at most: as float32 2 MiB."""
# The distance of values that are numbers in one place only.
_NO_NUMBER: Final = 1e6
_Z95: Final = 1.959963984540054


@dataclass(frozen=True)
class Worst:
    """The sample (its row) at which two runs differ most: its scores, where one number says them, and its outputs' distance."""

    row: int
    here: float | None
    there: float | None
    distance: float | None


@dataclass(frozen=True)
class Gap:
    """How much worse a metric is `here` than `there` (positive: worse, in its units), and how far outputs lie apart.

    `p` is the probability of a gap at least as large by chance, None where too few samples tell. `distance` is the largest of
    the samples `compared`, as a share of the largest value; `beyond` of them are farther apart than `tolerance`.
    """

    loss: Interval
    p: float | None
    test: str
    differing: int
    """So many samples have another score."""
    compared: int
    distance: float | None
    tolerance: float
    beyond: int
    by_metric: bool
    """The metric differs by more than chance and rounding."""
    worst: Worst | None

    @property
    def flagged(self) -> bool:
        """Whether it must be looked at: the metric differs beyond chance, or an output beyond rounding."""
        return self.by_metric or self.beyond > 0


def mcnemar(lost: int, won: int) -> float:
    """The two-sided exact probability that of `lost + won` samples that changed so unequal a part did so by chance.

    Samples that are right in both places, or wrong in both, say nothing. Source: Q. McNemar, Psychometrika 12 (1947); the
    binomial distribution in place of its approximation.
    """
    n, few = lost + won, min(lost, won)
    if few * 2 >= n:
        return 1.0
    counts = np.arange(few + 1)
    factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    logs = factorials[n] - factorials[counts] - factorials[n - counts] - n * math.log(2)
    return min(1.0, 2 * float(np.exp(logs).sum()))


def paired_t(differences: Floats) -> float | None:
    """The two-sided probability that the mean of independent differences is 0; None for fewer than two.

    Student's; differences that are all the same and not 0 leave no doubt.
    """
    n = len(differences)
    if n < 2:
        return None
    mean, spread = float(np.mean(differences)), float(np.std(differences, ddof=1))
    if mean == 0:
        return 1.0
    return student_tails(mean / spread * math.sqrt(n), n - 1) if spread > 0 else 0.0


def compared_rows(values: NDArray[Any], done: int, *, most: int = MOST_COMPARED) -> NDArray[np.float32]:
    """Of a judged output (N, values) the rows to be compared, with `done` rows before them; (M, values), M at most N.

    So many that they are at most `most` values together with those before. Whole numbers are none: which of two equal classes
    is chosen is not rounding's measure.
    """
    width = max(values.shape[1], 1)
    room = max(most // width - done, 0) if values.dtype.kind == "f" else 0
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values[:room], dtype=np.float32)


def distances(here: Floats, there: Floats) -> NDArray[np.float64]:
    """How far each row of `here` lies from that of `there`: the largest difference, as a share of the largest value there.

    Infinities of one sign are equal, and so are values that are no numbers in both.
    """
    a, b = here.astype(np.float64), there.astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    scale = float(np.abs(b[np.isfinite(b)]).max(initial=0.0)) or 1.0
    alike = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        apart = np.where(alike, 0.0, np.where(finite, np.abs(a - b) / scale, _NO_NUMBER))
    return np.asarray(np.minimum(apart, _NO_NUMBER).max(axis=1, initial=0.0))


def gap_between(
    metric: str, here: Floats, there: Floats, outputs: tuple[Floats, Floats] | None = None, *, rounding: float = 0.0
) -> Gap:
    """Compare the scores of `score_samples` in two places, and the judged outputs of the first samples, (M, values) each.

    Shares go by McNemar's exact test, means of errors by Student's paired one, and what is no mean of samples (F1, AUROC,
    average precision) by the paired interval of its loss, as if that were normal. A mean must also differ by more than
    rounding does. `rounding` is by how much the build's outputs differ from those of the float model where it was made.
    Raises InvalidData where the two are not of the same samples.
    """
    info = metric_info(metric)
    if here.shape != there.shape:
        raise InvalidData(f"scores of the shapes {here.shape} and {there.shape} are not of the same samples")
    loss = paired_drop(metric, here, there)
    worse = _worse(info, here, there)
    p, test = _probability(info, loss, worse)
    margin = 0.0
    if info.kind == "mean":
        # Cosine and divergence have 1 as their natural scale; the original's are 1 and 0, of which no share can be taken.
        margin = ROUNDING * (float(np.mean(np.abs(there), dtype=np.float64)) if info.needs_targets else 1.0)
    apart = np.zeros(0)
    if outputs is not None:
        rows = min(map(len, outputs))
        if rows and outputs[0].shape[1] == outputs[1].shape[1]:
            apart = distances(*(one[:rows] for one in outputs))
    tolerance = outputs_tolerance(rounding)
    changed = here != there
    return Gap(
        loss=loss,
        p=p,
        test=test,
        differing=int((changed if changed.ndim == 1 else changed.any(axis=1)).sum()),
        compared=len(apart),
        distance=float(apart.max()) if len(apart) else None,
        tolerance=tolerance,
        beyond=int((apart > tolerance).sum()),
        by_metric=p is not None and p < SURE and abs(loss.value) > margin,
        worst=_worst(worse, _one_number(info, here), _one_number(info, there), apart),
    )


def _probability(info: MetricInfo, loss: Interval, worse: Floats | None) -> tuple[float | None, str]:
    if worse is not None and info.kind == "share":
        return mcnemar(int((worse > 0).sum()), int((worse < 0).sum())), "McNemar's exact test"
    if worse is not None and info.kind == "mean":
        return paired_t(worse), "Student's paired test"
    error = (loss.high - loss.low) / (2 * _Z95)
    test = "the paired interval of the loss"
    if loss.value == 0:
        return 1.0, test
    return (math.erfc(abs(loss.value) / error / math.sqrt(2)) if 0 < error < math.inf else None), test


def _one_number(info: MetricInfo, scores: Floats) -> Floats | None:
    """A sample's score as one number, where it has one: of F1 1 where it is right, or its share of right labels."""
    if scores.ndim == 1:
        return scores
    if info.kind != "f1":
        return None
    if info.base == "macro_f1":
        return np.asarray(scores[:, 0] == scores[:, 1], dtype=np.float64)
    # Twice the label, plus 1 where it was given.
    return np.asarray((scores // 2 == scores % 2).mean(axis=1), dtype=np.float64)


def _worse(info: MetricInfo, here: Floats, there: Floats) -> Floats | None:
    ours, theirs = _one_number(info, here), _one_number(info, there)
    if ours is None or theirs is None:
        return None
    difference = theirs.astype(np.float64) - ours.astype(np.float64)
    return np.asarray(difference if info.higher_is_better else -difference, dtype=np.float64)


def _worst(worse: Floats | None, here: Floats | None, there: Floats | None, apart: Floats) -> Worst | None:
    """Where a score is most the worse for it; of several, or where none is, whose outputs lie farthest apart."""
    count = len(worse) if worse is not None else len(apart)
    if not count:
        return None
    far = np.zeros(count)
    far[: len(apart)] = apart[:count]
    lost = np.maximum(worse, 0.0) if worse is not None else np.zeros(count)
    row = int(np.lexsort((far, lost))[-1])
    if lost[row] <= 0 and far[row] <= 0:
        return None
    return Worst(
        row=row,
        here=float(here[row]) if here is not None else None,
        there=float(there[row]) if there is not None else None,
        distance=float(far[row]) if row < len(apart) else None,
    )
