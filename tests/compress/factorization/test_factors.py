"""The algebra of splitting one layer: exact at full rank, better with every rank, and its error known beforehand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx, nn

from fleetfit.compress.factorization.factors import OutputSplit, PatchSplit, Site, Split
from fleetfit.compress.factorization.moments import moments_of
from fleetfit.compress.graph import LayeredModel
from fleetfit.compress.passes.base import Arrays
from fleetfit.compress.tasks import Tensor

METHODS = ("linear", "channel", "tucker2", "spatial")
SAMPLES = 24


def _layer(method: str, signal: bool, seed: int, dtype: torch.dtype, **geometry: Any) -> tuple[nn.Module, torch.Tensor]:
    """A layer and inputs for it, which lie unevenly: some channels loud, neighbours alike, far from zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mixed = torch.randn(5, 5, dtype=dtype) @ torch.diag(torch.tensor([3, 1, 1, 0.3, 0.1], dtype=dtype))
        if method == "linear":
            return nn.Linear(5, 6).to(dtype), torch.randn(SAMPLES * 8, 5, dtype=dtype) @ mixed + 1.0
        shape = (SAMPLES, 11) if signal else (SAMPLES, 8, 9)
        inputs = (torch.randn(*shape, 5, dtype=dtype) @ mixed).movedim(-1, 1) + 0.5
        inputs = inputs + inputs.roll(1, -1)
        kind = nn.Conv1d if signal else nn.Conv2d
        return kind(5, 6, 3, **geometry).to(dtype), inputs


def _model(layer: nn.Module, inputs: torch.Tensor) -> LayeredModel:
    graph = fx.Graph()
    value = graph.placeholder("x")
    graph.output(graph.call_module("layer", (value,)))
    root = nn.Module()
    root.add_module("layer", layer)
    tensor = Tensor(name="x", dtype="float32", shape=(-1, *inputs.shape[1:]))
    return LayeredModel(fx.GraphModule(root, graph), [tensor], [tensor], {"x": inputs[:2]}, True)


def _split(method: str, layer: Any, inputs: torch.Tensor, *, from_patches: bool = False) -> Split:
    site = Site("layer", layer)
    site.add_call(inputs.shape, layer(inputs).shape, len(inputs))
    watched = {"layer": layer}
    patches = method in ("tucker2", "spatial") or from_patches
    made, read = moments_of(
        _model(layer, inputs),
        {} if patches else watched,
        watched if patches else {},
        Arrays({"x": inputs.numpy()}, None),
        lambda done: None,
    )
    if not patches:
        return OutputSplit(site, made["layer"].mean(), made["layer"].covariance())
    return (
        OutputSplit.from_patches(site, read["layer"])
        if method == "channel"
        else PatchSplit(site, method, read["layer"])
    )


def _lost(split: Split, ranks: tuple[int, ...], layer: nn.Module, inputs: torch.Tensor) -> float:
    """The measured squared error of the chain, as a share of the variance of the outputs."""
    with torch.no_grad():
        whole, chain = layer(inputs).double(), nn.Sequential(*split.layers(ranks))(inputs).double()
    axes = tuple(axis for axis in range(whole.dim()) if axis != (1 if whole.dim() > 2 else whole.dim() - 1))
    return float((chain - whole).square().sum() / (whole - whole.mean(axes, keepdim=True)).square().sum())


geometries = st.fixed_dictionaries(
    {
        "stride": st.integers(1, 3),
        "padding": st.integers(0, 2),
        "dilation": st.integers(1, 2),
        "bias": st.booleans(),
    }
)


@settings(max_examples=60, deadline=None)
@given(
    method=st.sampled_from(METHODS),
    signal=st.booleans(),
    geometry=geometries,
    double=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_full_rank_changes_nothing(
    method: str, signal: bool, geometry: dict[str, Any], double: bool, seed: int
) -> None:
    signal = signal and method in ("channel", "tucker2")
    layer, inputs = _layer(method, signal, seed, torch.float64 if double else torch.float32, **geometry)
    split = _split(method, layer, inputs)
    chain = nn.Sequential(*split.layers(split.largest()))
    # Also where no data were seen: what is kept are the weights.
    elsewhere = torch.randn(inputs.shape, generator=torch.Generator().manual_seed(seed), dtype=inputs.dtype)
    with torch.no_grad():
        for values in (inputs, elsewhere):
            whole = layer(values)
            difference = (chain(values) - whole).abs().max() / whole.abs().max()
            assert float(difference) < (1e-8 if double else 1e-5)


@settings(max_examples=40, deadline=None)
@given(method=st.sampled_from(METHODS), signal=st.booleans(), geometry=geometries, seed=st.integers(0, 10**6))
def test_the_error_is_known_beforehand_and_falls_with_every_rank(
    method: str, signal: bool, geometry: dict[str, Any], seed: int
) -> None:
    signal = signal and method in ("channel", "tucker2")
    layer, inputs = _layer(method, signal, seed, torch.float64, **geometry)
    split = _split(method, layer, inputs)
    options = split.options(1)
    lost = {}
    for row in range(len(options.kept)):
        choice = options.at(row)
        lost[choice.ranks] = _lost(split, choice.ranks, layer, inputs)
        assert lost[choice.ranks] == pytest.approx(1 - choice.kept, rel=1e-3, abs=1e-5)
    for ranks, value in lost.items():
        for axis in range(len(ranks)):
            more = tuple(rank + (at == axis) for at, rank in enumerate(ranks))
            assert lost.get(more, 0.0) <= value + 1e-5


@pytest.mark.parametrize("method", ["channel", "tucker2", "spatial"])
def test_padding_by_name_is_kept(method: str) -> None:
    layer, inputs = _layer(method, False, 3, torch.float64, padding="same", dilation=2)
    split = _split(method, layer, inputs)
    assert nn.Sequential(*split.layers(split.largest()))(inputs).shape == layer(inputs).shape
    assert _lost(split, split.largest(), layer, inputs) < 1e-12


@pytest.mark.parametrize("method", METHODS)
def test_costs_are_those_of_the_layers_that_come_of_it(method: str) -> None:
    layer, inputs = _layer(
        method, False, 4, torch.float32, **({} if method == "linear" else {"stride": 2, "padding": 1})
    )
    split = _split(method, layer, inputs)
    options = split.options(2)
    assert options.ranks[:, 0].max() == split.largest()[0]
    for row in range(len(options.kept)):
        choice = options.at(row)
        chain = nn.Sequential(*split.layers(choice.ranks))
        assert choice.parameters == sum(parameter.numel() for parameter in chain.parameters())
        assert choice.macs == _model(chain[0], inputs).macs() + sum(
            _model(chain[at], nn.Sequential(*chain[:at])(inputs).detach()).macs() for at in range(1, len(chain))
        )


def test_channels_are_split_alike_whether_outputs_or_patches_were_watched() -> None:
    layer, inputs = _layer("channel", False, 5, torch.float64, stride=2, padding=1)
    one, other = _split("channel", layer, inputs), _split("channel", layer, inputs, from_patches=True)
    np.testing.assert_allclose(one.options(1).kept, other.options(1).kept, atol=1e-9)
    with torch.no_grad():
        torch.testing.assert_close(
            nn.Sequential(*one.layers((2,)))(inputs), nn.Sequential(*other.layers((2,)))(inputs), atol=1e-7, rtol=1e-7
        )


def test_a_linear_layer_with_many_outputs_loses_no_more_by_what_it_reads() -> None:
    """Watching inputs or outputs gives the same approximation: the best there is."""
    layer, inputs = _layer("linear", False, 6, torch.float64)
    one, other = _split("linear", layer, inputs), _split("linear", layer, inputs, from_patches=True)
    np.testing.assert_allclose(one.options(1).kept, other.options(1).kept, atol=1e-5)
    assert _lost(one, (2,), layer, inputs) == pytest.approx(_lost(other, (2,), layer, inputs), rel=1e-3)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), ranks=st.tuples(st.integers(1, 3), st.integers(1, 4)))
def test_a_kernel_of_low_tucker_rank_is_found_exactly(seed: int, ranks: tuple[int, int]) -> None:
    layer, inputs = _layer("tucker2", False, seed, torch.float64, padding=1)
    generator = torch.Generator().manual_seed(seed)
    core = torch.randn(ranks[1], ranks[0], 3, 3, generator=generator, dtype=torch.float64)
    out = torch.randn(6, ranks[1], generator=generator, dtype=torch.float64)
    into = torch.randn(ranks[0], 5, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.einsum("oa,abyx,bi->oiyx", out, core, into))  # type: ignore[operator, arg-type]
    split = _split("tucker2", layer, inputs)
    assert _lost(split, ranks, layer, inputs) < 1e-12


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), rank=st.integers(1, 5))
def test_a_separable_kernel_is_found_exactly(seed: int, rank: int) -> None:
    layer, inputs = _layer("spatial", False, seed, torch.float64, padding=1, stride=2)
    generator = torch.Generator().manual_seed(seed)
    columns = torch.randn(rank, 5, 3, generator=generator, dtype=torch.float64)
    rows = torch.randn(6, rank, 3, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.einsum("orx,riy->oiyx", rows, columns))  # type: ignore[operator, arg-type]
    assert _lost(_split("spatial", layer, inputs), (rank,), layer, inputs) < 1e-12


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_that_gives_only_its_bias_loses_nothing(method: str) -> None:
    layer, inputs = _layer(method, False, 7, torch.float32)
    with torch.no_grad():
        layer.weight.zero_()  # type: ignore[operator]
    split = _split(method, layer, inputs)
    assert split.options(1).kept.max() == 1.0
    with torch.no_grad():
        torch.testing.assert_close(nn.Sequential(*split.layers(split.largest()))(inputs), layer(inputs))
