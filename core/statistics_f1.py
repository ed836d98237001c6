"""F1, macro-averaged, with its interval, and how much less of it one build has than another.

F1 is no mean over samples, so its intervals are percentiles of a bootstrap over samples: B. Efron and R. Tibshirani,
An Introduction to the Bootstrap (1993), chapter 13. A bootstrap alone would call a build without a mistake perfect
beyond doubt, and two builds that never differ equal; so the samples drawn from hold, as A. Agresti and B. Coull (The
American Statistician 52, 1998) and A. Agresti and Y. Min (Statistics in Medicine 24, 2005) do for shares, a few made up
ones that are right and wrong: for one build two each, for two builds half a one for each way in which two can differ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fleetfit.core.errors import InvalidData

Numbers = NDArray[Any]
Weights = NDArray[np.float64]
_DRAWS: Final = 1000
_SEED: Final = 0
# Numbers held at once: a device may have little memory.
_CHUNK: Final = 1 << 20


def f1_value(scores: Numbers, *, classes: bool) -> tuple[float, float, float]:
    """Macro F1 with its 95 % interval, each from 0 to 1.

    `scores` are those of `score_samples`: (N, 2) with the class and the chosen class where `classes`, else (N, labels) of
    codes. The mean is over classes (labels) that occur in the split. Raises InvalidData where none does.
    """
    target, given = _read(scores, classes=classes)
    right, wrong = target, _wrong(target, classes=classes)
    made_up = [(right, 2.0), (wrong, 2.0)]
    rows = np.concatenate([target, given], axis=1)
    cells, weights = _cells(rows, [(np.concatenate([target, one], axis=1), share) for one, share in made_up])
    width = target.shape[1]
    counted = _Counted.of(cells[:, :width], cells[:, width:], classes=classes)
    value = _of_all(target, given, classes=classes)
    low, high = _bounds(weights, lambda drawn: _macro(counted, drawn))
    return value, min(low, value), max(high, value)


def f1_drop(scores: Numbers, reference: Numbers, *, classes: bool) -> tuple[float, float, float]:
    """How much smaller macro F1 is than the reference's, sample by sample, with its 95 % interval; -1 to 1.

    Raises InvalidData where the two were not scored on the same samples.
    """
    target, ours = _read(scores, classes=classes)
    same, theirs = _read(reference, classes=classes)
    if not np.array_equal(target, same):
        raise InvalidData("the two builds were scored on different samples; measure both on the same split")
    right, wrong = target, _wrong(target, classes=classes)
    pairs = [(wrong, right), (right, wrong), (right, right), (wrong, wrong)]
    rows = np.concatenate([target, ours, theirs], axis=1)
    cells, weights = _cells(rows, [(np.concatenate([target, a, b], axis=1), 0.5) for a, b in pairs])
    width = target.shape[1]
    parts = cells[:, :width], cells[:, width : 2 * width], cells[:, 2 * width :]
    counted_a = _Counted.of(parts[0], parts[1], classes=classes)
    counted_b = _Counted.of(parts[0], parts[2], classes=classes)
    value = _of_all(target, theirs, classes=classes) - _of_all(target, ours, classes=classes)
    low, high = _bounds(weights, lambda drawn: _macro(counted_b, drawn) - _macro(counted_a, drawn))
    return value, min(low, value), max(high, value)


def _read(scores: Numbers, *, classes: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What was wanted and what was given: (N, 1) of classes, or (N, labels) of 0 and 1."""
    rows = scores.reshape(len(scores), -1)
    if not np.isfinite(rows).all() or (classes and rows.shape[1] != 2):
        raise InvalidData("the scores are none of this metric; update the agent that measured them")
    whole = rows.astype(np.int64)
    return (whole[:, :1], whole[:, 1:]) if classes else (whole // 2, whole % 2)


def _wrong(target: NDArray[np.int64], *, classes: bool) -> NDArray[np.int64]:
    """Each sample answered wrongly: by the next class that occurs, or by the opposite of every label."""
    if not classes:
        return 1 - target
    known, place = np.unique(target, return_inverse=True)
    other = np.roll(known, -1) if len(known) > 1 else np.full(1, -1)
    return np.asarray(other[place.reshape(target.shape)], dtype=np.int64)


def _cells(rows: NDArray[np.int64], made_up: list[tuple[NDArray[np.int64], float]]) -> tuple[Numbers, Weights]:
    """The different rows and the weight of each: drawing samples is drawing how often each of them comes."""
    share = [np.ones(len(rows))] + [np.full(len(more), weight / len(more)) for more, weight in made_up]
    cells, place = np.unique(np.concatenate([rows, *(more for more, _ in made_up)]), axis=0, return_inverse=True)
    return cells, np.asarray(np.bincount(place.reshape(-1), weights=np.concatenate(share)), dtype=np.float64)


@dataclass(frozen=True)
class _Counted:
    """Which cells count as true positives, false positives and false negatives, each with the class that it counts for."""

    right: tuple[Numbers, Numbers]
    too_many: tuple[Numbers, Numbers]
    missed: tuple[Numbers, Numbers]
    classes: int

    @classmethod
    def of(cls, target: NDArray[np.int64], given: NDArray[np.int64], *, classes: bool) -> _Counted:
        if not classes:
            return cls(_where(target & given), _where(given & ~target), _where(target & ~given), target.shape[1])
        known = np.unique(target)
        own, chosen = np.searchsorted(known, target[:, 0]), np.searchsorted(known, given[:, 0]).clip(0, len(known) - 1)
        right = target[:, 0] == given[:, 0]
        # A class that was chosen but never wanted has no F1 of its own; the class that was wanted pays for it.
        elsewhere = ~right & (known[chosen] == given[:, 0])
        too_many = np.flatnonzero(elsewhere), chosen[elsewhere]
        return cls((np.flatnonzero(right), own[right]), too_many, (np.flatnonzero(~right), own[~right]), len(known))


def _where(mask: Numbers) -> tuple[Numbers, Numbers]:
    rows, columns = np.nonzero(mask)
    return rows, columns


def _of_all(target: NDArray[np.int64], given: NDArray[np.int64], *, classes: bool) -> float:
    value = float(_macro(_Counted.of(target, given, classes=classes), np.ones((1, len(target))))[0])
    if np.isnan(value):
        raise InvalidData("F1 needs samples of at least one class or label, and the split has none; push more data")
    return value


def _macro(counted: _Counted, drawn: Weights) -> Weights:
    """The mean F1 of the classes that occur, for each row of `drawn` (draws, cells); NaN where none does."""
    right, too_many, missed = (
        _sums(drawn, *which, counted.classes) for which in (counted.right, counted.too_many, counted.missed)
    )
    there = right + missed > 0
    each = np.where(there, 2 * right / np.maximum(2 * right + too_many + missed, 1e-300), 0.0)
    count = there.sum(axis=1)
    return np.where(count > 0, each.sum(axis=1) / np.maximum(count, 1), np.nan)


def _sums(drawn: Weights, cell: Numbers, of: Numbers, classes: int) -> Weights:
    """What `drawn` holds of the cells of each class: (draws, classes)."""
    found = np.zeros((len(drawn), classes))
    if len(cell):
        order = np.argsort(of, kind="stable")
        present, starts = np.unique(of[order], return_index=True)
        found[:, present] = np.add.reduceat(drawn[:, cell[order]], starts, axis=1)
    return found


def _bounds(weights: Weights, statistic: Callable[[Weights], Weights]) -> tuple[float, float]:
    """The 2.5 and 97.5 percentiles of a statistic over draws of as many samples as the weights add up to."""
    generator = np.random.default_rng(_SEED)
    total, share = round(float(weights.sum())), weights / weights.sum()
    at_once = max(1, _CHUNK // len(weights))
    found = [
        statistic(generator.multinomial(total, share, size=min(at_once, _DRAWS - at)).astype(np.float64))
        for at in range(0, _DRAWS, at_once)
    ]
    low, high = np.nanquantile(np.concatenate(found), [0.025, 0.975])
    return float(low), float(high)
