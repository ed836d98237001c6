"""Ranges of activations from their values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from fleetfit.compress.passes.base import Arrays
from fleetfit.compress.passes.quantize import Quantize
from fleetfit.compress.quantization.calibration import Batches, calibrate, least_squares_range, percentile_range


def _histogram(values: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    low, high = float(values.min()), float(values.max())
    counts, edges = np.histogram(values, 2048, (low, high if high > low else low + 1))
    return counts.astype(np.int64), edges


def _error(values: NDArray[np.float64], low: float, high: float) -> float:
    """Of real rounding to 8 bits, apart from the code that is tested."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / 255
    zero = round(-low / scale)
    codes = np.clip(np.round(values / scale) + zero, 0, 255)
    return float(np.square((codes - zero) * scale - values).mean())


def test_least_squares_cuts_outliers_where_that_pays() -> None:
    # Ten million values within 5, and one at 40.
    values = np.append(np.abs(np.random.default_rng(0).normal(size=100_000)), 40.0)
    counts, edges = _histogram(values)
    counts[:-1] *= 100
    low, high = least_squares_range((counts, edges))
    assert low == 0.0 and 3 < high < 15
    bulk, outlier = _error(values[:-1], low, high), (40 - high) ** 2 / 1e7
    assert bulk + outlier < 0.3 * _error(values[:-1], 0.0, 40.0)


def test_least_squares_leaves_an_even_spread_whole() -> None:
    low, high = least_squares_range(_histogram(np.linspace(-3, 5, 50_000)))
    assert low == pytest.approx(-3, abs=0.1) and high == pytest.approx(5, abs=0.1)


@given(
    st.integers(0, 1000),
    st.floats(-5, 5),
    st.floats(0.01, 100),
    st.sampled_from(["normal", "laplace", "standard_cauchy"]),
)
@settings(max_examples=40, deadline=None)
def test_least_squares_is_never_worse_than_the_whole_range(seed: int, shift: float, scale: float, kind: str) -> None:
    values = (getattr(np.random.default_rng(seed), kind)(size=3000) + shift) * scale
    low, high = least_squares_range(_histogram(values))
    whole = _error(values, float(values.min()), float(values.max()))
    assert low <= 0 <= high
    # The histogram knows values only to a bin's width.
    assert _error(values, low, high) <= whole * 1.05 + (np.ptp(values) / 2048) ** 2


def test_percentile_holds_the_share_it_names() -> None:
    values = np.random.default_rng(1).normal(size=200_000)
    low, high = percentile_range(_histogram(values), 99.0)
    assert ((values >= low) & (values <= high)).mean() == pytest.approx(0.99, abs=0.003)
    assert percentile_range(_histogram(values), 100.0) == pytest.approx((values.min(), values.max()))


def test_what_never_varies_has_a_range() -> None:
    for value in (0.0, 2.5, -1.0):
        low, high = least_squares_range(_histogram(np.full(100, value)))
        assert low <= value <= high + 1e-9 or low <= 0 <= high


@pytest.mark.parametrize("calibration", ["minmax", "percentile", "mse", "entropy"])
def test_every_choice_but_the_extremes_cuts_a_rare_outlier(calibration: str, tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8])],
        [numpy_helper.from_array(np.eye(64, 8, dtype=np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    values = np.random.default_rng(0).normal(size=(8192, 64)).astype(np.float32)
    values[17, 3] = 30.0
    batches = Batches(Arrays({"x": values}, None), ["x"], 1024)
    wanted = Quantize.model_validate({"calibration": calibration})
    ranges = calibrate(model, batches, wanted, tmp_path, lambda part: None)
    low, high = (float(end) for end in ranges["x"].range_value)
    assert low == pytest.approx(float(values.min()), abs=1.5)
    assert (high == 30.0) if calibration == "minmax" else 3 < high < 25
