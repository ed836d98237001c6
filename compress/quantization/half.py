"""Half floats: every weight and every value between operators in 16 bits."""

from __future__ import annotations

import sys
from collections.abc import Collection
from typing import Final

import onnx
from onnx import TensorProto
from onnxruntime.quantization.onnx_model import ONNXModel

from fleetfit.core.errors import InvalidRecipe

LARGEST: Final = 65504.0
"""Half floats end here; what is larger becomes infinite."""


def to_half(model: onnx.ModelProto, keep: Collection[str]) -> bytes:
    """The model in float16; nodes named in `keep`, and what knows no half floats, stay in 32 bits between two casts.

    Inputs and outputs keep their dtypes. Weights beyond what 16 bits hold become the largest number that they do.
    Raises InvalidRecipe where the model has no 32-bit weight.
    """
    if not any(tensor.data_type == TensorProto.FLOAT for tensor in model.graph.initializer):
        raise InvalidRecipe("quantize (fp16) found no float32 weights in this model; leave the step out")
    # The package adds its own folder to the path of every later import.
    before = list(sys.path)
    try:
        from onnxruntime.transformers.float16 import convert_float_to_float16
    finally:
        sys.path[:] = before
    half = ONNXModel(convert_float_to_float16(model, keep_io_types=True, node_block_list=list(keep)))
    # The casts were added at the end of the list.
    half.topological_sort()
    # Shapes of intermediate values are inferred again by every runtime.
    del half.model.graph.value_info[:]
    content: bytes = half.model.SerializeToString(deterministic=True)
    return content
