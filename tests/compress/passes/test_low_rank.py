"""The numbers of low-rank factorization, on layers of which the answer is known."""

from __future__ import annotations

from pathlib import Path

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
from fleetfit.compress.passes.low_rank import LowRank

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


def _context(inputs: np.ndarray) -> PassContext:
    return PassContext(Arrays({"input": inputs}, None), None, None, "", "", 0, lambda part, activity: None)


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
    """Ten classes out of 24 values at rank 4 save 40 %: split at the usual least saving, whole where half is asked."""
    head = torch.randn(10, OUTPUTS, generator=torch.Generator().manual_seed(5))
    model = _load(nn.Sequential(_linear(narrow_weight), nn.ReLU(), _linear(head)), tmp_path)
    inputs = np.random.default_rng(6).normal(size=(300, WIDTH)).astype(np.float32)
    fine, strict = model.clone(), model.clone()
    split = LowRank(ratio=0.4).apply(fine, _context(inputs))
    whole = LowRank(ratio=0.4, least_saving=0.5).apply(strict, _context(inputs))
    assert "rank 4," in split.notes[1]
    assert whole.notes[1].endswith("stays whole: rank 4 would save only 40% of its weights")
    assert strict.parameters_count() > fine.parameters_count()
    costly = LowRank(ratio=0.95, least_saving=0).apply(model, _context(inputs))
    assert all(note.endswith("would cost more") for note in costly.notes)
    assert torch.equal(model.module.get_submodule("2").weight, head)  # type: ignore[arg-type]


def test_ranks_are_rounded_up_and_never_past_the_smaller_side(narrow_weight: torch.Tensor, tmp_path: Path) -> None:
    model = _load(nn.Sequential(_linear(narrow_weight)), tmp_path)
    inputs = np.random.default_rng(7).normal(size=(300, WIDTH)).astype(np.float32)
    report = LowRank(energy=0.999999, round_to=8).apply(model, _context(inputs))
    assert "rank 8," in report.notes[0]
