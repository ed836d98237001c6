"""Quantization to 8-bit integers, through ONNX Runtime's quantizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from fleetfit.compress.passes.base import Needs, Pass, PassContext, PassReport, QuantizedBuild, Stage

if TYPE_CHECKING:
    from fleetfit.compress.graph import LayeredModel


class Quantize(Pass):
    """Make an integer build.

    `static` puts quantize/dequantize pairs (QDQ) around operators, with ranges calibrated on `samples` of the training split;
    `dynamic` finds the ranges of activations while it runs and needs no data. Weights are per channel unless told
    otherwise. `activations` is unsigned by default: with signed ones few operators become integer ones on x86.
    """

    needs: ClassVar = frozenset({Needs.DATA})
    stage: ClassVar = Stage.QUANTIZE
    must_be_last: ClassVar[bool] = True

    dtype: Literal["int8"] = "int8"
    mode: Literal["static", "dynamic"] = "static"
    per_channel: bool = True
    calibration: Literal["minmax", "percentile", "entropy"] = "minmax"
    activations: Literal["unsigned", "signed"] = "unsigned"
    reduce_range: bool = True
    """Weights in 7 bits: on x86 without VNNI the sums of products with 8-bit weights saturate at 16 bits, silently, and one
    build serves many processors. Costs little accuracy elsewhere. See `reduce_range` in ONNX Runtime's `quantize_static`."""
    samples: int = Field(default=256, ge=1)
    """Training samples to calibrate with, at most."""

    def wants(self) -> frozenset[Needs]:
        """Dynamic ranges need no data."""
        return self.needs if self.mode == "static" else frozenset()

    def apply(self, model: LayeredModel, context: PassContext) -> PassReport:
        """Leave the layers as they are: the work is done on the built file."""
        return PassReport(notes=[f"weights and activations become {self.dtype} in the build ({self.mode})"])

    def build(self, onnx: bytes, context: PassContext) -> QuantizedBuild:
        """The quantized ONNX file."""
        from fleetfit.compress.quantizer import quantize_onnx

        return quantize_onnx(onnx, self, context)
