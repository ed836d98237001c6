"""What others can stand in for is found, and taking it away changes nothing."""

from __future__ import annotations

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
from fleetfit.compress.passes.redundancy_pruning import RedundancyPruning


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.more, self.out = nn.Linear(6, 12), nn.Linear(12, 10), nn.Linear(10, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.tanh(self.more(torch.relu(self.hidden(x)))))


class Pictures(nn.Module):
    """Two readers of one layer, one of them padded, one after flattening."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.next = nn.Conv2d(8, 5, 3, padding=1)
        self.head, self.side = nn.Linear(5 * 9, 4), nn.Linear(8 * 9, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = nn.functional.avg_pool2d(torch.relu(self.conv(x)), 2)
        return self.head(torch.relu(self.next(pooled)).flatten(1)) + self.side(pooled.flatten(1))


SHAPES: dict[str, tuple[type[nn.Module], tuple[int, ...], str]] = {
    "dense": (Dense, (6,), "hidden"),
    "pictures": (Pictures, (1, 6, 6), "conv"),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LayeredModel]:
    folder = tmp_path_factory.mktemp("models")
    return {
        name: load_pt2(export(kind().eval(), (torch.zeros(2, *shape),), folder / f"{name}.pt2"))
        for name, (kind, shape, _) in SHAPES.items()
    }


def _fresh(models: dict[str, LayeredModel], name: str, seed: int) -> tuple[LayeredModel, np.ndarray]:
    """The model with new weights, and inputs for it."""
    model = models[name].clone()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.module.parameters():
            weight.copy_(0.5 * torch.randn(weight.shape, generator=generator))
    return model, torch.randn(300, *SHAPES[name][1], generator=generator).numpy()


def _outputs(model: LayeredModel, inputs: np.ndarray) -> torch.Tensor:
    (value,) = model.call({"x": torch.from_numpy(inputs)}).values()
    return value.detach()


def _context(inputs: np.ndarray) -> PassContext:
    return PassContext(Arrays({"x": inputs}, None), None, None, "", "", 0, lambda part, activity: None)


def _prune(model: LayeredModel, inputs: np.ndarray, **parameters: object) -> None:
    RedundancyPruning.model_validate(parameters).apply(model, _context(inputs))


def _copy_unit(layer: nn.Module, source: int, target: int, scale: float) -> None:
    with torch.no_grad():
        layer.weight[target] = scale * layer.weight[source]  # type: ignore[index,operator,union-attr]
        layer.bias[target] = scale * layer.bias[source]  # type: ignore[index,operator,union-attr]


@pytest.mark.parametrize("name", SHAPES)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**31 - 1), scale=st.sampled_from([1.0, 0.25, 3.0]))
def test_doubles_and_dead_neurons_are_found_and_not_missed(
    models: dict[str, LayeredModel], name: str, seed: int, scale: float
) -> None:
    """Unit 1 is a multiple of unit 0 (a ReLU keeps positive multiples), unit 2 gives nothing: two go and nothing changes."""
    model, inputs = _fresh(models, name, seed)
    layer = model.module.get_submodule(SHAPES[name][2])
    _copy_unit(layer, 0, 1, scale)
    _copy_unit(layer, 0, 2, 0.0)
    before = _outputs(model, inputs)
    size = layer.weight.shape[0]  # type: ignore[index,union-attr]
    report = RedundancyPruning(energy=1 - 1e-12).apply(model, _context(inputs))
    left = model.module.get_submodule(SHAPES[name][2]).weight.shape[0]  # type: ignore[index,union-attr]
    # With random weights another unit may be dead by chance.
    assert left <= size - 2 and report.notes[0].startswith(f"{SHAPES[name][2]}: {size} -> {left} ")
    torch.testing.assert_close(_outputs(model, inputs), before, rtol=1e-4, atol=1e-4)


def test_a_constant_neuron_goes_into_the_bias(models: dict[str, LayeredModel]) -> None:
    model, inputs = _fresh(models, "dense", 3)
    layer = model.module.get_submodule("hidden")
    with torch.no_grad():
        layer.weight[4] = 0  # type: ignore[index,operator]
        layer.bias[4] = 7.0  # type: ignore[index,operator]
    before = _outputs(model, inputs)
    _prune(model, inputs, energy=1 - 1e-12)
    assert model.module.get_submodule("hidden").weight.shape[0] < 12  # type: ignore[index,union-attr]
    torch.testing.assert_close(_outputs(model, inputs), before, rtol=1e-4, atol=1e-4)


def test_sums_of_other_neurons_are_folded_exactly(models: dict[str, LayeredModel]) -> None:
    """Where the ReLU lets everything through, neuron 5 is a sum of others and a constant, which no pair comparison finds."""
    model, inputs = _fresh(models, "dense", 4)
    layer = model.module.get_submodule("hidden")
    with torch.no_grad():
        layer.bias += 50.0  # type: ignore[operator]
        layer.weight[5] = layer.weight[0] + 0.5 * layer.weight[1] - 0.3 * layer.weight[2]  # type: ignore[index,operator]
    before = _outputs(model, inputs)
    _prune(model, inputs, energy=1 - 1e-10, layers="linear")
    # Twelve neurons of six inputs, all in their linear part: six of them say everything.
    assert model.module.get_submodule("hidden").weight.shape[0] == 6  # type: ignore[index,union-attr]
    torch.testing.assert_close(_outputs(model, inputs), before, rtol=1e-3, atol=1e-3)


def test_folding_loses_less_than_leaving_out(models: dict[str, LayeredModel]) -> None:
    from fleetfit.compress.passes.activation_pruning import ActivationPruning

    lost = {}
    for step in (RedundancyPruning(ratio=0.5), ActivationPruning(ratio=0.5)):
        model, inputs = _fresh(models, "pictures", 5)
        before = _outputs(model, inputs)
        step.apply(model, _context(inputs))
        assert model.module.get_submodule("conv").weight.shape[0] == 4  # type: ignore[index,union-attr]
        lost[step.pass_name()] = float((_outputs(model, inputs) - before).square().mean())
    assert lost["redundancy_pruning"] < 0.7 * lost["activation_pruning"]
