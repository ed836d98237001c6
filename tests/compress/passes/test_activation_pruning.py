"""Which neurons activation pruning takes away, on a layer whose activations are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fleetfit.client.export import export
from fleetfit.compress.graph import LayeredModel
from fleetfit.compress.intake.pt2 import load_pt2
from fleetfit.compress.passes.activation_pruning import ActivationPruning
from fleetfit.compress.passes.base import Arrays, PassContext
from fleetfit.compress.pruning.activations import mean_activations, not_zero
from fleetfit.compress.structure.groups import analyse
from fleetfit.core.errors import InvalidData, InvalidRecipe

LEVELS = (0.0, 5.0, 0.2, 3.0, 0.4, 0.0, 1.0, 2.0)
"""What the neurons of the first layer give for an input of one, after the ReLU; the sixth is silenced by its bias."""


class Ladder(nn.Module):
    """One input, eight neurons of known activation, four neurons that read them, one output."""

    def __init__(self) -> None:
        super().__init__()
        self.levels, self.mix, self.out = nn.Linear(1, 8), nn.Linear(8, 4, bias=False), nn.Linear(4, 1, bias=False)
        with torch.no_grad():
            self.levels.weight[:, 0] = torch.tensor(LEVELS)
            self.levels.weight[5] = 6.0
            self.levels.bias.zero_()[5] = -100.0
            self.mix.weight.fill_(0.125)
            self.out.weight.fill_(1.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.relu(self.mix(torch.relu(self.levels(x)))))


@pytest.fixture(scope="module")
def ladder(tmp_path_factory: pytest.TempPathFactory) -> LayeredModel:
    return load_pt2(export(Ladder().eval(), (torch.ones(2, 1),), tmp_path_factory.mktemp("ladder") / "m.pt2"))


def _context(values: np.ndarray) -> PassContext:
    return PassContext(Arrays({"x": values}, None), None, None, "", "", 0, lambda part, activity: None)


ONES = np.ones((64, 1), np.float32)


def _left(model: LayeredModel) -> list[float]:
    return [round(value, 3) for value in model.module.get_submodule("levels").weight[:, 0].tolist()]  # type: ignore[union-attr,index]


def _prune(ladder: LayeredModel, values: np.ndarray = ONES, **parameters: object) -> LayeredModel:
    model = ladder.clone()
    ActivationPruning.model_validate(parameters).apply(model, _context(values))
    return model


def test_activations_are_means_of_absolute_values_after_the_nonlinearity(ladder: LayeredModel) -> None:
    data = Arrays({"x": np.array([[1.0], [0.0], [-1.0], [2.0]], np.float32)}, None)
    groups = analyse(ladder).groups
    found = mean_activations(ladder, groups, data, lambda part: None)["levels"]
    # A ReLU passes 1 and 2: three quarters of the level on the mean of four samples.
    expected = [0.75 * level for level in LEVELS]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_what_lies_below_the_threshold_goes_and_nothing_else(ladder: LayeredModel) -> None:
    assert _left(_prune(ladder, threshold=0.9)) == [5.0, 3.0, 1.0, 2.0]
    assert _left(_prune(ladder, threshold=0.1)) == [5.0, 0.2, 3.0, 0.4, 1.0, 2.0]
    before, after = ladder.clone(), _prune(ladder, threshold=0.1)
    sample = {"x": torch.tensor([[0.3], [2.0]])}
    (whole,), (pruned,) = before.call(sample).values(), after.call(sample).values()
    torch.testing.assert_close(pruned, whole)  # what was silent is not missed


def test_a_ratio_takes_the_least_active_of_every_layer(ladder: LayeredModel) -> None:
    model = _prune(ladder, ratio=0.5)
    assert _left(model) == [5.0, 3.0, 1.0, 2.0]
    assert model.module.get_submodule("mix").weight.shape == (2, 4)  # type: ignore[union-attr]


def test_a_global_ratio_weighs_layers_against_each_other(ladder: LayeredModel) -> None:
    """The second layer is even, and so keeps all; the silent and nearly silent of the first go."""
    model = _prune(ladder, ratio=4 / 12, scope="global")
    assert _left(model) == [5.0, 3.0, 1.0, 2.0]
    assert model.module.get_submodule("mix").weight.shape == (4, 4)  # type: ignore[union-attr]


def test_a_kind_of_layer_that_is_not_there_is_said(ladder: LayeredModel) -> None:
    with pytest.raises(InvalidRecipe, match="finds no convolution layer whose units could be removed"):
        _prune(ladder, ratio=0.5, layers="convolution")


def test_widths_are_rounded_up_with_the_most_active_of_those_to_go(ladder: LayeredModel) -> None:
    assert _left(_prune(ladder, threshold=2.5, round_to=4)) == [5.0, 3.0, 1.0, 2.0]
    assert len(_left(_prune(ladder, threshold=1000.0))) == 1  # a layer is never emptied


def test_activations_that_are_not_finite_are_an_error_of_the_data(ladder: LayeredModel) -> None:
    with pytest.raises(InvalidData, match="not finite"):
        _prune(ladder, np.full((64, 1), 3e38, np.float32), ratio=0.5)


def test_the_share_of_zeros_is_another_order_than_the_mean(ladder: LayeredModel) -> None:
    """A neuron that is seldom but strongly active comes last by zeros, first by its mean."""
    model = ladder.clone()
    with torch.no_grad():
        levels = model.module.get_submodule("levels")
        levels.weight[0] = 1000.0  # type: ignore[operator,index]
        levels.bias[0] = -1999.0  # type: ignore[operator,index]
    values = np.tile(np.array([[2.0], [1.0], [0.5], [-1.0]], np.float32), (16, 1))
    data = Arrays({"x": values}, None)
    found = mean_activations(model, analyse(model).groups, data, lambda part: None, not_zero)["levels"]
    assert found.tolist() == [0.25, 0.75, 0.75, 0.75, 0.75, 0.0, 0.75, 0.75]
    by_zeros, by_mean = model.clone(), model.clone()
    ActivationPruning(ratio=0.25, criterion="zeros").apply(by_zeros, _context(values))
    ActivationPruning(ratio=0.25).apply(by_mean, _context(values))
    assert _left(by_zeros) == [5.0, 0.2, 3.0, 0.4, 1.0, 2.0]
    assert _left(by_mean) == [1000.0, 5.0, 3.0, 0.4, 1.0, 2.0]
    assert _left(_prune(ladder, values, threshold=0.5, criterion="zeros")) == [5.0, 0.2, 3.0, 0.4, 1.0, 2.0]


def test_zeros_say_nothing_where_there_are_none(ladder: LayeredModel) -> None:
    model = ladder.clone()
    with torch.no_grad():
        model.module.get_submodule("levels").bias.fill_(7.0)  # type: ignore[operator,union-attr]
    with pytest.raises(InvalidRecipe, match="no activation that is ever zero in levels, mix; use the criterion"):
        ActivationPruning(ratio=0.5, criterion="zeros").apply(model, _context(ONES))
    with torch.no_grad():
        model.module.get_submodule("mix").weight[2] = -1.0  # type: ignore[operator,index]
    notes = ActivationPruning(ratio=0.25, criterion="zeros").apply(model, _context(ONES)).notes
    assert notes == ["mix: 4 -> 3 neurons", "levels stays whole: its activations are never zero"]


def test_a_ratio_that_rounding_undoes_is_said(ladder: LayeredModel) -> None:
    """Else the rounds of a gradual schedule would pass without a word."""
    notes = ActivationPruning(ratio=0.25, round_to=8).apply(ladder.clone(), _context(ONES)).notes
    assert notes[0] == "levels stays as wide: rounding up to a multiple of 8 keeps the 2 that were to go"
    assert ActivationPruning(ratio=0.25, round_to=2).apply(ladder.clone(), _context(ONES)).notes[0] == (
        "mix stays as wide: rounding up to a multiple of 2 keeps the 1 that were to go"
    )
