"""Which weights and which neurons zero pruning takes away, and that zeros stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from fleetfit.client.export import export
from fleetfit.compress.graph import LayeredModel
from fleetfit.compress.intake.pt2 import load_pt2
from fleetfit.compress.passes.base import Arrays, PassContext
from fleetfit.compress.passes.distill import Distill
from fleetfit.compress.passes.low_rank import LowRank
from fleetfit.compress.passes.redundancy_pruning import RedundancyPruning
from fleetfit.compress.passes.zero_pruning import ZeroPruning
from fleetfit.compress.pruning.magnitude import unit_norms
from fleetfit.compress.pruning.zeros import KeptZeros, keep_of_every, keep_share, lamp
from fleetfit.compress.recipe import Recipe
from fleetfit.compress.structure.groups import analyse
from fleetfit.core.errors import InvalidRecipe

from ..structure.models import loaded


class Normed(nn.Module):
    """A convolution whose batch norm turns the order of its channels around, and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.hidden, self.head = nn.Linear(4, 8), nn.Linear(8, 3)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([1.0, 2, 3, 4]).reshape(4, 1, 1, 1))
            self.norm.weight.copy_(torch.tensor([8.0, -1, 0.5, 0.25]))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        pooled = torch.relu(self.norm(self.conv(image))).mean((2, 3))
        return self.head(torch.relu(self.hidden(pooled)))


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LayeredModel]:
    folder = tmp_path_factory.mktemp("models")
    made: dict[str, tuple[Any, tuple[torch.Tensor, ...]]] = {
        "normed": (Normed, (torch.rand(2, 1, 3, 3),)),
        "tied": (Tied, (torch.rand(2, 8),)),
    }
    own = {
        name: load_pt2(export(make().eval(), samples, folder / f"{name}.pt2")) for name, (make, samples) in made.items()
    }
    return own | {name: loaded(name) for name in ("classifier", "residual", "depthwise", "upscaler", "tokens")}


def _context(model: LayeredModel, count: int = 0) -> PassContext:
    data = None
    if count:
        shape = next(iter(model.sample_inputs.values())).shape[1:]
        inputs = np.random.default_rng(0).normal(size=(count, *shape)).astype(np.float32)
        data = Arrays({model.inputs[0].name: inputs}, None)
    return PassContext(data, None, model.clone(), "", "", 0, lambda part, activity: None)


def _zero(model: LayeredModel, **parameters: object) -> list[str]:
    return ZeroPruning.model_validate(parameters).apply(model, _context(model)).notes


def _weight(model: LayeredModel, name: str) -> torch.Tensor:
    weight = model.module.get_submodule(name).weight
    assert isinstance(weight, torch.Tensor)
    return weight.detach()


def test_channels_are_ranked_by_their_weights_with_the_batch_norm_folded_in(models: dict[str, LayeredModel]) -> None:
    model = models["normed"].clone()
    structure = analyse(model)
    found = unit_norms(model, structure, structure.groups)["conv"]
    expected = torch.tensor([8.0, 2, 1.5, 1]) / (1 + 1e-5) ** 0.5
    torch.testing.assert_close(found, expected.double())
    assert _zero(model, ratio=0.5, skip=["hidden"])[0] == "conv: 4 -> 2 channels"
    assert _weight(model, "conv").flatten().tolist() == [1.0, 2.0]


def test_coupled_layers_count_together(models: dict[str, LayeredModel]) -> None:
    """A channel of a residual stream is as large as all that is added into it."""
    model = models["residual"].clone()
    with torch.no_grad():
        for name in ("stem", "back"):
            model.module.get_submodule(name).weight.fill_(1.0)  # type: ignore[operator,union-attr]
        model.module.get_submodule("stem").weight[2] = 0.5  # type: ignore[operator,index]
        model.module.get_submodule("back").weight[5] = 0.25  # type: ignore[operator,index]
    structure = analyse(model)
    found = unit_norms(model, structure, structure.groups)["stem + back"]
    # 27 weights come from the stem and 45 through the other branch, behind a batch norm that does nothing.
    expected = torch.full((8,), 72.0)
    expected[2], expected[5] = 27 / 4 + 45, 27 + 45 / 16
    torch.testing.assert_close(found, expected.double().sqrt(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", ["classifier", "residual", "depthwise", "upscaler", "tokens"])
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**31 - 1), scope=st.sampled_from(["layer", "global"]))
def test_neurons_without_incoming_weights_are_found_and_not_missed(
    models: dict[str, LayeredModel], name: str, seed: int, scope: str
) -> None:
    model = models[name].clone()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.module.parameters():
            weight.copy_(0.5 * torch.randn(weight.shape, generator=generator))
    structure = analyse(model)
    dead: dict[str, set[int]] = {}
    for group in structure.groups:
        units = torch.randperm(group.size, generator=generator)[: group.size // 2].tolist()
        dead[group.name] = set(units)
        for cut in structure.cuts:
            if not cut.reads and [one.space.root() for one in cut.layout if one.space] == [group.space.root()]:
                tensor = getattr(model.module.get_submodule(cut.module), cut.tensor)
                (segment,) = cut.layout
                mask = torch.zeros(group.size, dtype=torch.bool)
                mask[units] = True
                if cut.tensor in ("weight", "bias", "running_mean"):
                    gone = mask.repeat_interleave(segment.inner).repeat(segment.outer).nonzero().flatten()
                    tensor.data.index_fill_(cut.axis, gone, 0)
    scores = unit_norms(model, structure, structure.groups)
    for group in structure.groups:
        assert set((scores[group.name] == 0).nonzero().flatten().tolist()) == dead[group.name]
    model.module.eval()
    before = {key: value.detach() for key, value in model.call(model.sample_inputs).items()}
    share = sum(map(len, dead.values())) / sum(group.size for group in structure.groups)
    # In each layer alike a little less than half may be what can be asked for.
    ratio = share + 1e-9 if scope == "global" else min(len(dead[g.name]) / g.size for g in structure.groups) + 1e-9
    _zero(model, ratio=ratio, scope=scope)
    for key, value in model.call(model.sample_inputs).items():
        torch.testing.assert_close(value, before[key], rtol=1e-5, atol=1e-6 * (1 + float(before[key].abs().max())))


def test_the_smallest_weights_of_each_layer_become_zero(models: dict[str, LayeredModel]) -> None:
    model = models["classifier"].clone()
    before = {name: _weight(model, name).clone() for name in ("conv", "hidden", "head")}
    notes = _zero(model, ratio=0.25, pattern="unstructured", overrides={"head": {"ratio": 0.5}}, skip=["conv"])
    assert torch.equal(_weight(model, "conv"), before["conv"])
    for name, ratio in (("hidden", 0.25), ("head", 0.5)):
        after, old = _weight(model, name), before[name]
        zero = after == 0
        assert int(zero.sum()) == int(ratio * after.numel())
        assert float(old[zero].abs().max()) <= float(old[~zero].abs().min())
        assert torch.equal(after[~zero], old[~zero])
    assert model.sparse == {"hidden.weight", "head.weight"}
    assert "neither the size of the file nor the latency" in " ".join(notes)
    assert notes[0].startswith("312 of the 1200 weights of 2 layers are zero (26.0%)")


def test_to_cut_again_and_again_composes(models: dict[str, LayeredModel]) -> None:
    model = models["classifier"].clone()
    for left in (0.8, 0.64, 0.512):
        _zero(model, ratio=0.2, pattern="unstructured", layers="linear", skip=["head"])
        weight = _weight(model, "hidden")
        assert abs(int((weight != 0).sum()) - left * weight.numel()) <= 3
    for width in (10, 8, 7):
        _zero(model, ratio=0.2, layers="linear")
        assert _weight(model, "hidden").shape[0] == width


def test_a_global_ratio_does_not_depend_on_a_layers_scale(models: dict[str, LayeredModel]) -> None:
    plain, scaled = models["classifier"].clone(), models["classifier"].clone()
    with torch.no_grad():
        scaled.module.get_submodule("hidden").weight.mul_(1e-3)  # type: ignore[operator,union-attr]
    for model in (plain, scaled):
        _zero(model, ratio=0.9, pattern="unstructured", scope="global")
    for name in ("conv", "hidden", "head"):
        assert torch.equal(_weight(plain, name) == 0, _weight(scaled, name) == 0)
        assert bool((_weight(plain, name) != 0).any())
    zeros = sum(int((_weight(plain, name) == 0).sum()) for name in ("conv", "hidden", "head"))
    assert zeros == int(0.9 * sum(_weight(plain, name).numel() for name in ("conv", "hidden", "head")))


def test_lamp_of_a_layer_of_which_it_is_known() -> None:
    scores = lamp(torch.tensor([[3.0, -1.0], [0.0, 2.0]]))
    torch.testing.assert_close(scores, torch.tensor([[1.0, 1 / 14], [0.0, 4 / 13]], dtype=torch.float64))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    blocks=st.integers(1, 4),
    pattern=st.sampled_from([(2, 4), (4, 8), (1, 2), (1, 4), (3, 4)]),
    axis=st.sampled_from([0, 1]),
)
def test_n_of_m_keeps_the_largest_of_each_block(seed: int, blocks: int, pattern: tuple[int, int], axis: int) -> None:
    keep, every = pattern
    scores = torch.rand(3, blocks * every, 2, 2, generator=torch.Generator().manual_seed(seed)).transpose(1, axis)
    mask = keep_of_every(scores, axis, keep, every)
    assert mask.shape == scores.shape
    rows, chosen = scores.movedim(axis, -1).reshape(-1, every), mask.movedim(axis, -1).reshape(-1, every)
    assert bool((chosen.sum(1) == keep).all())
    kept = rows.masked_fill(~chosen, 2).amin(1)
    assert bool((kept >= rows.masked_fill(chosen, -1).amax(1)).all())


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), size=st.integers(1, 60), ratio=st.floats(0.01, 0.99))
def test_a_share_is_of_what_is_not_zero(seed: int, size: int, ratio: float) -> None:
    scores = torch.rand(size, generator=torch.Generator().manual_seed(seed))
    scores[::3] = 0
    alive = int((scores > 0).sum())
    mask = keep_share(scores, ratio)
    assert not bool(mask[scores == 0].any())
    assert int(mask.sum()) == (max(1, alive - int(ratio * alive)) if alive else 0)


def test_a_pattern_lies_along_the_inputs(models: dict[str, LayeredModel]) -> None:
    model = models["upscaler"].clone()  # `down` reads 1 channel, `up` 6 as a transposed convolution, `out` 5
    notes = _zero(model, pattern="1:2")
    up = _weight(model, "up")  # (in, out, 2, 2)
    assert bool(((up != 0).reshape(3, 2, 5, 2, 2).sum(1) == 1).all())
    assert "down stays whole: its 1 inputs are no multiple of 2" in notes
    assert "out stays whole: its 5 inputs are no multiple of 2" in notes
    model = models["classifier"].clone()
    _zero(model, pattern="2:4", overrides={"head": {"pattern": "1:4"}})
    assert bool(((_weight(model, "hidden") != 0).reshape(12, 24, 4).sum(2) == 2).all())
    assert bool(((_weight(model, "head") != 0).reshape(4, 3, 4).sum(2) == 1).all())


def test_a_weight_of_two_layers_is_left_alone(models: dict[str, LayeredModel]) -> None:
    model = models["tied"].clone()
    before = _weight(model, "first").clone()
    notes = _zero(model, ratio=0.5, pattern="unstructured")
    assert "first stays whole: it shares a weight with another layer" in notes
    assert torch.equal(_weight(model, "first"), before) and model.sparse == {"head.weight"}


def test_zeros_stay_through_training_and_other_passes(models: dict[str, LayeredModel]) -> None:
    model = models["classifier"].clone()
    context = _context(model, 64)
    _zero(model, ratio=0.5, pattern="unstructured")
    zero = {name: _weight(model, name) == 0 for name in ("conv", "hidden", "head")}
    before = _weight(model, "hidden").clone()
    clone = model.clone()
    Distill(epochs=2, batch=16, learning_rate=0.01, weight_decay=0.01).apply(clone, context)
    assert not torch.equal(_weight(clone, "hidden"), before)
    assert all(torch.equal(_weight(clone, name) == 0, zero[name]) for name in zero)
    # Dense weights are trained all the same.
    dense = model.clone()
    dense.sparse.clear()
    Distill(epochs=2, batch=16, learning_rate=0.01).apply(dense, context)
    assert int((_weight(dense, "hidden") == 0).sum()) < int(zero["hidden"].sum())
    # Whole neurons go: what is left of the zeros stays.
    _zero(clone, ratio=0.5, layers="linear")
    assert _weight(clone, "hidden").shape[0] == 6 and clone.sparse == model.sparse
    some = _weight(clone, "hidden") == 0
    Distill(epochs=1, batch=16, learning_rate=0.01).apply(clone, context)
    assert bool(some.any()) and torch.equal(_weight(clone, "hidden") == 0, some)


def test_zeros_that_a_pass_fills_are_forgotten(models: dict[str, LayeredModel]) -> None:
    model = models["classifier"].clone()
    context = _context(model, 64)
    _zero(model, ratio=0.5, pattern="unstructured")
    notes = RedundancyPruning(ratio=0.5, layers="linear").apply(model, context).notes
    assert "head.weight: its zeros were filled by what was folded into it" in notes
    assert model.sparse == {"conv.weight", "hidden.weight"}
    LowRank(ratio=0.2).apply(model, context)
    zeros = KeptZeros(model)
    with torch.no_grad():
        for weight in model.module.parameters():
            weight.add_(1.0)
    zeros.restore()
    assert int((_weight(model, "conv") == 0).sum()) == 27
    assert all(bool((w != 0).all()) for name, w in model.module.named_parameters() if name.startswith("hidden"))


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ("{}", "give either 'ratio' or 'budget' for whole channels"),
        ("{pattern: unstructured}", "give 'ratio'"),
        ("{pattern: '2:4', ratio: 0.5}", "says how much goes; leave 'ratio' out"),
        ("{pattern: '4:4'}", "must leave at least 1 and not all"),
        ("{pattern: '0:4'}", "must leave at least 1"),
        ("{pattern: blocks, ratio: 0.5}", "'pattern' is 'channels', 'unstructured' or N:M such as '2:4', not 'blocks'"),
        ("{pattern: '2:4', scope: global}", "leave 'scope' out"),
        ("{pattern: unstructured, ratio: 0.5, round_to: 8}", "leave 'round_to' out"),
        ("{ratio: 1.0}", "less than 1"),
        ("{ratio: 0.5, scope: global, overrides: {a: {ratio: 0.1}}}", "cannot give 'ratio'"),
        (
            "{pattern: '2:4', overrides: {a: {pattern: channels}}}",
            "the override for 'a': give either 'ratio' or 'budget'",
        ),
    ],
)
def test_wrong_parameters_are_refused(parameters: str, words: str) -> None:
    with pytest.raises(InvalidRecipe, match=words):
        Recipe.from_yaml(f"name: a\nsteps:\n - zero_pruning: {parameters}\n")


def test_what_cannot_be_met_is_said(models: dict[str, LayeredModel]) -> None:
    with pytest.raises(InvalidRecipe, match="no linear layer for the pattern unstructured"):
        _zero(models["upscaler"].clone(), ratio=0.5, pattern="unstructured", layers="linear")
    with pytest.raises(InvalidRecipe, match=r"pattern 2:4 \(down stays whole: its 1 inputs are no multiple of 4"):
        _zero(models["upscaler"].clone(), pattern="2:4")
    with pytest.raises(InvalidRecipe, match="is named 'hiden'; there are hidden"):
        _zero(models["classifier"].clone(), ratio=0.5, pattern="unstructured", skip=["hiden"])


def test_it_needs_no_data(models: dict[str, LayeredModel], tmp_path: Path) -> None:
    recipe = Recipe.from_yaml("name: a\nsteps:\n - zero_pruning: {ratio: 0.5, round_to: 2}\n")
    assert not recipe.needs_data() and recipe.needs_trainable()
    model = models["residual"].clone()
    recipe.steps[0].apply(model, _context(model))
    assert _weight(model, "inner").shape[:2] == (4, 4)
