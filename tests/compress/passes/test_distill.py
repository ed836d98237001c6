"""Distillation: how long it trains, what happens around a step, and what it learns from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from fleetfit.compress.graph import LayeredModel
from fleetfit.compress.graph.batches import outputs_over
from fleetfit.compress.intake.pt2 import load_pt2
from fleetfit.compress.passes.activation_pruning import ActivationPruning
from fleetfit.compress.passes.base import PassContext
from fleetfit.compress.passes.distill import Distill
from fleetfit.compress.pipeline import Sources, run_recipe
from fleetfit.compress.recipe import Recipe, control_for
from fleetfit.compress.tasks import Compress
from fleetfit.compress.training import distillation, trainer
from fleetfit.compress.training.distillation import distill
from fleetfit.core.errors import InvalidRecipe

Case = Callable[[], tuple[LayeredModel, PassContext]]


@pytest.fixture
def case(trained: Any) -> Case:
    """A damaged copy of a trained classifier, and the context with the original as its teacher."""
    original = load_pt2(trained.model)

    def make() -> tuple[LayeredModel, PassContext]:
        model = original.clone()
        noise = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for weight in model.module.parameters():
                weight += 0.2 * torch.randn(weight.shape, generator=noise)
        context = PassContext(
            trained.train_arrays,
            trained.validation_arrays,
            original.clone(),
            "accuracy",
            "classification",
            3,
            lambda part, activity: None,
        )
        return model, context

    return make


def _weights(model: LayeredModel) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.module.state_dict().items()}


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def _distance(model: LayeredModel, context: PassContext) -> float:
    """Mean squared difference from the original's outputs on the validation split."""
    assert context.validation is not None and context.teacher is not None
    ours, theirs = outputs_over(model, context.validation), outputs_over(context.teacher, context.validation)
    return float(sum(((ours[name] - theirs[name]) ** 2).mean() for name in theirs))


def test_one_budget_is_chosen_and_three_epochs_where_none_is() -> None:
    assert Distill().epochs == 3 and Distill(steps=5).epochs is None
    assert Distill.model_validate(Distill(seconds=2).parameters()) == Distill(seconds=2)
    assert Distill.model_validate({"features": "head.*"}).features == ("head.*",)
    assert Distill.model_validate({"features": "auto"}).features == "auto"
    for wrong, words in (
        ({"epochs": 1, "steps": 2}, "one of"),
        ({"epochs": 1, "seconds": 2}, "one of"),
        ({"epochs": 1, "least_epochs": 2}, "goes with"),
        ({"augment": ["flip", "flip"]}, "once"),
        ({"augment": ["turn"]}, "flip"),
        ({"features": []}, "features"),
    ):
        with pytest.raises(ValidationError, match=words):
            Distill.model_validate(wrong)


def test_steps_are_taken_as_given_and_are_the_same_as_their_epochs(case: Case) -> None:
    model, context = case()
    assert Distill(steps=8, batch=64).apply(model, context).training_steps == 8
    other, context = case()
    assert Distill(epochs=1, batch=64).apply(other, context).training_steps == 8
    assert _same(_weights(model), _weights(other))


def test_a_budget_in_seconds_becomes_steps_which_train_the_same_again(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The clock is the test's: each look at it is 10 ms later, so that nothing here depends on this machine.
    now = [0.0]

    def tick() -> float:
        now[0] += 0.01
        return now[0]

    for module in (trainer, distillation):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=tick))
    model, context = case()
    report = Distill(seconds=0.5, batch=32, ema=0.9, augment=("shift",)).apply(model, context)
    steps = report.parameters["steps"]
    assert steps == report.training_steps and 10 <= steps < 50
    assert any(f"0.5 s are enough for {steps} steps" in note for note in report.notes)
    other, context = case()
    again = Distill(seconds=0.5, steps=steps, batch=32, ema=0.9, augment=("shift",)).apply(other, context)
    assert again.training_steps == steps and again.parameters == {}
    assert _same(_weights(model), _weights(other))


def test_a_budget_that_carries_no_training_is_refused_and_says_what_would_do(case: Case) -> None:
    model, context = case()
    before = _weights(model)
    with pytest.raises(InvalidRecipe, match=r"cannot train in 1e-06 s: .*give it \d+ s or more"):
        Distill(seconds=1e-6).apply(model, context)
    assert _same(_weights(model), before)
    # With epochs that it must train for, it does.
    assert Distill(seconds=1e-6, least_epochs=5, batch=64).apply(model, context).parameters == {"steps": 40}


def test_the_control_gets_the_seconds_and_no_fewer_epochs() -> None:
    def recipe(*steps: str) -> Recipe:
        return Recipe.from_yaml(f"{{name: a, steps: [{', '.join(steps)}]}}")

    short, long = recipe("distill: {seconds: 30, batch: 8}"), recipe("distill: {seconds: 40}", "distill: {seconds: 50}")
    epochs, steps = recipe("distill: {epochs: 4, batch: 64}"), recipe("distill: {steps: 70, batch: 32}")
    assert short.training_effort(1000) == 0 and long.training_seconds() == 90
    assert short.training(1000) == {**Distill(seconds=30, batch=8).parameters()}
    for recipes, wanted in (
        ([short, long], {"seconds": 90}),
        ([short, epochs], {"seconds": 30, "least_epochs": 4, "batch": 64}),
        ([steps, recipe("quantize: {mode: static}")], {"epochs": 70 / 31, "batch": 32}),
    ):
        control = control_for(recipes, 1000)
        assert control is not None
        assert wanted.items() <= control.steps[0].parameters().items()
    assert control_for([recipe("quantize: {mode: static}")], 1000) is None


def test_hooks_are_called_after_each_step_and_what_they_hold_stays(case: Case) -> None:
    model, context = case()
    weight = model.module.get_submodule("head.1").weight
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.5  # type: ignore[arg-type]
    called = []

    def hold(number: int, steps: int) -> None:
        called.append((number, steps))
        with torch.no_grad():
            weight[mask] = 0  # type: ignore[index,operator]

    with torch.no_grad():
        weight[mask] = 0  # type: ignore[index,operator]
    report = distill(model, Distill(epochs=2, batch=64, ema=0.9, weight_decay=0.1), context, [hold])
    assert called == [(number, 16) for number in range(1, 17)] and report.training_steps == 16
    left = model.module.get_submodule("head.1").weight
    assert bool((left[mask] == 0).all()) and bool((left[~mask] != 0).all())  # type: ignore[index,operator]


def test_averaged_weights_are_the_exponential_mean_of_those_of_each_step() -> None:
    module = torch.nn.Linear(2, 1)
    average = trainer.Average(module, 0.5)
    expected = module.weight.detach().clone()
    for number, decay in ((1, 2 / 11), (2, 3 / 12), (20, 0.5)):
        with torch.no_grad():
            module.weight.copy_(torch.full((1, 2), float(number)))
        average.update(number)
        expected = decay * expected + (1 - decay) * number
    with average.in_place():
        torch.testing.assert_close(module.weight.detach(), expected)
    torch.testing.assert_close(module.weight.detach(), torch.full((1, 2), 20.0))


def test_averaged_weights_are_kept_and_said(case: Case) -> None:
    weights = []
    for ema in (None, 0.95):
        model, context = case()
        notes = Distill(epochs=2, batch=64, ema=ema).apply(model, context).notes
        assert any("averaged weights after step" in note for note in notes) == (ema is not None)
        weights.append(_weights(model))
    assert not _same(*weights)


def test_a_clipped_gradient_keeps_the_first_step_small(case: Case) -> None:
    """With AdamW the size of the gradient cancels, but not against epsilon: a tiny one barely moves a weight."""
    moved = []
    for clip in (None, 1e-9):
        model, context = case()
        before = _weights(model)
        Distill(steps=1, clip=clip, batch=64).apply(model, replace(context, validation=None))
        after = _weights(model)
        moved.append(max(float((after[key] - before[key]).abs().max()) for key in before if "running" not in key))
    assert moved[1] < 0.2 * moved[0]


def test_it_stops_where_validation_no_longer_improves(case: Case) -> None:
    model, context = case()
    # Batch norms keep their statistics with batches of 2, and no weight moves at this rate: no look beats the first.
    model.dynamic_batch = False
    done = Distill(epochs=20, samples=64, patience=2, learning_rate=1e-30, batch=64).apply(model, context)
    assert done.training_steps == 10 and any("weights it began with were kept" in note for note in done.notes)


def test_a_student_comes_nearer_to_its_teacher_without_labels(case: Case) -> None:
    for more in ({}, {"augment": ("shift", "cutout", "mixup")}, {"ema": 0.9, "clip": 1.0, "warmup": 0.2}):
        model, context = case()
        assert context.train is not None and context.validation is not None
        blind = replace(
            context,
            train=replace(context.train, targets=None),
            validation=replace(context.validation, targets=None),
            metric="",
            task="",
        )
        before = _distance(model, blind)
        Distill.model_validate({"epochs": 4, "batch": 32, "learning_rate": 0.003, **more}).apply(model, blind)
        assert _distance(model, blind) < 0.25 * before


def test_labels_of_changed_pictures_count_only_for_classes(case: Case) -> None:
    model, context = case()
    assert context.train is not None and context.validation is not None
    numbers = np.zeros((len(context.train), 4), np.float32)
    regression = replace(
        context, train=replace(context.train, targets=numbers), validation=None, metric="", task="regression"
    )
    notes = Distill(steps=1, augment=("flip",)).apply(model, regression).notes
    assert any("labels were left out" in note for note in notes)
    model, context = case()
    notes = Distill(steps=1, augment=("flip",)).apply(model, context).notes
    assert not any("labels were left out" in note for note in notes)


def test_matched_features_are_learned_and_leave_nothing_behind(case: Case) -> None:
    results = []
    for features in (None, "auto", ["features.0", "head.1"]):
        model, context = case()
        ActivationPruning(ratio=0.5, samples=64).apply(model, context)
        names = list(model.module.state_dict())
        settings = {"epochs": 2, "batch": 32, "features": features, "feature_weight": 2.0, "augment": ["shift"]}
        report = Distill.model_validate(settings).apply(model, context)
        assert any("features matched" in note for note in report.notes) == (features is not None)
        assert list(model.module.state_dict()) == names
        assert not any(leaf._forward_hooks for leaf in model.module.modules())
        results.append(_weights(model))
    assert not _same(results[0], results[1]) and not _same(results[1], results[2])


def test_a_chosen_loss_is_said_and_unknown_outputs_are_refused(case: Case) -> None:
    model, context = case()
    report = Distill.model_validate({"steps": 3, "outputs": {"output": {"loss": "l1", "weight": 2}}}).apply(
        model, context
    )
    assert "output as values by absolute difference, times 2" in report.notes[0]
    with pytest.raises(InvalidRecipe, match="no output logits; it has output"):
        Distill.model_validate({"steps": 3, "outputs": {"logits": {"loss": "kl"}}}).apply(model, context)
    for wrong in ({"output": {"loss": "huber"}}, {"output": {"weight": -1}}, {"output": {"kind": "kl"}}):
        with pytest.raises(ValidationError):
            Distill.model_validate({"outputs": wrong})
    with pytest.raises(InvalidRecipe, match="no parameter 'outputs.output.kind'; it has loss, weight"):
        Recipe.from_yaml("{name: a, steps: [distill: {outputs: {output: {kind: kl}}}]}")


def test_the_steps_that_seconds_became_stand_in_the_lineage(trained: Any, tmp_path: Path) -> None:
    recipe = "{name: a, steps: [distill: {seconds: 1.0e-6, least_epochs: 0.5, batch: 128}]}"
    work = Compress(
        format="pt2", recipe=Recipe.from_yaml(recipe).to_yaml(), task="classification", metric="accuracy", seed=1
    )
    sources = Sources(trained.model, trained.train, trained.validation)
    step = run_recipe(work, sources, tmp_path, lambda part, activity: None).lineage[1]
    assert (step.parameters_of_pass["steps"], step.training_steps) == (2, 2)
    assert step.parameters_of_pass["seconds"] == 1e-6
    assert any("1e-06 s are enough for 0 steps" in note for note in step.notes)
    assert any("steps: 2 instead of seconds trains the same again" in note for note in step.notes)
