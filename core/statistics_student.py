"""Intervals of means by Student's t distribution, without SciPy: agents have none, and it takes longer to import than to use."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # For the types alone: a server's process, which has no NumPy, judges by these quantiles too.
    import numpy as np
    from numpy.typing import NDArray

# From here on the expansion below is exact to 1e-9.
_MANY = 200
# From here on the sum takes long, and the normal distribution is exact to 1e-5.
_EXACT = 20_000


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


@lru_cache(maxsize=1024)
def student_quantile(probability: float, freedom: int) -> float:
    """The value that a t variable with `freedom` degrees of freedom stays below with `probability`.

    Raises ValueError for a probability outside 0..1 or fewer than one degree of freedom.
    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3, 26.7.4 and 26.7.5.
    """
    if not 0 < probability < 1 or freedom < 1:
        raise ValueError(f"no quantile {probability} of Student's t with {freedom} degrees of freedom")
    if probability < 0.5:
        return -student_quantile(1 - probability, freedom)
    if freedom > _MANY:
        return _expanded(NormalDist().inv_cdf(probability), freedom)
    low, high = 0.0, 1.0
    while _central(high, freedom) < 2 * probability - 1:
        low, high = high, high * 2
    for _ in range(100):
        middle = (low + high) / 2
        if _central(middle, freedom) < 2 * probability - 1:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def student_tails(t: float, freedom: int) -> float:
    """The probability that a t variable lies at least as far from 0 as `t`. Raises ValueError for no degree of freedom."""
    if freedom < 1:
        raise ValueError(f"no tails of Student's t with {freedom} degrees of freedom")
    if freedom > _EXACT:
        return math.erfc(abs(t) / math.sqrt(2))
    return max(0.0, 1.0 - _central(abs(t), freedom))


def _central(t: float, freedom: int) -> float:
    """The probability that |T| <= t."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine2 = math.cos(angle) ** 2
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(3 if odd else 2, freedom - 1, 2):
        term *= cosine2 * (k - 1) / k
        total += term
    if odd:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total


def _expanded(z: float, freedom: int) -> float:
    """A and S 26.7.5."""
    g1 = (z**3 + z) / 4
    g2 = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    g3 = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + g1 / freedom + g2 / freedom**2 + g3 / freedom**3


def mean_bounds(values: NDArray[np.float64]) -> tuple[float, float]:
    """Student's interval of the mean; unbounded for one value, which says nothing about the spread."""
    n, mean = len(values), float(values.mean())
    if n < 2:
        return -math.inf, math.inf
    half = student_quantile(0.975, n - 1) * float(values.std(ddof=1)) / math.sqrt(n)
    return mean - half, mean + half
