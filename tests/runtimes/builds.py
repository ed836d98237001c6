"""Tiny builds, one maker per format; a runtime's contract is tested with those of the first format that has some."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper
from onnx.external_data_helper import set_external_data

WEIGHTS: NDArray[np.float32] = np.arange(12, dtype=np.float32).reshape(4, 3) - 5
Batch = int | str
ANY: Batch = "N"


def affine(weights: NDArray[np.float32] = WEIGHTS, batch: Batch = ANY) -> bytes:
    """`x` of (N, rows) to `scores` = x @ weights and `positive` = max(scores, 0)."""
    return _affine(helper.make_tensor("w", TensorProto.FLOAT, weights.shape, weights.tobytes(), raw=True), batch)


def external(location: str) -> bytes:
    """`affine` with its weights in the file `location`."""
    weights = helper.make_tensor("w", TensorProto.FLOAT, WEIGHTS.shape, WEIGHTS.tobytes(), raw=True)
    set_external_data(weights, location=location)
    weights.ClearField("raw_data")
    return _affine(weights, ANY)


def hungry(floats: int = 1 << 38) -> bytes:
    """A build of a few bytes that needs `floats` numbers per sample (a terabyte) to run."""
    nodes = [
        helper.make_node("Slice", ["x", "zero", "one", "one"], ["column"]),
        helper.make_node("Expand", ["column", "shape"], ["wide"]),
        helper.make_node("ReduceMax", ["wide"], ["scores"], axes=[1], keepdims=1),
    ]
    constants = {"zero": [0], "one": [1], "shape": [1, floats]}
    return _model(nodes, {"scores": [ANY, 1]}, [_integers(*item) for item in constants.items()])


def endless() -> bytes:
    """A build that loads at once and never comes to an end."""
    flag = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["going"], ["goes_on"]), helper.make_node("Identity", ["held"], ["holds"])],
        "body",
        [
            flag("turn", TensorProto.INT64, []),
            flag("going", TensorProto.BOOL, []),
            flag("held", TensorProto.FLOAT, [ANY, 4]),
        ],
        [flag("goes_on", TensorProto.BOOL, []), flag("holds", TensorProto.FLOAT, [ANY, 4])],
    )
    turns = helper.make_tensor("turns", TensorProto.INT64, [], [2**62])
    loop = helper.make_node("Loop", ["turns", "", "x"], ["scores"], body=body)
    return _model([loop], {"scores": [ANY, 4]}, [turns])


def scalar() -> bytes:
    """A build whose only output is one number, whatever the batch."""
    return _model([helper.make_node("ReduceMax", ["x"], ["scores"], keepdims=0)], {"scores": []}, [])


def flattened() -> bytes:
    """A build that gives four rows for each sample: its batch is not kept."""
    return _model(
        [helper.make_node("Reshape", ["x", "shape"], ["scores"])], {"scores": ["M", 1]}, [_integers("shape", [-1, 1])]
    )


def _affine(weights: TensorProto, batch: Batch) -> bytes:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["scores"]), helper.make_node("Relu", ["scores"], ["positive"])]
    rows, columns = weights.dims
    outputs: dict[str, list[Batch]] = {"scores": [batch, columns], "positive": [batch, columns]}
    return _model(nodes, outputs, [weights], [batch, rows])


def _model(
    nodes: Sequence[NodeProto],
    outputs: Mapping[str, Sequence[Batch]],
    constants: Sequence[TensorProto],
    shape: Sequence[Batch] = (ANY, 4),
) -> bytes:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()]
    graph = helper.make_graph(
        nodes, "tiny", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)], values, constants
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    # The oldest runtime that is supported knows this version of the format.
    model.ir_version = 8
    content: bytes = model.SerializeToString()
    return content


def _integers(name: str, values: Sequence[int]) -> TensorProto:
    return helper.make_tensor(name, TensorProto.INT64, [len(values)], values)


@dataclass(frozen=True)
class Samples:
    """What the contract needs of a format. `good` takes `x` of (N, 4) and gives `scores` and `positive` of (N, 3)."""

    good: Callable[[], bytes]
    hungry: Callable[[int], bytes]
    external: Callable[[str], bytes] | None = None
    """A build whose weights lie in a file of that name, where the format knows such a thing."""


SAMPLES: Mapping[str, Samples] = {"onnx": Samples(affine, hungry, external)}
