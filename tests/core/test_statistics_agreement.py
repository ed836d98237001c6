"""Metrics that compare with the original's outputs and need no targets."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fleetfit.core.errors import InvalidData
from fleetfit.core.statistics import metric_value, paired_drop, score_samples

Numbers = NDArray[np.floating]


def beside(metric: str, ours: Numbers, theirs: Numbers) -> NDArray[np.float32]:
    return score_samples(metric, {"output": ours}, None, {"output": theirs})


def softmax(row: Numbers) -> list[float]:
    parts = [math.exp(value - float(row.max())) for value in row.tolist()]
    return [part / sum(parts) for part in parts]


@given(st.integers(0, 2**32 - 1))
def test_against_their_definitions(seed: int) -> None:
    generator = np.random.default_rng(seed)
    # Probabilities of a softmax that is part of the model are told apart down to 1e-7.
    ours, theirs = (generator.normal(size=(2, 9, 4)) * 3).clip(-6, 6)
    for row in range(9):
        a, b, p, q = ours[row], theirs[row], softmax(theirs[row]), softmax(ours[row])
        assert beside("agreement", ours, theirs)[row] == (a.argmax() == b.argmax())
        cosine = sum(a * b) / math.sqrt(sum(a * a) * sum(b * b))
        assert beside("cosine", ours, theirs)[row] == pytest.approx(cosine, abs=1e-5)
        divergence = sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))
        assert beside("kl", ours, theirs)[row] == pytest.approx(divergence, abs=1e-5)
    odds = [np.array([softmax(row) for row in one]) for one in (ours, theirs)]
    np.testing.assert_allclose(beside("kl", *odds), beside("kl", ours, theirs), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("metric", "alike"), [("agreement", 1), ("cosine", 1), ("kl", 0)])
def test_a_model_agrees_with_itself(metric: str, alike: float) -> None:
    output = np.random.default_rng(0).normal(size=(20, 5))
    scores = beside(metric, output, output)
    assert scores.tolist() == pytest.approx([alike] * 20, abs=1e-6)
    worse = beside(metric, np.random.default_rng(1).normal(size=(20, 5)), output)
    drop = paired_drop(metric, worse, scores)
    assert drop.low < drop.value < drop.high and drop.value > 0
    found = metric_value(metric, worse)
    assert found.low <= found.value <= found.high and (metric != "cosine" or found.high <= 1)


def test_what_is_not_finite() -> None:
    ours, theirs = np.array([[np.nan, 1.0], [np.inf, 1.0]]), np.array([[1.0, 2.0], [2.0, 1.0]])
    assert beside("agreement", ours, theirs).tolist() == [0, 1]
    assert beside("agreement", ours[:1], ours[:1]).tolist() == [0]
    assert np.isnan(beside("cosine", ours, theirs)).all()
    assert np.isnan(beside("kl", ours, theirs)).tolist() == [True, False]


def test_zeros_are_like_zeros_only() -> None:
    ours, theirs = np.array([[0.0, 0.0], [0.0, 0.0]]), np.array([[0.0, 0.0], [1e-200, 1e200]])
    assert beside("cosine", ours, theirs).tolist() == [1, 0]
    assert beside("cosine", theirs[1:], 2 * theirs[1:]).tolist() == [1]


def test_equal_scores_agree_where_the_first_of_them_is_the_same() -> None:
    assert beside("agreement", np.ones((1, 3)), np.array([[2.0, 1.0, 1.0]])).tolist() == [1]


def test_what_cannot_be_compared_is_said() -> None:
    one = np.ones((3, 2))
    with pytest.raises(InvalidData, match="needs the original's outputs"):
        score_samples("agreement", {"output": one}, None)
    with pytest.raises(InvalidData, match="both must be alike"):
        beside("cosine", one, np.ones((3, 4)))
    with pytest.raises(InvalidData, match="one score for each class"):
        beside("kl", np.ones((3, 1)), np.ones((3, 1)))
    with pytest.raises(InvalidData, match="at least one sample"):
        beside("kl", np.ones((0, 2)), np.ones((0, 2)))
    with pytest.raises(InvalidData, match="accuracy needs targets"):
        score_samples("accuracy", {"output": one}, None)


@pytest.mark.parametrize("metric", ["accuracy", "top2_accuracy", "macro_f1", "auroc", "agreement", "cosine", "kl"])
def test_the_output_that_is_named_is_judged(metric: str) -> None:
    generator, targets = np.random.default_rng(3), np.arange(12) % 3
    one, other, theirs = generator.normal(size=(3, 12, 3))
    found = score_samples(f"{metric}:b", {"a": one, "b": other}, targets, {"b": theirs, "a": one})
    assert found.tolist() == score_samples(metric, {"b": other}, targets, {"b": theirs}).tolist()
    assert metric_value(f"{metric}:b", found) == metric_value(metric, found)
    assert paired_drop(f"{metric}:b", found, found) == paired_drop(metric, found, found)
    with pytest.raises(InvalidData, match="no output 'c'; choose one of a, b"):
        score_samples(f"{metric}:c", {"a": one, "b": other}, targets, {"a": one})


@pytest.mark.parametrize(("metric", "power"), [("mean_absolute_error", 1), ("mean_squared_error", 2)])
def test_errors_of_the_output_that_is_named(metric: str, power: int) -> None:
    outputs = {"a": np.zeros((2, 5)), "b": np.array([3.0, -2.0])}
    found = score_samples(f"{metric}:b", outputs, np.zeros(2))
    assert found.tolist() == [3**power, 2**power]
