"""What ONNX Runtime really makes of a file: which operators run on integers, on halves, on floats."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnx
from onnx import TensorProto

# What carries the arithmetic: the operators of which one asks what they became.
HEAVY: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_FLOATING: Final = HEAVY | {"FusedConv", "NhwcFusedConv", "FusedMatMul", "FusedGemm"}
_INTEGER: Final = frozenset(
    {
        *("QLinearConv", "QLinearConvTranspose", "QLinearMatMul", "QGemm"),
        *("MatMulInteger", "MatMulIntegerToFloat", "ConvInteger", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM"),
    }
)
_FEW_BITS: Final = frozenset({"MatMulNBits"})
_FLOATS: Final = frozenset({TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16})


@dataclass(frozen=True)
class OperatorCounts:
    """How many convolutions and products run on what, on the processor that counted."""

    integer: int = 0
    """Products of integers."""
    half: int = 0
    """Products of 16-bit floats; where a processor has none, ONNX Runtime computes in 32 bits."""
    few_bits: int = 0
    """Products of floats with weights stored in 4 bits."""
    total: int = 0


def count_operators(content: bytes) -> OperatorCounts:
    """How many heavy operators ONNX Runtime runs on which numbers on this processor.

    Counted in the graph that ONNX Runtime has optimized: pairs that it could not fuse stay float operators.
    """
    graph = optimized(content).graph
    kinds = _number_kinds(graph)
    integer = half = few_bits = total = 0
    for node in graph.node:
        if node.op_type in _INTEGER:
            integer += 1
        elif node.op_type in _FEW_BITS:
            few_bits += 1
        elif node.op_type in _FLOATING:
            half += all(kinds.get(name) == TensorProto.FLOAT16 for name in node.input[:2])
        else:
            continue
        total += 1
    return OperatorCounts(integer, half, few_bits, total)


def optimized(content: bytes) -> onnx.ModelProto:
    """The file as ONNX Runtime's CPU provider has optimized it for this processor."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        options.optimized_model_filepath = str(path)
        onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        return onnx.load(path)


def _number_kinds(graph: onnx.GraphProto) -> Mapping[str, int]:
    """The kind of float that each value holds. ONNX's own inference knows nothing of ONNX Runtime's operators."""
    kinds = {value.name: value.type.tensor_type.elem_type for value in graph.input}
    kinds |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    for node in graph.node:
        given = next((kinds[name] for name in node.input if kinds.get(name) in _FLOATS), TensorProto.FLOAT)
        if node.op_type == "Cast":
            given = next(attribute.i for attribute in node.attribute if attribute.name == "to")
        for name in node.output:
            kinds[name] = given
    return kinds
