from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetfit.core.statistics_latency import is_tie as is_tie_with_numpy
from fleetfit.core.statistics_student import Interval
from fleetfit.server.report.summary import Figure
from fleetfit.server.selection.ratios import UNITY, is_a_tie, is_faster, is_slower, is_tie, quotient

figures = st.tuples(st.floats(0.1, 10), st.floats(1.0001, 2)).map(
    lambda r: Figure(value=r[0], low=r[0] / r[1], high=r[0] * r[1])
)


@given(figures, figures)
def test_a_quotient_turned_round_is_the_inverse(a: Figure, b: Figure) -> None:
    one, other = quotient(a, b), quotient(b, a)
    assert one.low and one.high and other.low and other.high
    assert one.value * other.value == pytest.approx(1)
    assert one.low * other.high == pytest.approx(1)
    assert is_tie(a, b) == is_tie(b, a) == (not is_faster(one) and not is_slower(one))


@given(figures, figures)
def test_it_says_what_the_statistics_say(a: Figure, b: Figure) -> None:
    def interval(f: Figure) -> Interval:
        return Interval(f.value, f.low or 0.0, f.high or 0.0)

    assert is_tie(a, b) == is_tie_with_numpy(interval(a), interval(b))


@given(figures)
def test_against_itself_measured_exactly(a: Figure) -> None:
    same = quotient(a, UNITY)
    assert (same.value, same.low, same.high) == pytest.approx((a.value, a.low, a.high))


def test_unknown_bounds_prove_nothing() -> None:
    vague = Figure(value=9.0, low=None, high=None)
    assert not is_faster(vague) and not is_slower(vague) and is_tie(vague, UNITY)
    assert quotient(vague, UNITY).low is None


def test_a_difference_that_nobody_would_notice_is_a_tie() -> None:
    small = Figure(value=1.005, low=1.002, high=1.008)
    assert not is_faster(small) and not is_slower(small) and is_a_tie(small) and is_tie(small, UNITY)
    real = Figure(value=1.01, low=1.002, high=1.018)
    assert is_faster(real) and not is_a_tie(real)
