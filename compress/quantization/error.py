"""How far a build's outputs are from another's, on data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Outputs = Mapping[str, NDArray[Any]]


def output_errors(expected: Outputs, found: Outputs) -> dict[str, float]:
    """The error of every output: the root mean square difference, relative to how much the output varies over the samples.

    1 is as bad as a constant. For whole numbers it is the share of values that differ. Infinite where a value is not finite
    that should be.
    """
    return {name: _error(values, found[name]) for name, values in expected.items()}


def _error(expected: NDArray[Any], found: NDArray[Any]) -> float:
    if not np.issubdtype(expected.dtype, np.floating):
        return float((expected != found).mean()) if expected.size else 0.0
    a, b = expected.astype(np.float64), found.astype(np.float64)
    finite = np.isfinite(a)
    if not np.isfinite(b[finite]).all():
        return float("inf")
    a, b = np.where(finite, a, 0.0), np.where(finite, b, 0.0)
    difference = float(np.square(a - b).sum())
    varies = float(np.square(a - a.mean(0, keepdims=True)).sum())
    # One that never varies is compared with its size.
    scale = varies if varies > 1e-12 * float(np.square(a).sum()) else float(np.square(a).sum())
    if difference == 0.0:
        return 0.0
    return float(np.sqrt(difference / scale)) if scale > 0 else float("inf")
