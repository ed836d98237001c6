"""Builds for NVIDIA's GPUs: ONNX as it is, from which an engine, or what else runs there, is made on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from fleetfit.compress.export.base import Exporter
from fleetfit.compress.exporter import OnnxSession
from fleetfit.runtimes.base import Availability

if TYPE_CHECKING:
    from fleetfit.compress.exporter import Session
    from fleetfit.compress.graph import LayeredModel


class _AsItIs(Exporter):
    """Nothing is made: an engine runs only on the kind of GPU that it was built on.

    What is proven equal to PyTorch is the file, in ONNX Runtime on the processor; whether the GPU computes the same, the device's
    metric says.
    """

    format: ClassVar[str] = "onnx"

    def availability(self) -> Availability:
        """Always: it needs nothing of NVIDIA's here."""
        return Availability(True)

    def export(self, model: LayeredModel, onnx: bytes) -> bytes:
        """The same bytes."""
        return onnx

    def export_quantized(self, onnx: bytes, model: LayeredModel) -> bytes:
        """Half floats as they are; QDQ files in TensorRT's dialect."""
        from fleetfit.compress.quantization.symmetric import numbers_of, to_symmetric

        return to_symmetric(onnx) if numbers_of(onnx) == "int8-static" else onnx

    def session(self, build: bytes, inputs: Sequence[str], outputs: Sequence[str]) -> Session:
        """In ONNX Runtime: a server has no Jetson."""
        return OnnxSession(build)


class TensorRtExporter(_AsItIs):
    """For TensorRT itself."""

    runtime: ClassVar[str] = "tensorrt"
    file: ClassVar[str] = "build.tensorrt.onnx"
    title: ClassVar[str] = "TensorRT"
    quantized: ClassVar[frozenset[str]] = frozenset({"int8-static", "fp16"})


class OnnxRuntimeCudaExporter(_AsItIs):
    """For ONNX Runtime's CUDA provider."""

    runtime: ClassVar[str] = "onnxruntime-cuda"
    file: ClassVar[str] = "build.onnxruntime-cuda.onnx"
    title: ClassVar[str] = "ONNX Runtime's CUDA provider"
    # It has no kernels for integers: pairs would be computed, and the products in floats.
    quantized: ClassVar[frozenset[str]] = frozenset({"fp16"})


class OnnxRuntimeTensorRtExporter(_AsItIs):
    """For ONNX Runtime's TensorRT provider."""

    runtime: ClassVar[str] = "onnxruntime-tensorrt"
    file: ClassVar[str] = "build.onnxruntime-tensorrt.onnx"
    title: ClassVar[str] = "ONNX Runtime's TensorRT provider"
    quantized: ClassVar[frozenset[str]] = frozenset({"int8-static", "fp16"})
