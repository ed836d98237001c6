"""Scores, the metric's interval, and the paired drop."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fleetfit.core.errors import InvalidData
from fleetfit.core.statistics import Interval, metric_value, paired_drop, score_samples

Scores = NDArray[np.float32]


def scores_of(values: list[float]) -> Scores:
    return np.asarray(values, dtype=np.float32)


def contains(interval: Interval, value: float) -> bool:
    return interval.low <= value <= interval.high


class TestScores:
    def test_the_largest_logit_is_the_class(self) -> None:
        logits = np.array([[0.1, 0.9], [2.0, -1.0], [0.0, 1.0]], dtype=np.float32)
        assert score_samples("accuracy", {"output": logits}, np.array([1, 0, 0])).tolist() == [1, 1, 0]

    @pytest.mark.parametrize("shape", [(4,), (4, 1)])
    def test_one_logit_is_two_classes(self, shape: tuple[int, ...]) -> None:
        logits = np.array([1.0, -1.0, 3.0, -2.0]).reshape(shape)
        assert score_samples("accuracy", {"output": logits}, np.array([1, 0, 0, 1])).tolist() == [1, 1, 0, 0]

    def test_errors_are_means_over_a_samples_values(self) -> None:
        outputs = {"output": np.array([[1.0, 2.0], [0.0, 0.0]]), "other": np.zeros((2, 9))}
        targets = np.array([[0.0, 0.0], [3.0, 1.0]])
        assert score_samples("mean_absolute_error", outputs, targets).tolist() == [1.5, 2.0]
        assert score_samples("mean_squared_error", outputs, targets).tolist() == [2.5, 5.0]

    def test_a_column_of_targets_fits_a_column_of_outputs(self) -> None:
        result = score_samples("mean_absolute_error", {"output": np.ones((3, 1))}, np.zeros(3))
        assert result.tolist() == [1, 1, 1]

    def test_no_class_is_right_among_values_that_are_not_numbers(self) -> None:
        logits = np.array([[np.nan, 0.0], [0.0, np.nan], [np.inf, 0.0]])
        assert score_samples("accuracy", {"output": logits}, np.array([0, 1, 0])).tolist() == [0, 0, 1]

    def test_what_does_not_fit_is_said(self) -> None:
        with pytest.raises(InvalidData, match="4 outputs for 3 targets"):
            score_samples("accuracy", {"output": np.zeros((4, 2))}, np.zeros(3))
        with pytest.raises(InvalidData, match="5 values per sample but the targets have 1"):
            score_samples("mean_absolute_error", {"output": np.zeros((3, 5))}, np.zeros(3))
        with pytest.raises(InvalidData, match="no array of numbers"):
            score_samples("accuracy", {"output": np.array(["a", "b"])}, np.zeros(2))


class TestMetricValue:
    @given(st.lists(st.booleans(), min_size=1, max_size=300))
    def test_accuracy_lies_in_its_interval_between_0_and_100(self, right: list[bool]) -> None:
        found = metric_value("accuracy", scores_of([float(r) for r in right]))
        assert 0 <= found.low <= found.value <= found.high <= 100 + 1e-9
        assert found.value == pytest.approx(100 * sum(right) / len(right))
        assert found.high > found.low

    def test_wilsons_interval_as_published(self) -> None:
        # 81 of 263, the example of R. G. Newcombe, Statistics in Medicine 17 (1998), table I: 0.2553 to 0.3662.
        found = metric_value("accuracy", scores_of([1] * 81 + [0] * 182))
        assert (found.low, found.high) == (pytest.approx(25.53, abs=0.005), pytest.approx(36.62, abs=0.005))

    @given(st.lists(st.floats(0, 1000, width=32), min_size=2, max_size=60))
    def test_an_error_is_never_below_zero(self, errors: list[float]) -> None:
        found = metric_value("mean_absolute_error", scores_of(errors))
        assert 0 <= found.low <= found.value + 1e-6
        assert found.value <= found.high + 1e-6

    def test_one_error_says_nothing_about_the_spread(self) -> None:
        assert metric_value("mean_squared_error", scores_of([2.0])) == Interval(2.0, 0.0, np.inf)

    def test_no_scores_are_refused(self) -> None:
        with pytest.raises(InvalidData, match="at least one sample"):
            metric_value("accuracy", scores_of([]))

    @pytest.mark.parametrize(("metric", "draw"), [("accuracy", "binary"), ("mean_absolute_error", "exponential")])
    def test_covers_the_truth_about_95_times_in_100(self, metric: str, draw: str) -> None:
        generator = np.random.default_rng(7)
        truth = 90.0 if draw == "binary" else 1.0
        hits = 0
        for _ in range(800):
            sample = generator.random(200) < 0.9 if draw == "binary" else generator.exponential(1.0, 200)
            hits += contains(metric_value(metric, sample.astype(np.float32)), truth)
        assert 0.92 <= hits / 800 <= 0.98


class TestPairedDrop:
    def test_positive_is_worse_for_both_directions(self) -> None:
        good, bad = scores_of([1, 1, 1, 1]), scores_of([1, 1, 1, 0])
        assert paired_drop("accuracy", bad, good).value == 25
        assert paired_drop("mean_absolute_error", scores_of([2, 3]), scores_of([1, 1])).value == 1.5

    def test_builds_that_never_differ_are_not_equal_without_doubt(self) -> None:
        few = paired_drop("accuracy", scores_of([1] * 50), scores_of([1] * 50))
        many = paired_drop("accuracy", scores_of([1] * 5000), scores_of([1] * 5000))
        assert few.value == many.value == 0
        assert few.low < many.low < 0 < many.high < few.high

    @given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=200))
    def test_swapping_the_two_turns_the_sign(self, both: list[tuple[bool, bool]]) -> None:
        a, b = scores_of([x for x, _ in both]), scores_of([y for _, y in both])
        there, back = paired_drop("accuracy", a, b), paired_drop("accuracy", b, a)
        assert there.value == pytest.approx(-back.value)
        assert (there.low, there.high) == (pytest.approx(-back.high), pytest.approx(-back.low))
        assert -100 <= there.low <= there.value <= there.high <= 100

    def test_different_splits_are_refused(self) -> None:
        with pytest.raises(InvalidData, match="both need the same split"):
            paired_drop("accuracy", scores_of([1]), scores_of([1, 0]))

    @pytest.mark.parametrize("both_differ", [0.004, 0.03])
    def test_covers_the_truth_at_least_94_times_in_100(self, both_differ: float) -> None:
        generator = np.random.default_rng(11)
        hits = 0
        for _ in range(600):
            kind = generator.random(1000)
            lost, won = kind < both_differ, kind > 1 - both_differ / 2
            reference = ~won
            hits += contains(
                paired_drop("accuracy", (~lost & ~won | won).astype(np.float32), reference.astype(np.float32)),
                100 * (both_differ - both_differ / 2),
            )
        assert hits / 600 >= 0.94
