"""Tiny builds, and the files of `fleetfit.runtimes.samples`: runtimes are tested with them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper
from onnx.external_data_helper import set_external_data

from fleetfit.runtimes import aten
from fleetfit.runtimes.samples import (
    FOLDER,
    HUNGRY_FLOATS,
    NETWORK_SHAPE,
    WEIGHTS,
    aten_build,
    ncnn_build,
    network_inputs,
)

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


def network() -> bytes:
    """What `fleetfit.runtimes.samples` describes as the network."""
    convolutions, last = network_weights()
    nodes, constants, blob = [], [], "x"
    for at, (weights, bias, stride) in enumerate(convolutions):
        constants += [_floats(f"w{at}", weights), _floats(f"b{at}", bias)]
        options = {"pads": [1, 1, 1, 1], "strides": [stride, stride], "kernel_shape": [3, 3]}
        nodes.append(helper.make_node("Conv", [blob, f"w{at}", f"b{at}"], [f"c{at}"], **options))
        nodes.append(helper.make_node("Relu", [f"c{at}"], [f"r{at}"]))
        blob = f"r{at}"
    nodes += [
        helper.make_node("GlobalAveragePool", [blob], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("MatMul", ["flat", "last"], ["scores"]),
    ]
    return _model(nodes, {"scores": [ANY, 10]}, [*constants, _floats("last", last)], [ANY, *NETWORK_SHAPE])


def ncnn_network() -> bytes:
    """The network, for ncnn."""
    convolutions, last = network_weights()
    layers, weights, blob = ["Input in 0 1 in0"], b"", "in0"
    for at, (kernel, bias, stride) in enumerate(convolutions):
        options = f"0={len(kernel)} 1=3 3={stride} 4=1 5=1 6={kernel.size} 9=1"
        layers.append(f"Convolution c{at} 1 1 {blob} r{at} {options}")
        weights += bytes(4) + kernel.tobytes() + bias.tobytes()
        blob = f"r{at}"
    layers += [f"Pooling mean 1 1 {blob} mean 0=1 4=1", f"InnerProduct last 1 1 mean out0 0=10 1=0 2={last.size}"]
    weights += bytes(4) + last.T.tobytes()
    return ncnn_build(layers, len(layers), weights, {"scores": 10}, inputs=NETWORK_SHAPE)


def aten_network() -> bytes:
    """The network, of PyTorch's operators."""
    convolutions, last = network_weights()
    weights, nodes, value = [], [], {"input": 0}
    for kernel, bias, stride in convolutions:
        at = len(weights)
        weights += [kernel, bias]
        args = [value, {"weight": at}, {"weight": at + 1}, [stride, stride], [1, 1]]
        nodes.append(aten.Node("torch.ops.aten.conv2d.default", args, {}))
        nodes.append(aten.Node("torch.ops.aten.relu.default", [{"node": len(nodes) - 1}], {}))
        value = {"node": len(nodes) - 1}
    nodes.append(aten.Node("torch.ops.aten.mean.dim", [value, [2, 3]], {}))
    nodes.append(aten.Node("torch.ops.aten.mm.default", [{"node": len(nodes) - 1}, {"weight": len(weights)}], {}))
    return aten_build([*weights, last], nodes, {"scores": len(nodes) - 1}, inputs=NETWORK_SHAPE)


def network_weights() -> tuple[list[tuple[NDArray[np.float32], NDArray[np.float32], int]], NDArray[np.float32]]:
    """Kernels (out, in, 3, 3), biases and strides of the convolutions, and the last product's (in, 10)."""
    random = np.random.default_rng(7)

    def normal(*shape: int) -> NDArray[np.float32]:
        return (random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)

    sizes = ((1, 16, 1), (16, 32, 2), (32, 64, 2))
    convolutions = [(normal(wide, deep, 3, 3), normal(wide, 50)[:, 0].copy(), stride) for deep, wide, stride in sizes]
    return convolutions, np.ascontiguousarray(normal(10, 64).T)


def network_outputs(x: NDArray[np.float32]) -> NDArray[np.float64]:
    """The network in float64, by nothing but NumPy's sums."""
    convolutions, last = network_weights()
    values = x.astype(np.float64)
    for kernel, bias, stride in convolutions:
        padded = np.pad(values, ((0, 0), (0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::stride, ::stride]
        values = np.maximum(np.einsum("nchwij,ocij->nohw", windows, kernel) + bias[:, None, None], 0)
    found: NDArray[np.float64] = values.mean(axis=(2, 3)) @ last
    return found


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


def _floats(name: str, values: NDArray[np.float32]) -> TensorProto:
    return helper.make_tensor(name, TensorProto.FLOAT, values.shape, values.tobytes(), raw=True)


FILES: Mapping[str, Callable[[], bytes]] = {
    "good.onnx": affine,
    "hungry.onnx": lambda: hungry(HUNGRY_FLOATS),
    "repeated.onnx": lambda: repeated(HUNGRY_FLOATS),
    "external.onnx": lambda: external("weights.bin"),
    "network.onnx": network,
    "network.ncnn": ncnn_network,
    "network.aten": aten_network,
    "network.json": lambda: (json.dumps(network_outputs(network_inputs(4)).round(7).tolist()) + "\n").encode(),
}
"""What lies in runtimes/samples/, written by `python -m tests.runtimes.builds`."""

if __name__ == "__main__":
    for name, make in FILES.items():
        (FOLDER / name).write_bytes(make())
