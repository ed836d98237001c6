"""Static int8: quantize/dequantize pairs around operators, with ranges calibrated on data."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import onnx
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

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
    content: bytes = quantizer.model.model.SerializeToString(deterministic=True)
    return content


def quantizable(node: onnx.NodeProto) -> bool:
    """Whether static quantization puts pairs around such an operator."""
    return node.op_type in QDQRegistry or node.op_type in QLinearOpsRegistry
