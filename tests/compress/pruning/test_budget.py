"""Budgets in multiply-accumulates: the account is right, they are met, and not by more than there need be."""

from __future__ import annotations

from itertools import product as combinations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fleetfit.compress.graph import LayeredModel
from fleetfit.compress.passes.activation_pruning import ActivationPruning
from fleetfit.compress.passes.base import Arrays, Needs, PassContext
from fleetfit.compress.passes.taylor_pruning import TaylorPruning
from fleetfit.compress.passes.zero_pruning import ZeroPruning
from fleetfit.compress.pruning.budget import Macs, _allot, _levels, masks_within
from fleetfit.compress.recipe import Recipe
from fleetfit.compress.structure.groups import analyse
from fleetfit.compress.structure.removal import remove_units
from fleetfit.core.errors import InvalidRecipe

from ..structure.models import MODELS, Zoo, zoo

NAMES = [name for name in MODELS if name != "twice"]
"""In the other no unit can go."""


@pytest.fixture(scope="module")
def models() -> Zoo:
    return zoo()


def _context(model: LayeredModel, task: str = "") -> PassContext:
    random = np.random.default_rng(0)
    data = Arrays(
        {
            name: random.normal(size=(48, *value.shape[1:])).astype(np.float32)
            for name, value in model.sample_inputs.items()
        },
        None,
    )
    return PassContext(data, data, model.clone(), "", task, 0, lambda part, activity: None)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**31 - 1))
def test_the_account_is_what_is_counted_after_cutting(models: Zoo, name: str, seed: int) -> None:
    model, generator = models[name].clone(), torch.Generator().manual_seed(seed)
    structure = analyse(model)
    macs = Macs(model, structure)
    assert macs.of({}) == pytest.approx(model.macs())
    kept = {}
    for group in structure.groups:
        kept[group.name] = torch.rand(group.size, generator=generator) < 0.6
        kept[group.name][0] = True
    expected = macs.of({group.space.root(): int(kept[group.name].sum()) for group in structure.groups})
    remove_units(model, structure, kept)
    # Counted as a whole number for one sample.
    assert model.macs() <= expected + 1
    if name not in ("attention", "heads"):
        assert model.macs() == pytest.approx(expected, abs=1)


@pytest.mark.parametrize("name", ["classifier", "residual", "depthwise", "upscaler"])
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**31 - 1), share=st.floats(0.05, 0.7), multiple=st.sampled_from([1, 2, 4]))
def test_a_budget_is_met_with_the_least_important_and_no_more(
    models: Zoo, name: str, seed: int, share: float, multiple: int
) -> None:
    model, generator = models[name], torch.Generator().manual_seed(seed)
    structure = analyse(model)
    groups = [(group, multiple) for group in structure.groups]
    scores = {group.name: torch.rand(group.size, generator=generator, dtype=torch.float64) for group, _ in groups}
    macs = Macs(model, structure)
    try:
        kept = masks_within(model, structure, groups, scores, share)
    except InvalidRecipe as refused:
        least = {group.space.root(): min(group.size, multiple) for group, _ in groups}
        assert macs.of(least) > (1 - share) * macs.whole and "at its least width" in str(refused)
        return
    widths = {group.space.root(): int(kept[group.name].sum()) for group, _ in groups}
    assert macs.of(widths) <= (1 - share) * macs.whole
    for group, _ in groups:
        mask, values = kept[group.name], scores[group.name]
        assert int(mask.sum()) % multiple == 0 or bool(mask.all())
        assert int(mask.sum()) >= min(group.size, multiple)
        if not bool(mask.all()):
            assert float(values[mask].min()) >= float(values[~mask].max())
    if multiple == 1:
        # The last that went was needed: it is the most important of those gone.
        gone = [(float(scores[g.name][i]), g) for g, _ in groups for i in (~kept[g.name]).nonzero().flatten().tolist()]
        last = max(gone, key=lambda one: one[0])[1]
        widths[last.space.root()] += 1
        assert macs.of(widths) > (1 - share) * macs.whole


def test_widths_that_a_scan_tries() -> None:
    assert _levels(32, 8) == [32, 24, 16, 8]
    assert _levels(5, 1) == [5, 4, 3, 2, 1]
    assert _levels(6, 16) == [6]
    assert _levels(64, 1) == [64, 56, 48, 40, 32, 24, 16, 8, 1]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), share=st.floats(0.1, 0.8))
def test_the_allotment_is_near_the_best_there_is(seed: int, share: float) -> None:
    """Three chained layers, every allotment tried."""
    random = np.random.default_rng(seed)
    widths = [4, 3, 2, 1]
    # Damage grows faster and faster, as it does in real layers.
    damages = [[0.0, *np.cumsum(np.sort(random.random(3))).tolist()] for _ in range(3)]

    def cost(at: Any) -> float:
        a, b, c = (widths[level] for level in at)
        return 10 * a + a * b + b * c + 10 * c

    most = cost([3, 3, 3]) + (1 - share) * (cost([0, 0, 0]) - cost([3, 3, 3]))
    at = _allot(cost, damages, most)
    assert cost(at) <= most

    def total(one: Any) -> float:
        return sum(damage[level] for damage, level in zip(damages, one, strict=True))

    allowed = [one for one in combinations(range(4), repeat=3) if cost(one) <= most]
    # No single cut could be taken back.
    for group in range(3):
        if at[group]:
            assert cost([*at[:group], at[group] - 1, *at[group + 1 :]]) > most
    assert total(at) <= 2 * min(map(total, allowed)) + 0.5


@pytest.mark.parametrize("step", [ActivationPruning, ZeroPruning, TaylorPruning])
@pytest.mark.parametrize("scan", [False, True])
def test_passes_keep_to_a_budget(models: Zoo, step: Any, scan: bool) -> None:
    model = models["residual"].clone()
    before = model.macs()
    report = step(scope="global", round_to=2, budget={"macs": 0.5, "scan": scan}).apply(
        model, _context(model, "classification")
    )
    assert model.macs() <= before / 2
    assert report.notes[0 if step is not TaylorPruning else 1].startswith(
        f"{before} -> {model.macs()} multiply-accumulates"
    )
    assert all(model.module.get_submodule(name).weight.shape[0] % 2 == 0 for name in ("stem", "back"))


def test_a_scan_cuts_where_it_hurts_least(models: Zoo) -> None:
    """What `inner` adds to the stream is next to nothing, though its weights are as large as others'."""
    model = models["residual"].clone()
    with torch.no_grad():
        model.module.get_submodule("norm").weight.fill_(1e-4)  # type: ignore[operator,union-attr]
    step = ActivationPruning.model_validate({"scope": "global", "budget": {"macs": 0.4, "scan": True}})
    step.apply(model, _context(model, "classification"))
    assert model.module.get_submodule("inner").weight.shape[0] <= 2  # type: ignore[index,union-attr]
    assert model.module.get_submodule("stem").weight.shape[0] == 8  # type: ignore[index,union-attr]


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ("activation_pruning: {budget: {macs: 0.5}}", "give 'scope: global' with it"),
        (
            "activation_pruning: {scope: global, ratio: 0.5, budget: {macs: 0.5}}",
            "one of 'threshold', 'ratio' or 'budget'",
        ),
        ("taylor_pruning: {scope: global}", "give either 'ratio' or 'budget'"),
        ("taylor_pruning: {scope: global, budget: {macs: 1.5}}", "'budget.macs': Input should be less than 1"),
        ("taylor_pruning: {scope: global, budget: {bytes: 0.5}}", "budget"),
        ("zero_pruning: {pattern: unstructured, ratio: 0.5, scope: global, budget: {macs: 0.5}}", "leave 'budget' out"),
        ("zero_pruning: {scope: global, ratio: 0.5, budget: {macs: 0.5}}", "give either 'ratio' or 'budget'"),
        ("zero_pruning: {scope: global, budget: {macs: 0.5}, overrides: {a: {ratio: 0.5}}}", "cannot give 'ratio'"),
    ],
)
def test_wrong_budgets_are_refused(parameters: str, words: str) -> None:
    with pytest.raises(InvalidRecipe, match=words):
        Recipe.from_yaml(f"name: a\nsteps:\n - {parameters}\n")


def test_a_budget_reads_back_and_says_what_it_needs() -> None:
    text = "name: a\nsteps:\n - zero_pruning: {scope: global, budget: {macs: 0.5, scan: true}}\n"
    recipe = Recipe.from_yaml(text)
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe and recipe.needs_data()
    assert Needs.DATA not in ZeroPruning.model_validate({"scope": "global", "budget": {"macs": 0.5}}).wants()


def test_what_is_out_of_reach_is_said(models: Zoo) -> None:
    model = models["classifier"].clone()
    with pytest.raises(InvalidRecipe, match=r"at its least width \d+% of the MACs go, not 99%"):
        ZeroPruning.model_validate({"scope": "global", "budget": {"macs": 0.99}}).apply(model, _context(model))
    step = ZeroPruning.model_validate({"scope": "global", "budget": {"macs": 0.2, "scan": True}})
    context = _context(model)
    context.train = context.validation = None
    with pytest.raises(InvalidRecipe, match="--data"):
        step.apply(model, context)
