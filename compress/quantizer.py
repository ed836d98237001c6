"""Int8 builds through ONNX Runtime's own quantizer."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from fleetfit.compress.passes.base import Arrays, PassContext, QuantizedBuild
from fleetfit.core.errors import InvalidRecipe

if TYPE_CHECKING:
    from fleetfit.compress.passes.quantize import Quantize

# What carries the arithmetic: the operators of which one asks whether they became integer ones.
_HEAVY: Final = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_INTEGER: Final = ("QLinearConv", "QLinearMatMul", "QGemm", "MatMulInteger", "ConvInteger", "MatMulIntegerToFloat")
_INTEGER_FUSED: Final = ("DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "QLinearConvTranspose")
_CALIBRATION: Final = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
}
_CALIBRATION_BATCH: Final = 32


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Feeds the calibrator in small batches, or one sample at a time where the model's batch is fixed."""

    def __init__(self, data: Arrays, batch: int) -> None:
        self._batches = iter(
            {name: values[at : at + batch] for name, values in data.inputs.items()}
            for at in range(0, len(data) - len(data) % batch or len(data), batch)
        )

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        return next(self._batches, None)


def quantize_onnx(content: bytes, wanted: Quantize, context: PassContext) -> QuantizedBuild:
    """The file with int8 weights, and integer arithmetic where ONNX Runtime has it.

    Raises InvalidRecipe where static ranges are asked for without data.
    """
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        previous = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            return _quantize(content, wanted, context, Path(folder))
        finally:
            logging.disable(previous)


def _quantize(content: bytes, wanted: Quantize, context: PassContext, folder: Path) -> QuantizedBuild:
    source, prepared, target = folder / "source.onnx", folder / "prepared.onnx", folder / "target.onnx"
    source.write_bytes(content)
    # Shapes are needed for the ranges; symbolic inference stumbles over dynamic batches of exported graphs.
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    if wanted.mode == "dynamic":
        weight = QuantType.QInt8
        # ConvInteger is slow and loses accuracy on convolutions (onnxruntime #6545): dynamic ranges are for products.
        quantize_dynamic(
            prepared,
            target,
            weight_type=weight,
            per_channel=wanted.per_channel,
            op_types_to_quantize=["MatMul", "Gemm", "LSTM", "Attention"],
        )
    else:
        data = context.training_data("static quantization")
        chosen = _spread(data, wanted.samples, context.seed)
        unsigned = wanted.activations == "unsigned"
        quantize_static(
            prepared,
            target,
            _Reader(chosen, _fixed_batch(content) or min(_CALIBRATION_BATCH, len(chosen))),
            quant_format=QuantFormat.QDQ,
            per_channel=wanted.per_channel,
            activation_type=QuantType.QUInt8 if unsigned else QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=_CALIBRATION[wanted.calibration],
            # 7-bit weights where the processor lacks VNNI would avoid saturation in 16-bit sums; ONNX Runtime's
            # kernels for U8S8 without VNNI widen instead, so full range is kept.
            reduce_range=False,
        )
    quantized = target.read_bytes()
    if not any(tensor.data_type in (2, 3) for tensor in onnx.load_model_from_string(quantized).graph.initializer):
        raise InvalidRecipe(f"quantize ({wanted.mode}) found no operator to quantize in this model; leave the step out")
    integer, total = count_operators(quantized)
    return QuantizedBuild(quantized, integer, total)


def _spread(data: Arrays, count: int, seed: int) -> Arrays:
    if len(data) <= count:
        return data
    rows = np.sort(np.random.default_rng(seed).choice(len(data), count, replace=False))
    return Arrays({name: values[rows] for name, values in data.inputs.items()}, None)


def _fixed_batch(content: bytes) -> int | None:
    """The batch size that the graph insists on, or None where it is dynamic."""
    first = onnx.load_model_from_string(content).graph.input[0].type.tensor_type.shape.dim[0]
    return int(first.dim_value) or None


def count_operators(content: bytes) -> tuple[int, int]:
    """How many heavy operators ONNX Runtime really runs on integers on this processor, and how many there are.

    Counted in the graph that ONNX Runtime has optimized: pairs that it could not fuse stay float operators.
    """
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        options.optimized_model_filepath = str(path)
        onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        kinds = Counter(node.op_type for node in onnx.load(path).graph.node)
    integer = sum(kinds[name] for name in (*_INTEGER, *_INTEGER_FUSED))
    floating = sum(kinds[name] for name in (*_HEAVY, "FusedConv", "FusedMatMul", "FusedGemm"))
    return integer, integer + floating
