"""Empirical bias correction: rounding shifts the mean of a layer's outputs, and its bias can take the shift back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from fleetfit.compress.quantization.calibration import Batches, Observed

_WITH_BIAS: Final = ("Conv", "ConvTranspose", "Gemm")


def give_biases(model: onnx.ModelProto) -> None:
    """Every convolution and linear layer without a bias gets one of zeros, in place."""
    shapes = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type not in _WITH_BIAS or (len(node.input) > 2 and node.input[2]) or node.input[1] not in shapes:
            continue
        shape, settings = shapes[node.input[1]], {attribute.name: attribute.i for attribute in node.attribute}
        if node.op_type == "Conv":
            count = shape[0]
        elif node.op_type == "ConvTranspose":
            count = shape[1] * settings.get("group", 1)
        else:
            count = shape[0 if settings.get("transB", 0) else 1]
        name = f"{node.name}_no_bias"
        model.graph.initializer.append(numpy_helper.from_array(np.zeros(count, np.float32), name))
        del node.input[2:]
        node.input.append(name)


def correct_biases(
    model: onnx.ModelProto, quantized: bytes, batches: Batches, report: Callable[[float], None]
) -> tuple[bytes, int]:
    """The quantized build in which the mean of every layer's outputs, by channel, is that of `model`; and of how many layers.

    Layers are corrected in the order in which they run, each after those before it: their shifts reach it. Source: Nagel et
    al., "Data-free quantization through weight equalization and bias correction" (2019), appendix D.
    """
    target = onnx.load_model_from_string(quantized)
    wanted = _means(model, {node.output[0] for node in model.graph.node if node.op_type in _WITH_BIAS}, batches)
    means = {node.name: wanted[node.output[0]] for node in model.graph.node if node.output[0] in wanted}
    named = {node.name: node for node in target.graph.node if node.op_type in _WITH_BIAS}
    layers = [named[node.name] for node in model.graph.node if node.name in means and node.name in named]
    stored = _Biases(target)
    corrected = 0
    for number, node in enumerate(layers):
        report(number / len(layers))
        scale = stored.scale_of(node)
        if scale is None:
            continue
        found = _means(_up_to(target, node), {node.output[0]}, batches)[node.output[0]]
        shift = means[node.name] - found
        if shift.shape == stored.shape_of(node):
            stored.add(node, shift / scale)
            corrected += 1
    content: bytes = target.SerializeToString(deterministic=True)
    return content, corrected


class _Biases:
    """Biases in a quantized graph: 32-bit integers behind a DequantizeLinear, or floats where the layer stayed float."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self.widened = {node.output[0]: node for node in model.graph.node if node.op_type == "DequantizeLinear"}
        self.uses: dict[str, int] = {}
        for node in model.graph.node:
            for name in node.input:
                self.uses[name] = self.uses.get(name, 0) + 1

    def scale_of(self, node: onnx.NodeProto) -> NDArray[Any] | None:
        """What one step of the stored number means; None where the layer has no bias of its own."""
        if len(node.input) < 3 or self.uses.get(node.input[2], 0) != 1:
            return None
        if node.input[2] in self.tensors:
            return np.ones(1)
        source = self.widened.get(node.input[2])
        if source is None or source.input[0] not in self.tensors or self.uses[source.input[0]] != 1:
            return None
        return numpy_helper.to_array(self.tensors[source.input[1]]).astype(np.float64)

    def shape_of(self, node: onnx.NodeProto) -> tuple[int, ...]:
        return tuple(self._tensor(node).dims)

    def add(self, node: onnx.NodeProto, steps: NDArray[Any]) -> None:
        tensor = self._tensor(node)
        values = numpy_helper.to_array(tensor)
        changed = values.astype(np.float64) + steps
        if np.issubdtype(values.dtype, np.integer):
            ends = np.iinfo(values.dtype)
            changed = np.clip(np.round(changed), ends.min, ends.max)
        tensor.CopyFrom(numpy_helper.from_array(changed.astype(values.dtype), tensor.name))

    def _tensor(self, node: onnx.NodeProto) -> onnx.TensorProto:
        name = node.input[2]
        return self.tensors[name if name in self.tensors else self.widened[name].input[0]]


def _means(model: onnx.ModelProto, names: set[str], batches: Batches) -> dict[str, NDArray[np.float64]]:
    """The mean of each value by channel (axis 1), over samples and places."""
    observed = Observed(model, lambda node: names & set(node.output))
    sums: dict[str, NDArray[np.float64]] = {}
    count = 0
    for values in observed.over(batches):
        count += 1
        for name in names & values.keys():
            array = values[name].astype(np.float64)
            axes = tuple(axis for axis in range(array.ndim) if axis != 1)
            sums[name] = sums.get(name, np.zeros(1)) + array.mean(axes)
    return {name: total / count for name, total in sums.items()}


def _up_to(model: onnx.ModelProto, last: onnx.NodeProto) -> onnx.ModelProto:
    """The part of a graph that computes one node, with that node's result as its only output."""
    # The quantizer does not keep nodes in the order in which they run.
    producers = {name: number for number, node in enumerate(model.graph.node) for name in node.output}
    needed, numbers, waiting = set(last.output), set[int](), list(last.output)
    while waiting:
        number = producers.get(waiting.pop())
        if number is not None and number not in numbers:
            numbers.add(number)
            waiting += model.graph.node[number].input
            needed.update(model.graph.node[number].input)
    part = onnx.ModelProto()
    part.CopyFrom(model)
    del part.graph.node[:], part.graph.output[:], part.graph.initializer[:], part.graph.value_info[:]
    part.graph.node.extend(model.graph.node[number] for number in sorted(numbers))
    part.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in needed)
    part.graph.output.append(onnx.ValueInfoProto(name=last.output[0]))
    return part
