"""When a difference is called none, in speed or in outputs: one rule for the device, the choice and the tables. No NumPy."""

from __future__ import annotations

import math
from typing import Final

# Two builds whose speeds differ by less are one and the same to whoever deploys them.
EQUIVALENCE_MARGIN: Final = 0.01
ROUNDING: Final = 1e-3
"""What another order of sums may do: to outputs as a share of the largest, to a mean of errors as a share of it."""
# The rounding of where a build was made, and a machine whose arithmetic is twice as coarse.
_COARSER: Final = 3.0


def outputs_tolerance(rounding: float) -> float:
    """How far outputs of one build may lie apart on two machines, as a share of the largest value.

    `rounding` is how far they lie from the float model's where the build was made.
    """
    return max(ROUNDING, _COARSER * rounding)


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
