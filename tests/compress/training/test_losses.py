"""Losses of outputs, each by its kind, against figures worked out another way."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from fleetfit.compress.training.losses import DistillationLoss, Kind
from fleetfit.core.errors import InvalidRecipe


def _numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _loss(
    teacher: dict[str, torch.Tensor], task: str = "", targets: torch.Tensor | None = None, **asked: tuple[str, float]
) -> DistillationLoss:
    return DistillationLoss.for_outputs(teacher, targets, task=task, temperature=2.0, label_weight=0.5, asked=asked)


def test_each_output_is_what_the_task_and_its_values_say() -> None:
    scores, boxes, count = _numbers(50, 4), _numbers(50, 7, 4), torch.arange(50)
    teacher = {"scores": scores, "boxes": boxes, "count": count}
    kinds = _loss(teacher, "classification").kinds
    assert kinds == {"scores": Kind.LOGITS, "boxes": Kind.VALUES, "count": Kind.NOTHING}
    assert _loss(teacher, "regression").kinds["scores"] is Kind.VALUES
    assert _loss({"p": scores.softmax(-1)}, "classification").kinds["p"] is Kind.PROBABILITIES
    assert _loss({"p": scores[:, 0]}, "classification").kinds["p"] is Kind.BINARY_LOGIT


def test_a_detectors_boxes_are_values_and_its_scores_are_not() -> None:
    boxes, scores = _numbers(9, 7, 4), _numbers(9, 7, 6, seed=1)
    for given, kind in (
        (scores, Kind.BINARY_LOGIT),
        (scores.sigmoid(), Kind.VALUES),
        (scores.softmax(-1), Kind.PROBABILITIES),
    ):
        assert _loss({"boxes": boxes, "scores": given}, "detection").kinds == {"boxes": Kind.VALUES, "scores": kind}
    loss = _loss({"boxes": boxes, "scores": scores}, "detection", targets=_numbers(9, 3, 5))
    assert not loss.labels
    same = {"boxes": boxes, "scores": scores}
    assert float(loss(same, same, None)) == pytest.approx(0, abs=1e-5)
    other = {"boxes": boxes, "scores": scores.roll(1, 0)}
    assert float(loss(other, same, None)) > 0.1
    with pytest.raises(InvalidRecipe, match="numbers of classes at once"):
        _loss({"detections": _numbers(9, 7, 6)}, "detection")


@pytest.mark.parametrize("shape", [(6, 4), (6, 5, 4), (6, 4, 3, 2)])
def test_divergence_is_the_mean_over_samples_and_places(shape: tuple[int, ...]) -> None:
    ours, theirs = _numbers(*shape), _numbers(*shape, seed=1)
    loss = _loss({"y": theirs}, y=("kl", 1.0))
    axis = 1 if len(shape) == 4 else -1
    p, q = (theirs / 2).softmax(axis), (ours / 2).softmax(axis)
    expected = 4 * (p * (p / q).log()).sum(axis).mean()
    torch.testing.assert_close(loss({"y": ours}, {"y": theirs}, None), expected)


def test_other_losses_are_their_means_over_the_outputs_spread() -> None:
    ours, theirs = _numbers(40, 3), 5 * _numbers(40, 3, seed=1) + 2
    for asked, expected in (
        ("mse", ((ours - theirs) ** 2).mean() / theirs.var(unbiased=False)),
        ("l1", (ours - theirs).abs().mean() / (theirs - theirs.mean()).abs().mean()),
        ("cosine", 1 - ((ours * theirs).sum(-1) / ours.norm(dim=-1) / theirs.norm(dim=-1)).mean()),
    ):
        torch.testing.assert_close(_loss({"y": theirs}, y=(asked, 1.0))({"y": ours}, {"y": theirs}, None), expected)


def test_outputs_count_by_their_weights_and_not_at_all_with_none() -> None:
    teacher = {"a": _numbers(20, 3), "b": _numbers(20, 2, seed=1), "c": _numbers(20, 2, seed=2)}
    student = {name: value + 1 for name, value in teacher.items()}
    alone = {name: float(_loss({name: value})({name: value + 1}, teacher, None)) for name, value in teacher.items()}
    loss = _loss(teacher, a=("auto", 2.0), b=("none", 1.0), c=("mse", 0.5))
    assert math.isclose(float(loss(student, teacher, None)), 2 * alone["a"] + 0.5 * alone["c"], rel_tol=1e-5)
    assert loss.matched() == ["a", "c"]


def test_labels_stay_where_the_output_is_not_matched() -> None:
    scores, targets = _numbers(30, 4), torch.arange(30) % 4
    loss = _loss({"y": scores}, "classification", targets, y=("none", 1.0))
    torch.testing.assert_close(
        loss({"y": scores}, {"y": scores}, targets), 0.5 * functional.cross_entropy(scores, targets)
    )


def test_wrong_outputs_are_refused() -> None:
    teacher = {"a": _numbers(20, 3), "count": torch.arange(20)}
    with pytest.raises(InvalidRecipe, match="no output b; it has a, count"):
        _loss(teacher, b=("mse", 1.0))
    with pytest.raises(InvalidRecipe, match="count has whole numbers"):
        _loss(teacher, count=("l1", 1.0))
    with pytest.raises(InvalidRecipe, match="left to learn from"):
        _loss(teacher, a=("none", 1.0))
    with pytest.raises(InvalidRecipe, match="left to learn from"):
        _loss(teacher, a=("mse", 0.0))
