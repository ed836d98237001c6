"""Which neurons the loss would hardly miss, held against what is known, and against scaling them by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fleetfit.client.export import export
from fleetfit.compress.graph import LayeredModel
from fleetfit.compress.intake.pt2 import load_pt2
from fleetfit.compress.passes.base import Arrays, PassContext
from fleetfit.compress.passes.taylor_pruning import TaylorPruning
from fleetfit.compress.pruning.taylor import _Gated, loss_changes
from fleetfit.compress.recipe import Recipe
from fleetfit.compress.structure.groups import analyse
from fleetfit.compress.structure.spaces import unit_elements
from fleetfit.core.errors import InvalidData, InvalidRecipe

from ..structure.models import loaded

READ = (1.0, -5.0, 0.5, 3.0, 0.0, -2.0, 0.25, 4.0)
"""By how much each of eight neurons that are all alike counts in the output."""


class Alike(nn.Module):
    """Eight neurons that give the same for every input, and are read differently; two classes or one value."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(1, 8), nn.Linear(8, outputs, bias=False)
        with torch.no_grad():
            self.hidden.weight.fill_(1.0)
            self.hidden.bias.zero_()
            for row in range(outputs):
                self.out.weight[row] = torch.tensor(READ) * (-1.0) ** row

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.relu(self.hidden(x)))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LayeredModel]:
    folder = tmp_path_factory.mktemp("models")
    made: dict[str, tuple[Any, tuple[torch.Tensor, ...]]] = {
        "value": (lambda: Alike(1), (torch.ones(2, 1),)),
        "classes": (lambda: Alike(2), (torch.ones(2, 1),)),
    }
    own = {
        name: load_pt2(export(make().eval(), samples, folder / f"{name}.pt2")) for name, (make, samples) in made.items()
    }
    names = ("classifier", "residual", "depthwise", "joined", "squeeze_excite", "upscaler", "tokens")
    return own | {name: loaded(name) for name in names}


def _context(model: LayeredModel, data: Arrays | None, task: str = "") -> PassContext:
    return PassContext(data, None, model.clone(), "", task, 3, lambda part, activity: None)


def _inputs(count: int) -> dict[str, np.ndarray]:
    return {"x": np.linspace(0.05, 0.3, count, dtype=np.float32)[:, None]}


@pytest.mark.parametrize(
    ("name", "task", "targets"),
    [
        ("value", "regression", None),
        ("value", "regression", np.ones((100, 1), np.float32)),
        ("classes", "classification", None),
        ("classes", "classification", np.arange(100) % 2),
        ("classes", "", None),
    ],
)
def test_neurons_that_are_alike_count_by_how_they_are_read(
    models: dict[str, LayeredModel], name: str, task: str, targets: np.ndarray | None
) -> None:
    """The teacher is the model itself: without drawn answers every gradient would be zero."""
    model = models[name].clone()
    data = Arrays(_inputs(100), targets)
    structure = analyse(model)
    found, words = loss_changes(model, structure, structure.groups, data, _context(model, data, task))
    scores = found["hidden"]
    assert float(scores.max()) > 1e-3
    torch.testing.assert_close(scores / scores[0], torch.tensor(READ).abs().double(), rtol=1e-4, atol=1e-7)
    assert ("labels" in words) == (targets is not None)
    report = TaylorPruning(ratio=0.5).apply(model, _context(model, data, task))
    assert report.notes[1] == "hidden: 8 -> 4 neurons"
    kept = model.module.get_submodule("out").weight[0].tolist()  # type: ignore[index,union-attr]
    assert kept == [-5.0, 3.0, -2.0, 4.0]


@pytest.mark.parametrize(
    "name", ["classifier", "residual", "depthwise", "joined", "squeeze_excite", "upscaler", "tokens"]
)
def test_gates_have_the_slopes_of_scaling_what_reads_a_unit(models: dict[str, LayeredModel], name: str) -> None:
    model = models[name].clone()
    model.module.double().eval()
    inputs = {key: value.double() if value.is_floating_point() else value for key, value in model.sample_inputs.items()}
    model.sample_inputs = inputs
    structure = analyse(model)

    def loss(outputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.stack([value.square().sum() + value.sum() for value in outputs.values()]).sum()

    outputs, gates = _Gated(model, structure, structure.groups).run_with(inputs)
    (slopes,) = torch.autograd.grad(loss(outputs), gates)
    found = slopes.double().sum(0).split([group.size for group in structure.groups] + [1])
    step = 1e-5
    for group, slope in zip(structure.groups, found, strict=False):
        for unit in range(0, group.size, 3):
            values = []
            for factor in (1 + step, 1 - step):
                other = model.clone()
                for cut in dict.fromkeys(structure.cuts):
                    spaces = [one.space.root() for one in cut.layout if one.space is not None]
                    if cut.reads and group.space.root() in spaces:
                        weight = getattr(other.module.get_submodule(cut.module), cut.tensor)
                        places = unit_elements(cut.layout, group.space)[:, unit]
                        weight.data[(slice(None),) * cut.axis + (places,)] *= factor
                with torch.no_grad():
                    values.append(float(loss(other.call(inputs))))
            expected = (values[0] - values[1]) / (2 * step)
            assert float(slope[unit]) == pytest.approx(expected, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("name", ["gated", "recurrent", "heads", "grouped", "shuffled", "halves", "normed", "scaled"])
def test_units_that_are_read_in_other_ways_are_ranked_and_cut(name: str) -> None:
    model = loaded(name)
    data = {
        key: np.random.default_rng(0).normal(size=(24, *value.shape[1:])).astype(np.float32)
        for key, value in model.sample_inputs.items()
    }
    structure = analyse(model)
    found, _ = loss_changes(model, structure, structure.groups, Arrays(data, None), _context(model, Arrays(data, None)))
    assert {name: len(scores) for name, scores in found.items()} == {one.name: one.size for one in structure.groups}
    # A ReLU may have silenced all of a small group.
    assert sum(float(scores.max()) > 0 for scores in found.values()) >= max(1, len(found) - 1)
    parameters = model.parameters_count()
    TaylorPruning(ratio=0.5).apply(model, _context(model, Arrays(data, None)))
    assert model.parameters_count() < parameters


def test_layers_are_ranked_by_what_they_change(models: dict[str, LayeredModel]) -> None:
    """All units of one layer hardly count: with one ranking they go first, down to the last."""
    model = models["classifier"].clone()
    with torch.no_grad():
        model.module.get_submodule("head").weight.mul_(1e-4)  # type: ignore[operator,union-attr]
        model.module.get_submodule("head").weight[:, 3].mul_(1e5)  # type: ignore[operator,index,union-attr]
    data = Arrays({"image": np.random.default_rng(0).normal(size=(64, 1, 8, 8)).astype(np.float32)}, None)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    context = _context(model, data, "classification")
    structure = analyse(model)
    loss_changes(model, structure, structure.groups, data, context)
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())
    assert all(weight.grad is None for weight in model.module.parameters())
    TaylorPruning(ratio=0.6, scope="global").apply(model, context)
    assert model.module.get_submodule("hidden").weight.shape[0] <= 2  # type: ignore[index,union-attr]


def test_a_damaged_model_is_held_against_its_original(models: dict[str, LayeredModel]) -> None:
    model = models["value"].clone()
    data = Arrays(_inputs(64), None)
    context = _context(model, data, "regression")
    with torch.no_grad():
        model.module.get_submodule("out").weight.mul_(-1.0)  # type: ignore[operator,union-attr]
    structure = analyse(model)
    near, _ = loss_changes(model, structure, structure.groups, data, _context(model, data, "regression"))
    far, _ = loss_changes(model, structure, structure.groups, data, context)
    assert float(far["hidden"][1]) > float(near["hidden"][1])


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ("{}", "ratio"),
        ("{ratio: 0.5, scope: some}", "scope"),
        ("{ratio: 0.5, scope: global, overrides: {a: {ratio: 0.5}}}", "cannot give 'ratio'"),
    ],
)
def test_wrong_parameters_are_refused(parameters: str, words: str) -> None:
    with pytest.raises(InvalidRecipe, match=words):
        Recipe.from_yaml(f"name: a\nsteps:\n - taylor_pruning: {parameters}\n")


def test_wrong_data_are_told(models: dict[str, LayeredModel], tmp_path: Path) -> None:
    model = models["value"].clone()
    data = Arrays(_inputs(64), None)
    context = _context(model, data)
    context.teacher = None
    with pytest.raises(InvalidRecipe, match="needs the original as a trainable model"):
        TaylorPruning(ratio=0.5).apply(model, context)
    with torch.no_grad():
        model.module.get_submodule("hidden").weight[0] = 1e38  # type: ignore[operator,index]
        model.module.get_submodule("out").weight.fill_(1e38)  # type: ignore[operator,union-attr]
    with pytest.raises(InvalidData, match="gradients are not finite"):
        TaylorPruning(ratio=0.5).apply(model, _context(models["value"], data))
