"""Running a graph piece by piece."""

from __future__ import annotations

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from fleetfit.compress.passes.base import Arrays
from fleetfit.compress.quantization.calibration import Batches, Observed
from fleetfit.compress.quantization.stepwise import Stepwise


def _random(seed: int, count: int) -> onnx.ModelProto:
    """Products, sums and constants computed in the graph, reading any values that are there, in any order of nodes."""
    random = np.random.default_rng(seed)
    values, nodes, constants = ["x", "z"], [], []
    for at in range(count):
        name, first = f"v{at}", values[random.integers(len(values))]
        kind = random.choice(["product", "sum", "relu"])
        if kind == "product":
            constants.append(numpy_helper.from_array(random.normal(size=(4, 4)).astype(np.float32), f"w{at}"))
            nodes.append(helper.make_node("Neg", [f"w{at}"], [f"n{at}"], name=f"neg{at}"))
            nodes.append(helper.make_node("MatMul", [first, f"n{at}"], [name], name=name))
        elif kind == "sum":
            second = values[random.integers(len(values))]
            nodes.append(helper.make_node("Add", [first, second], [name], name=name))
        else:
            nodes.append(helper.make_node("Relu", [first], [name], name=name))
        values.append(name)
    shuffled = [nodes[at] for at in random.permutation(len(nodes))]
    graph = helper.make_graph(
        shuffled,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in ("x", "z")],
        [helper.make_tensor_value_info(f"v{count - 1}", TensorProto.FLOAT, ["n", 4])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def _batches(seed: int) -> Batches:
    x, z = np.random.default_rng(seed).normal(size=(2, 6, 4)).astype(np.float32)
    return Batches(Arrays({"x": x, "z": z}, None), ["x", "z"], 3)


@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(0, 100))
@settings(max_examples=25, deadline=None)
def test_the_pieces_give_what_the_whole_gives(seed: int, count: int, order: int) -> None:
    model, batches = _random(seed, count), _batches(seed)
    whole = list(Observed(model).over(batches))
    walk = Stepwise(model, batches)
    for at in range(count):
        # Others than the next are asked for, too, but none that lies behind: they may be gone.
        if np.random.default_rng(order + at).random() < 0.5 and at < count - 1:
            continue
        for found, expected in zip(walk.until(f"v{at}"), whole, strict=True):
            assert np.allclose(found, expected[f"v{at}"], rtol=1e-4, atol=1e-4)


def test_changes_reach_what_runs_later_and_nothing_else() -> None:
    model, batches = _chain(), _batches(0)
    walk = Stepwise(model, batches)
    before = [array.copy() for array in walk.until("a")]
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    weights["w"].CopyFrom(numpy_helper.from_array(np.zeros((4, 4), np.float32), "w"))
    weights["u"].CopyFrom(numpy_helper.from_array(2 * np.eye(4, dtype=np.float32), "u"))
    walk.shift("a", np.array([1.0, 0.0, 0.0, -1.0]))
    for found, a in zip(walk.until("y"), before, strict=True):
        assert np.allclose(found, 2 * (a + np.array([1.0, 0.0, 0.0, -1.0])), atol=1e-5)


def _chain() -> onnx.ModelProto:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="a"),
        helper.make_node("MatMul", ["a", "u"], ["y"], name="y"),
    ]
    constants = [numpy_helper.from_array(np.eye(4, dtype=np.float32), name) for name in ("w", "u")]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in ("x", "z", "y")]
    graph = helper.make_graph(nodes, "g", values[:2], values[2:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
