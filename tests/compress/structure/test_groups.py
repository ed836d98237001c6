"""What the analysis finds, and what is left after units were removed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import fx, nn

from fleetfit.compress.intake.pt2 import load_pt2
from fleetfit.compress.structure.groups import Structure, analyse
from fleetfit.compress.structure.removal import outputs_of, remove_units
from fleetfit.core.errors import InternalError, InvalidRecipe

from .models import MODELS, Zoo, zoo

EXPECTED = {
    "classifier": {"conv": 6, "hidden": 12},
    "residual": {"stem + back": 8, "inner": 5},
    "depthwise": {"expand": 8},
    "joined": {"left": 6, "right": 4, "mix": 7},
    "squeeze_excite": {"conv + excite": 8, "squeeze": 4},
    "upscaler": {"down": 6, "up": 5},
    "tokens": {"embed": 10, "mix": 9},
    "twice": {},
    "attention": {"block.self_attn.in_proj": 2, "block.linear1": 16},
    "heads": {"query + key + value": 2},
    "grouped": {"first": 2, "wide": 3, "narrow": 8},
    "shuffled": {"stem": 4, "first": 4, "second": 3},
    "halves": {"stem[0:6]": 6, "stem[6:12]": 6, "left": 6, "right[0:2] + right[7:9]": 2, "right[2:6]": 4},
    "normed": {"first": 4, "second": 6, "third": 5},
    "gated": {"start": 7, "gru": 6},
    "scaled": {"conv": 6},
    "recurrent": {"lstm": 5, "hidden": 7},
    "bytes": {"hidden": 10},
}


@pytest.fixture(scope="module")
def models() -> Zoo:
    return zoo()


def _some(structure: Structure, seed: int) -> dict[str, torch.Tensor]:
    """A mask for every group, with at least one unit left."""
    generator = torch.Generator().manual_seed(seed)
    kept = {}
    for group in structure.groups:
        mask = torch.rand(group.size, generator=generator) < 0.5
        mask[int(torch.randint(group.size, (1,), generator=generator))] = True
        kept[group.name] = mask
    return kept


@pytest.mark.parametrize("name", MODELS)
def test_finds_exactly_the_groups_that_may_be_cut(models: Zoo, name: str) -> None:
    structure = analyse(models[name])
    assert {group.name: group.size for group in structure.groups} == EXPECTED[name]
    assert all(group.points for group in structure.groups)


def test_says_why_a_layer_stays_whole(models: Zoo) -> None:
    assert analyse(models["classifier"]).locked == {"head": "it is an output of the model"}
    assert analyse(models["tokens"]).locked["middle"] == "it is an output of the model"
    assert "shares a weight" in analyse(models["twice"]).locked["tied"]
    assert "combines" in analyse(models["attention"]).locked["block.self_attn.out_proj"]
    assert "LayerNorm" in analyse(models["normed"]).locked["hidden"]


# Silencing what a recurrent layer gives would not silence what its next step reads.
_RECURRENT = ("recurrent", "gated")


@pytest.mark.parametrize("name", [name for name, groups in EXPECTED.items() if groups and name not in _RECURRENT])
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**31 - 1))
def test_what_is_left_computes_what_the_units_left_computed(models: Zoo, name: str, seed: int) -> None:
    """An independent account: the whole model, with those units silenced where their activations are looked at."""
    whole = models[name].clone()
    structure = analyse(whole)
    kept = _some(structure, seed)

    class Silenced(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            value = super().run_node(n)
            for group in structure.groups:
                for node, axis in group.points:
                    if n.name == node:
                        assert isinstance(value, torch.Tensor)
                        outer, inner = group.copies[node, axis]
                        mask = kept[group.name].repeat_interleave(inner).repeat(outer)
                        value = value * mask.view([-1 if at == axis else 1 for at in range(value.dim())])
            return value

    with torch.no_grad():
        results = Silenced(whole.module).run(*(whole.sample_inputs[tensor.name] for tensor in whole.inputs))
    expected = whole.name_outputs(results)
    remove_units(whole, structure, kept)
    found = outputs_of(whole)
    for output, value in expected.items():
        torch.testing.assert_close(found[output], value, rtol=1e-4, atol=1e-5)
    removed = sum(int((~mask).sum()) for mask in kept.values())
    assert (whole.parameters_count() < models[name].parameters_count()) == (removed > 0)
    assert (whole.macs() <= models[name].macs()) and (whole.inputs, whole.outputs) == (
        models[name].inputs,
        models[name].outputs,
    )


@pytest.mark.parametrize("name", [name for name, groups in EXPECTED.items() if groups])
def test_a_cut_model_trains_and_goes_out_and_in_again(models: Zoo, name: str, tmp_path: Path) -> None:
    model = models[name].clone()
    structure = analyse(model)
    remove_units(model, structure, _some(structure, 7))
    model.module.train()
    sum(value.square().mean() for value in model.call(model.sample_inputs).values()).backward()
    used = [p for p in model.module.parameters() if p.grad is not None]
    assert used and all(p.grad.shape == p.shape for p in used)
    model.module.eval()
    model.save_pt2(tmp_path / "cut.pt2")
    again = load_pt2(tmp_path / "cut.pt2")
    assert again.parameters_count() == model.parameters_count()
    assert {g.name: g.size for g in analyse(again).groups} == {g.name: g.size for g in analyse(model).groups}


@pytest.mark.parametrize("name", ["classifier", "residual", "depthwise"])
def test_the_channels_of_norms_that_are_left_are_known_after_several_cuts(models: Zoo, name: str) -> None:
    model = models[name].clone()
    norm = model.module.get_submodule("norm")
    mean = norm.get_buffer("running_mean")
    mean.copy_(torch.arange(len(mean)))
    for seed in (1, 2):
        before = model.clone()
        structure = analyse(model)
        remove_units(model, structure, _some(structure, seed))
        assert torch.equal(model.kept["norm"].float(), norm.get_buffer("running_mean"))
        assert seed == 1 or torch.equal(before.kept["norm"].float(), before.module.get_submodule("norm").running_mean)
    assert len(model.kept["norm"]) < len(mean)


@pytest.mark.parametrize("name", _RECURRENT)
def test_hidden_units_that_stay_at_zero_can_go(models: Zoo, name: str) -> None:
    """A unit whose gates are all made by zeros never leaves zero, in an LSTM as in a GRU."""
    model = models[name].clone()
    layer = model.module.get_submodule({"recurrent": "lstm", "gated": "gru"}[name])
    assert isinstance(layer, (nn.LSTM, nn.GRU))
    mask = torch.ones(layer.hidden_size, dtype=torch.bool)
    mask[[1, 4]] = False
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.view(-1, layer.hidden_size, *parameter.shape[1:])[:, ~mask] = 0
    expected = outputs_of(model)
    remove_units(model, analyse(model), {{"recurrent": "lstm", "gated": "gru"}[name]: mask})
    assert layer.hidden_size == len(mask) - 2
    for output, value in outputs_of(model).items():
        torch.testing.assert_close(value, expected[output], rtol=1e-6, atol=1e-6)


def test_numbers_of_layers_agree_with_their_weights(models: Zoo) -> None:
    model = models["depthwise"].clone()
    structure = analyse(model)
    remove_units(model, structure, {"expand": torch.tensor([True, False] * 4)})
    sizes = {
        name: (leaf.in_channels, leaf.out_channels, leaf.groups)
        for name, leaf in model.module.named_modules()
        if isinstance(leaf, nn.Conv2d)
    }
    assert sizes == {"expand": (2, 4, 1), "depth": (4, 4, 4), "copies": (4, 8, 4), "project": (8, 3, 1)}


def test_refuses_to_empty_a_layer(models: Zoo) -> None:
    model = models["classifier"].clone()
    with pytest.raises(InvalidRecipe, match="no unit of hidden would be left"):
        remove_units(model, analyse(model), {"hidden": torch.zeros(12, dtype=torch.bool)})


def test_notices_a_cut_in_the_wrong_place(models: Zoo) -> None:
    """The numeric check after a cut is there for mistakes of the analysis: make one."""
    model = models["classifier"].clone()
    structure = analyse(model)
    reader = next(i for i, cut in enumerate(structure.cuts) if cut.module == "hidden" and cut.reads)
    wrong = structure.cuts[reader]
    # As if the flattened units lay interleaved instead of one after the other.
    segment = wrong.layout[0]
    interleaved = type(segment)(segment.space, outer=segment.inner, inner=1)
    structure.cuts[reader] = type(wrong)(wrong.module, wrong.tensor, wrong.axis, (interleaved,), reads=True)
    with pytest.raises(InternalError, match="changed more than it should"):
        remove_units(model, structure, {"conv": torch.tensor([True, False, True, True, False, True])})
