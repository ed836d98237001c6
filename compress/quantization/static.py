"""Static int8: quantize/dequantize pairs around operators, with ranges calibrated on data."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

from fleetfit.compress.quantization.operators import HEAVY

if TYPE_CHECKING:
    from fleetfit.compress.passes.quantize import Quantize


def to_static(model: onnx.ModelProto, ranges: TensorsData, wanted: Quantize, keep: Collection[str]) -> bytes:
    """The model in QDQ form; nodes named in `keep` stay floats. `model` itself is left as it is."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    quantizer = QDQQuantizer(
        copy,
        wanted.per_channel,
        wanted.reduce_range,
        QuantType.QInt8,
        QuantType.QUInt8 if wanted.activations == "unsigned" else QuantType.QInt8,
        ranges,
        [],
        list(keep),
        sorted({*QLinearOpsRegistry, *QDQRegistry}),
        {},
    )
    quantizer.quantize_model()
    _shield(quantizer.model.model.graph, keep)
    content: bytes = quantizer.model.model.SerializeToString(deterministic=True)
    return content


def _shield(graph: onnx.GraphProto, keep: Collection[str]) -> None:
    """Keep ONNX Runtime from quantizing by itself what is to stay in floats.

    Between a DequantizeLinear and a QuantizeLinear it gives a float layer integer weights when it loads the file
    (WeightBiasQuantization). A maximum with the least float changes no value and stands in the way.
    """
    producers = {name: node for node in graph.node for name in node.output}
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for node in [node for node in graph.node if node.op_type == "QuantizeLinear"]:
        source = producers.get(node.input[0])
        if source is not None and source.op_type in ("Relu", "Clip"):
            source = producers.get(source.input[0], source)
        if source is None or source.name not in keep or source.op_type not in HEAVY:
            continue
        kind = kinds.get(node.input[1], onnx.TensorProto.FLOAT)
        least, shielded = f"{node.name}_least", f"{node.name}_shielded"
        lowest = np.array(np.finfo(helper.tensor_dtype_to_np_dtype(kind)).min, helper.tensor_dtype_to_np_dtype(kind))
        graph.initializer.append(numpy_helper.from_array(lowest, least))
        graph.node.append(helper.make_node("Max", [node.input[0], least], [shielded], name=f"{node.name}_shield"))
        node.input[0] = shielded


def quantizable(node: onnx.NodeProto) -> bool:
    """Whether static quantization puts pairs around such an operator."""
    return node.op_type in QDQRegistry or node.op_type in QLinearOpsRegistry
