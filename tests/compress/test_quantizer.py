"""Integer builds through ONNX Runtime's quantizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fleetfit.compress.exporter import OnnxSession
from fleetfit.compress.passes.base import Arrays, PassContext
from fleetfit.compress.passes.quantize import Quantize
from fleetfit.compress.quantization import quantize_onnx
from fleetfit.compress.quantization.operators import OperatorCounts, count_operators
from fleetfit.core.errors import InvalidRecipe

from .conftest import Trained


def _context(train: Arrays | None) -> PassContext:
    return PassContext(train, None, None, "", "", 0, lambda part, activity: None)


@pytest.fixture(scope="module")
def exported(trained: Trained) -> bytes:
    return trained.onnx


def _accuracy(content: bytes, data: Arrays) -> float:
    (logits,) = OnnxSession(content).run(data.inputs).values()
    return float((logits.argmax(1) == data.targets).mean())


@pytest.mark.parametrize("calibration", ["minmax", "percentile", "mse", "entropy"])
def test_static_makes_convolutions_and_products_integer(exported: bytes, trained: Trained, calibration: str) -> None:
    wanted = Quantize.model_validate({"mode": "static", "calibration": calibration, "samples": 100})
    built = quantize_onnx(exported, wanted, _context(trained.train_arrays))
    assert (built.integer_operators, built.total_operators) == (3, 3)
    assert len(built.content) < len(exported)
    validation = trained.validation_arrays
    assert _accuracy(built.content, validation) > _accuracy(exported, validation) - 0.03


def test_dynamic_makes_products_integer_without_data(exported: bytes, trained: Trained) -> None:
    built = quantize_onnx(exported, Quantize(mode="dynamic"), _context(None))
    assert (built.integer_operators, built.total_operators) == (2, 3)
    validation = trained.validation_arrays
    assert _accuracy(built.content, validation) > _accuracy(exported, validation) - 0.03


def test_any_batch_still_runs(exported: bytes, trained: Trained) -> None:
    built = quantize_onnx(exported, Quantize(), _context(trained.train_arrays))
    session = OnnxSession(built.content)
    for count in (1, 7):
        (logits,) = session.run(trained.validation_arrays.head(count).inputs).values()
        assert logits.shape[0] == count and logits.dtype == np.float32


def test_weights_are_per_channel_and_keep_a_bit_free(exported: bytes, trained: Trained) -> None:
    built = quantize_onnx(exported, Quantize(), _context(trained.train_arrays))
    weights = [
        numpy_helper.to_array(tensor)
        for tensor in onnx.load_model_from_string(built.content).graph.initializer
        if tensor.data_type == TensorProto.INT8 and len(tensor.dims) > 1
    ]
    assert len(weights) == 3
    for weight in weights:
        assert np.abs(weight.astype(int)).max() <= 64
    convolution = next(weight for weight in weights if weight.ndim == 4)
    # Each channel has a scale of its own: each uses its whole range.
    assert (np.abs(convolution.astype(int)).max(axis=(1, 2, 3)) >= 63).all()


def test_the_same_calibration_gives_the_same_bytes(exported: bytes, trained: Trained) -> None:
    builds = [quantize_onnx(exported, Quantize(samples=64), _context(trained.train_arrays)).content for _ in range(2)]
    assert builds[0] == builds[1]


def test_a_fixed_batch_is_calibrated_in_that_batch(trained: Trained) -> None:
    content = trained.fixed.read_bytes()
    built = quantize_onnx(content, Quantize(samples=10), _context(trained.train_arrays))
    assert built.integer_operators == 3
    (logits,) = OnnxSession(built.content).run(trained.validation_arrays.head(3).inputs).values()
    assert logits.shape == (3, 4)
    with pytest.raises(InvalidRecipe, match="batches of 3"):
        quantize_onnx(content, Quantize(samples=2), _context(trained.train_arrays))


def test_static_without_data_is_refused(exported: bytes) -> None:
    with pytest.raises(InvalidRecipe, match="--data"):
        quantize_onnx(exported, Quantize(), _context(None))


def _elementwise() -> bytes:
    """A model with nothing to quantize, and with 8-bit numbers of its own."""
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["table"], ["c"], to=TensorProto.FLOAT),
            helper.make_node("Exp", ["x"], ["e"]),
            helper.make_node("Max", ["e", "c"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(np.array([1, 2, 3], np.uint8), "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())


def test_nothing_to_quantize_is_said(tmp_path: Path) -> None:
    with pytest.raises(InvalidRecipe, match="no operator to quantize"):
        quantize_onnx(_elementwise(), Quantize(mode="dynamic"), _context(None))


def test_operators_are_counted_where_they_run(exported: bytes) -> None:
    assert count_operators(exported) == OperatorCounts(total=3)
    assert count_operators(_elementwise()) == OperatorCounts()
