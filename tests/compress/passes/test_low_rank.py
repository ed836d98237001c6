"""The numbers of low-rank factorization, on layers of which the answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from fleetfit.client.export import export
from fleetfit.compress.exporter import export_onnx, prove_equal
from fleetfit.compress.graph import LayeredModel
from fleetfit.compress.intake.pt2 import load_pt2
from fleetfit.compress.passes.base import Arrays, PassContext
from fleetfit.compress.passes.low_rank import LowRank
from fleetfit.compress.passes.zero_pruning import ZeroPruning
from fleetfit.core.errors import InvalidData, InvalidRecipe

WIDTH, OUTPUTS, TRUE_RANK = 24, 20, 3


def _linear(weight: torch.Tensor, bias: torch.Tensor | None = None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer


def _load(module: nn.Module, folder: Path) -> LayeredModel:
    return load_pt2(export(module.eval(), (torch.zeros(2, WIDTH),), folder / "model.pt2"))


def _context(inputs: np.ndarray, name: str = "input") -> PassContext:
    return PassContext(Arrays({name: inputs}, None), None, None, "", "", 0, lambda part, activity: None)


def _outputs(model: LayeredModel, inputs: np.ndarray) -> np.ndarray:
    (values,) = model.call({"input": torch.from_numpy(inputs)}).values()
    return values.detach().numpy()


@pytest.fixture
def narrow_weight() -> torch.Tensor:
    """A weight of rank three."""
    generator = torch.Generator().manual_seed(1)
    left = torch.randn(OUTPUTS, TRUE_RANK, generator=generator)
    return left @ torch.randn(TRUE_RANK, WIDTH, generator=generator)


@pytest.mark.parametrize("with_bias", [True, False])
def test_a_layer_of_low_rank_is_found_out_and_kept_exactly(
    narrow_weight: torch.Tensor, with_bias: bool, tmp_path: Path
) -> None:
    bias = torch.linspace(-1, 1, OUTPUTS) if with_bias else None
    model = _load(nn.Sequential(_linear(narrow_weight, bias)), tmp_path)
    inputs = np.random.default_rng(0).normal(1.5, 1, (400, WIDTH)).astype(np.float32)
    before = _outputs(model, inputs)
    report = LowRank(energy=0.999999).apply(model, _context(inputs))
    assert f"rank {TRUE_RANK}," in report.notes[0]
    assert model.parameters_count() == TRUE_RANK * (WIDTH + OUTPUTS) + OUTPUTS
    np.testing.assert_allclose(_outputs(model, inputs), before, atol=1e-4)


def test_where_inputs_lie_decides_and_not_the_weights_alone(tmp_path: Path) -> None:
    """A full weight, but inputs within two directions: rank two is exact where data are, and no SVD of W knows that."""
    weight = torch.randn(OUTPUTS, WIDTH, generator=torch.Generator().manual_seed(2))
    model = _load(nn.Sequential(_linear(weight)), tmp_path)
    random = np.random.default_rng(3)
    directions = random.normal(size=(2, WIDTH))
    inputs = (random.normal(size=(300, 2)) @ directions + 4.0).astype(np.float32)
    before = _outputs(model, inputs)
    LowRank(ratio=2 / OUTPUTS).apply(model, _context(inputs))
    np.testing.assert_allclose(_outputs(model, inputs), before, atol=1e-3)
    of_the_weights = torch.linalg.svdvals(weight)
    assert of_the_weights[2:].square().sum() > 0.5 * of_the_weights.square().sum()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**31 - 1), rank=st.integers(1, 8))
def test_no_other_cut_of_that_rank_is_nearer(seed: int, rank: int, tmp_path: Path) -> None:
    """Eckart-Young under the inputs' covariance: what is lost is the sum of the variances of the outputs left out."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(OUTPUTS, WIDTH, generator=generator)
    spread = torch.randn(WIDTH, WIDTH, generator=generator)
    inputs = (torch.randn(256, WIDTH, generator=generator) @ spread).numpy()
    model = _load(nn.Sequential(_linear(weight)), tmp_path)
    whole = _outputs(model, inputs).astype(np.float64)
    LowRank(ratio=rank / OUTPUTS, least_saving=0).apply(model, _context(inputs))
    lost = ((_outputs(model, inputs) - whole) ** 2).sum()
    least = (np.linalg.svd(whole - whole.mean(0), compute_uv=False)[rank:] ** 2).sum()
    assert lost == pytest.approx(least, rel=1e-3)


def test_a_layer_that_saves_little_stays_whole(narrow_weight: torch.Tensor, tmp_path: Path) -> None:
    """Ten classes out of 20 values at rank 4, and a bias, save 35 %: split at the usual least saving, whole at half."""
    head = torch.randn(10, OUTPUTS, generator=torch.Generator().manual_seed(5))
    model = _load(nn.Sequential(_linear(narrow_weight), nn.ReLU(), _linear(head)), tmp_path)
    inputs = np.random.default_rng(6).normal(size=(300, WIDTH)).astype(np.float32)
    fine, strict = model.clone(), model.clone()
    split = LowRank(ratio=0.4).apply(fine, _context(inputs))
    whole = LowRank(ratio=0.4, least_saving=0.5).apply(strict, _context(inputs))
    assert "rank 4," in split.notes[1]
    assert whole.notes[1].endswith("stays whole: rank 4 would save only 35% of its MACs or bytes")
    assert strict.parameters_count() > fine.parameters_count()
    costly = LowRank(ratio=0.95, least_saving=0).apply(model, _context(inputs))
    assert all(note.endswith("would cost more") for note in costly.notes)
    assert torch.equal(model.module.get_submodule("2").weight, head)  # type: ignore[arg-type]


def test_ranks_are_rounded_up_and_never_past_the_smaller_side(narrow_weight: torch.Tensor, tmp_path: Path) -> None:
    model = _load(nn.Sequential(_linear(narrow_weight)), tmp_path)
    inputs = np.random.default_rng(7).normal(size=(300, WIDTH)).astype(np.float32)
    report = LowRank(energy=0.999999, round_to=8, least_saving=0.2).apply(model, _context(inputs))
    assert "rank 8," in report.notes[0]


class Images(nn.Module):
    """Plain, strided, pointwise, grouped and transposed convolutions, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.middle = nn.Conv2d(16, 20, 3, stride=2, padding=1, bias=False)
        self.point = nn.Conv2d(20, 24, 1)
        self.apart = nn.Conv2d(24, 24, 3, groups=24)
        self.up = nn.ConvTranspose2d(24, 12, 2)
        self.head = nn.Linear(12, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        found = torch.relu(self.middle(torch.relu(self.stem(image))))
        return self.head(torch.relu(self.up(self.apart(torch.relu(self.point(found))))).mean((2, 3)))


def _pictures(count: int) -> np.ndarray:
    coarse = np.random.default_rng(8).normal(size=(count, 3, 4, 4))
    return coarse.repeat(3, 2).repeat(3, 3).astype(np.float32)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> LayeredModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        module = Images().eval()
    return load_pt2(export(module, (torch.from_numpy(_pictures(2)),), tmp_path_factory.mktemp("images") / "m.pt2"))


def _picture_context(model: LayeredModel) -> PassContext:
    return _context(_pictures(200), model.inputs[0].name)


def _error(model: LayeredModel, original: LayeredModel) -> float:
    inputs = {model.inputs[0].name: torch.from_numpy(_pictures(200))}
    with torch.no_grad():
        (one,), (other,) = model.call(inputs).values(), original.call(inputs).values()
    return float((one - other).square().mean() / other.var(0).mean())


@pytest.mark.parametrize("method", ["best", "channel", "tucker2", "spatial"])
def test_convolutions_become_chains_that_are_saved_and_exported(
    images: LayeredModel, method: str, tmp_path: Path
) -> None:
    model = images.clone()
    step = LowRank.model_validate({"energy": 0.8, "layers": "convolution", "method": method, "least_saving": 0.1})
    report = step.apply(model, _picture_context(model))
    assert model.macs() < 0.9 * images.macs() and model.parameters_count() < images.parameters_count()
    assert 0.001 < _error(model, images) < 0.5
    split = [note for note in report.notes if "->" in note]
    assert any(note.startswith("middle: 16 x 20 x 3 x 3 -> ") for note in split)
    if method != "best":
        assert any(f"-> {method}, rank" in note for note in split)
    assert "apart stays whole: a grouped convolution" in report.notes
    assert "up stays whole: a transposed convolution" in report.notes
    prove_equal(model, export_onnx(model), None)
    model.save_pt2(tmp_path / "again.pt2")
    again = load_pt2(tmp_path / "again.pt2")
    assert (again.macs(), again.parameters_count()) == (model.macs(), model.parameters_count())
    assert _error(again, model) < 1e-10
    # A second step finds the chains under names of their own.
    LowRank(energy=0.9, layers="all", least_saving=0.0).apply(again, _picture_context(again))
    assert again.parameters_count() < model.parameters_count()


def test_the_best_method_has_the_fewest_macs(images: LayeredModel) -> None:
    macs = {}
    for method in ("best", "channel", "tucker2", "spatial"):
        model = images.clone()
        LowRank.model_validate({"error": 0.2, "layers": "convolution", "method": method}).apply(
            model, _picture_context(model)
        )
        macs[method] = model.macs()
    assert macs["best"] <= min(macs.values())


@pytest.mark.parametrize("budget", [{"fewer_macs": 0.4}, {"fewer_parameters": 0.3}])
def test_a_budget_is_met_and_hardly_exceeded(images: LayeredModel, budget: dict[str, float]) -> None:
    model = images.clone()
    LowRank.model_validate({**budget, "layers": "all", "least_saving": 0.05}).apply(model, _picture_context(model))
    if "fewer_macs" in budget:
        share = 1 - model.macs() / images.macs()
    else:
        share = 1 - model.parameters_count() / images.parameters_count()
    (wanted,) = budget.values()
    assert wanted <= share < wanted + 0.05


def test_a_budget_loses_less_than_the_same_ratio_everywhere(images: LayeredModel) -> None:
    even, allotted = images.clone(), images.clone()
    LowRank(ratio=0.4, layers="all", method="tucker2").apply(even, _picture_context(even))
    share = 1 - even.macs() / images.macs()
    LowRank(fewer_macs=share, layers="all").apply(allotted, _picture_context(allotted))
    assert allotted.macs() <= even.macs()
    assert _error(allotted, images) < _error(even, images)


def test_a_budget_out_of_reach_says_what_could_go(images: LayeredModel) -> None:
    model = images.clone()
    with pytest.raises(InvalidRecipe, match=r"at most \d+\.\d% of this model's multiply-accumulates, not 99\.0%"):
        LowRank(fewer_macs=0.99, layers="all").apply(model, _picture_context(model))
    assert model.macs() == images.macs()


def test_an_error_is_an_energy(images: LayeredModel) -> None:
    one, other = images.clone(), images.clone()
    LowRank(error=0.2, layers="all").apply(one, _picture_context(one))
    LowRank(energy=0.96, layers="all").apply(other, _picture_context(other))
    assert {name: value.shape for name, value in one.module.state_dict().items()} == {
        name: value.shape for name, value in other.module.state_dict().items()
    }


def test_single_layers_are_skipped_or_treated_otherwise(images: LayeredModel) -> None:
    model = images.clone()
    report = LowRank(
        energy=0.98, layers="convolution", skip=("stem",), overrides={"middle": {"method": "spatial", "energy": 0.7}}
    ).apply(model, _picture_context(model))
    assert isinstance(model.module.get_submodule("stem"), nn.Conv2d)
    assert not any(note.startswith("stem") for note in report.notes)
    assert any(note.startswith("middle: 16 x 20 x 3 x 3 -> spatial, rank") for note in report.notes)
    with pytest.raises(InvalidRecipe, match="skips every layer"):
        LowRank(energy=0.98, layers="all", skip=("*",)).apply(model, _picture_context(model))


def test_shared_weights_are_left_alone(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.inner, self.again = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
            self.again.weight = self.first.weight

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return self.again(torch.relu(self.inner(torch.relu(self.first(values)))))

    model = _load(Tied(), tmp_path)
    inputs = np.random.default_rng(0).normal(size=(64, WIDTH)).astype(np.float32)
    report = LowRank(ratio=0.2).apply(model, _context(inputs, model.inputs[0].name))
    assert report.notes[0] == "first, first_1 stay whole: weights shared with another layer"
    assert report.notes[1].startswith(f"inner: {WIDTH} x {WIDTH} -> rank 5,")
    assert model.module.get_submodule("first_1").weight is model.module.get_submodule("first").weight


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({}, "give one of"),
        ({"energy": 0.9, "fewer_macs": 0.5}, "give one of"),
        ({"ratio": 0.5, "layers": "all"}, "name one"),
        ({"fewer_macs": 0.5, "overrides": {"a": {"energy": 0.5}}}, "cannot give 'energy'"),
        ({"energy": 0.5, "overrides": {"a": {"fewer_macs": 0.5}}}, "cannot give 'fewer_macs'"),
    ],
)
def test_wrong_parameters_are_named(parameters: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        LowRank.model_validate(parameters)


def test_a_model_without_such_layers_is_refused(narrow_weight: torch.Tensor, tmp_path: Path) -> None:
    model = _load(nn.Sequential(_linear(narrow_weight)), tmp_path)
    inputs = np.zeros((8, WIDTH), np.float32)
    with pytest.raises(InvalidRecipe, match="finds no convolution"):
        LowRank(energy=0.9, layers="convolution").apply(model, _context(inputs))
    inputs[3, 2] = np.nan
    with pytest.raises(InvalidData, match="not finite"):
        LowRank(energy=0.9).apply(model, _context(inputs))


def test_what_is_too_wide_to_look_at_is_split_otherwise_or_left_alone(
    images: LayeredModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fleetfit.compress.factorization.layers._WIDEST", 22)
    model = images.clone()
    report = LowRank(energy=0.6, layers="all", method="tucker2").apply(model, _picture_context(model))
    assert "middle is tried by channel only: a patch of it has 144 numbers, more than 22" in report.notes
    assert any(note.startswith("middle: 16 x 20 x 3 x 3 -> channel, rank") for note in report.notes)
    assert "point stays whole: it is too wide to look at" in report.notes


def test_a_layer_with_too_many_outputs_is_split_by_what_it_reads(
    narrow_weight: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fleetfit.compress.factorization.layers._WIDEST", WIDTH - 1)
    model = _load(nn.Sequential(nn.Linear(WIDTH, OUTPUTS), nn.Tanh(), _linear(narrow_weight.T)), tmp_path)
    inputs = np.random.default_rng(0).normal(size=(400, WIDTH)).astype(np.float32)
    before = _outputs(model, inputs)
    report = LowRank(energy=0.99999, skip=("0",)).apply(model, _context(inputs))
    assert report.notes[0].startswith(f"2: {OUTPUTS} x {WIDTH} -> rank {TRUE_RANK},")
    np.testing.assert_allclose(_outputs(model, inputs), before, atol=1e-4)


def test_zeros_that_go_with_a_split_weight_are_named(tmp_path: Path) -> None:
    layers = nn.Sequential(nn.Linear(WIDTH, OUTPUTS), nn.ReLU(), nn.Linear(OUTPUTS, OUTPUTS))
    model = _load(layers, tmp_path)
    inputs = np.random.default_rng(5).normal(size=(100, WIDTH)).astype(np.float32)
    ZeroPruning(ratio=0.5, pattern="unstructured").apply(model, _context(inputs))
    assert model.sparse == {"0.weight", "2.weight"}
    report = LowRank(ratio=0.2, skip=("2",)).apply(model, _context(inputs))
    assert any(note.startswith("0: the single zeros") for note in report.notes)
    assert model.sparse == {"2.weight"}
