"""One build in two places: what is beyond chance and rounding, and what is not."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fleetfit.core.errors import InvalidData
from fleetfit.core.statistics import score_samples
from fleetfit.core.statistics_gap import MOST_COMPARED, compared_rows, distances, gap_between, mcnemar, paired_t


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_binomial_test(lost: int, won: int) -> None:
    n, few = lost + won, min(lost, won)
    tails = 2 * sum(Fraction(math.comb(n, k), 2**n) for k in range(few + 1))
    assert mcnemar(lost, won) == pytest.approx(min(1.0, float(tails)), rel=1e-9)
    assert mcnemar(lost, won) == mcnemar(won, lost)


def test_mcnemar_of_many_samples_is_scipys() -> None:
    assert mcnemar(5200, 5000) == pytest.approx(stats.binomtest(5000, 10200).pvalue, rel=1e-9)


@given(st.integers(0, 2**32 - 1), st.integers(2, 300), st.floats(0, 1))
def test_the_paired_test_is_scipys(seed: int, count: int, shift: float) -> None:
    differences = np.random.default_rng(seed).normal(shift, 1, count)
    assert paired_t(differences) == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=1e-9)


def test_the_paired_test_of_many_samples_is_scipys() -> None:
    differences = np.random.default_rng(1).normal(0.01, 1, 30_000)
    assert paired_t(differences) == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=1e-4)


def test_differences_without_spread_leave_no_doubt_and_one_says_nothing() -> None:
    assert (paired_t(np.full(5, 0.5)), paired_t(np.zeros(5)), paired_t(np.array([3.0]))) == (0.0, 1.0, None)


@given(
    st.integers(0, 2**32 - 1), st.sampled_from(["accuracy", "mean_squared_error", "macro_f1", "f1@0.5", "auroc", "kl"])
)
def test_a_build_that_does_the_same_is_never_flagged(seed: int, metric: str) -> None:
    generator = np.random.default_rng(seed)
    output = generator.normal(size=(40, 4)).astype(np.float32)
    targets = {
        "f1@0.5": generator.integers(0, 2, (40, 4)),
        "mean_squared_error": generator.normal(size=(40, 4)),
    }.get(metric, np.resize(np.arange(4), 40))
    # Sums in another order.
    near = output * (1 + generator.normal(scale=1e-6, size=output.shape).astype(np.float32))
    there, here = (score_samples(metric, {"o": one}, targets, {"o": output}) for one in (output, near))
    found = gap_between(metric, here, there, (near, output))
    assert not found.flagged, found
    assert found.compared == 40 and found.distance is not None and found.distance < found.tolerance


def test_chance_alone_is_flagged_in_fewer_than_one_in_a_hundred() -> None:
    generator = np.random.default_rng(5)
    flagged = 0
    for _ in range(1000):
        # Five samples in a hundred lie so near to a border that rounding decides them, here and there.
        there = (generator.random(500) < 0.9).astype(np.float32)
        near = generator.random(500) < 0.05
        there[near], here = generator.integers(0, 2, near.sum()), there.copy()
        here[near] = generator.integers(0, 2, near.sum())
        flagged += gap_between("accuracy", here, there).flagged
    assert flagged <= 15


def test_a_kernel_that_is_wrong_is_flagged_and_its_worst_sample_named() -> None:
    there = np.ones(400, np.float32)
    here = there.copy()
    here[[7, 30, 31, 80, 90, 100, 110, 300]] = 0
    outputs = np.zeros((400, 3), np.float32)
    outputs[:, 0] = 2
    wrong = outputs.copy()
    wrong[here == 0, 0] = 1
    wrong[110, 0] = -4
    found = gap_between("accuracy", here, there, (wrong, outputs))
    assert found.by_metric and found.p == pytest.approx(2 / 2**8)
    assert (found.loss.value, found.differing, found.beyond) == (2.0, 8, 8)
    assert found.worst is not None
    assert (found.worst.row, found.worst.here, found.worst.there, found.worst.distance) == (110, 0, 1, 3.0)


def test_a_device_that_is_better_than_the_server_is_suspicious_too() -> None:
    there = np.array([0] * 20 + [1] * 80, np.float32)
    found = gap_between("accuracy", np.ones(100, np.float32), there)
    assert found.flagged and found.loss.value == -20.0
    assert found.worst is None


def test_one_output_beyond_rounding_is_flagged_where_the_metric_cannot_tell() -> None:
    output = np.random.default_rng(0).normal(size=(50, 10)).astype(np.float32)
    wrong = output.copy()
    wrong[13, 4] += 0.5
    same = np.ones(50, np.float32)
    found = gap_between("accuracy", same, same, (wrong, output))
    assert (found.by_metric, found.beyond, found.flagged) == (False, 1, True)
    assert found.worst is not None and (found.worst.row, found.worst.here) == (13, 1.0)
    # A build whose own rounding is that coarse says nothing by it.
    assert not gap_between("accuracy", same, same, (wrong, output), rounding=0.2).flagged


def test_rounding_of_a_mean_is_not_called_a_gap_however_sure_it_is() -> None:
    there = np.random.default_rng(0).random(1000).astype(np.float32) + 1
    rounded = gap_between("mean_absolute_error", there * np.float32(1.0005), there)
    assert rounded.p is not None and rounded.p < 1e-9
    assert not rounded.flagged
    assert gap_between("mean_absolute_error", there * np.float32(1.01), there).flagged


@pytest.mark.parametrize("metric", ["macro_f1", "auroc"])
def test_metrics_that_are_no_means_are_compared_by_their_paired_interval(metric: str) -> None:
    generator = np.random.default_rng(3)
    targets = np.resize(np.arange(3), 600)
    good = np.eye(3)[targets] + generator.normal(scale=0.5, size=(600, 3))
    bad = np.where(generator.random((600, 1)) < 0.2, generator.normal(size=(600, 3)), good)
    there, here = (score_samples(metric, {"o": one}, targets) for one in (good, bad))
    found = gap_between(metric, here, there)
    assert found.by_metric and found.test == "the paired interval of the loss"
    assert found.loss.low > 0


def test_what_is_no_number_in_one_place_only_is_far() -> None:
    here = np.array([[1, np.nan], [np.nan, np.nan], [np.inf, 1], [1, 1]], np.float32)
    there = np.array([[1, 2], [np.nan, np.nan], [np.inf, 1], [1, np.inf]], np.float32)
    assert distances(here, there).tolist() == [1e6, 0, 0, 1e6]


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 100))
def test_distances_do_not_depend_on_the_unit(seed: int, unit: float) -> None:
    a, b = np.random.default_rng(seed).normal(size=(2, 6, 3))
    np.testing.assert_allclose(distances(a * unit, b * unit), distances(a, b), rtol=1e-6)


def test_as_many_rows_are_compared_as_there_is_room_for() -> None:
    values = np.zeros((1000, 1000))
    assert len(compared_rows(values, 0)) == MOST_COMPARED // 1000
    assert len(compared_rows(values, 500)) == MOST_COMPARED // 1000 - 500
    assert len(compared_rows(values, 5000)) == 0
    assert compared_rows(values.astype(np.int64), 0).shape == (0, 1000)
    assert compared_rows(np.full((1, 1), 1e300), 0).tolist() == [[np.inf]]


def test_other_samples_are_refused() -> None:
    with pytest.raises(InvalidData, match="same samples"):
        gap_between("accuracy", np.ones(3), np.ones(4))
