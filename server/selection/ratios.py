"""Ratios with their intervals, as far as a choice needs them: no NumPy, because the server's process chooses."""

from __future__ import annotations

import math
from typing import Final

from fleetfit.core.ties import is_even
from fleetfit.server.report.summary import Figure

UNITY: Final = Figure(value=1.0, low=1.0, high=1.0)


def is_faster(ratio: Figure | None) -> bool:
    """Whether the whole 95 % interval lies above 1, by more than nothing worth the name; an unknown bound proves nothing."""
    return ratio is not None and ratio.low is not None and ratio.low > 1 and not is_even(ratio.low, ratio.high)


def is_slower(ratio: Figure | None) -> bool:
    """Whether the whole 95 % interval lies below 1, by more than nothing worth the name."""
    return ratio is not None and ratio.high is not None and ratio.high < 1 and not is_even(ratio.low, ratio.high)


def is_a_tie(ratio: Figure) -> bool:
    """Whether a ratio is called a tie: neither faster nor slower by anything worth the name. See core/ties.py."""
    return not is_faster(ratio) and not is_slower(ratio)


def quotient(a: Figure, b: Figure) -> Figure:
    """How many times as fast as the build of `b` the build of `a` is, both measured against one baseline.

    The two were measured in different processes, so the half-widths of their logarithms add as independent errors do.
    """
    return product(a, _inverse(b))


def product(a: Figure, b: Figure) -> Figure:
    """How many times as fast as what `b` was measured beside the build of `a` is, which was measured beside the build of `b`.

    Measured apart, so the half-widths add as in `quotient`.
    """
    value = a.value * b.value
    bounds = (a.low, a.high, b.low, b.high)
    if any(bound is None or not 0 < bound < math.inf for bound in bounds):
        return Figure(value=value, low=None, high=None)
    a_low, a_high, b_low, b_high = (math.log(bound) for bound in bounds if bound)
    a_log, b_log = math.log(a.value), math.log(b.value)
    down = math.hypot(a_log - a_low, b_log - b_low)
    up = math.hypot(a_high - a_log, b_high - b_log)
    return Figure(value=value, low=value * math.exp(-down), high=value * math.exp(up))


def _inverse(ratio: Figure) -> Figure:
    low, high = (None if bound is None else 1 / bound if bound else math.inf for bound in (ratio.high, ratio.low))
    return Figure(value=1 / ratio.value, low=low, high=high)


def is_tie(a: Figure, b: Figure) -> bool:
    """Whether two ratios against one baseline cannot be told apart at 95 %, or differ by nothing worth the name."""
    return is_a_tie(quotient(a, b))
