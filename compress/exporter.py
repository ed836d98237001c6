"""From a layered model to an ONNX file, with the proof that ONNX Runtime computes what PyTorch does."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from fleetfit.compress.graph import LayeredModel
from fleetfit.compress.passes.base import Arrays
from fleetfit.core.errors import InvalidModel

OPSET: Final = 18
# Relative to the largest output: float32 sums in another order differ by about 1e-6 of it per layer.
TOLERANCE: Final = 1e-3
_CHECKED_SAMPLES: Final = 16


def export_onnx(model: LayeredModel) -> bytes:
    """The model in evaluation mode as ONNX, inputs and outputs under their names, the batch dynamic where it is.

    Raises InvalidModel where the exporter cannot express it.
    """
    program = model.exported()
    with _quiet():
        try:
            exported = torch.onnx.export(
                program,
                input_names=[tensor.name for tensor in model.inputs],
                output_names=[tensor.name for tensor in model.outputs],
                dynamo=True,
                opset_version=OPSET,
                external_data=False,
                optimize=True,
                verbose=False,
            )
            assert exported is not None  # noqa: S101 - tells the type checker
            content: bytes = exported.model_proto.SerializeToString()
        except Exception as error:
            raise InvalidModel(
                "the compressed model cannot be expressed in ONNX; push an ONNX file of the model to measure it as it is",
                private=f"{type(error).__name__}: {error}",
            ) from error
    return _cleaned(content)


def _cleaned(content: bytes) -> bytes:
    """Without what no runtime reads: the exporter writes stack traces and paths into every node."""
    proto: Any = onnx.load_model_from_string(content)
    del proto.metadata_props[:]
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        del value.metadata_props[:]
    del proto.graph.metadata_props[:]
    # Shapes of intermediate values are inferred again by every runtime, and bind what should stay free.
    del proto.graph.value_info[:]
    cleaned: bytes = proto.SerializeToString(deterministic=True)
    return cleaned


def run_onnx(content: bytes, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """One run of an ONNX file in ONNX Runtime on the CPU, outputs by name."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def largest_difference(model: LayeredModel, content: bytes, data: Arrays | None) -> float:
    """The largest absolute difference of any output between ONNX Runtime and PyTorch, on real inputs where there are any.

    Raises InvalidModel where an output has another shape, or is not finite where PyTorch's is.
    """
    inputs = _real_inputs(model, data)
    model.module.eval()
    with torch.no_grad():
        wanted = model.call({name: torch.from_numpy(values) for name, values in inputs.items()})
    got = run_onnx(content, inputs)
    largest = 0.0
    for name, tensor in wanted.items():
        expected, actual = tensor.detach().numpy(), got[name]
        if expected.shape != actual.shape or not np.isfinite(actual[np.isfinite(expected)]).all():
            raise InvalidModel(
                f"ONNX Runtime and PyTorch disagree on the output '{name}' of the built model; it is not used"
            )
        if expected.size:
            largest = max(largest, float(np.abs(expected.astype(np.float64) - actual).max()))
    return largest


def prove_equal(model: LayeredModel, content: bytes, data: Arrays | None) -> float:
    """`largest_difference`, refused with InvalidModel where it is more than rounding explains."""
    difference = largest_difference(model, content, data)
    with torch.no_grad():
        inputs = {name: torch.from_numpy(values) for name, values in _real_inputs(model, data).items()}
        scale = max((float(t.abs().max()) for t in model.call(inputs).values() if t.is_floating_point()), default=1.0)
    if difference > TOLERANCE * max(scale, 1.0):
        raise InvalidModel(
            f"ONNX Runtime and PyTorch differ by {difference:.2g} on the built model (outputs up to {scale:.2g}); it is not "
            "used: push an ONNX file of your own export to measure the model as it is"
        )
    return difference


def _real_inputs(model: LayeredModel, data: Arrays | None) -> dict[str, NDArray[Any]]:
    if data is not None and model.dynamic_batch:
        return data.head(_CHECKED_SAMPLES).inputs
    return {name: value.numpy() for name, value in model.sample_inputs.items()}


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's own remarks are for its developers."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
