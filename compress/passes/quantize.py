"""Quantization: half floats, 8-bit integers, 4-bit weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from fleetfit.compress.passes.base import Needs, Pass, PassContext, PassReport, QuantizedBuild, Stage

if TYPE_CHECKING:
    from fleetfit.compress.graph import LayeredModel


class Quantize(Pass):
    """Make a build with smaller numbers.

    `dtype` is what they become. `int8` with `static` puts quantize/dequantize pairs (QDQ) around operators, with ranges
    calibrated on `samples` of the training split; with `dynamic` the ranges of activations are found while it runs, and no
    data are needed. `int4` stores the weights of linear layers in blocks of 4-bit numbers and computes in floats. `fp16`
    halves every weight; inputs and outputs keep their dtypes. What the numbers do to the outputs is measured on data where
    there are any, and noted; worse than `max_error` is refused.
    """

    needs: ClassVar = frozenset({Needs.DATA})
    stage: ClassVar = Stage.QUANTIZE
    version: ClassVar[int] = 3
    must_be_last: ClassVar[bool] = True

    dtype: Literal["int8", "int4", "fp16", "bf16"] = "int8"
    """What numbers become."""
    mode: Literal["static", "dynamic"] = "static"
    """How int8 finds the ranges of activations."""
    per_channel: bool = True
    """Every output channel's weights get a scale of their own."""
    calibration: Literal["minmax", "percentile", "mse", "entropy"] = "minmax"
    """How static ranges are chosen: all values; all but the outermost; those with the least squared error; those that keep
    the most information."""
    percentile: float | None = Field(default=None, gt=50, le=100)
    """The share of values, in percent, that a range of `percentile` holds; 99.999 where not given."""
    activations: Literal["unsigned", "signed"] = "unsigned"
    """Unsigned by default: what ONNX Runtime's kernels for x86 are made for; with signed ones some builds run in floats there."""
    reduce_range: bool = True
    """Weights in 7 bits: on x86 without VNNI the sums of products with 8-bit weights saturate at 16 bits, silently, and one
    build serves many processors. Costs little accuracy elsewhere. See `reduce_range` in ONNX Runtime's `quantize_static`."""
    samples: int = Field(default=256, ge=1)
    """Training samples to calibrate with, at most."""
    block: Literal[16, 32, 64, 128, 256] | None = None
    """How many weights of `int4` share a scale and a zero point; 32 where not given."""
    equalize: bool = False
    """Before static int8, bring the channels between neighbouring layers to like ranges, which leaves the function as it is:
    for networks with depthwise convolutions above all (Nagel et al. 2019). Channels that reach a ReLU6's upper end keep theirs."""
    rounding: Literal["nearest", "gptq"] = "nearest"
    """How static int8 rounds weights: each to the nearest number, or so that every layer's outputs on the calibration data change
    least (Frantar et al. 2022)."""
    correct_bias: bool = False
    """After static int8, take the shift that rounding gives the mean of every layer's outputs out of its bias (Nagel et al.
    2019)."""
    keep_float: tuple[str, ...] | Literal["auto", "ends"] = ()
    """Glob patterns of operators, or of the layers whose weights they use, that are not quantized; `ends` are the first and
    the last products, which are small in many networks and whose numbers would have to be converted; `auto` finds by
    measuring those without which the output error stays below `max_error`, 0.05 where not given."""
    max_error: float | None = Field(default=None, gt=0)
    """The largest output error that is accepted: the root mean square difference from the float build, relative to how much
    the output varies over the samples."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.dtype == "bf16":
            raise ValueError(
                "bf16 cannot be run: ONNX Runtime has no bfloat16 convolutions and products for processors; use fp16, or int8"
            )
        if self.percentile is not None and self.calibration != "percentile":
            raise ValueError("'percentile' is for calibration: percentile; name that too, or leave it out")
        if self.block is not None and self.dtype != "int4":
            raise ValueError("'block' is for dtype: int4; name that too, or leave it out")
        adjusted = self.equalize or self.correct_bias or self.rounding != "nearest"
        if adjusted and (self.dtype != "int8" or self.mode != "static"):
            raise ValueError(
                "'equalize', 'rounding' and 'correct_bias' are for static int8; name dtype: int8 and mode: static, or leave them "
                "out"
            )
        if self.keep_float == "auto" and self.dtype == "fp16":
            raise ValueError("keep_float: auto is for int8 and int4; name the operators that fp16 is to leave alone")
        return self

    def wants(self) -> frozenset[Needs]:
        """Static ranges need data, and an error that is to be kept."""
        static = self.dtype == "int8" and self.mode == "static"
        return self.needs if static or self.keep_float == "auto" or self.max_error is not None else frozenset()

    def numbers(self) -> str:
        """The dtype, and for int8 how ranges are found."""
        return f"int8-{self.mode}" if self.dtype == "int8" else self.dtype

    def least_share(self) -> float:
        """What is left in floats makes it more."""
        return {"int4": 4, "int8": 8}.get(self.dtype, 16) / 32

    def apply(self, model: LayeredModel, context: PassContext) -> PassReport:
        """Leave the layers as they are: the work is done on the built file."""
        what = {
            "int8": f"weights and activations become int8 in the build ({self.mode})",
            "int4": "weights of linear layers become int4 in the build",
        }
        return PassReport(notes=[what.get(self.dtype, f"floats become {self.dtype} in the build")])

    def build(self, onnx: bytes, context: PassContext) -> QuantizedBuild:
        """The quantized ONNX file."""
        from fleetfit.compress.quantization import quantize_onnx

        return quantize_onnx(onnx, self, context)
