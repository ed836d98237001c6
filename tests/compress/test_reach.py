"""When a recipe is stopped: only where nothing to come could make its build meet the limits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetfit.compress.local import compress_local
from fleetfit.compress.passes.base import Pass, PassContext
from fleetfit.compress.reach import Loss, check_reach, least_bytes
from fleetfit.compress.recipe import Recipe
from fleetfit.compress.tasks import Limits
from fleetfit.core.errors import OutOfReach
from fleetfit.core.statistics import Interval, paired_drop

from .conftest import Trained


def _steps(*steps: str) -> tuple[Pass, ...]:
    return Recipe.from_yaml(f"{{name: a, steps: [{', '.join(steps)}]}}").steps if steps else ()


PRUNE, FACTORIZE = "activation_pruning: {ratio: 0.5}", "low_rank: {energy: 0.9}"
ZEROS = "zero_pruning: {ratio: 0.5, pattern: unstructured}"
DISTILL, NORMS, QAT = "distill: {epochs: 1}", "reestimate_norms", "quantize_aware_training"
INT8, INT4, FP16 = "quantize: {mode: dynamic}", "quantize: {dtype: int4}", "quantize: {dtype: fp16}"


@pytest.mark.parametrize(
    ("later", "share"),
    [
        ((DISTILL,), 1.0),
        ((ZEROS, NORMS, QAT), 1.0),
        ((DISTILL, INT8), 0.25),
        ((INT4,), 0.125),
        ((FP16,), 0.5),
        ((PRUNE, DISTILL, INT8), 0.0),
        ((FACTORIZE,), 0.0),
    ],
)
def test_what_follows_bounds_the_size(later: Sequence[str], share: float) -> None:
    weight = onnx.numpy_helper.from_array(np.ones((1000, 250), np.float32), "w")
    bias = onnx.numpy_helper.from_array(np.ones(250, np.float32), "b")
    node = onnx.helper.make_node("Gemm", ["x", "w", "b"], ["y"])
    shapes = [
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, k]) for n, k in (("x", 1000), ("y", 250))
    ]
    graph = onnx.helper.make_graph([node], "g", shapes[:1], shapes[1:], [weight, bias])
    content = onnx.helper.make_model(graph).SerializeToString()

    def stops_at(size: int) -> bool:
        try:
            check_reach([Limits(max_size_bytes=size)], "here", _steps(*later), None, 1_001_000, lambda: content)
        except OutOfReach:
            return True
        return False

    assert least_bytes(content, share) == int(1_000_000 * share)
    assert not stops_at(max(int(1_000_000 * share), 1))
    assert stops_at(max(int(1_000_000 * share) - 1, 1)) is (share > 0)


@pytest.mark.parametrize("step", [INT8, INT4, FP16])
def test_no_real_build_is_smaller(trained: Trained, step: str) -> None:
    content = trained.onnx
    context = PassContext(None, None, None, "", "", 0, lambda part, activity: None)
    (quantize,) = _steps(step)
    built = quantize.build(content, context)
    assert built is not None
    assert 0 < least_bytes(content, quantize.least_share()) < len(built.content)
    assert 0.9 * len(content) < least_bytes(content, 1.0) < len(content)


def _loss(low: float, value: float, high: float) -> Loss:
    return Loss("accuracy", Interval(value, low, high), 90.0)


@pytest.mark.parametrize(
    ("later", "lasts"),
    [
        ((), True),
        ((INT8,), True),
        ((PRUNE, INT8), True),
        ((DISTILL,), False),
        ((NORMS, INT8), False),
        ((PRUNE, QAT, INT8), False),
    ],
)
def test_a_loss_lasts_where_nothing_recovers(later: Sequence[str], lasts: bool) -> None:
    def stops(loss: Loss | None, *limits: Limits) -> bool:
        try:
            check_reach(limits, "after activation_pruning", _steps(*later), loss, 0, bytes)
        except OutOfReach:
            return True
        return False

    assert stops(_loss(1.1, 2, 3), Limits(max_drop_points=1)) is lasts
    assert stops(_loss(0.9, 2, 3), Limits(max_drop_points=1)) is False, "the limit is within the interval"
    assert stops(_loss(1.1, 2, 3), Limits(max_drop_percent=1)) is lasts
    assert stops(_loss(0.89, 2, 3), Limits(max_drop_percent=1)) is False
    assert stops(None, Limits(max_drop_points=0)) is False
    assert stops(_loss(50, 60, 70)) is False, "nobody named a limit"
    assert stops(_loss(50, 60, 70), Limits(max_drop_points=1), Limits(max_drop_points=55)) is False, (
        "one may still use it"
    )


def test_each_of_several_limits_is_answered() -> None:
    limits = [Limits(max_drop_points=1), Limits(max_drop_points=5)]
    with pytest.raises(OutOfReach) as caught:
        check_reach(limits, "after activation_pruning", _steps(INT8), _loss(58, 61, 64), 0, bytes)
    assert caught.value.reasons == tuple(
        "stopped after activation_pruning: it is 61.0 points (58.0 to 64.0) worse than the original in accuracy, where "
        f"{allowed} is allowed, and no recovery step follows"
        for allowed in ("1.00", "5.00")
    )


@given(st.lists(st.booleans(), min_size=5, max_size=40), st.floats(0, 100))
def test_what_is_stopped_would_have_been_rejected(right: list[bool], allowed: float) -> None:
    ours, reference = np.array(right, np.float64), np.ones(len(right))
    drop = paired_drop("accuracy", ours, reference)
    try:
        check_reach([Limits(max_drop_points=allowed)], "here", (), Loss("accuracy", drop, 100.0), 0, bytes)
    except OutOfReach:
        # Limits are judged by the point estimate.
        assert drop.value > allowed


def test_a_recipe_stops_before_what_is_costly_and_leaves_nothing(trained: Trained, tmp_path: Path) -> None:
    cut = Recipe.from_yaml(f"{{name: a, steps: [activation_pruning: {{ratio: 0.95}}, {INT8}]}}")
    said: list[str] = []

    def run(recipe: Recipe, **limits: float) -> None:
        compress_local(
            trained.model,
            trained.data,
            recipe,
            tmp_path / "out",
            limits=Limits.model_validate(limits),
            report=lambda part, activity: said.append(activity),
        )

    with pytest.raises(
        OutOfReach, match="^stopped after activation_pruning: it is .* worse than the original in accuracy"
    ):
        run(cut, max_drop_points=1)
    with pytest.raises(
        OutOfReach, match="^stopped before distill: with all that follows its build would still have at least"
    ):
        run(Recipe.from_yaml(f"{{name: a, steps: [{DISTILL}, {INT8}]}}"), max_size_bytes=100)
    assert "building for the runtime" not in said and "distill" not in said
    assert not (tmp_path / "out").exists()
    recovered = Recipe.from_yaml("{name: a, steps: [activation_pruning: {ratio: 0.95}, distill: {steps: 1}]}")
    run(recovered, max_drop_points=100, max_size_bytes=10**6)
    assert (tmp_path / "out" / "build.onnx").exists()
