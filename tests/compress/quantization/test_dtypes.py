"""Half floats, 4-bit weights, and what is refused."""

from __future__ import annotations

import sys
from functools import partial

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from fleetfit.compress.exporter import OnnxSession, predict_onnx
from fleetfit.compress.passes.base import Arrays, PassContext
from fleetfit.compress.passes.quantize import Quantize
from fleetfit.compress.quantization import quantize_onnx
from fleetfit.compress.quantization.error import output_errors
from fleetfit.compress.quantization.graph import ends
from fleetfit.compress.quantization.operators import count_operators
from fleetfit.compress.recipe import Recipe
from fleetfit.core.errors import InvalidRecipe

from ..conftest import Trained


def _context(train: Arrays | None, validation: Arrays | None = None) -> PassContext:
    return PassContext(train, validation, None, "", "", 0, lambda part, activity: None)


@pytest.fixture(scope="module")
def exported(trained: Trained) -> bytes:
    return trained.onnx


def _error(one: bytes, other: bytes, data: Arrays, batch: int | None = None) -> float:
    return max(output_errors(predict_onnx(one, data, batch), predict_onnx(other, data, batch)).values())


def _kinds(content: bytes) -> dict[str, int]:
    return {tensor.name: tensor.data_type for tensor in onnx.load_model_from_string(content).graph.initializer}


def _linear(**settings: float) -> bytes:
    """One Gemm of 40 inputs and 12 outputs, as no exporter writes it."""
    random = np.random.default_rng(3)
    weight = random.normal(size=(12, 40) if settings.get("transB") else (40, 12)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], **settings)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 40])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 12])],
        [
            numpy_helper.from_array(weight, "w"),
            numpy_helper.from_array(random.normal(size=12).astype(np.float32), "b"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())


def test_half_floats_halve_the_file_and_keep_what_goes_in_and_out(exported: bytes, trained: Trained) -> None:
    path = list(sys.path)
    built = quantize_onnx(exported, Quantize(dtype="fp16"), _context(None, trained.validation_arrays))
    assert sys.path == path
    weights = onnx.load_model_from_string(exported).graph.initializer
    floats = {tensor.name for tensor in weights if tensor.data_type == TensorProto.FLOAT}
    assert {_kinds(built.content)[name] for name in floats} == {TensorProto.FLOAT16}
    onnx.checker.check_model(onnx.load_model_from_string(built.content), full_check=True)
    (logits,) = OnnxSession(built.content).run(trained.validation_arrays.head(5).inputs).values()
    assert logits.dtype == np.float32 and logits.shape == (5, 4)
    assert 0 < _error(exported, built.content, trained.validation_arrays) < 0.01
    assert built.integer_operators == 0 and built.total_operators == 3
    assert f"{count_operators(built.content).half} of 3" in built.notes[0]


def test_what_is_kept_in_floats_keeps_its_weights(exported: bytes, trained: Trained) -> None:
    built = quantize_onnx(exported, Quantize(dtype="fp16", keep_float=("head.*",)), _context(None))
    kinds = _kinds(built.content)
    assert kinds["head.1.weight"] == kinds["head.3.weight"] == TensorProto.FLOAT
    assert TensorProto.FLOAT16 in kinds.values()
    assert any("kept in floats" in note for note in built.notes)
    static = quantize_onnx(exported, Quantize(keep_float=("head.3",)), _context(trained.train_arrays))
    assert (static.integer_operators, static.total_operators) == (2, 3)
    # ONNX Runtime would give a convolution between two pairs integer weights of its own.
    inside = quantize_onnx(exported, Quantize(keep_float=("features.0",)), _context(trained.train_arrays))
    assert (inside.integer_operators, inside.total_operators) == (2, 3)
    dynamic = quantize_onnx(exported, Quantize(mode="dynamic", keep_float=("head.1",)), _context(None))
    assert (dynamic.integer_operators, dynamic.total_operators) == (1, 3)
    with pytest.raises(InvalidRecipe, match=r"'tail\*'.*head.1"):
        quantize_onnx(exported, Quantize(keep_float=("tail*",)), _context(trained.train_arrays))


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_the_ends_are_the_first_and_the_last_product(exported: bytes, trained: Trained, mode: str) -> None:
    wanted = {"mode": mode, "keep_float": "ends"}
    built = quantize_onnx(exported, Quantize.model_validate(wanted), _context(trained.train_arrays))
    assert (built.integer_operators, built.total_operators) == (1, 3)
    named = Quantize.model_validate(
        {**wanted, "keep_float": ["features.0", "head.3"] if mode == "static" else ["head.3"]}
    )
    assert built.content == quantize_onnx(exported, named, _context(trained.train_arrays)).content


def test_every_branch_has_ends() -> None:
    product = partial(helper.make_node, "MatMul")
    nodes = [
        product(["x", "w"], ["a"], "first"),
        product(["x", "w"], ["b"], "beside"),
        helper.make_node("Add", ["a", "b"], ["c"], "sum"),
        product(["c", "w"], ["d"], "inner"),
        product(["d", "w"], ["y"], "last"),
        product(["x", "w"], ["z"], "alone"),
    ]
    weight = numpy_helper.from_array(np.eye(2, dtype=np.float32), "w")
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2]) for name in "xyz"}
    graph = helper.make_graph(nodes, "branches", [values["x"]], [values["y"], values["z"]], [weight])
    model = helper.make_model(graph)
    assert ends(model, graph.node) == {"first", "beside", "last", "alone"}
    assert ends(model, graph.node[3:5]) == {"last"}


@pytest.mark.parametrize("block", [None, 16, 64])
def test_linear_layers_get_weights_of_4_bits(exported: bytes, trained: Trained, block: int | None) -> None:
    wanted = Quantize.model_validate({"dtype": "int4", "block": block})
    built = quantize_onnx(exported, wanted, _context(None, trained.validation_arrays))
    assert len(built.content) < 0.5 * len(exported)
    nodes = [node for node in onnx.load_model_from_string(built.content).graph.node if node.op_type == "MatMulNBits"]
    sizes = [next(a.i for a in node.attribute if a.name == "block_size") for node in nodes]
    assert sizes == [block or 32] * 2
    assert "2 of 3" in built.notes[0] and built.integer_operators == 0
    assert 0.001 < _error(exported, built.content, trained.validation_arrays) < 0.3


@pytest.mark.parametrize(
    "settings", [{}, {"transB": 1}, {"alpha": 0.5, "beta": 2.0}, {"transB": 1, "alpha": -1.5, "beta": 0.25}]
)
def test_every_form_of_a_linear_layer_is_computed_as_before(settings: dict[str, float]) -> None:
    content = _linear(**settings)
    inputs = Arrays({"x": np.random.default_rng(1).normal(size=(50, 40)).astype(np.float32)}, None)
    built = quantize_onnx(content, Quantize(dtype="int4", block=16), _context(None, inputs))
    assert count_operators(built.content).few_bits == 1
    assert _error(content, built.content, inputs) < 0.12


def test_4_bits_are_refused_where_nothing_can_have_them(exported: bytes) -> None:
    with pytest.raises(InvalidRecipe, match="no linear layer"):
        quantize_onnx(exported, Quantize(dtype="int4", keep_float=("head.*",)), _context(None))


def test_bfloat16_is_refused_for_as_long_as_nothing_runs_it() -> None:
    with pytest.raises(InvalidRecipe, match="no bfloat16 convolutions and products"):
        Recipe.from_yaml("{name: b, steps: [quantize: {dtype: bf16}]}")
    weight = helper.make_tensor("w", TensorProto.BFLOAT16, [4, 3], [1.0] * 12)
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["x"], ["h"], to=TensorProto.BFLOAT16),
            helper.make_node("MatMul", ["h", "w"], ["z"]),
            helper.make_node("Cast", ["z"], ["y"], to=TensorProto.FLOAT),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    with pytest.raises(Exception, match="NOT_IMPLEMENTED"):
        onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def test_numbers_that_halves_cannot_hold_are_refused() -> None:
    inputs = Arrays({"x": np.full((4, 40), 1e6, np.float32)}, None)
    with pytest.raises(InvalidRecipe, match="65504"):
        quantize_onnx(_linear(), Quantize(dtype="fp16"), _context(None, inputs))


def test_an_error_larger_than_asked_is_refused_and_every_error_is_noted(exported: bytes, trained: Trained) -> None:
    context = _context(trained.train_arrays, trained.validation_arrays)
    built = quantize_onnx(exported, Quantize(max_error=0.2), context)
    error = _error(exported, built.content, trained.validation_arrays)
    assert f"{error:.3g} on 200 validation samples" in built.notes[-1] and error > 0.001
    with pytest.raises(InvalidRecipe, match=r"max_error is 0\.001"):
        quantize_onnx(exported, Quantize(max_error=0.001), context)
    unmeasured = quantize_onnx(exported, Quantize(mode="dynamic"), _context(None))
    assert "not measured" in unmeasured.notes[-1]


def test_errors_are_relative_to_how_much_an_output_varies() -> None:
    expected = {"y": np.array([[100.0], [102.0]]), "k": np.array([1, 2, 3, 4]), "c": np.full((3, 1), 5.0)}
    found = {"y": expected["y"] + 1, "k": np.array([1, 2, 3, 0]), "c": expected["c"] * 1.5}
    assert output_errors(expected, found) == pytest.approx({"y": 1.0, "k": 0.25, "c": 0.5})
    assert output_errors(expected, expected) == {"y": 0.0, "k": 0.0, "c": 0.0}
    broken = {**found, "y": np.array([[np.nan], [1.0]])}
    assert output_errors(expected, broken)["y"] == float("inf")


@pytest.mark.parametrize("parameters", [{"block": 32}, {"percentile": 99}, {"block": 48, "dtype": "int4"}])
def test_parameters_of_another_choice_are_refused(parameters: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="block|percentile"):
        Quantize.model_validate(parameters)


@pytest.mark.parametrize("dtype", ["fp16", "int4", "int8"])
def test_one_batch_size_stays(trained: Trained, dtype: str) -> None:
    wanted = Quantize.model_validate({"dtype": dtype, "samples": 30})
    content = trained.fixed.read_bytes()
    built = quantize_onnx(content, wanted, _context(trained.train_arrays, trained.validation_arrays.head(50)))
    assert _error(content, built.content, trained.validation_arrays.head(7), 3) < 0.3
