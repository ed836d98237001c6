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
from fleetfit.core.statistics_latency import (
    Floats,
    batch_median,
    geometric_interval,
    half_width,
    is_tie,
    median_interval,
    median_spread,
    order_bounds,
    percentile,
    percentile_interval,
    percentile_supported,
    process_spread,
    quotient_interval,
    ratio_interval,
    spread_within_engines,
    steady,
)
from fleetfit.core.statistics_student import Interval, student_quantile
from fleetfit.core.ties import EQUIVALENCE_MARGIN, is_equivalent, is_even

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

    @given(st.integers(1, 300), st.floats(1, 99))
    def test_order_statistics_hold_their_level(self, count: int, percent: float) -> None:
        """Both bounds against SciPy's binomial distribution: each errs in at most 2.5 %, and one rank nearer would not."""
        low, high = order_bounds(percent, np.arange(1.0, count + 1))
        below = stats.binom(count, percent / 100)
        rank = 0 if math.isinf(low) else int(low)
        assert below.cdf(rank - 1) <= 0.025 + 1e-9 and below.cdf(rank) > 0.025 - 1e-9
        rank = count + 1 if math.isinf(high) else int(high)
        assert below.sf(rank - 1) <= 0.025 + 1e-9 and below.sf(rank - 2) > 0.025 - 1e-9

    def test_a_percentile_knows_both_levels(self) -> None:
        truth = math.exp(1.6448536 * 0.05)
        generator = np.random.default_rng(6)
        found = [percentile_interval(95, processes(generator)) for _ in range(400)]
        covered = sum(f is not None and f.low <= truth <= f.high for f in found) / 400
        assert 0.90 <= covered <= 0.99
        # As if all samples were independent of their process: an interval far too narrow.
        naive = [order_bounds(95, np.sort(np.concatenate(processes(generator)))) for _ in range(400)]
        assert sum(low <= truth <= high for low, high in naive) / 400 < 0.6

    def test_the_process_with_the_most_samples_does_not_speak_for_all(self) -> None:
        few, many = np.linspace(2.0, 2.2, 60), np.linspace(1.0, 1.1, 6000)
        median, p95 = median_interval([few, few, many]), percentile_interval(95, [few, few, many])
        # (1 + 0.095) / (1 + 0.05) in either kind.
        assert p95 is not None and p95.value / median.value == pytest.approx(1.095 / 1.05, rel=1e-3)

    def test_a_percentile_of_one_process_has_no_bounds(self) -> None:
        assert percentile_interval(95, [np.arange(1.0, 131.0)]) == Interval(pytest.approx(123.55), 0.0, math.inf)
        assert percentile_interval(95, [np.arange(1.0, 130.0)]) is None
        assert percentile_interval(95, []) is None

    @given(st.lists(st.integers(60, 200), min_size=3, max_size=6), st.floats(0.1, 100), st.integers(0, 99))
    def test_its_bounds_hold_it_and_scale(self, counts: list[int], factor: float, seed: int) -> None:
        generator = np.random.default_rng(seed)
        samples = [generator.lognormal(0, 0.1, count) for count in counts]
        one = percentile_interval(95, samples)
        other = percentile_interval(95, [factor * process for process in samples])
        assert one is not None and other is not None
        assert one.low <= one.value <= one.high
        assert (other.low, other.value, other.high) == pytest.approx(
            [factor * x for x in (one.low, one.value, one.high)]
        )

    def test_how_far_a_median_may_be_off(self) -> None:
        generator = np.random.default_rng(7)
        spreads = [median_spread(generator.lognormal(0, 0.05, 700)) for _ in range(50)]
        # Normal theory: 1.96 * 1.2533 * 0.05 / sqrt(700).
        assert np.mean(spreads) == pytest.approx(0.00464, rel=0.1)
        assert math.isinf(median_spread([])) and math.isinf(median_spread([1.0] * 5))
        assert median_spread([2.0] * 6) == 0


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

    def test_a_long_run_knows_that_its_samples_depend_on_their_neighbours(self) -> None:
        """A wave that lasts 20 samples: as if independent, an interval would be four times too narrow."""

        def run(generator: np.random.Generator) -> Floats:
            steps, wave = generator.normal(0, 0.02, 3000), np.zeros(3000)
            for at in range(1, 3000):
                wave[at] = 0.95 * wave[at - 1] + steps[at]
            return np.exp(wave)

        generator = np.random.default_rng(12)
        found = [batch_median(run(generator)) for _ in range(150)]
        assert 0.90 <= sum(f.low <= 1 <= f.high for f in found) / 150 <= 0.99
        naive = [order_bounds(50, np.sort(run(generator))) for _ in range(150)]
        assert sum(low <= 1 <= high for low, high in naive) / 150 < 0.6

    def test_few_samples_of_a_long_run(self) -> None:
        assert batch_median(np.array([3.0])) == Interval(3.0, 0.0, math.inf)
        found = batch_median(np.array([3.0, 5.0]))
        assert found.value == 4.0 and 0 < found.low < 3 and found.high > 5

    @given(st.floats(0.1, 10), st.floats(1, 2), st.floats(0.1, 10), st.floats(1, 2))
    def test_a_quotient_adds_what_both_do_not_know(self, a: float, spread: float, b: float, other: float) -> None:
        found = quotient_interval(Interval(a, a / spread, a * spread), Interval(b, b / other, b * other))
        assert found.value == pytest.approx(a / b)
        half = math.hypot(math.log(spread), math.log(other))
        assert (found.low, found.high) == (
            pytest.approx(a / b * math.exp(-half)),
            pytest.approx(a / b * math.exp(half)),
        )

    def test_what_the_order_of_loading_does_stays_out_of_the_ratio(self) -> None:
        """Whoever is loaded first is 1.5 % faster, processes differ by 0.3 %: the first hides nothing, and costs no width."""
        generator = np.random.default_rng(8)
        first = [at % 2 == 0 for at in range(6)]

        def interval(known: bool) -> Interval:
            pairs = [
                ([np.full(3, math.exp(-0.015 if is_first else 0.015))], [np.full(3, generator.lognormal(0, 0.003))])
                for is_first in first
            ]
            return ratio_interval(pairs, first if known else ())

        aware, naive = [interval(True) for _ in range(400)], [interval(False) for _ in range(400)]
        assert 0.92 <= sum(f.low <= 1 <= f.high for f in aware) / 400 <= 0.98
        assert np.median([half_width(f) for f in aware]) < 0.3 * np.median([half_width(f) for f in naive])

    def test_both_orders_count_alike_however_often_each_came(self) -> None:
        pairs = [([np.array([1.0])], [np.array([ratio])]) for ratio in (2.0, 2.0, 2.0, 2.0, 8.0, 8.0)]
        found = ratio_interval(pairs, [True, True, True, True, False, False])
        assert found == Interval(pytest.approx(4.0), pytest.approx(4.0), pytest.approx(4.0))

    def test_an_order_that_came_once_says_nothing(self) -> None:
        pairs = [([np.array([1.0])], [np.array([ratio])]) for ratio in (2.0, 2.1, 2.2)]
        assert ratio_interval(pairs, [True, True, False]) == ratio_interval(pairs)

    def test_stopping_when_it_is_narrow_costs_little_coverage(self) -> None:
        """As an agent samples: from 6 processes on, two more until the interval is within 1 %, at most 16."""
        generator = np.random.default_rng(9)
        covered, used = [], []
        for _ in range(400):
            logs, count = generator.normal(0, 0.015, 16), 6
            first = [at % 2 == 0 for at in range(16)]
            pairs = [([np.array([1.0])], [np.array([math.exp(log)])]) for log in logs]
            while half_width(found := ratio_interval(pairs[:count], first[:count])) > 0.01 and count < 16:
                count += 2
            covered.append(found.low <= 1 <= found.high)
            used.append(count)
        assert 0.90 <= np.mean(covered) <= 0.99
        # Both ends are met, so stopping early is what is tested.
        assert min(used) < 10 and max(used) == 16

    def test_engines_are_a_level_of_the_error(self) -> None:
        """Engines differ by 2 % and processes by 0.3 %: more processes of the same three engines tell nothing of others."""
        engines = [at // 2 % 3 for at in range(12)]
        first = [at % 2 == 0 for at in range(12)]

        def interval(generator: np.random.Generator, *, known: bool) -> Interval:
            of_engine = generator.normal(0, 0.02, 3)
            ratios = [math.exp(of_engine[engine] + generator.normal(0, 0.003)) for engine in engines]
            pairs = [([np.array([1.0])], [np.array([ratio])]) for ratio in ratios]
            return ratio_interval(pairs, first, engines if known else ())

        aware = self._coverage(lambda generator: interval(generator, known=True), truth=1.0)
        assert 0.92 <= aware <= 0.98
        assert self._coverage(lambda generator: interval(generator, known=False), truth=1.0) < 0.8
        generator = np.random.default_rng(6)
        covered = 0
        for _ in range(300):
            speed = generator.normal(0, 0.02, 3)
            some = [generator.lognormal(speed[engine], 0.003, 20) for engine in engines]
            found = median_interval(some, engines)
            covered += found.low <= 1 <= found.high
        assert 0.92 <= covered / 300 <= 0.98

    def test_what_more_processes_could_narrow_is_told_apart(self) -> None:
        generator = np.random.default_rng(7)
        engines, first = [at // 2 % 3 for at in range(12)], [at % 2 == 0 for at in range(12)]

        def spread(of_engines: float, of_order: float, of_processes: float) -> float:
            speed = generator.normal(0, of_engines, 3)
            logs = [
                speed[e] + of_order * f + generator.normal(0, of_processes) for e, f in zip(engines, first, strict=True)
            ]
            pairs = [([np.array([1.0])], [np.array([math.exp(log)])]) for log in logs]
            return spread_within_engines(pairs, first, engines)

        usual = np.median([spread(0.0, 0.0, 0.003) for _ in range(100)])
        assert usual == pytest.approx(np.median([spread(0.05, 0.02, 0.003) for _ in range(100)]), rel=0.15)
        # Student's factor for 12 processes less 3 engines and an order.
        assert usual == pytest.approx(2.306 * 0.003 / math.sqrt(12), rel=0.15)
        two = [([np.array([1.0])], [np.array([2.0])])] * 2
        assert spread_within_engines(two, [True, False], [0, 1]) == math.inf

    def test_one_engine_is_no_level(self) -> None:
        pairs = [([np.array([1.0])], [np.array([ratio])]) for ratio in (2.0, 2.1, 2.2, 2.3)]
        first = [True, False, True, False]
        assert ratio_interval(pairs, first, [0, 0, 0, 0]) == ratio_interval(pairs, first)
        assert percentile_interval(50, [np.ones(64), np.array([]), np.ones(64) * 2], [1, 2, 2]) == percentile_interval(
            50, [np.ones(64), np.ones(64) * 2]
        )

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

    def test_how_far_one_process_may_be_off(self) -> None:
        generator = np.random.default_rng(10)
        still = [np.array([1.0])] * 12
        spreads = [process_spread([np.array([x]) for x in generator.lognormal(0, 0.02, 12)], still) for _ in range(300)]
        # 1.96 * 1.2533 * 0.02 / sqrt(12) by normal theory; the deviation of so few is a little low in the mean.
        assert 0.011 <= np.mean(spreads) <= 0.0145
        assert process_spread(still, still) == 0
        assert math.isinf(process_spread(still[:2], still[:2]))


class TestTies:
    def test_an_interval_that_holds_one_or_lies_beside_it_is_even(self) -> None:
        assert is_even(0.9, 1.1) and is_even(1.0, 1.5) and is_even(None, 1.2) and is_even(None, None)
        assert not is_even(1.02, 1.1) and not is_even(0.8, 0.98) and not is_even(1.2, None)
        # Proven to differ, and by nothing that anybody would notice.
        assert is_even(1.002, 1.008) and is_equivalent(1.002, 1.008)
        assert not is_even(1.002, 1.011) and not is_equivalent(None, 1.001)

    @given(st.floats(0.5, 2), st.floats(0.5, 2))
    def test_even_is_the_same_seen_from_the_other_build(self, one: float, other: float) -> None:
        low, high = sorted((one, other))
        edges = (1 / (1 + EQUIVALENCE_MARGIN), 1 + EQUIVALENCE_MARGIN, 1.0)
        if all(abs(bound - edge) > 1e-9 for bound in (low, high) for edge in edges):
            assert is_even(low, high) == is_even(1 / high, 1 / low)

    def test_overlap_of_the_difference_is_a_tie(self) -> None:
        a, b, c = Interval(1.0, 0.9, 1.11), Interval(1.1, 1.0, 1.21), Interval(2.0, 1.9, 2.1)
        assert is_tie(a, b) and is_tie(b, a) and is_tie(a, a)
        assert not is_tie(a, c)

    def test_what_has_no_bounds_ties_with_everything(self) -> None:
        assert is_tie(geometric_interval([1.0]), Interval(9.0, 8.9, 9.1))
