"""Layer by layer, what rounding did to a quantized build: weights rounded for a layer's outputs, biases for their means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from fleetfit.compress.passes.base import Arrays
from fleetfit.compress.quantization.calibration import Batches, Observed
from fleetfit.compress.quantization.rounding import MOST_COLUMNS, compensated, moments_of
from fleetfit.compress.quantization.stepwise import Stepwise

_WITH_BIAS: Final = ("Conv", "ConvTranspose", "Gemm")
# Values of one layer's inputs and outputs that are held at once, for all samples.
_HELD_BYTES: Final = 1 << 30


@dataclass(frozen=True)
class Adjusted:
    """The build with other numbers in the same places, and of how many layers weights and biases were changed."""

    content: bytes
    weights: int
    biases: int


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


def adjust(
    model: onnx.ModelProto,
    quantized: bytes,
    data: Arrays,
    names: list[str],
    batch: int,
    steps: int | None,
    correct: bool,
    report: Callable[[float], None],
) -> Adjusted:
    """Go through the layers in the order in which they run, each behind those already changed.

    With `steps`, the largest whole number of a weight, weights are rounded anew so that the layer's outputs on its real, rounded
    inputs change least (`compensated`). With `correct`, the bias then takes back by how much the mean of the outputs, by
    channel, is not that of `model`: empirical bias correction of Nagel et al., "Data-free quantization through weight
    equalization and bias correction" (2019), appendix D. The graph runs once in all; as many samples of `data` count as fit
    into a gigabyte, a batch at least.
    """
    target = onnx.load_model_from_string(quantized)
    outputs = {node.output[0] for node in model.graph.node if node.op_type in _WITH_BIAS}
    largest = max(
        (
            array.nbytes / batch
            for values in Observed(model, lambda node: outputs & set(node.output)).over(
                Batches(data.head(batch), names, batch)
            )
            for array in values.values()
        ),
        default=1.0,
    )
    batches = Batches(data.head(max(batch, int(_HELD_BYTES / 2 / largest))), names, batch)
    means = _means(model, outputs, batches) if correct else {}
    named = {node.name: node for node in target.graph.node}
    layers = [
        (node, named[node.name])
        for node in model.graph.node
        if node.op_type in (*_WITH_BIAS, "MatMul") and node.name in named and named[node.name].op_type == node.op_type
    ]
    stored, floats = _Stored(target), {tensor.name: tensor for tensor in model.graph.initializer}
    walk = Stepwise(target, batches)
    rounded = corrected = 0
    for number, (plain, node) in enumerate(layers):
        report(number / len(layers))
        if steps is not None and plain.input[1] in floats:
            rounded += _round(node, numpy_helper.to_array(floats[plain.input[1]]), stored, walk, steps)
        if plain.output[0] in means and (scale := stored.bias_scale(node)) is not None:
            shift = means[plain.output[0]] - _mean(walk.until(node.output[0]))
            if shift.shape == stored.bias_shape(node):
                walk.shift(node.output[0], stored.add_to_bias(node, shift / scale) * scale)
                corrected += 1
            walk.forget(node.output[0])
    content: bytes = target.SerializeToString(deterministic=True)
    return Adjusted(content, rounded, corrected)


def _round(node: onnx.NodeProto, weight: NDArray[Any], stored: _Stored, walk: Stepwise, steps: int) -> bool:
    """Whether the layer is of a form whose weights could be rounded anew; then they were."""
    settings = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    transposed = node.op_type == "MatMul" or (node.op_type == "Gemm" and not settings.get("transB", 0))
    scale = stored.weight_scale(node, 1 if transposed else 0)
    unknown = settings.get("auto_pad", b"NOTSET") != b"NOTSET" or settings.get("transA", 0)
    if node.op_type == "ConvTranspose" or scale is None or unknown or (transposed and weight.ndim != 2):
        return False
    rows = (weight.T if transposed else weight).astype(np.float64)
    flat = rows.reshape(len(rows), -1)
    if flat.shape[1] > MOST_COLUMNS:
        return False
    moments = moments_of(node, weight.shape[2:], walk.until(node.input[0]))
    each = len(flat) // len(moments)
    scales = np.broadcast_to(scale.reshape(-1, 1), (len(flat), 1))
    chosen = np.concatenate(
        [
            compensated(flat[at * each : (at + 1) * each], moment, scales[at * each : (at + 1) * each], -steps, steps)
            for at, moment in enumerate(moments)
        ]
    ).reshape(rows.shape)
    stored.set_weight(node, chosen.T if transposed else chosen)
    return True


class _Stored:
    """Weights and biases in a quantized graph: integers behind a DequantizeLinear, or floats where the layer stayed float."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self._widened = {node.output[0]: node for node in model.graph.node if node.op_type == "DequantizeLinear"}
        self._uses: dict[str, int] = {}
        for node in model.graph.node:
            for name in node.input:
                self._uses[name] = self._uses.get(name, 0) + 1

    def weight_scale(self, node: onnx.NodeProto, axis: int) -> NDArray[Any] | None:
        """The steps of 8-bit weights without a zero point, one or one for each place of `axis`; None for others."""
        source = self._own(node.input[1])
        if source is None or self._tensors[source.input[0]].data_type != onnx.TensorProto.INT8:
            return None
        scale = numpy_helper.to_array(self._tensors[source.input[1]]).astype(np.float64)
        along = next((attribute.i for attribute in source.attribute if attribute.name == "axis"), 1)
        zero = numpy_helper.to_array(self._tensors[source.input[2]]) if len(source.input) > 2 else np.zeros(1)
        return None if zero.any() or (scale.size > 1 and along != axis) else scale

    def set_weight(self, node: onnx.NodeProto, values: NDArray[Any]) -> None:
        """Put other whole numbers in the place of a layer's weights."""
        tensor = self._tensors[self._widened[node.input[1]].input[0]]
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values.astype(np.int8)), tensor.name))

    def bias_scale(self, node: onnx.NodeProto) -> NDArray[Any] | None:
        """What one step of the stored number means; None where the layer has no bias of its own."""
        if len(node.input) < 3 or self._uses.get(node.input[2], 0) != 1:
            return None
        if node.input[2] in self._tensors:
            return np.ones(1)
        source = self._own(node.input[2])
        return None if source is None else numpy_helper.to_array(self._tensors[source.input[1]]).astype(np.float64)

    def bias_shape(self, node: onnx.NodeProto) -> tuple[int, ...]:
        """As it is stored."""
        return tuple(self._bias(node).dims)

    def add_to_bias(self, node: onnx.NodeProto, steps: NDArray[Any]) -> NDArray[np.float64]:
        """What was really added, in steps: integers take whole ones, within their range."""
        tensor = self._bias(node)
        values = numpy_helper.to_array(tensor)
        changed = values.astype(np.float64) + steps
        if np.issubdtype(values.dtype, np.integer):
            ends = np.iinfo(values.dtype)
            changed = np.clip(np.round(changed), ends.min, ends.max)
        tensor.CopyFrom(numpy_helper.from_array(changed.astype(values.dtype), tensor.name))
        added: NDArray[np.float64] = changed - values
        return added

    def _own(self, name: str) -> onnx.NodeProto | None:
        """What widens a constant that nothing else uses."""
        source = self._widened.get(name)
        if source is None or source.input[0] not in self._tensors or self._uses[source.input[0]] != 1:
            return None
        return source if self._uses[name] == 1 else None

    def _bias(self, node: onnx.NodeProto) -> onnx.TensorProto:
        name = node.input[2]
        return self._tensors[name if name in self._tensors else self._widened[name].input[0]]


def _means(model: onnx.ModelProto, names: set[str], batches: Batches) -> dict[str, NDArray[np.float64]]:
    """The mean of each value by channel (axis 1), over samples and places."""
    found: dict[str, list[NDArray[np.float64]]] = {}
    for values in Observed(model, lambda node: names & set(node.output)).over(batches):
        for name in names & values.keys():
            found.setdefault(name, []).append(_mean([values[name]]))
    return {name: np.mean(each, 0) for name, each in found.items()}


def _mean(batches: list[NDArray[Any]]) -> NDArray[np.float64]:
    means: NDArray[np.float64] = np.mean(
        [array.mean(tuple(axis for axis in range(array.ndim) if axis != 1), dtype=np.float64) for array in batches], 0
    )
    return means
