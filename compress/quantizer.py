"""Int8 builds through ONNX Runtime's own quantizer."""

from __future__ import annotations

import logging
import math
import tempfile
import traceback
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
from fleetfit.core.errors import FleetfitError, InvalidRecipe

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
    """Feeds the calibrator in batches of one size: histograms need that, and some models take only one."""

    def __init__(self, data: Arrays, names: list[str], batch: int) -> None:
        self._batches = iter(
            {name: np.ascontiguousarray(data.inputs[name][at : at + batch]) for name in names}
            for at in range(0, len(data) - len(data) % batch, batch)
        )

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        return next(self._batches, None)


def quantize_onnx(content: bytes, wanted: Quantize, context: PassContext) -> QuantizedBuild:
    """The file with int8 weights, and integer arithmetic where ONNX Runtime has it.

    Raises InvalidRecipe where static ranges are asked for without data, or the quantizer cannot handle the model.
    """
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        previous = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            return _quantize(content, wanted, context, Path(folder))
        except (FleetfitError, MemoryError, OSError):
            raise
        except Exception as error:  # the quantizer's have no common root
            raise InvalidRecipe(
                f"quantize ({wanted.mode}) failed on this model ({type(error).__name__}); leave the step out or try the other "
                "mode",
                private=traceback.format_exc()[-8000:],
            ) from error
        finally:
            logging.disable(previous)


def _quantize(content: bytes, wanted: Quantize, context: PassContext, folder: Path) -> QuantizedBuild:
    source, prepared, target = folder / "source.onnx", folder / "prepared.onnx", folder / "target.onnx"
    source.write_bytes(content)
    # Shapes are needed for the ranges; symbolic inference stumbles over dynamic batches of exported graphs.
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    if wanted.mode == "dynamic":
        # ConvInteger is slow and loses accuracy on convolutions (onnxruntime #6545): dynamic ranges are for products.
        quantize_dynamic(
            prepared,
            target,
            weight_type=QuantType.QInt8,
            per_channel=wanted.per_channel,
            reduce_range=wanted.reduce_range,
            op_types_to_quantize=["MatMul", "Gemm", "LSTM", "Attention"],
        )
    else:
        data = _spread(context.training_data("static quantization"), wanted.samples, context.seed)
        names, fixed = _inputs(content)
        batch = fixed or min(_CALIBRATION_BATCH, len(data))
        if len(data) < batch:
            raise InvalidRecipe(
                f"quantize (static) got {len(data)} samples to calibrate with, and the model takes batches of {batch}; give "
                f"'samples' at least {batch}, or more data",
                field="samples",
            )
        quantize_static(
            prepared,
            target,
            _Reader(data, names, batch),
            quant_format=QuantFormat.QDQ,
            per_channel=wanted.per_channel,
            reduce_range=wanted.reduce_range,
            activation_type=QuantType.QUInt8 if wanted.activations == "unsigned" else QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=_CALIBRATION[wanted.calibration],
        )
    quantized = target.read_bytes()
    if _integer_weights(quantized) <= _integer_weights(content):
        raise InvalidRecipe(f"quantize ({wanted.mode}) found no operator to quantize in this model; leave the step out")
    integer, total = count_operators(quantized)
    return QuantizedBuild(quantized, integer, total)


def _integer_weights(content: bytes) -> int:
    """How many numbers are stored in 8 bits."""
    kinds = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    graph = onnx.load_model_from_string(content).graph
    return sum(math.prod(tensor.dims) for tensor in graph.initializer if tensor.data_type in kinds)


def _spread(data: Arrays, count: int, seed: int) -> Arrays:
    if len(data) <= count:
        return data
    rows = np.sort(np.random.default_rng(seed).choice(len(data), count, replace=False))
    return Arrays({name: values[rows] for name, values in data.inputs.items()}, None)


def _inputs(content: bytes) -> tuple[list[str], int | None]:
    """The names of the inputs, and the batch size that the graph insists on, None where it is dynamic."""
    graph = onnx.load_model_from_string(content).graph
    # Before IR version 4 weights were inputs, too.
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    sizes = [dims[0].dim_value for value in inputs if (dims := value.type.tensor_type.shape.dim)]
    return [value.name for value in inputs], next((int(size) for size in sizes if size > 0), None)


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
