"""From an exported ONNX file to a quantized one, with what it did to the outputs."""

from __future__ import annotations

import math
import tempfile
import traceback
from collections.abc import Callable, Collection
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.quant_utils import update_opset_version
from onnxruntime.quantization.shape_inference import quant_pre_process

from fleetfit.compress.exporter import predict_onnx, quiet
from fleetfit.compress.passes.base import Arrays, PassContext, QuantizedBuild
from fleetfit.compress.quantization.adjusting import adjust, give_biases
from fleetfit.compress.quantization.calibration import Batches, Observed, calibrate
from fleetfit.compress.quantization.equalization import equalize
from fleetfit.compress.quantization.error import output_errors
from fleetfit.compress.quantization.graph import ends, inputs_of, matching, with_names
from fleetfit.compress.quantization.half import LARGEST, to_half
from fleetfit.compress.quantization.operators import OperatorCounts, count_operators
from fleetfit.compress.quantization.sensitivity import TOLERANCE, groups_of, scan
from fleetfit.compress.quantization.static import quantizable, to_static
from fleetfit.compress.quantization.weights import BLOCK, to_int4
from fleetfit.core.errors import FleetfitError, InvalidRecipe

if TYPE_CHECKING:
    from fleetfit.compress.passes.quantize import Quantize

Builder = Callable[[Collection[str]], bytes]
"""A build in which the named nodes stay floats."""

_BATCH: Final = 32
_JUDGED: Final = 256
# Samples that candidates are tried on, how few make no set of their own, and samples to correct biases with.
_TRIED, _FEWEST_APART, _CORRECTED = 128, 16, 128
# Shares of the whole, for the progress bar.
_CALIBRATED, _SCANNED = 0.3, 0.7
# The layers are gone through with fewer at once: their values are held.
_ADJUSTED_BATCH: Final = 16
# The float model's outputs may change so much, relative to their variation, by scaling channels below a clip.
_CHANGED: Final = 0.02
# From here on a build says less about the input than it should: worth a warning even where nobody set a limit.
_LARGE_ERROR: Final = 0.5
# ConvInteger is slow and loses accuracy on convolutions (onnxruntime #6545): dynamic ranges are for products.
_DYNAMIC: Final = ("MatMul", "Gemm", "LSTM", "Attention")


def quantize_onnx(content: bytes, wanted: Quantize, context: PassContext) -> QuantizedBuild:
    """The file with smaller numbers, and notes on what runs on them and how much the outputs changed.

    Raises InvalidRecipe where static ranges are asked for without data, the quantizer cannot handle the model, nothing can
    be quantized, or the output error is larger than `max_error`.
    """
    kind = wanted.mode if wanted.dtype == "int8" else wanted.dtype
    with tempfile.TemporaryDirectory() as folder, quiet():
        try:
            return _Work(content, wanted, context, Path(folder)).run()
        except (FleetfitError, MemoryError, OSError):
            raise
        except Exception as error:  # the quantizer's have no common root
            raise InvalidRecipe(
                f"quantize ({kind}) failed on this model ({type(error).__name__}); leave the step out or try another mode or "
                "dtype",
                private=traceback.format_exc()[-8000:],
            ) from error


class _Work:
    def __init__(self, content: bytes, wanted: Quantize, context: PassContext, folder: Path) -> None:
        self.content, self.wanted, self.context, self.folder = content, wanted, context, folder
        self.names, self.fixed = inputs_of(content)
        self.notes: list[str] = []

    def run(self) -> QuantizedBuild:
        model, build, nodes = self._builder()
        if self.wanted.keep_float == "auto":
            keep: Collection[str] = self._least_sensitive(model, build, nodes)
        elif self.wanted.keep_float == "ends":
            keep = ends(model, nodes)
        else:
            keep = matching(nodes, self.wanted.keep_float)
        quantized = build(keep)
        if _small_numbers(quantized) <= _small_numbers(self.content):
            raise InvalidRecipe(
                f"quantize ({self._kind}) found no operator to quantize in this model; leave the step out"
            )
        if keep:
            how = "found by measuring" if self.wanted.keep_float == "auto" else "as asked"
            self.notes.append(f"kept in floats, {how}: {_some(sorted(keep))}")
        if self.wanted.correct_bias or self.wanted.rounding == "gptq":
            quantized = self._adjusted(model, quantized)
        counts = count_operators(quantized)
        notes = [self._what_runs(counts), *self.notes, self._checked_error(quantized)]
        return QuantizedBuild(quantized, counts.integer, counts.total, notes)

    @property
    def _kind(self) -> str:
        return self.wanted.mode if self.wanted.dtype == "int8" else self.wanted.dtype

    def _builder(self) -> tuple[onnx.ModelProto, Builder, list[onnx.NodeProto]]:
        """The float graph, what makes a build of it, and the nodes of which some may stay in floats."""
        wanted = self.wanted
        if wanted.dtype == "int8":
            model = self._prepared()
            if wanted.mode == "static":
                return model, self._static(model), [node for node in model.graph.node if quantizable(node)]
            products = [node for node in model.graph.node if node.op_type in _DYNAMIC]
            return model, lambda keep: self._dynamic(model, keep), products
        model = with_names(onnx.load_model_from_string(self.content))
        if wanted.dtype == "int4":
            products = [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm")]
            return model, lambda keep: to_int4(_copy(model), keep, wanted.block or BLOCK), products
        return model, lambda keep: to_half(_copy(model), keep), list(model.graph.node)

    def _prepared(self) -> onnx.ModelProto:
        source, prepared = self.folder / "source.onnx", self.folder / "prepared.onnx"
        source.write_bytes(self.content)
        # Shapes are needed for the ranges; symbolic inference stumbles over dynamic batches of exported graphs.
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        return with_names(update_opset_version(onnx.load(prepared), QuantType.QInt8))

    def _static(self, model: onnx.ModelProto) -> Builder:
        data = self._calibrating_data()
        batch = self.fixed or min(_BATCH, len(data))
        if len(data) < batch:
            raise InvalidRecipe(
                f"quantize (static) got {len(data)} samples to calibrate with, and the model takes batches of {batch}; give "
                f"'samples' at least {batch}, or more data",
                field="samples",
            )
        batches = Batches(data, self.names, batch)
        if self.wanted.equalize:
            self._equalize(model, batches)
        if self.wanted.correct_bias:
            give_biases(model)
        ranges = calibrate(
            model,
            batches,
            self.wanted,
            self.folder,
            lambda part: self.context.report(_CALIBRATED * part, "calibrating"),
        )
        return lambda keep: to_static(model, ranges, self.wanted, keep)

    def _equalize(self, model: onnx.ModelProto, batches: Batches) -> None:
        def peaks() -> dict[str, NDArray[Any]]:
            found: dict[str, NDArray[Any]] = {}
            for values in Observed(model, lambda node: node.output if node.op_type == "Clip" else ()).over(batches):
                for name, array in values.items():
                    if array.ndim > 1:
                        highest = array.max(tuple(axis for axis in range(array.ndim) if axis != 1), initial=-np.inf)
                        found[name] = np.maximum(found[name], highest) if name in found else highest
            return found

        before = _copy(model)
        done = equalize(model, peaks, self.wanted.per_channel)
        if not done.pairs:
            self.notes.append(
                "no two neighbouring layers have channels that could be scaled between them: none was equalized"
            )
            return
        note = f"channels of {done.pairs} pairs of neighbouring layers were brought to like ranges"
        if done.clipped:
            note += f"; in {done.clipped} of them the {done.fixed:.0%} of channels that reach a clip keep their scale"
        data = self._set_apart()
        expected = predict_onnx(before.SerializeToString(), data, self.fixed)
        error = max(output_errors(expected, predict_onnx(model.SerializeToString(), data, self.fixed)).values())
        if error > _CHANGED:
            model.CopyFrom(before)
            note = (
                f"equalizing would change the float model's outputs by {error:.2g} on other samples: none was equalized"
            )
        self.notes.append(f"{note} (float outputs change by {error:.1g})" if error <= _CHANGED else note)

    def _adjusted(self, model: onnx.ModelProto, quantized: bytes) -> bytes:
        """With weights rounded anew and corrected biases, unless that makes the outputs worse."""
        data = self._calibrating_data().head(_CORRECTED)
        size = self.fixed or min(_ADJUSTED_BATCH, len(data))
        self.context.report(_SCANNED, "adjusting weights and biases")
        wanted = self.wanted
        found = adjust(
            model,
            quantized,
            data,
            self.names,
            size,
            (64 if wanted.reduce_range else 127) if wanted.rounding == "gptq" else None,
            wanted.correct_bias,
            lambda part: self.context.report(_SCANNED + (1 - _SCANNED) * part, "adjusting weights and biases"),
        )
        what = (
            [f"weights of {found.weights} layers were rounded for their outputs"] if wanted.rounding == "gptq" else []
        )
        what += [f"biases of {found.biases} layers were corrected"] if wanted.correct_bias else []
        before, after = self._error_apart(quantized), self._error_apart(found.content)
        if after > before:
            self.notes.append(
                f"{' and '.join(what)}, which made the output error {after:.3g} instead of {before:.3g}; undone"
            )
            return quantized
        self.notes.append(f"{' and '.join(what)}: output error {before:.3g} before, {after:.3g} after")
        return found.content

    def _least_sensitive(self, model: onnx.ModelProto, build: Builder, nodes: list[onnx.NodeProto]) -> frozenset[str]:
        found = scan(
            build,
            self._error_apart,
            groups_of(model, {node.name for node in nodes}),
            TOLERANCE if self.wanted.max_error is None else self.wanted.max_error,
            lambda part: self.context.report(
                _CALIBRATED + (_SCANNED - _CALIBRATED) * part, "finding what must stay in floats"
            ),
        )
        self.notes.append(
            f"{found.trials} mixtures of floats and {self.wanted.dtype} were tried: output error {found.before:.3g} with none in "
            f"floats, {found.after:.3g} with what was chosen"
        )
        return found.keep

    def _calibrating_data(self) -> Arrays:
        train = self.context.training_data("static quantization")
        return spread(train, self.wanted.samples, self.context.seed)

    def _set_apart(self) -> Arrays:
        """Training samples that were not calibrated with, as far as there are enough; the validation split judges the result."""
        train = self.context.training_data("measuring the output error")
        rows = np.setdiff1d(np.arange(len(train)), chosen_rows(len(train), self.wanted.samples, self.context.seed))
        if len(rows) < max(_FEWEST_APART, self.fixed or 0):
            rows = np.arange(len(train))
        rows = rows[chosen_rows(len(rows), _TRIED, self.context.seed)]
        return Arrays({name: values[rows] for name, values in train.inputs.items()}, None)

    @cached_property
    def _error_apart(self) -> Callable[[bytes], float]:
        """What tells the largest output error of a build on samples that were set apart."""
        data = self._set_apart()
        expected = predict_onnx(self.content, data, self.fixed)
        return lambda content: max(output_errors(expected, predict_onnx(content, data, self.fixed)).values())

    def _dynamic(self, model: onnx.ModelProto, keep: Collection[str]) -> bytes:
        target = self.folder / "target.onnx"
        quantize_dynamic(
            _copy(model),
            target,
            weight_type=QuantType.QInt8,
            per_channel=self.wanted.per_channel,
            reduce_range=self.wanted.reduce_range,
            op_types_to_quantize=list(_DYNAMIC),
            # Every Gemm is made a product and a sum first, under another name.
            nodes_to_exclude=[name for kept in keep for name in (kept, f"{kept}_MatMul")],
        )
        return target.read_bytes()

    def _what_runs(self, counts: OperatorCounts) -> str:
        where = "in ONNX Runtime on the machine that made this build"
        if self.wanted.dtype == "int8":
            return f"{counts.integer} of {counts.total} convolutions and products run on integers {where}"
        if self.wanted.dtype == "int4":
            return (
                f"{counts.few_bits} of {counts.total} convolutions and products have 4-bit weights {where}; they compute in "
                "floats: the file is smaller, and the speed is the device's to tell"
            )
        more = (
            "" if counts.half == counts.total else "; the others compute in 32 bits, for which the halves are widened"
        )
        return f"{counts.half} of {counts.total} convolutions and products run on half floats {where}{more}"

    def _checked_error(self, quantized: bytes) -> str:
        """A sentence on the largest output error. Raises InvalidRecipe where it is more than is accepted."""
        data, what = self._judging_data()
        if data is None:
            return "how much the outputs change was not measured: there are no data"
        if self.wanted.dtype == "fp16":
            self._check_range(data)
        found = predict_onnx(quantized, data, self.fixed)
        errors = output_errors(predict_onnx(self.content, data, self.fixed), found)
        name, error = max(errors.items(), key=lambda item: item[1])
        if math.isinf(error):
            raise InvalidRecipe(
                f"quantize ({self._kind}) makes the output '{name}' infinite or not a number; keep the operators with large "
                "values in floats (keep_float), or use another dtype"
            )
        limit = self.wanted.max_error
        if limit is not None and error > limit:
            raise InvalidRecipe(
                f"quantize ({self._kind}) changes the output '{name}' by {error:.3g} of its variation, and max_error is {limit:g}; "
                "keep more in floats (keep_float), try another calibration, or accept a larger error",
                field="max_error",
            )
        of = "the output" if len(errors) == 1 else f"the output that changes most, '{name}',"
        warning = "; that is much: compare the accuracy" if error > _LARGE_ERROR else ""
        return f"relative error of {of} against the float build: {error:.3g} on {len(data)} {what} samples{warning}"

    def _check_range(self, data: Arrays) -> None:
        """Raises InvalidRecipe where halves cannot hold a value between operators: here they may be computed in 32 bits."""
        observed = Observed(onnx.load_model_from_string(self.content))
        for values in observed.over(Batches(data, self.names, self.fixed or min(_BATCH, len(data)))):
            for name, array in values.items():
                largest = float(np.abs(array[np.isfinite(array)]).max(initial=0.0))
                if largest > LARGEST:
                    raise InvalidRecipe(
                        f"quantize (fp16) cannot hold the value '{name}' of this model, which reaches {largest:.3g} where half "
                        f"floats end at {LARGEST:g}; normalise the inputs, or use another dtype"
                    )

    def _judging_data(self) -> tuple[Arrays | None, str]:
        """Samples to compare outputs on: others than those of the calibration where there are any."""
        if self.context.validation is not None:
            return self.context.validation.head(_JUDGED), "validation"
        if self.context.train is not None:
            return self.context.train.head(_JUDGED), "training"
        return None, ""


def spread(data: Arrays, count: int, seed: int) -> Arrays:
    """At most `count` samples, drawn without replacement and kept in order: stored order may be by class."""
    if len(data) <= count:
        return data
    rows = chosen_rows(len(data), count, seed)
    return Arrays({name: values[rows] for name, values in data.inputs.items()}, None)


def chosen_rows(available: int, count: int, seed: int) -> NDArray[np.int64]:
    """Which samples `spread` draws."""
    if available <= count:
        return np.arange(available)
    return np.sort(np.random.default_rng(seed).choice(available, count, replace=False))


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _some(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 6 else f"{', '.join(names[:6])} and {len(names) - 6} more"


def _small_numbers(content: bytes) -> int:
    """How many numbers are stored in 16 bits or less."""
    kinds = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT16)
    graph = onnx.load_model_from_string(content).graph
    return sum(math.prod(tensor.dims) for tensor in graph.initializer if tensor.data_type in kinds)
