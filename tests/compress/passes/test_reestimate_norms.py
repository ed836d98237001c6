"""Batch norms on layers whose statistics are known: measured anew, and moved as a cut moved what they get."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from fleetfit.client.export import export
from fleetfit.compress.graph import LayeredModel
from fleetfit.compress.graph.batches import outputs_over
from fleetfit.compress.intake.pt2 import load_pt2
from fleetfit.compress.passes.activation_pruning import ActivationPruning
from fleetfit.compress.passes.base import Arrays, PassContext
from fleetfit.compress.passes.redundancy_pruning import RedundancyPruning
from fleetfit.compress.passes.reestimate_norms import ReestimateNorms
from fleetfit.compress.training import norms
from fleetfit.core.errors import InvalidData, InvalidRecipe


class Two(nn.Module):
    """A second batch norm that depends on the first."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm1d(5)
        self.between = nn.Linear(5, 6)
        self.second = nn.BatchNorm1d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.between(self.first(x))))


class Twice(nn.Module):
    """One batch norm that is called twice, and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.once = nn.BatchNorm1d(5), nn.BatchNorm1d(5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.once(self.both(torch.relu(self.both(x))))


def _model(module: nn.Module, folder: Path) -> LayeredModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        for leaf in module.modules():
            if isinstance(leaf, nn.Linear):
                leaf.reset_parameters()
    return load_pt2(
        export(module.eval(), (torch.randn(3, 5, generator=torch.Generator().manual_seed(0)),), folder / "m.pt2")
    )


def _context(count: int = 700, model: LayeredModel | None = None) -> PassContext:
    values = np.random.default_rng(3).normal(2.0, 3.0, (count, 5)).astype(np.float32)
    return PassContext(Arrays({"x": values}, None), None, model, "", "", 1, lambda part, activity: None)


def test_statistics_are_those_of_each_layers_own_inputs(tmp_path: Path) -> None:
    model, context = _model(Two(), tmp_path), _context()
    report = ReestimateNorms(statistics="measured").apply(model, context)
    assert "on 700 samples: 2;" in report.notes[0] and report.training_steps == 0
    assert context.train is not None
    x = torch.from_numpy(context.train.inputs["x"]).double()
    module = model.module.double().eval()
    first, between, second = (module.get_submodule(name) for name in ("first", "between", "second"))
    torch.testing.assert_close(first.running_mean, x.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(first.running_var, x.var(0), rtol=1e-5, atol=1e-6)
    inner = torch.relu(between(first(x)))
    torch.testing.assert_close(second.running_mean, inner.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(second.running_var, inner.var(0), rtol=1e-4, atol=1e-5)


def test_what_it_measured_stays_when_measured_again(tmp_path: Path) -> None:
    model, context = _model(Two(), tmp_path), _context()
    ReestimateNorms(statistics="measured").apply(model, context)
    before = {key: value.clone() for key, value in model.module.state_dict().items()}
    ReestimateNorms(statistics="measured").apply(model, context)
    for key, value in model.module.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_model_of_one_small_batch_size_gets_the_same(tmp_path: Path, batch: int) -> None:
    free, fixed = _model(Two(), tmp_path), _model(Two(), tmp_path)
    fixed.dynamic_batch = False
    fixed.sample_inputs = {"x": fixed.sample_inputs["x"][:batch]}
    for model in (free, fixed):
        ReestimateNorms(statistics="measured", samples=300).apply(model, _context())
    for key, value in free.module.state_dict().items():
        torch.testing.assert_close(fixed.module.state_dict()[key], value, rtol=1e-5, atol=1e-5)


def test_fewer_samples_where_activations_would_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # 5 or 6 numbers of 4 bytes go in and 6 come out of a layer.
    monkeypatch.setattr(norms, "_MOST_BYTES", 100 * 48)
    model = _model(Two(), tmp_path)
    assert "on 100 samples" in ReestimateNorms(statistics="measured").apply(model, _context()).notes[0]


def test_a_norm_that_is_called_twice_is_left_alone(tmp_path: Path) -> None:
    model = _model(Twice(), tmp_path)
    before = {key: value.clone() for key, value in model.module.state_dict().items()}
    notes = ReestimateNorms(statistics="measured").apply(model, _context()).notes
    assert "samples: 1;" in notes[0] and "both: called several times" in notes[1]
    after = model.module.state_dict()
    assert torch.equal(after["both.running_mean"], before["both.running_mean"])
    assert not torch.equal(after["once.running_mean"], before["once.running_mean"])


def test_refusals_say_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InvalidRecipe, match="no batch norm in this model"):
        ReestimateNorms(statistics="measured").apply(_model(nn.Linear(5, 2), tmp_path), _context())
    model = _model(Two(), tmp_path)
    with pytest.raises(InvalidData, match="at least 2 training samples"):
        ReestimateNorms(statistics="measured").apply(model, _context(1))
    model.dynamic_batch = False
    with pytest.raises(InvalidData, match="at least 3 training samples and there are 2"):
        ReestimateNorms(statistics="measured").apply(model, _context(2))
    context = _context(8)
    assert context.train is not None
    context.train.inputs["x"][0, 0] = np.nan
    with pytest.raises(InvalidData, match="first gets is not finite"):
        ReestimateNorms(statistics="measured").apply(_model(Two(), tmp_path), replace(context))


class Wide(nn.Module):
    """Convolutions with batch norms that have statistics of their own, which no data here have."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.after = nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.first(image)))
        return self.head(torch.relu(self.after(self.second(x))).mean((2, 3)))


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> LayeredModel:
    return load_pt2(export(Wide().eval(), (torch.zeros(2, 1, 8, 8),), tmp_path_factory.mktemp("wide") / "m.pt2"))


def _filled(model: LayeredModel, seed: int) -> LayeredModel:
    """The same network with other weights and statistics."""
    filled, numbers = model.clone(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in filled.module.state_dict().items():
            fresh = torch.randn(value.shape, generator=numbers) if value.is_floating_point() else value
            value.copy_(0.1 + fresh.abs() if name.endswith("running_var") else fresh)
    return filled


def _images(original: LayeredModel, seed: int = 0, level: float = 0.0) -> PassContext:
    images = np.random.default_rng(seed).normal(level, 1.0, (40, 1, 8, 8)).astype(np.float32)
    return PassContext(Arrays({"image": images}, None), None, original.clone(), "", "", 1, lambda part, activity: None)


def _norms(model: LayeredModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.module.named_buffers() if "running" in name}


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**31 - 1), level=st.floats(-50, 50), fixed=st.booleans())
def test_where_nothing_was_cut_nothing_moves_whatever_the_data(
    wide: LayeredModel, seed: int, level: float, fixed: bool
) -> None:
    model = _filled(wide, seed)
    model.dynamic_batch = not fixed
    before = _norms(model)
    report = ReestimateNorms().apply(model, _images(model, seed, level))
    assert "40 samples: 2; their means moved by 0 standard deviations" in report.notes[0]
    for name, value in _norms(model).items():
        assert torch.equal(value, before[name])


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**31 - 1), dead=st.sets(st.integers(0, 7), min_size=1, max_size=4))
def test_removing_dead_channels_moves_nothing(wide: LayeredModel, seed: int, dead: set[int]) -> None:
    original = _filled(wide, seed)
    rows = sorted(dead)
    with torch.no_grad():
        norm = original.module.get_submodule("norm")
        norm.weight[rows], norm.bias[rows] = 0.0, -1.0  # type: ignore[index,operator]
    model, context = original.clone(), _images(original, seed)
    ActivationPruning(threshold=1e-6, layers="convolution", skip=("second",)).apply(model, context)
    left = model.kept["norm"].tolist()
    assert not dead & set(left)
    before, whole = _norms(model), _norms(original)
    assert torch.equal(before["norm.running_mean"], whole["norm.running_mean"][left])
    ReestimateNorms().apply(model, context)
    for name, value in _norms(model).items():
        torch.testing.assert_close(value, before[name], rtol=1e-5, atol=1e-5)


def test_folding_a_double_into_its_like_moves_nothing(wide: LayeredModel) -> None:
    original = _filled(wide, 5)
    with torch.no_grad():
        for name, value in original.module.state_dict().items():
            if name.startswith(("first.", "norm.")) and value.dim() and name != "norm.num_batches_tracked":
                value[6] = value[1]
    model, context = original.clone(), _images(original)
    RedundancyPruning(energy=1 - 1e-9, ridge=1e-9, layers="convolution", skip=("second",)).apply(model, context)
    assert len(model.kept["norm"]) == 7
    before = _norms(model)
    ReestimateNorms().apply(model, context)
    for name, value in _norms(model).items():
        torch.testing.assert_close(value, before[name], rtol=1e-3, atol=1e-3)


def test_what_is_normalised_keeps_the_moments_it_had(wide: LayeredModel) -> None:
    """Scale and shift of what comes into each norm are undone, although its statistics are not the data's."""
    original = _filled(wide, 8)
    model, context = original.clone(), _images(original)
    with torch.no_grad():
        for name in ("first", "second"):
            layer = model.module.get_submodule(name)
            layer.weight.mul_(torch.linspace(0.5, 3, len(layer.weight))[:, None, None, None])  # type: ignore[operator,arg-type]
            layer.bias.add_(1.5)  # type: ignore[operator]
    assert context.train is not None
    wanted = outputs_over(original, context.train)
    ReestimateNorms().apply(model, context)
    for name, value in outputs_over(model, context.train).items():
        torch.testing.assert_close(value, wanted[name], rtol=0.02, atol=0.02 * float(wanted[name].abs().max()))


def test_a_channel_that_no_longer_varies_gets_a_bounded_scale(wide: LayeredModel) -> None:
    original = _filled(wide, 9)
    model, context = original.clone(), _images(original)
    with torch.no_grad():
        model.module.get_submodule("second").weight[2] = 0.0  # type: ignore[index,operator]
        original.module.get_submodule("second").weight[4] = 0.0  # type: ignore[index,operator]
    context.teacher = original
    ReestimateNorms().apply(model, context)
    before, after = _norms(original), _norms(model)
    assert bool((after["after.running_var"] >= 0).all())
    was, now = (value["after.running_var"] + 1e-5 for value in (before, after))
    # The floor is a thousandth of the stored variance; what varies more than that is not held back by it.
    assert 0 < float(now[2] / was[2]) < 0.1 and 1 < float(now[4] / was[4]) < 1e6
    assert all(bool(torch.isfinite(value).all()) for value in outputs_over(model, context.train).values())


def test_what_cannot_be_matched_is_left_and_said(wide: LayeredModel) -> None:
    original = _filled(wide, 3)
    model, context = original.clone(), _images(original)
    ActivationPruning(ratio=0.5, layers="convolution", skip=("second",)).apply(model, context)
    model.kept.clear()
    before = _norms(model)
    assert "norm: not known in the original" in ReestimateNorms().apply(model, context).notes[1]
    assert torch.equal(_norms(model)["norm.running_mean"], before["norm.running_mean"])
    assert not torch.equal(_norms(model)["after.running_mean"], before["after.running_mean"])
    context.teacher = None
    with pytest.raises(InvalidRecipe, match=r"push it as a \.pt2 archive"):
        ReestimateNorms().apply(model, context)
