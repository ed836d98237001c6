"""Parameters that differ from layer to layer: what is read, what is refused, and what a pass then does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fleetfit.compress.graph import LayeredModel
from fleetfit.compress.passes.activation_pruning import ActivationPruning
from fleetfit.compress.passes.base import Arrays, PassContext
from fleetfit.compress.passes.redundancy_pruning import RedundancyPruning
from fleetfit.compress.recipe import Recipe
from fleetfit.core.errors import InvalidRecipe

from ..structure.models import loaded


def _residual() -> tuple[LayeredModel, PassContext]:
    model = loaded("residual")
    pictures = np.random.default_rng(0).normal(size=(64, 3, 8, 8)).astype(np.float32)
    data = Arrays({model.inputs[0].name: pictures}, None)
    return model, PassContext(data, None, None, "", "", 0, lambda part, activity: None)


def test_the_first_pattern_that_fits_counts_and_an_amount_replaces_the_other_kind_of_amount() -> None:
    step = ActivationPruning.model_validate(
        {
            "ratio": 0.5,
            "round_to": 4,
            "skip": ["head"],
            "overrides": {"stage1.0": {"threshold": 0.1}, "stage1.*": {"ratio": 0.25, "round_to": 1}},
        }
    )
    assert step.for_layer("head") is None
    assert step.for_layers(["stage2.0", "head"]) is None
    first, second, other = (step.for_layer(name) for name in ("stage1.0", "stage1.1", "stage2.0"))
    assert first is not None and (first.threshold, first.ratio, first.round_to) == (0.1, None, 4)
    assert second is not None and (second.threshold, second.ratio, second.round_to) == (None, 0.25, 1)
    assert other is not None and (other.threshold, other.ratio, other.round_to) == (None, 0.5, 4)


def test_a_recipe_with_overrides_reads_back_and_one_without_has_the_key_it_always_had() -> None:
    text = "name: a\nsteps:\n - activation_pruning: {ratio: 0.5, skip: [head], overrides: {'s.*': {ratio: 0.1}}}\n"
    recipe = Recipe.from_yaml(text)
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert set(ActivationPruning(ratio=0.5).parameters()) == {"ratio", "scope", "layers", "samples"}


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ("{ratio: 0.5, overrides: {a: {ratoi: 1}}}", "cannot give 'ratoi'; single layers may have threshold, ratio"),
        ("{ratio: 0.5, overrides: {a: {samples: 10}}}", "cannot give 'samples'"),
        ("{ratio: 0.5, overrides: {a: {ratio: 2}}}", "the override for 'a': ratio: Input should be less than 1"),
        ("{ratio: 0.5, scope: global, overrides: {a: {ratio: 0.2}}}", "cannot give 'ratio'"),
        ("{ratio: 0.5, overrides: {a: {ratio: 0.1, threshold: 1}}}", "give one of 'threshold', 'ratio' or 'budget'"),
        ("{ratio: 0.5, skip: []}", "skip"),
        ("{ratio: 0.5, overrides: 3}", "overrides"),
    ],
)
def test_what_no_layer_can_have_is_refused(parameters: str, words: str) -> None:
    with pytest.raises(InvalidRecipe, match=words) as refused:
        Recipe.from_yaml(f"name: a\nsteps:\n - activation_pruning: {parameters}\n")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", [ActivationPruning, RedundancyPruning])
def test_layers_are_left_alone_or_cut_as_they_are_told(kind: Any) -> None:
    """In the residual model `stem` and `back` are coupled: what is said of one holds for both."""
    model, context = _residual()
    notes = kind(ratio=0.5, skip=("stem",)).apply(model, context).notes
    assert notes[0].startswith("inner: 5 -> 3 channels") and model.module.get_submodule("back").weight.shape[0] == 8
    model, context = _residual()
    kind(ratio=0.5, overrides={"back": {"ratio": 0.25}, "in*": {"round_to": 4}}).apply(model, context)
    assert [model.module.get_submodule(name).weight.shape[0] for name in ("stem", "inner", "back")] == [6, 4, 6]


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"skip": ["inr"]}, "activation_pruning: no layer that it treats is named 'inr'; there are inner"),
        ({"overrides": {"head": {"ratio": 0.1}}}, "is named 'head'"),
        ({"skip": ["*"]}, "skips every layer"),
    ],
)
def test_patterns_that_name_no_layer_are_refused(parameters: Any, words: str) -> None:
    model, context = _residual()
    with pytest.raises(InvalidRecipe, match=words.replace("*", r"\*")):
        ActivationPruning(ratio=0.5, **parameters).apply(model, context)
