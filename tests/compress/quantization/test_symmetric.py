"""QDQ files in TensorRT's dialect: what its importer refuses is not in them, and they compute what the first ones did."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from fleetfit.compress.exporter import OnnxSession, predict_onnx
from fleetfit.compress.local import compress_local
from fleetfit.compress.passes.base import Arrays, PassContext
from fleetfit.compress.passes.quantize import Quantize
from fleetfit.compress.quantization import quantize_onnx
from fleetfit.compress.quantization.error import output_errors
from fleetfit.compress.quantization.operators import HEAVY
from fleetfit.compress.quantization.symmetric import numbers_of, to_symmetric
from fleetfit.compress.recipe import Recipe
from fleetfit.core.errors import InvalidModel

from ..conftest import Trained


def _context(data: Arrays) -> PassContext:
    return PassContext(data, None, None, "", "", 0, lambda part, activity: None)


def _random(count: int = 48) -> Arrays:
    chance = np.random.default_rng(2)
    return Arrays({"x": chance.standard_normal((count, 3, 8, 8)).astype(np.float32)}, None)


def _network() -> bytes:
    """Two convolutions with clips, a sum around the second, a pool, a product: all that pairs are put around."""
    chance = np.random.default_rng(5)

    def weight(name: str, *shape: int) -> TensorProto:
        return numpy_helper.from_array((chance.standard_normal(shape) / 4).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="c1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], name="r1"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], name="c2", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c2", "r1"], ["sum"], name="sum"),
        helper.make_node("GlobalAveragePool", ["sum"], ["pool"], name="pool"),
        helper.make_node("Flatten", ["pool"], ["flat"], name="flat"),
        helper.make_node("Gemm", ["flat", "w3", "b3"], ["y"], name="y", transB=1),
    ]
    constants = [weight("w1", 6, 3, 3, 3), weight("b1", 6), weight("w2", 6, 6, 3, 3), weight("b2", 6)]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [*constants, weight("w3", 4, 6), weight("b3", 4)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())


def _refused_by_tensorrt(content: bytes) -> list[str]:
    """What onnx-tensorrt's QuantDequantLinearHelper and TensorRT's DequantizeLinear refuse of a file."""
    graph = onnx.load_model_from_string(content).graph
    constants: dict[str, NDArray[np.float32]] = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    found = []
    for node in graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        scale, zero = constants[node.input[1]], constants[node.input[2]]
        if zero.any():
            found.append(f"{node.name}: Non-zero zero point is not supported")
        if not (scale > 0).all():
            found.append(f"{node.name}: Scale coefficients must all be positive")
        if zero.dtype != np.int8 or scale.size != zero.size:
            found.append(f"{node.name}: {zero.dtype}, and {scale.size} scales for {zero.size} zero points")
        if node.input[0] in constants and constants[node.input[0]].dtype == np.int32:
            found.append(f"{node.name}: only activation datatypes allowed as input to this layer")
    return found


@pytest.mark.parametrize(
    "wanted",
    [
        Quantize(),
        Quantize(activations="signed", reduce_range=False),
        Quantize(per_channel=False, calibration="mse"),
        Quantize(keep_float="ends"),
    ],
)
def test_nothing_is_left_that_tensorrt_refuses_and_the_outputs_stay(wanted: Quantize) -> None:
    data = _random()
    first = quantize_onnx(_network(), wanted, _context(data)).content
    assert _refused_by_tensorrt(first) != []
    found = to_symmetric(first)
    onnx.checker.check_model(onnx.load_model_from_string(found), full_check=True)
    assert _refused_by_tensorrt(found) == []
    floats = predict_onnx(_network(), data, None)
    before, after = (max(output_errors(floats, predict_onnx(one, data, None)).values()) for one in (first, found))
    # Half of a signed range is not used by what is never negative.
    assert after <= 2 * before + 0.01 and after < 0.2
    assert to_symmetric(first) == found


def test_pairs_stand_before_products_alone_and_once_for_each_value() -> None:
    first = quantize_onnx(_network(), Quantize(), _context(_random())).content
    graph = onnx.load_model_from_string(to_symmetric(first)).graph
    readers = {name: node for node in graph.node for name in node.input}
    quantizing = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    assert len(quantizing) == 3
    for node in quantizing:
        undone = readers[node.output[0]]
        assert undone.op_type == "DequantizeLinear" and readers[undone.output[0]].op_type in HEAVY
    added = next(node for node in graph.node if node.op_type == "Add")
    assert not any(name.endswith(("_symmetric", "DequantizeLinear_Output")) for name in added.input)
    assert {output.name for output in graph.output} == {"y"}
    # As many weights in 8 bits as before, and no constant that nobody reads.
    read = {name for node in graph.node for name in node.input}
    assert {tensor.name for tensor in graph.initializer} <= read
    assert sum(t.data_type == TensorProto.INT8 and len(t.dims) > 1 for t in graph.initializer) == 3


def test_what_has_no_quantized_product_is_refused() -> None:
    with pytest.raises(InvalidModel, match="no product of the build reads quantized inputs"):
        to_symmetric(_network())


@pytest.mark.parametrize(
    ("wanted", "numbers"),
    [
        (Quantize(), "int8-static"),
        (Quantize(mode="dynamic"), "int8-dynamic"),
        (Quantize(dtype="int4", block=16), "int4"),
        (Quantize(dtype="fp16"), "fp16"),
    ],
)
def test_a_file_tells_its_numbers_as_its_pass_does(trained: Trained, wanted: Quantize, numbers: str) -> None:
    exported = trained.onnx
    assert numbers_of(exported) == ""
    data = Arrays({name: values[:64] for name, values in trained.train_arrays.inputs.items()}, None)
    assert numbers_of(quantize_onnx(exported, wanted, _context(data)).content) == wanted.numbers() == numbers


def test_a_quantized_recipe_is_built_for_tensorrt_and_held_to_its_first_build(trained: Trained, tmp_path: Path) -> None:
    recipe = Recipe.from_yaml("{name: small, steps: [quantize: {dtype: int8}]}")
    facts = compress_local(trained.model, trained.data, recipe, tmp_path / "out", runtimes=["onnxruntime", "tensorrt"])
    assert facts is not None
    first, found = (next((tmp_path / "out").rglob(name)).read_bytes() for name in ("build.onnx", "build.tensorrt.onnx"))
    assert _refused_by_tensorrt(first) and not _refused_by_tensorrt(found)
    assert OnnxSession(found).names == OnnxSession(first).names
