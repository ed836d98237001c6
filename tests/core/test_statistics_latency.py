"""Percentiles, steadiness, and intervals that know the spread between processes."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fleetfit.core.errors import InvalidData
from fleetfit.core.statistics import (
    Floats,
    Interval,
    geometric_interval,
    is_tie,
    median_interval,
    percentile,
    percentile_supported,
    ratio_interval,
    steady,
)
from fleetfit.core.statistics_student import student_quantile

Blocks = list[Floats]


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 11, 30, 199, 200, 201, 5000])
@pytest.mark.parametrize("probability", [0.025, 0.5, 0.9, 0.975, 0.995])
def test_students_quantiles_are_scipys(probability: float, freedom: int) -> None:
    assert student_quantile(probability, freedom) == pytest.approx(
        stats.t.ppf(probability, freedom), rel=1e-7, abs=1e-9
    )


@pytest.mark.parametrize(("probability", "freedom"), [(0.0, 3), (1.0, 3), (0.9, 0)])
def test_no_quantile_where_there_is_none(probability: float, freedom: int) -> None:
    with pytest.raises(ValueError, match="no quantile"):
        student_quantile(probability, freedom)


class TestPercentiles:
    @pytest.mark.parametrize(("percent", "needed"), [(90, 64), (95, 130), (99, 662)])
    def test_needs_as_many_samples_as_mlperf_says(self, percent: float, needed: int) -> None:
        assert percentile_supported(percent, needed)
        assert not percentile_supported(percent, needed - 1)

    def test_is_absent_rather_than_invented(self) -> None:
        assert percentile(99, np.arange(661.0)) is None
        assert percentile(99, np.arange(1000.0)) == pytest.approx(989.01)
        assert not percentile_supported(50, 0)

    @given(st.floats(50, 99.9), st.integers(1, 5000))
    def test_more_samples_never_carry_less(self, percent: float, samples: int) -> None:
        assert not percentile_supported(percent, samples) or percentile_supported(percent, samples + 1)


class TestSteady:
    def test_too_few_are_not(self) -> None:
        assert not steady([1.0] * 7)
        assert steady([1.0] * 8)

    def test_a_drift_is_not(self) -> None:
        assert not steady(np.linspace(2.0, 1.0, 40))

    def test_noise_without_drift_is(self) -> None:
        generator = np.random.default_rng(3)
        assert sum(steady(generator.lognormal(0, 0.3, 60)) for _ in range(300)) > 270


class TestIntervals:
    def test_one_process_has_no_bounds(self) -> None:
        assert geometric_interval([2.0]) == Interval(pytest.approx(2.0), 0.0, math.inf)

    def test_none_is_refused(self) -> None:
        with pytest.raises(InvalidData, match="nothing to compare"):
            geometric_interval([])

    def test_as_computed_by_scipy(self) -> None:
        values = [1.0, 1.2, 0.9, 1.1]
        low, high = stats.t.interval(0.95, 3, np.mean(np.log(values)), stats.sem(np.log(values)))
        found = geometric_interval(values)
        assert (found.low, found.high) == (pytest.approx(math.exp(low)), pytest.approx(math.exp(high)))

    @given(st.lists(st.floats(0.01, 100), min_size=2, max_size=9), st.floats(0.1, 10))
    def test_scales_with_the_unit(self, values: list[float], factor: float) -> None:
        one, other = geometric_interval(values), geometric_interval([v * factor for v in values])
        assert other.value == pytest.approx(one.value * factor)
        assert other.high == pytest.approx(one.high * factor)

    def test_the_median_knows_both_levels(self) -> None:
        """Intervals from one process's many samples would be 40 times narrower, and wrong."""
        covered = self._coverage(lambda generator: median_interval(processes(generator)), truth=1.0)
        assert 0.92 <= covered <= 0.98

    def test_the_ratio_knows_both_levels(self) -> None:
        covered = self._coverage(lambda generator: ratio_interval(pair_trials(generator, faster=1.25)), truth=1.25)
        assert 0.92 <= covered <= 0.98

    @staticmethod
    def _coverage(interval: Callable[[np.random.Generator], Interval], truth: float, runs: int = 600) -> float:
        generator = np.random.default_rng(5)
        found = [interval(generator) for _ in range(runs)]
        return sum(f.low <= truth <= f.high for f in found) / runs


def processes(generator: np.random.Generator) -> list[Floats]:
    return [generator.lognormal(generator.normal(0, 0.1), 0.05, 400) for _ in range(6)]


def pair_trials(generator: np.random.Generator, faster: float) -> list[tuple[Blocks, Blocks]]:
    """Each process favours one of the two a little, drifts as a whole, and has blocks that were disturbed."""
    found = []
    for _ in range(6):
        favour, drift = generator.normal(0, 0.03), generator.normal(0, 0.3)
        ours, theirs = [], []
        for at in range(12):
            slow = math.exp(drift * at / 12) * (1.5 if generator.random() < 0.15 else 1.0)
            ours.append(slow * math.exp(favour) * generator.lognormal(0, 0.05, 20) / faster)
            theirs.append(slow * generator.lognormal(0, 0.05, 20))
        found.append((ours, theirs))
    return found


class TestRatio:
    def test_is_how_many_times_faster_the_candidate_is(self) -> None:
        process = ([np.array([1.0, 1.0])] * 3, [np.array([3.0, 3.0])] * 3)
        assert ratio_interval([process, process]) == Interval(
            pytest.approx(3.0), pytest.approx(3.0), pytest.approx(3.0)
        )

    def test_what_slows_neighbours_alike_cancels(self) -> None:
        speeds = [1.0, 1.0, 5.0, 5.0, 5.0]
        process = ([np.array([s]) for s in speeds], [np.array([2 * s]) for s in speeds])
        lagging = ([np.array([s]) for s in speeds], [np.array([2 * s]) for s in reversed(speeds)])
        assert ratio_interval([process]).value == pytest.approx(2.0)
        assert ratio_interval([lagging]).value == pytest.approx(2.0)

    def test_without_samples_of_one_build_there_is_none(self) -> None:
        with pytest.raises(InvalidData, match="one build only"):
            ratio_interval([([np.array([1.0])], [])])


class TestTies:
    def test_overlap_of_the_difference_is_a_tie(self) -> None:
        a, b, c = Interval(1.0, 0.9, 1.11), Interval(1.1, 1.0, 1.21), Interval(2.0, 1.9, 2.1)
        assert is_tie(a, b) and is_tie(b, a) and is_tie(a, a)
        assert not is_tie(a, c)

    def test_what_has_no_bounds_ties_with_everything(self) -> None:
        assert is_tie(geometric_interval([1.0]), Interval(9.0, 8.9, 9.1))
