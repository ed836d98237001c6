"""Weight-only quantization: linear layers whose weights are stored in blocks of 4-bit numbers."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

from fleetfit.core.errors import InvalidRecipe

BLOCK: Final = 32


def to_int4(model: onnx.ModelProto, keep: Collection[str], block: int) -> bytes:
    """The model with the weights of linear layers in 4 bits: a scale and a zero point for every `block` along the inputs.

    Products (MatMul, Gemm) with a constant matrix become ONNX Runtime's `MatMulNBits`, which unpacks the weights as it
    multiplies; the rest, and nodes named in `keep`, stays. Raises InvalidRecipe where the model has no such product.
    """
    _split_gemms(model, keep)
    logger = logging.getLogger("onnxruntime.quantization.matmul_nbits_quantizer")
    level = logger.level
    quantizer = MatMulNBitsQuantizer(
        model,
        bits=4,
        block_size=block,
        is_symmetric=False,
        nodes_to_exclude=list(keep),
        op_types_to_quantize=("MatMul",),
    )
    try:
        logger.setLevel(logging.ERROR)
        quantizer.process()
    finally:
        logger.setLevel(level)
    model = quantizer.model.model
    if not any(node.op_type == "MatMulNBits" for node in model.graph.node):
        raise InvalidRecipe(
            "quantize (int4) found no linear layer with constant float weights in this model, and nothing else can have 4-bit "
            "weights in ONNX Runtime; use int8 for convolutions"
        )
    del model.graph.value_info[:]
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _split_gemms(model: onnx.ModelProto, keep: Collection[str]) -> None:
    """Every Gemm with a constant weight as a product and a sum, which is what has a 4-bit form."""
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type != "Gemm" or node.name in keep or not _splits(node, constants):
            nodes.append(node)
            continue
        settings = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        weight = numpy_helper.to_array(constants[node.input[1]])
        weight = _scaled(weight.T if settings.get("transB", 0) else weight, settings.get("alpha", 1.0))
        name = f"{node.name}_weight"
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(weight), name))
        if len(node.input) < 3 or not node.input[2]:
            nodes.append(helper.make_node("MatMul", [node.input[0], name], list(node.output), name=node.name))
            continue
        bias = node.input[2]
        if settings.get("beta", 1.0) != 1.0:
            bias = f"{node.name}_bias"
            scaled = _scaled(numpy_helper.to_array(constants[node.input[2]]), settings["beta"])
            graph.initializer.append(numpy_helper.from_array(scaled, bias))
        product = f"{node.name}_product"
        nodes.append(helper.make_node("MatMul", [node.input[0], name], [product], name=node.name))
        nodes.append(helper.make_node("Add", [product, bias], list(node.output), name=f"{node.name}_add"))
    del graph.node[:]
    graph.node.extend(nodes)


def _splits(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> bool:
    settings = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    bias_can_be_scaled = settings.get("beta", 1.0) == 1.0 or len(node.input) < 3 or node.input[2] in constants
    return node.input[1] in constants and not settings.get("transA", 0) and bias_can_be_scaled


def _scaled(values: NDArray[Any], factor: float) -> NDArray[Any]:
    return values if factor == 1.0 else (values * factor).astype(values.dtype)
