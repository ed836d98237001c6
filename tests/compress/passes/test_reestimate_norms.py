"""Batch norm re-estimation on layers whose statistics are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fleetfit.client.export import export
from fleetfit.compress.graph import LayeredModel
from fleetfit.compress.intake.pt2 import load_pt2
from fleetfit.compress.passes.base import Arrays, PassContext
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
    report = ReestimateNorms().apply(model, context)
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
    ReestimateNorms().apply(model, context)
    before = {key: value.clone() for key, value in model.module.state_dict().items()}
    ReestimateNorms().apply(model, context)
    for key, value in model.module.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_model_of_one_small_batch_size_gets_the_same(tmp_path: Path, batch: int) -> None:
    free, fixed = _model(Two(), tmp_path), _model(Two(), tmp_path)
    fixed.dynamic_batch = False
    fixed.sample_inputs = {"x": fixed.sample_inputs["x"][:batch]}
    for model in (free, fixed):
        ReestimateNorms(samples=300).apply(model, _context())
    for key, value in free.module.state_dict().items():
        torch.testing.assert_close(fixed.module.state_dict()[key], value, rtol=1e-5, atol=1e-5)


def test_fewer_samples_where_activations_would_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # 5 or 6 numbers of 4 bytes go in and 6 come out of a layer.
    monkeypatch.setattr(norms, "_MOST_BYTES", 100 * 48)
    model = _model(Two(), tmp_path)
    assert "on 100 samples" in ReestimateNorms().apply(model, _context()).notes[0]


def test_a_norm_that_is_called_twice_is_left_alone(tmp_path: Path) -> None:
    model = _model(Twice(), tmp_path)
    before = {key: value.clone() for key, value in model.module.state_dict().items()}
    notes = ReestimateNorms().apply(model, _context()).notes
    assert "samples: 1;" in notes[0] and "both: called several times" in notes[1]
    after = model.module.state_dict()
    assert torch.equal(after["both.running_mean"], before["both.running_mean"])
    assert not torch.equal(after["once.running_mean"], before["once.running_mean"])


def test_refusals_say_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InvalidRecipe, match="no batch norm in this model"):
        ReestimateNorms().apply(_model(nn.Linear(5, 2), tmp_path), _context())
    model = _model(Two(), tmp_path)
    with pytest.raises(InvalidData, match="at least 2 training samples"):
        ReestimateNorms().apply(model, _context(1))
    model.dynamic_batch = False
    with pytest.raises(InvalidData, match="at least 3 training samples and there are 2"):
        ReestimateNorms().apply(model, _context(2))
    context = _context(8)
    assert context.train is not None
    context.train.inputs["x"][0, 0] = np.nan
    with pytest.raises(InvalidData, match="first gets is not finite"):
        ReestimateNorms().apply(_model(Two(), tmp_path), replace(context))
