"""When a difference in speed is called none: one rule for the device, the choice and the tables. No NumPy."""

from __future__ import annotations

import math
from typing import Final

# Two builds whose speeds differ by less are one and the same to whoever deploys them.
EQUIVALENCE_MARGIN: Final = 0.01


def is_even(low: float | None, high: float | None, margin: float = EQUIVALENCE_MARGIN) -> bool:
    """Whether a ratio's interval proves no difference worth the name: it holds 1, or lies within `margin` of it.

    A bound that is not known (None) proves nothing. Source of the second half: D. J. Schuirmann, "A comparison of the two
    one-sided tests procedure and the power approach", J. Pharmacokinetics and Biopharmaceutics 15 (1987).
    """
    low, high = low if low is not None else 0.0, high if high is not None else math.inf
    return low <= 1 <= high or is_equivalent(low, high, margin)


def is_equivalent(low: float | None, high: float | None, margin: float = EQUIVALENCE_MARGIN) -> bool:
    """Whether the whole interval lies within `margin` of 1: the two are equally fast beyond doubt."""
    return low is not None and high is not None and 1 / (1 + margin) <= low and high <= 1 + margin
