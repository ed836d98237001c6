"""Cross-layer equalization: channels of neighbouring layers brought to like ranges, without changing the function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

_ROUNDS: Final = 40
_SETTLED: Final = 1e-3
# A channel that is nearly dead would be blown up for nothing.
_LARGEST_FACTOR: Final = 1e4
_TINY: Final = float(np.finfo(np.float32).tiny)
# max(0, s x) = s max(0, x) for s > 0; the others take each channel by itself and linearly, or as a maximum.
_HOMOGENEOUS: Final = ("Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Identity")


# How much further than on the calibration data a channel may go before it meets a clip that it did not meet before.
_MARGIN: Final = 1.1


@dataclass(frozen=True)
class Equalized:
    """How many pairs of layers were equalized; in how many of them a clip holds channels fixed; and what share of those it does."""

    pairs: int
    clipped: int
    fixed: float


@dataclass
class _Pair:
    """Two layers, and by channel how near to a clip between them the values come: 1 where they reach it; None without clip."""

    first: onnx.NodeProto
    second: onnx.NodeProto
    reach: NDArray[Any] | None


def equalize(model: onnx.ModelProto, peaks: Callable[[], Mapping[str, NDArray[Any]]], per_channel: bool) -> Equalized:
    """Scale the channels between pairs of layers, in place, so that they use like ranges there.

    Channel i's outgoing weights in the first layer are divided by s_i and its incoming ones in the second multiplied by it,
    with s_i = sqrt(r1_i / r2_i) for the largest absolute weights r1 and r2; repeated over all pairs until they settle. What
    lies between must let a positive factor through (ReLU, pooling). Batch norms must have been folded. Source: Nagel et al.,
    "Data-free quantization through weight equalization and bias correction" (2019), section 4.1.

    A ReLU6 lets no factor through where it clips. `peaks` gives the largest value of every channel of the clips' outputs on
    data, by name: channels that reach the clip keep their scale, and the others are scaled only as far as they still stay below
    it, with a tenth to spare. On values within that, the function stays what it was. Here r1 is the channel's largest value
    (activations have one range for all channels), and with `per_channel` weights r2 is relative to the largest weight of each
    output (they have one range for each).
    """
    graph = _Graph(model, per_channel)
    pairs = graph.pairs(peaks)
    fixed = [pair.reach >= 1 for pair in pairs if pair.reach is not None]
    for _ in range(_ROUNDS):
        if max([graph.balance(pair) for pair in pairs], default=0.0) < _SETTLED:
            break
    graph.write()
    return Equalized(
        len(pairs), sum(bool(one.any()) for one in fixed), float(np.concatenate(fixed).mean()) if fixed else 0.0
    )


class _Graph:
    def __init__(self, model: onnx.ModelProto, per_channel: bool) -> None:
        self.per_channel = per_channel
        self.graph = model.graph
        self.tensors = {tensor.name: tensor for tensor in self.graph.initializer}
        self.values: dict[str, NDArray[Any]] = {}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.outputs = {value.name for value in self.graph.output}

    def pairs(self, peaks: Callable[[], Mapping[str, NDArray[Any]]]) -> list[_Pair]:
        """Layers with nothing between them that would feel a factor, or nothing but a clip."""
        found = []
        known: Mapping[str, NDArray[Any]] | None = None
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
            reach = None
            if clips:
                known = peaks() if known is None else known
                reach = np.ones(self._out_range(first).size)
                if all(known.get(clip.output[0], np.empty(0)).shape == reach.shape for clip, _ in clips):
                    reach = np.maximum.reduce([known[clip.output[0]].astype(np.float64) / end for clip, end in clips])
                if (reach >= 1).all():
                    continue
            found.append(_Pair(first, second, reach))
        return found

    def balance(self, pair: _Pair) -> float:
        """Scale one pair; how far the largest factor was from one, as a logarithm."""
        first, second = pair.first, pair.second
        factor = self._factor(pair)
        if pair.reach is not None:
            pair.reach = pair.reach / factor
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

    def _factor(self, pair: _Pair) -> NDArray[Any]:
        out, into = self._out_range(pair.first), self._in_range(pair.second)
        alive = (out > 0) & (into > 0)
        factor: NDArray[Any] = np.ones_like(out)
        if pair.reach is None:
            factor[alive] = np.sqrt(out[alive] / into[alive])
            return factor.clip(1 / _LARGEST_FACTOR, _LARGEST_FACTOR)
        alive &= pair.reach > 0
        if self.per_channel:
            into = self._in_share(pair.second)
        factor[alive] = np.sqrt(pair.reach[alive] / into[alive])
        # Channels that cannot change set the scale of those that can.
        fixed = pair.reach >= 1
        if (alive & fixed).any():
            factor /= np.exp(np.log(factor[alive & fixed]).mean())
        factor = np.maximum(factor, pair.reach * _MARGIN).clip(1 / _LARGEST_FACTOR, _LARGEST_FACTOR)
        factor[fixed | ~alive] = 1.0
        return factor

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

    def _in_share(self, node: onnx.NodeProto) -> NDArray[Any]:
        """The largest weight of each input, relative to the largest of the output that it belongs to."""
        if node.op_type == "Gemm":
            weight = np.abs(self._value(node.input[1]))
            weight = weight if self._rows_are_outputs(node) else weight.T
            shares: NDArray[Any] = (weight / np.maximum(weight.max(1, keepdims=True), _TINY)).max(0)
            return shares
        grouped = np.abs(self._grouped(node))
        shares = (grouped / np.maximum(grouped.max((2, 3), keepdims=True), _TINY)).max((1, 3)).reshape(-1)
        return shares

    def _grouped(self, node: onnx.NodeProto) -> NDArray[Any]:
        """A convolution's weights as [groups, outputs of a group, inputs of a group, kernel]."""
        weight, groups = self._value(node.input[1]), int(_setting(node, "group", 1))
        return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)


def _setting(node: onnx.NodeProto, name: str, usual: int) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), usual)


def _along(factor: NDArray[Any], weight: NDArray[Any], axis: int) -> NDArray[Any]:
    return factor.reshape([-1 if at == axis else 1 for at in range(weight.ndim)])
