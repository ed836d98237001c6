"""Cross-layer equalization: channels of neighbouring layers brought to like ranges, without changing the function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

_ROUNDS: Final = 40
_SETTLED: Final = 1e-3
# A channel that is nearly dead would be blown up for nothing.
_LARGEST_FACTOR: Final = 1e4
# max(0, s x) = s max(0, x) for s > 0; the others take each channel by itself and linearly, or as a maximum.
_HOMOGENEOUS: Final = ("Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Identity")


@dataclass(frozen=True)
class Equalized:
    """How many pairs of layers were equalized, and how many clipped activations stood in the way of others."""

    pairs: int
    clipped: int


def equalize(model: onnx.ModelProto, peaks: Callable[[], Mapping[str, float]]) -> Equalized:
    """Scale the channels between pairs of layers, in place, so that both layers' weights use like ranges there.

    Channel i's outgoing weights in the first layer are divided by s_i and its incoming ones in the second multiplied by it,
    with s_i = sqrt(r1_i / r2_i) for the largest absolute weights r1 and r2; repeated over all pairs until they settle. What
    lies between must let a positive factor through (ReLU, pooling). A ReLU6 does not: it becomes a ReLU where `peaks`, the
    largest values of tensors by name on data, says that its upper end is never reached. Batch norms must have been folded.
    Source: Nagel et al., "Data-free quantization through weight equalization and bias correction" (2019), section 4.1.
    """
    graph = _Graph(model)
    pairs, clipped = graph.pairs(peaks)
    for _ in range(_ROUNDS):
        if max([graph.balance(first, second) for first, second in pairs], default=0.0) < _SETTLED:
            break
    graph.write()
    return Equalized(len(pairs), clipped)


class _Graph:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.tensors = {tensor.name: tensor for tensor in self.graph.initializer}
        self.values: dict[str, NDArray[Any]] = {}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.outputs = {value.name for value in self.graph.output}

    def pairs(
        self, peaks: Callable[[], Mapping[str, float]]
    ) -> tuple[list[tuple[onnx.NodeProto, onnx.NodeProto]], int]:
        """Layers with nothing between them that would feel a factor, and how many pairs a clip keeps apart."""
        found, clipped = [], 0
        known: Mapping[str, float] | None = None
        for first in self.graph.node:
            if not self._layer(first):
                continue
            clips: list[tuple[onnx.NodeProto, float]] = []
            second = self._next(first)
            while second is not None and (second.op_type in _HOMOGENEOUS or self._end(second) is not None):
                if (end := self._end(second)) is not None:
                    clips.append((second, end))
                second = self._next(second)
            if second is None or not self._layer(second) or self._in_range(second).size != self._out_range(first).size:
                continue
            if clips:
                known = peaks() if known is None else known
                if any(known.get(clip.output[0], np.inf) >= end for clip, end in clips):
                    clipped += 1
                    continue
                for clip, _ in clips:
                    clip.CopyFrom(helper.make_node("Relu", [clip.input[0]], list(clip.output), name=clip.name))
            found.append((first, second))
        return found, clipped

    def balance(self, first: onnx.NodeProto, second: onnx.NodeProto) -> float:
        """Scale one pair; how far the largest factor was from one, as a logarithm."""
        out, into = self._out_range(first), self._in_range(second)
        factor = np.ones_like(out)
        alive = (out > 0) & (into > 0)
        factor[alive] = np.clip(np.sqrt(out[alive] / into[alive]), 1 / _LARGEST_FACTOR, _LARGEST_FACTOR)
        weight = self._value(first.input[1])
        self.values[first.input[1]] = weight / _along(factor, weight, 0 if self._rows_are_outputs(first) else 1)
        if len(first.input) > 2 and first.input[2]:
            self.values[first.input[2]] = self._value(first.input[2]) / factor
        weight = self._value(second.input[1])
        if second.op_type == "Gemm":
            self.values[second.input[1]] = weight * _along(factor, weight, 1 if self._rows_are_outputs(second) else 0)
        else:
            grouped = self._grouped(second)
            scaled = grouped * factor.reshape(grouped.shape[0], 1, grouped.shape[2], 1)
            self.values[second.input[1]] = scaled.reshape(weight.shape)
        return float(np.abs(np.log(factor)).max(initial=0.0))

    def write(self) -> None:
        """Put the changed weights back."""
        for name, value in self.values.items():
            tensor = self.tensors[name]
            tensor.CopyFrom(numpy_helper.from_array(value.astype(numpy_helper.to_array(tensor).dtype), name))

    def _layer(self, node: onnx.NodeProto) -> bool:
        """Whether its weights are constants, used only here, of a form that can be scaled."""
        if node.op_type not in ("Conv", "Gemm"):
            return False
        names = [name for name in node.input[1:3] if name]
        if any(name not in self.tensors or len(self.readers[name]) > 1 or name in self.outputs for name in names):
            return False
        if any(self.tensors[name].data_type != onnx.TensorProto.FLOAT for name in names):
            return False
        if _setting(node, "transA", 0):
            return False
        return len(names) < 2 or self._value(names[1]).shape == self._out_range(node).shape

    def _next(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """The only reader of what the node gives, where it reads it as its first input."""
        name = node.output[0]
        readers = self.readers.get(name, [])
        if len(node.output) > 1 or name in self.outputs or len(readers) != 1 or readers[0].input[0] != name:
            return None
        return readers[0]

    def _end(self, node: onnx.NodeProto) -> float | None:
        """The upper end of a clip that begins at zero."""
        if node.op_type != "Clip" or len(node.input) < 3 or any(name not in self.tensors for name in node.input[1:3]):
            return None
        low, high = (float(numpy_helper.to_array(self.tensors[name])) for name in node.input[1:3])
        return high if low == 0.0 else None

    def _value(self, name: str) -> NDArray[Any]:
        if name not in self.values:
            self.values[name] = numpy_helper.to_array(self.tensors[name]).astype(np.float64)
        return self.values[name]

    def _rows_are_outputs(self, node: onnx.NodeProto) -> bool:
        return node.op_type == "Conv" or bool(_setting(node, "transB", 0))

    def _out_range(self, node: onnx.NodeProto) -> NDArray[Any]:
        weight = np.abs(self._value(node.input[1]))
        axis = 0 if self._rows_are_outputs(node) else 1
        largest: NDArray[Any] = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1).max(1, initial=0.0)
        return largest

    def _in_range(self, node: onnx.NodeProto) -> NDArray[Any]:
        if node.op_type == "Gemm":
            largest: NDArray[Any] = np.abs(self._value(node.input[1])).max(0 if self._rows_are_outputs(node) else 1)
        else:
            largest = np.abs(self._grouped(node)).max((1, 3)).reshape(-1)
        return largest

    def _grouped(self, node: onnx.NodeProto) -> NDArray[Any]:
        """A convolution's weights as [groups, outputs of a group, inputs of a group, kernel]."""
        weight, groups = self._value(node.input[1]), int(_setting(node, "group", 1))
        return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)


def _setting(node: onnx.NodeProto, name: str, usual: int) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), usual)


def _along(factor: NDArray[Any], weight: NDArray[Any], axis: int) -> NDArray[Any]:
    return factor.reshape([-1 if at == axis else 1 for at in range(weight.ndim)])
