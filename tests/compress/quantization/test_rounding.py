"""Weights rounded for their layer's outputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from fleetfit.compress.quantization.rounding import compensated, moments_of


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 90), st.sampled_from([1, 7, 64, 127]))
@settings(max_examples=60, deadline=None)
def test_outputs_change_no_more_than_with_the_nearest(seed: int, rows: int, columns: int, steps: int) -> None:
    random = np.random.default_rng(seed)
    weight = random.normal(size=(rows, columns)) * np.exp(random.normal(size=columns))
    # Inputs that are alike, as the neighbouring places of a picture are; some never differ from zero.
    inputs = random.normal(size=(200, 1)) + 0.3 * random.normal(size=(200, columns))
    inputs[:, random.random(columns) < 0.1] = 0.0
    scale = np.maximum(np.abs(weight).max(1, keepdims=True), 1e-12) / steps
    chosen = compensated(weight, inputs.T @ inputs, scale, -steps, steps)
    assert np.abs(chosen).max() <= steps
    nearest = np.clip(np.round(weight / scale), -steps, steps)
    errors = [np.square(inputs @ (q * scale - weight).T).sum(0) for q in (chosen, nearest)]
    assert (errors[0] <= errors[1] * (1 + 1e-6) + 1e-9).all()


@given(st.integers(0, 10_000), st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_weights_on_the_grid_stay(seed: int, columns: int) -> None:
    random = np.random.default_rng(seed)
    whole = random.integers(-64, 65, (3, columns))
    inputs = random.normal(size=(50, columns))
    scale = np.exp(random.normal(size=(3, 1)))
    assert (compensated(whole * scale, inputs.T @ inputs, scale, -64, 64) == whole).all()


def test_alike_inputs_gain_much() -> None:
    random = np.random.default_rng(0)
    weight = random.normal(size=(32, 9))
    inputs = random.normal(size=(500, 1)) + 2 + 0.1 * random.normal(size=(500, 9))
    scale = np.abs(weight).max(1, keepdims=True) / 64
    chosen = compensated(weight, inputs.T @ inputs, scale, -64, 64)
    errors = [np.square(inputs @ (q * scale - weight).T).sum() for q in (chosen, np.round(weight / scale))]
    assert errors[0] < 0.3 * errors[1]


@pytest.mark.parametrize("moments", [np.zeros((4, 4)), np.full((4, 4), np.nan)])
def test_without_inputs_the_nearest_is_taken(moments: np.ndarray) -> None:
    weight = np.linspace(-1, 1, 8).reshape(2, 4)
    assert (
        compensated(weight, moments, np.full((2, 1), 0.01), -64, 64) == np.clip(np.round(weight * 100), -64, 64)
    ).all()


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "groups"),
    [((3, 3), 1, 1, 1, 1), ((3, 2), 2, (2, 0), 1, 4), ((1, 1), 2, 0, 1, 1), ((3, 3), 2, 2, 2, 2)],
)
def test_moments_are_those_of_what_the_weights_meet(
    kernel: tuple[int, int], stride: int, padding: int, dilation: int, groups: int
) -> None:
    x = torch.from_numpy(np.random.default_rng(1).normal(size=(3, 4, 9, 8)).astype(np.float32))
    pads = [padding] * 2 if isinstance(padding, int) else list(padding)
    node = helper.make_node(
        "Conv", ["x", "w"], ["y"], strides=[stride] * 2, pads=pads * 2, dilations=[dilation] * 2, group=groups
    )
    found = moments_of(node, kernel, [x[:2].numpy(), x[2:].numpy()])
    columns = torch.nn.functional.unfold(x, kernel, dilation, tuple(pads), stride)
    columns = columns.reshape(3, groups, -1, columns.shape[-1]).double()
    wanted = torch.einsum("sgcp,sgdp->gcd", columns, columns).numpy()
    assert found.shape == wanted.shape
    assert np.allclose(found, wanted, rtol=1e-4, atol=1e-3)


def test_moments_of_a_linear_layer_count_every_place() -> None:
    x = np.random.default_rng(2).normal(size=(2, 5, 7)).astype(np.float32)
    flat = x.reshape(-1, 7)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    assert np.allclose(moments_of(node, (), [x]), (flat.T @ flat)[None], rtol=1e-4)
