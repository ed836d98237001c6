"""Tiny builds, one maker per format; a runtime's contract is tested with those of the first format that has some."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper
from onnx.external_data_helper import set_external_data

from fleetfit.runtimes import ncnn, openvino
from fleetfit.runtimes.archive import pack

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


def repeated(floats: int) -> bytes:
    """What `hungry` does, with nothing that could be computed before the inputs are there."""
    nodes = [
        helper.make_node("Tile", ["x", "times"], ["wide"]),
        helper.make_node("ReduceMax", ["wide"], ["scores"], axes=[1], keepdims=1),
    ]
    return _model(nodes, {"scores": [ANY, 1]}, [_integers("times", [1, floats // 4])])


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


def as_openvino(build: bytes) -> bytes:
    """An ONNX build as OpenVINO's intermediate representation."""
    library = openvino.import_openvino()
    with tempfile.TemporaryDirectory() as folder:
        library.save_model(library.Core().read_model(model=build), f"{folder}/model.xml", compress_to_fp16=False)
        return pack({name: Path(folder, name).read_bytes() for name in openvino.MEMBERS})


def ncnn_affine() -> bytes:
    """What `affine` does, for ncnn."""
    layers = [
        "Input in 0 1 in0",
        "InnerProduct product 1 1 in0 product 0=3 1=0 2=12",
        "Split split 1 2 product out0 copy",
        "ReLU relu 1 1 copy out1",
    ]
    # Four zero bytes say that floats follow; one row for each output.
    return ncnn_build(layers, 5, bytes(4) + WEIGHTS.T.tobytes(), {"scores": 3, "positive": 3})


def ncnn_hungry(floats: int) -> bytes:
    """What `hungry` does, for ncnn."""
    layers = ["Input in 0 1 in0", f"Tile wide 1 1 in0 wide 0=0 1={floats // 4}", "Reduction most 1 1 wide out0 0=4 1=1"]
    return ncnn_build(layers, 3, b"", {"scores": 1})


def ncnn_build(layers: Sequence[str], blobs: int, weights: bytes, outputs: Mapping[str, int]) -> bytes:
    """An archive for ncnn with the input `x` of (N, 4) and outputs of (N, columns), in the order of `out0`, `out1`, ..."""

    def port(blob: str, name: str, columns: int) -> dict[str, object]:
        return {"blob": blob, "name": name, "dtype": "float32", "shape": [-1, columns], "batched": True}

    ports = {
        "inputs": [port("in0", "x", 4)],
        "outputs": [port(f"out{at}", name, columns) for at, (name, columns) in enumerate(outputs.items())],
    }
    param = "\n".join(["7767517", f"{len(layers)} {blobs}", *layers, ""])
    contents = [param.encode(), weights, json.dumps(ports).encode()]
    return pack(dict(zip(ncnn.MEMBERS, contents, strict=True)))


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


SAMPLES: Mapping[str, Samples] = {
    "onnx": Samples(affine, hungry, external),
    "openvino": Samples(lambda: as_openvino(affine()), lambda floats: as_openvino(repeated(floats))),
    "ncnn": Samples(ncnn_affine, ncnn_hungry),
}
