"""The area under the ROC curve, macro-averaged one-vs-rest, with its interval, and paired differences of it.

The variance is that of E. DeLong, D. DeLong and D. Clarke-Pearson, Biometrics 44 (1988), by midranks (X. Sun and W. Xu,
IEEE Signal Processing Letters 21, 2014): the area is a mean over samples of structural components, and so is a mean of
several areas and a difference of two. DeLong's interval has no width where no pair of samples is in the wrong order; so the
interval of one area is Wilson's for the number of samples that this variance is worth (E. Korn and B. Graubard, Survey
Methodology 24, 1998), and that of a difference holds half a sample more for and against.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fleetfit.core.errors import InvalidData

Numbers = NDArray[Any]
_Z95: Final = 1.959963984540054


@dataclass(frozen=True)
class _Area:
    value: float
    components: NDArray[np.float64]
    """What each sample adds to the error of the area, (N,); the variance is the mean of their squares over N."""
    worth: float
    """As many samples as the area can be worth at most."""
    least: float
    """The variance of half a sample for and half a one against, whose rank moves past half of the others."""
    wanted: Numbers

    @property
    def variance(self) -> float:
        return float((self.components**2).mean()) / len(self.components)


def auroc_value(scores: Numbers) -> tuple[float, float, float]:
    """The area with its 95 % interval, each from 0 to 1. `scores` are those of `score_samples`.

    Of several classes or labels the mean of the areas of those that are and are not in the split. A score that is not a
    number counts as in the wrong place. Raises InvalidData where no class has samples on both sides.
    """
    area = _area(scores)
    a, spread = area.value, area.value * (1 - area.value)
    n = min(spread / area.variance, area.worth) if area.variance > 0 and spread > 0 else area.worth
    centre = (a + _Z95**2 / (2 * n)) / (1 + _Z95**2 / n)
    half = _Z95 / (1 + _Z95**2 / n) * math.sqrt(spread / n + _Z95**2 / (4 * n * n))
    return a, max(min(centre - half, a), 0.0), min(max(centre + half, a), 1.0)


def auroc_drop(scores: Numbers, reference: Numbers) -> tuple[float, float, float]:
    """How much smaller the area is than the reference's, sample by sample, with its 95 % interval; -1 to 1.

    Raises InvalidData where the two were not scored on the same samples.
    """
    ours, theirs = _area(scores), _area(reference)
    if ours.wanted.shape != theirs.wanted.shape or not np.array_equal(ours.wanted, theirs.wanted):
        raise InvalidData("the two builds were scored on different samples; measure both on the same split")
    value = theirs.value - ours.value
    difference = theirs.components - ours.components
    half = _Z95 * math.sqrt(float((difference**2).mean()) / len(difference) + ours.least)
    return value, max(value - half, -1.0), min(value + half, 1.0)


def _area(scores: Numbers) -> _Area:
    wanted, sides = _sides(scores)
    n = len(wanted)
    values, parts, shares, least = [], [], [], []
    for positive, score in sides:
        m = int(positive.sum())
        if not 0 < m < n:
            continue
        value, part = _one(positive, score)
        values.append(value)
        parts.append(part)
        shares.append(n / (4 * m * (n - m)))
        least.append((1 / m + 1 / (n - m)) / (4 * n))
    if not values:
        raise InvalidData("AUROC needs samples of at least two classes, and the split has one; push more data")
    count = len(values)
    worth = min(float(n), count**2 / sum(shares))
    return _Area(float(np.mean(values)), np.mean(parts, axis=0), worth, sum(least) / count**2, wanted)


def _sides(scores: Numbers) -> tuple[Numbers, list[tuple[NDArray[np.bool_], NDArray[np.float64]]]]:
    """What was wanted, and for each class or label which samples are of it, and its scores."""
    rows = scores.reshape(len(scores), -1).astype(np.float64)
    if len(rows) and (rows[:, 0] >= 0).all() and rows.shape[1] > 2:
        wanted, ranked = rows[:, 0], _comparable(rows[:, 1:])
        return wanted, [(wanted == which, ranked[:, which]) for which in range(ranked.shape[1])]
    labels = (rows.shape[1] - 1) // 2
    if not len(rows) or (rows[:, 0] != -1).any() or labels < 1 or rows.shape[1] != 1 + 2 * labels:
        raise InvalidData("the scores are none of this metric; update the agent that measured them")
    given, values = rows[:, 1 : 1 + labels], rows[:, 1 + labels :]
    return given, [(given[:, which] == 1, values[:, which]) for which in range(labels)]


def _comparable(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Class scores in an order that is the same over samples: by the odds of each class.

    Logits are known but for a constant of each sample; probabilities (nowhere negative, summing to one) are as they are.
    """
    known = scores[~np.isnan(scores).any(axis=1)]
    bounded = len(known) > 0 and bool((known >= 0).all() and (known <= 1).all())
    if bounded and abs(float(np.median(known.sum(axis=1))) - 1) < 0.05:
        return scores
    # What is infinite has no difference to another infinite value.
    finite = np.clip(scores, -1e30, 1e30)
    ranked = np.empty_like(finite)
    for which in range(finite.shape[1]):
        others = np.delete(finite, which, axis=1)
        largest = others.max(axis=1)
        ranked[:, which] = finite[:, which] - largest - np.log(np.exp(others - largest[:, None]).sum(axis=1))
    return ranked


def _one(positive: NDArray[np.bool_], score: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """One area, and each sample's part of its error."""
    placed = np.where(np.isnan(score), np.where(positive, -np.inf, np.inf), score)
    n, m = len(placed), int(positive.sum())
    ranks, component = _midranks(placed), np.empty(n)
    component[positive] = (ranks[positive] - _midranks(placed[positive])) / (n - m)
    component[~positive] = 1 - (ranks[~positive] - _midranks(placed[~positive])) / m
    value = float(component[positive].mean())
    scale = np.where(positive, m * max(m - 1, 1), (n - m) * max(n - m - 1, 1))
    return value, (component - value) * n / np.sqrt(scale)


def _midranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[place.reshape(-1)], dtype=np.float64)
