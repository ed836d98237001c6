"""Metrics that are no means over samples, and top-k, against straightforward references."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fleetfit.core.errors import InvalidData
from fleetfit.core.statistics import Interval, metric_value, paired_drop, score_samples

Numbers = NDArray[np.floating]
SEEDS = st.integers(0, 2**32 - 1)


def value(metric: str, output: NDArray[np.generic], targets: NDArray[np.generic]) -> Interval:
    return metric_value(metric, score_samples(metric, {"output": output}, targets))


def drop(metric: str, ours: NDArray[np.generic], theirs: NDArray[np.generic], targets: NDArray[np.generic]) -> Interval:
    both = [score_samples(metric, {"output": one}, targets) for one in (ours, theirs)]
    return paired_drop(metric, both[0], both[1])


def drawn(seed: int, *, classes: int = 4, n: int = 30, tied: bool = True) -> tuple[Numbers, NDArray[np.int64]]:
    """Scores of which many are equal, and targets that they follow somewhat."""
    generator = np.random.default_rng(seed)
    targets = generator.integers(0, classes, n)
    scores = generator.normal(size=(n, classes)) + 1.5 * np.eye(classes)[targets]
    return np.round(scores) if tied else scores, targets


def f1_of(wanted: list[bool], given: list[bool]) -> float:
    pairs = list(zip(wanted, given, strict=True))
    right, wrong = pairs.count((True, True)), pairs.count((True, False)) + pairs.count((False, True))
    return 2 * right / (2 * right + wrong)


def area_of(positive: list[float], negative: list[float]) -> float:
    wins = [1.0 if p > n else 0.5 if p == n else 0.0 for p, n in itertools.product(positive, negative)]
    return sum(wins) / len(wins)


class TestTopK:
    @given(SEEDS, st.integers(2, 3))
    def test_against_a_stable_sort(self, seed: int, k: int) -> None:
        scores, targets = drawn(seed)
        found = score_samples(f"top{k}_accuracy", {"output": scores}, targets)
        for row, target, right in zip(scores, targets, found, strict=True):
            assert right == (target in sorted(range(4), key=lambda c: -row[c])[:k])

    def test_values_that_are_not_numbers_are_wrong(self) -> None:
        scores = np.array([[np.nan, 1.0, 2.0], [np.inf, 1.0, 2.0]])
        assert score_samples("top2_accuracy", {"output": scores}, np.array([2, 2])).tolist() == [0, 1]

    def test_a_class_that_the_output_has_not_is_wrong(self) -> None:
        assert score_samples("top2_accuracy", {"output": np.ones((2, 3))}, np.array([7, -1])).tolist() == [0, 0]

    def test_too_few_classes_are_refused(self) -> None:
        with pytest.raises(InvalidData, match="top5_accuracy needs more than 5 classes, and the output has 5"):
            score_samples("top5_accuracy", {"output": np.ones((2, 5))}, np.zeros(2))


class TestMacroF1:
    @given(SEEDS)
    def test_is_the_mean_over_the_classes_that_occur(self, seed: int) -> None:
        scores, targets = drawn(seed, n=12)
        chosen = scores.argmax(axis=1)
        wanted = [f1_of((targets == c).tolist(), (chosen == c).tolist()) for c in np.unique(targets)]
        found = value("macro_f1", scores, targets)
        assert found.value == pytest.approx(100 * np.mean(wanted))
        assert 0 <= found.low <= found.value <= found.high <= 100

    def test_one_class_only(self) -> None:
        found = value("macro_f1", np.eye(3)[[0, 0, 1, 0]], np.zeros(4, np.int64))
        assert found.value == pytest.approx(100 * 6 / 7)

    def test_no_class_is_right_among_values_that_are_not_numbers(self) -> None:
        scores = np.eye(2)[[0, 1, 0, 1]]
        scores[0] = np.nan
        assert value("macro_f1", scores, np.array([0, 1, 0, 1])).value == pytest.approx(100 * (2 / 3 + 1) / 2)

    def test_without_a_mistake_it_is_not_perfect_beyond_doubt(self) -> None:
        few, many = (value("macro_f1", np.eye(2)[t], t) for t in (np.arange(20) % 2, np.arange(2000) % 2))
        assert few.value == few.high == many.value == 100
        assert few.low < many.low < 100

    def test_intervals_are_the_same_each_time(self) -> None:
        scores, targets = drawn(3)
        assert value("macro_f1", scores, targets) == value("macro_f1", scores, targets)

    def test_covers_the_truth(self) -> None:
        generator = np.random.default_rng(5)
        hits = 0
        for _ in range(150):
            # Every class is right with probability 0.8, and wrong ones are spread evenly: macro F1 is 0.8.
            targets = generator.integers(0, 3, 150)
            wrong = (targets + generator.integers(1, 3, 150)) % 3
            found = value("macro_f1", np.eye(3)[np.where(generator.random(150) < 0.8, targets, wrong)], targets)
            hits += found.low <= 80 <= found.high
        assert hits / 150 >= 0.91


class TestF1AtAThreshold:
    @given(SEEDS, st.sampled_from([0.0, 0.5, -1.0]), st.integers(1, 3))
    def test_is_the_mean_over_labels(self, seed: int, threshold: float, labels: int) -> None:
        generator = np.random.default_rng(seed)
        targets = generator.integers(0, 2, (15, labels))
        targets[0] = 1
        output = np.round(generator.normal(size=(15, labels)), 1)
        wanted = [f1_of((t == 1).tolist(), (o > threshold).tolist()) for t, o in zip(targets.T, output.T, strict=True)]
        assert value(f"f1@{threshold}", output, targets).value == pytest.approx(100 * np.mean(wanted))

    @pytest.mark.parametrize("shape", [(4,), (4, 1)])
    def test_one_value_for_each_sample(self, shape: tuple[int, ...]) -> None:
        output = np.array([0.9, 0.5, 0.2, 0.7]).reshape(shape)
        assert value("f1@0.5", output, np.array([1, 1, 0, 0])).value == pytest.approx(50)

    def test_a_value_that_is_not_a_number_is_wrong_either_way(self) -> None:
        scores = score_samples("f1@0", {"output": np.array([np.nan, np.nan])}, np.array([0, 1]))
        assert scores.reshape(-1).tolist() == [1, 2]

    def test_what_has_no_f1_is_said(self) -> None:
        with pytest.raises(InvalidData, match="at least one class or label"):
            value("f1@0.5", np.ones(3), np.zeros(3))
        with pytest.raises(InvalidData, match="other values than 0 and 1"):
            value("f1@0.5", np.ones(3), np.array([0, 1, 2]))
        with pytest.raises(InvalidData, match="2 values per sample but the targets have 1"):
            value("f1@0.5", np.ones((3, 2)), np.zeros(3))


class TestAuroc:
    @given(SEEDS)
    def test_of_two_classes_is_the_share_of_pairs_in_order(self, seed: int) -> None:
        generator = np.random.default_rng(seed)
        targets = np.array([0, 1, *generator.integers(0, 2, 12)])
        output = np.round(generator.normal(size=14) + targets, 1)
        wanted = 100 * area_of(output[targets == 1].tolist(), output[targets == 0].tolist())
        found = value("auroc", output, targets)
        assert found.value == pytest.approx(wanted)
        assert 0 <= found.low <= found.value <= found.high <= 100
        # Two columns hold the same order, as logits and as probabilities.
        logits = np.stack([np.zeros(14), output], axis=1)
        odds = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        assert value("auroc", logits, targets).value == pytest.approx(wanted)
        assert value("auroc", odds, targets).value == pytest.approx(wanted)

    @given(SEEDS)
    def test_of_several_classes_is_the_mean_of_one_against_the_rest(self, seed: int) -> None:
        scores, targets = drawn(seed, tied=False)
        odds = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        areas = [
            area_of(odds[targets == c, c].tolist(), odds[targets != c, c].tolist()) for c in np.unique(targets).tolist()
        ]
        assert value("auroc", scores, targets).value == pytest.approx(100 * np.mean(areas))
        assert value("auroc", odds, targets).value == pytest.approx(100 * np.mean(areas), abs=1e-4)

    def test_of_labels_is_the_mean_over_those_that_differ(self) -> None:
        targets = np.array([[0, 1, 0], [1, 0, 0], [1, 1, 0]])
        output = np.array([[1.0, 2.0, 5.0], [2.0, 1.0, 6.0], [0.5, 0.5, 7.0]])
        assert value("auroc", output, targets).value == pytest.approx(100 * (0.5 + 0.5) / 2)

    def test_delongs_variance_by_its_definition(self) -> None:
        generator = np.random.default_rng(1)
        targets = np.arange(60) % 3 == 0
        ours, theirs = generator.normal(size=60) + targets, generator.normal(size=60) + targets
        parts = []
        for output in (ours, theirs):
            psi = [[float(p > n) for n in output[~targets]] for p in output[targets]]
            parts.append((np.mean(psi, axis=1), np.mean(psi, axis=0)))
        up, down = parts[1][0] - parts[0][0], parts[1][1] - parts[0][1]
        variance = up.var(ddof=1) / 20 + down.var(ddof=1) / 40 + (1 / 20 + 1 / 40) / 240
        found = drop("auroc", ours, theirs, targets.astype(np.int64))
        assert found.value == pytest.approx(100 * (np.mean(parts[1][0]) - np.mean(parts[0][0])))
        assert found.high - found.value == pytest.approx(100 * 1.959964 * variance**0.5, rel=1e-4)

    def test_values_that_are_not_numbers_are_in_the_wrong_place(self) -> None:
        output = np.array([np.nan, 1.0, np.nan, 0.0])
        assert value("auroc", output, np.array([1, 1, 0, 0])).value == pytest.approx(25)

    def test_infinite_values_are_in_order(self) -> None:
        targets = np.array([0, 1, 2, 0, 1, 2])
        assert value("auroc", np.where(np.eye(3)[targets] > 0, np.inf, -np.inf), targets).value == 100

    def test_values_all_alike_say_nothing(self) -> None:
        assert value("auroc", np.zeros((6, 3)), np.array([0, 1, 2, 0, 1, 2])).value == 50

    def test_a_perfect_order_is_not_perfect_beyond_doubt(self) -> None:
        few, many = (value("auroc", np.arange(n), np.arange(n) >= n // 2) for n in (20, 2000))
        assert few.value == many.value == 100
        assert few.low < many.low < 100

    def test_one_class_only_is_refused(self) -> None:
        with pytest.raises(InvalidData, match="at least two classes"):
            value("auroc", np.ones(3), np.ones(3))
        with pytest.raises(InvalidData, match="at least two classes"):
            value("auroc", np.ones((3, 4)), np.zeros(3))

    @pytest.mark.parametrize("shift", [0.5, 2.5])
    def test_covers_the_truth(self, shift: float) -> None:
        from statistics import NormalDist

        generator, targets = np.random.default_rng(9), np.arange(120) % 3 == 0
        truth, hits = 100 * NormalDist().cdf(shift / 2**0.5), 0
        for _ in range(300):
            found = value("auroc", generator.normal(size=120) + shift * targets, targets)
            hits += found.low <= truth <= found.high
        assert hits / 300 >= 0.92


@pytest.mark.parametrize("metric", ["macro_f1", "auroc", "top2_accuracy"])
class TestDrops:
    @given(SEEDS)
    def test_swapping_the_two_turns_the_sign(self, metric: str, seed: int) -> None:
        (a, targets), (b, _) = drawn(seed), drawn(seed + 1)
        there, back = drop(metric, a, b, targets), drop(metric, b, a, targets)
        assert there.value == pytest.approx(-back.value)
        assert there.low <= there.value <= there.high
        if metric != "macro_f1":  # a bootstrap draws its samples by chance
            assert (there.low, there.high) == (pytest.approx(-back.high), pytest.approx(-back.low))
        ours, theirs = value(metric, a, targets).value, value(metric, b, targets).value
        assert there.value == pytest.approx(theirs - ours, abs=1e-5)

    def test_builds_that_never_differ_are_not_equal_without_doubt(self, metric: str) -> None:
        few, many = (drop(metric, a, a, t) for a, t in (drawn(1, n=50), drawn(1, n=2000)))
        assert few.value == many.value == 0
        assert few.low < many.low < 0 < many.high < few.high


@pytest.mark.parametrize("metric", ["macro_f1", "auroc"])
def test_other_samples_are_refused(metric: str) -> None:
    (a, targets), (_, others) = drawn(1), drawn(2)
    with pytest.raises(InvalidData, match="different samples"):
        paired_drop(metric, score_samples(metric, {"output": a}, targets), score_samples(metric, {"output": a}, others))


@pytest.mark.parametrize("metric", ["macro_f1", "auroc"])
def test_drops_cover_the_truth(metric: str) -> None:
    generator = np.random.default_rng(4)
    made = []
    for _ in range(150):
        targets = generator.integers(0, 3, 200)
        theirs = generator.normal(size=(200, 3)) + 2 * np.eye(3)[targets]
        ours = theirs + generator.normal(size=(200, 3))
        made.append(drop(metric, ours, theirs, targets))
    # The truth from thousands of samples of all of them together.
    truth = np.mean([one.value for one in made])
    assert sum(one.low <= truth <= one.high for one in made) / 150 >= 0.92


@pytest.mark.parametrize("metric", ["macro_f1", "auroc", "f1@0.5", "top2_accuracy"])
def test_nothing_to_score_is_refused(metric: str) -> None:
    with pytest.raises(InvalidData, match="at least one sample"):
        score_samples(metric, {"output": np.zeros((0, 4))}, np.zeros(0))
    with pytest.raises(InvalidData, match="at least one sample"):
        metric_value(metric, np.zeros(0, np.float32))


@pytest.mark.parametrize("metric", ["macro_f1", "auroc"])
def test_scores_of_another_metric_are_refused(metric: str) -> None:
    with pytest.raises(InvalidData, match="update the agent"):
        metric_value(metric, np.ones(5, np.float32))
