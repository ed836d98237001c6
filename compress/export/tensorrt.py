"""Builds for TensorRT: ONNX as it is, from which TensorRT makes an engine on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from fleetfit.compress.export.base import Exporter
from fleetfit.compress.exporter import OnnxSession
from fleetfit.runtimes.base import Availability

if TYPE_CHECKING:
    from fleetfit.compress.exporter import Session
    from fleetfit.compress.graph import LayeredModel


class TensorRtExporter(Exporter):
    """Nothing is made: an engine runs only on the kind of GPU that it was built on.

    What is proven equal to PyTorch is the file, in ONNX Runtime; whether TensorRT computes the same, the device's metric says.
    """

    runtime: ClassVar[str] = "tensorrt"
    format: ClassVar[str] = "onnx"
    file: ClassVar[str] = "build.tensorrt.onnx"
    title: ClassVar[str] = "TensorRT"

    def availability(self) -> Availability:
        """Always: it needs no TensorRT here."""
        return Availability(True)

    def export(self, model: LayeredModel, onnx: bytes) -> bytes:
        """The same bytes."""
        return onnx

    def session(self, build: bytes, inputs: Sequence[str], outputs: Sequence[str]) -> Session:
        """In ONNX Runtime: a server has no Jetson's TensorRT."""
        return OnnxSession(build)
