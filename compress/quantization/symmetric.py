"""A QDQ file in the dialect that TensorRT takes, made from one in ONNX Runtime's.

TensorRT's importer refuses a zero point that is not zero and a scale that is not positive (`QuantDequantLinearHelper` in
onnx-tensorrt's onnxOpImporters.cpp), and TensorRT a DequantizeLinear of 32-bit integers, which is how ONNX Runtime stores biases.
It fuses a pair with the product that reads it; pairs elsewhere only force conversions
(docs.nvidia.com/deeplearning/tensorrt, Quantized Types, Q/DQ layer-placement recommendations).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from fleetfit.compress.quantization.operators import HEAVY
from fleetfit.core.errors import InvalidModel

_SIGNED: Final = 127
_INTEGERS: Final = (TensorProto.INT8, TensorProto.UINT8)


def to_symmetric(content: bytes) -> bytes:
    """The file with signed activations around zero, biases in floats, and pairs before products alone.

    The numbers of the weights stay as they are, and so do the ranges: an unsigned range from 0 to 6 becomes one from -6 to 6,
    in which the half below is never used. Where a range begins at 0 ONNX Runtime's quantizer has taken the ReLU or the clip
    away, since rounding to unsigned numbers does the same; it is put back. Raises InvalidModel where weights have zero points,
    or nothing would be left quantized.
    """
    model = onnx.load_model_from_string(content)
    _Rewriting(model.graph).run()
    if not any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        raise InvalidModel(
            "no product of the build reads quantized inputs, so TensorRT would compute all of it in floats"
        )
    rewritten: bytes = model.SerializeToString(deterministic=True)
    return rewritten


@dataclass(frozen=True)
class _Pair:
    """What stands between a float value and its quantized copy: the range is from `low` to `high`."""

    source: str
    scale: str
    low: float
    high: float


class _Rewriting:
    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._constants: dict[str, NDArray[Any]] = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer
        }
        self._producers = {name: node for node in graph.node for name in node.output}
        self._nodes: list[onnx.NodeProto] = []
        self._cut: dict[tuple[str, float], str] = {}

    def run(self) -> None:
        """Rewrite the graph in place."""
        pairs: dict[str, _Pair] = {}
        for node in list(self._graph.node):
            if node.op_type == "DequantizeLinear":
                self._dequantized(node, pairs)
        made: dict[_Pair, str] = {}
        rewired = self._nodes
        for node in self._graph.node:
            for at, name in enumerate(node.input):
                if name not in pairs or node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                    continue
                pair = pairs[name]
                if node.op_type in HEAVY and at < 2:
                    if pair not in made:
                        made[pair] = f"{name}_symmetric"
                        rewired += self._pair(pair, made[pair], pairs)
                    node.input[at] = made[pair]
                else:
                    node.input[at] = self._float(name, pairs)
            rewired.append(node)
        self._settle(rewired, pairs)

    def _dequantized(self, node: onnx.NodeProto, pairs: dict[str, _Pair]) -> None:
        values = self._constants.get(node.input[0])
        if values is None:
            quantizing = self._producers.get(node.input[0])
            if quantizing is None or quantizing.op_type != "QuantizeLinear" or node.input[1] not in self._constants:
                raise InvalidModel(
                    "the build has integers that no float value was rounded to, which TensorRT does not take"
                )
            pairs[node.output[0]] = self._range(node, quantizing)
        elif values.dtype == np.int32:
            # Biases: exact in floats, since their scale is the product of two floats.
            self._constants[node.output[0]] = values.astype(np.float32) * self._constants[node.input[1]]
        elif self._zero(node).any():
            raise InvalidModel(
                "the build's weights have zero points, which TensorRT does not take; use per-channel int8"
            )

    def _range(self, node: onnx.NodeProto, quantizing: onnx.NodeProto) -> _Pair:
        """The pair, with a symmetric scale for the range that it has."""
        scale, zero = self._constants[node.input[1]], self._zero(node)
        kind = np.iinfo(zero.dtype)
        low, high = (float(scale) * (end - float(zero)) for end in (kind.min, kind.max))
        name = f"{quantizing.output[0]}_symmetric_scale"
        # A range of nothing has a scale all the same: it must be positive.
        widest = max(-low if zero.any() or kind.min == 0 else high, high, float(np.finfo(np.float32).tiny) * _SIGNED)
        self._constants[name] = np.asarray(widest / _SIGNED, dtype=scale.dtype)
        return _Pair(quantizing.input[0], name, low, high)

    def _zero(self, node: onnx.NodeProto) -> NDArray[Any]:
        named = node.input[2] if len(node.input) > 2 else ""
        return self._constants[named] if named else np.zeros((), np.uint8)

    def _pair(self, pair: _Pair, output: str, pairs: Mapping[str, _Pair]) -> list[onnx.NodeProto]:
        zero, between = f"{output}_zero", f"{output}_int8"
        self._constants[zero] = np.zeros((), np.int8)
        # What is above the range is cut off by rounding.
        source = self._cut_off(self._float(pair.source, pairs), pair.low, math.inf)
        return [
            helper.make_node("QuantizeLinear", [source, pair.scale, zero], [between], name=f"{output}_q"),
            helper.make_node("DequantizeLinear", [between, pair.scale, zero], [output], name=f"{output}_dq"),
        ]

    def _unshielded(self, name: str) -> str:
        """What stands before a shield, which only ONNX Runtime needs (static.py)."""
        node = self._producers.get(name)
        return node.input[0] if node is not None and node.name.endswith("_shield") else name

    def _float(self, name: str, pairs: Mapping[str, _Pair]) -> str:
        """The float value before any pair, cut off as pairs do."""
        name = self._unshielded(name)
        if name not in pairs:
            return name
        return self._cut_off(self._float(pairs[name].source, pairs), pairs[name].low, pairs[name].high)

    def _cut_off(self, name: str, low: float, high: float) -> str:
        """The value with nothing below 0, and nothing above `high`, where its range begins at 0."""
        producer = self._producers.get(name)
        if low != 0 or (producer is not None and producer.op_type in ("Relu", "Clip")):
            return name
        if (name, high) not in self._cut:
            found = self._cut[name, high] = f"{name}_from_0" + ("" if math.isinf(high) else "_to_range")
            inputs = [name]
            for side, value in (("low", 0.0), ("high", high)) if math.isfinite(high) else ():
                inputs.append(f"{found}_{side}")
                self._constants[inputs[-1]] = np.asarray(value, np.float32)
            operator = "Clip" if len(inputs) > 1 else "Relu"
            self._nodes.append(helper.make_node(operator, inputs, [found], name=f"{found}_cut"))
        return self._cut[name, high]

    def _settle(self, nodes: list[onnx.NodeProto], pairs: Mapping[str, _Pair]) -> None:
        """Outputs get their values, in floats; what nothing reads any more goes."""
        graph = self._graph
        for output in graph.output:
            if output.name in pairs:
                source = self._float(output.name, pairs)
                nodes.append(helper.make_node("Identity", [source], [output.name], name=f"{output.name}_float"))
        # The last one that gives a name: an output's Identity stands behind the pair that gave it.
        producers = {name: node for node in nodes for name in node.output}
        kept = _in_order([output.name for output in graph.output], producers, set(self._constants))
        wanted = {name for node in kept for name in node.input}
        del graph.node[:]
        graph.node.extend(kept)
        del graph.initializer[:]
        graph.initializer.extend(
            numpy_helper.from_array(np.ascontiguousarray(values), name)
            for name, values in self._constants.items()
            if name in wanted
        )
        del graph.value_info[:]


def _in_order(
    outputs: Sequence[str], producers: Mapping[str, onnx.NodeProto], constants: Collection[str]
) -> list[onnx.NodeProto]:
    """The nodes that the outputs need, each behind those it reads: the quantizer leaves its own at the end of the list."""
    found: dict[int, onnx.NodeProto] = {}
    waiting = [producers[name] for name in reversed(outputs) if name in producers]
    while waiting:
        node = waiting[-1]
        missing = [
            producers[name]
            for name in node.input
            if name in producers and name not in constants and id(producers[name]) not in found
        ]
        if missing and id(node) not in found:
            waiting += missing
        else:
            found.setdefault(id(node), node)
            waiting.pop()
    return list(found.values())


def numbers_of(content: bytes) -> str:
    """What a file computes with, in the words of `Pass.numbers`: empty for floats."""
    graph = onnx.load_model_from_string(content).graph
    operators = {node.op_type for node in graph.node}
    if "MatMulNBits" in operators:
        return "int4"
    if operators & {"DynamicQuantizeLinear", "MatMulInteger", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM"}:
        return "int8-dynamic"
    kinds = {tensor.data_type for tensor in graph.initializer}
    if "DequantizeLinear" in operators and kinds.intersection(_INTEGERS):
        return "int8-static"
    return "fp16" if TensorProto.FLOAT16 in kinds else ""
