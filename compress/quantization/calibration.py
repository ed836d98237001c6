"""Which range of values an activation's 8 bits are to cover, from data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
from onnxruntime.quantization.calibrate import TensorData, TensorsData, create_calibrator

from fleetfit.compress.passes.base import Arrays
from fleetfit.compress.quantization.static import quantizable

if TYPE_CHECKING:
    import onnxruntime

    from fleetfit.compress.passes.quantize import Quantize

PERCENTILE: Final = 99.999
_BINS: Final = 2048
_LEVELS: Final = 255
_ENTROPY_BINS, _ENTROPY_LEVELS = 1024, 128
# Shares of the whole range that the search for the least squared error tries, and how often it goes to and fro.
_SHARES: Final = np.linspace(0.02, 1.0, 99)
_ROUNDS: Final = 3

Histogram = tuple[NDArray[np.int64], NDArray[np.float64]]
"""Counts, shape [bins], and edges, shape [bins + 1]."""


class Batches:
    """Samples in batches of one size, as the graph takes them; what is left over at the end is not used."""

    def __init__(self, data: Arrays, names: list[str], size: int) -> None:
        self._data, self._names, self._size = data, names, size

    def __iter__(self) -> Iterator[dict[str, NDArray[Any]]]:
        for at in range(0, len(self._data) - len(self._data) % self._size, self._size):
            yield {name: np.ascontiguousarray(self._data.inputs[name][at : at + self._size]) for name in self._names}


def calibrate(
    model: onnx.ModelProto, batches: Batches, wanted: Quantize, folder: Path, report: Callable[[float], None]
) -> TensorsData:
    """The range of every float that an operator reads or writes. Ranges contain zero where they are used.

    `percentile` and `mse` read the data twice: for the extremes, then for histograms between them; no more than the values
    of one batch are held. `folder` is for files of ONNX Runtime's own calibrator, which does `entropy`.
    """
    if wanted.calibration == "entropy":
        return _entropy(model, batches, folder)
    observed = Observed(model, lambda node: all_of(node) if quantizable(node) else ())
    extremes: dict[str, tuple[float, float]] = {}
    for values in observed.over(batches):
        for name, array in values.items():
            if array.size:
                low, high = extremes.get(name, (np.inf, -np.inf))
                extremes[name] = min(low, float(np.nanmin(array))), max(high, float(np.nanmax(array)))
    report(0.5)
    chosen = extremes
    if wanted.calibration != "minmax":
        histograms = _histograms(observed, batches, extremes)
        if wanted.calibration == "mse":
            chosen = {name: least_squares_range(histogram) for name, histogram in histograms.items()}
        else:
            share = PERCENTILE if wanted.percentile is None else wanted.percentile
            chosen = {name: percentile_range(histogram, share) for name, histogram in histograms.items()}
    report(1.0)
    data = {
        name: TensorData(lowest=np.array(low, observed.dtypes[name]), highest=np.array(high, observed.dtypes[name]))
        for name, (low, high) in chosen.items()
    }
    return TensorsData(CalibrationMethod.MinMax, data)


class Observed:
    """A graph whose intermediate floats can be read: those that `of` names for each node, all where not given."""

    def __init__(self, model: onnx.ModelProto, of: Callable[[onnx.NodeProto], Iterable[str]] | None = None) -> None:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        graph = copy.graph
        constants = {tensor.name for tensor in graph.initializer}
        inputs = {value.name for value in graph.input} - constants
        wanted = dict.fromkeys(
            name
            for node in graph.node
            for name in (all_of(node) if of is None else of(node))
            if name and name not in constants
        )
        there = {value.name for value in graph.output}
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in there | inputs)
        self._session = session_of(copy)
        kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
        values = [*self._session.get_outputs(), *self._session.get_inputs()]
        self.dtypes = {v.name: kinds[v.type] for v in values if v.name in wanted and v.type in kinds}
        self._names = [v.name for v in self._session.get_outputs() if v.name in self.dtypes]

    def over(self, batches: Batches) -> Iterator[dict[str, NDArray[Any]]]:
        """The values by name, a batch at a time."""
        for inputs in batches:
            found = dict(zip(self._names, self._session.run(self._names, inputs), strict=True))
            yield {**{name: array for name, array in inputs.items() if name in self.dtypes}, **found}


def session_of(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """A session that computes every operator as it is written, nothing fused."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def all_of(node: onnx.NodeProto) -> tuple[str, ...]:
    """Everything that a node reads and gives."""
    return (*node.input, *node.output)


def _histograms(observed: Observed, batches: Batches, extremes: dict[str, tuple[float, float]]) -> dict[str, Histogram]:
    edges = {
        name: np.linspace(low, high if high > low else low + 1.0, _BINS + 1) for name, (low, high) in extremes.items()
    }
    counts = {name: np.zeros(_BINS, np.int64) for name in extremes}
    for values in observed.over(batches):
        for name, array in values.items():
            if name in counts:
                counts[name] += np.histogram(array, _BINS, (edges[name][0], edges[name][-1]))[0]
    return {name: (counts[name], edges[name]) for name in extremes}


def percentile_range(histogram: Histogram, percentile: float) -> tuple[float, float]:
    """The range that holds `percentile` percent of the values, the rest cut in equal parts on both sides."""
    counts, edges = histogram
    cut = (100.0 - percentile) / 200.0
    share = np.cumsum(counts) / max(1, int(counts.sum()))
    first = int(np.searchsorted(share, cut, side="right"))
    last = int(np.searchsorted(share, 1.0 - cut, side="left"))
    return float(edges[min(first, len(counts) - 1)]), float(edges[min(last, len(counts) - 1) + 1])


def least_squares_range(histogram: Histogram) -> tuple[float, float]:
    """The range with the least squared error of rounding and clipping to 8 bits, both ends searched in turn.

    Zero is always a value of its own in 8 bits, so the ends are sought on both sides of it.
    """
    counts, edges = histogram
    centres = (edges[:-1] + edges[1:]) / 2
    used = counts > 0
    centres, counts = centres[used], counts[used]
    low, high = min(0.0, float(edges[0])), max(0.0, float(edges[-1]))
    if not len(counts):
        return low, high
    best_low, best_high = low, high
    for _ in range(_ROUNDS):
        before = best_low, best_high
        if high > 0:
            ends = high * _SHARES
            best_high = float(ends[np.argmin(_squared_error(centres, counts, np.full_like(ends, best_low), ends))])
        if low < 0:
            ends = low * _SHARES
            best_low = float(ends[np.argmin(_squared_error(centres, counts, ends, np.full_like(ends, best_high)))])
        if (best_low, best_high) == before:
            break
    return best_low, best_high


def _squared_error(
    centres: NDArray[np.float64], counts: NDArray[np.int64], lows: NDArray[np.float64], highs: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The sum over a histogram for every candidate range; shape [candidates]."""
    scale = np.maximum((highs - lows) / _LEVELS, np.finfo(np.float32).tiny)[:, None]
    zero = np.round(-lows[:, None] / scale)
    codes = np.clip(np.round(centres[None, :] / scale) + zero, 0, _LEVELS)
    error: NDArray[np.float64] = (np.square((codes - zero) * scale - centres[None, :]) * counts[None, :]).sum(1)
    return error


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, batches: Batches) -> None:
        self._batches = iter(batches)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        return next(self._batches, None)


def _entropy(model: onnx.ModelProto, batches: Batches, folder: Path) -> TensorsData:
    path = folder / "calibrated.onnx"
    onnx.save(model, path)
    kinds = sorted({node.op_type for node in model.graph.node if quantizable(node)})
    calibrator = create_calibrator(
        path,
        kinds,
        str(folder / "augmented.onnx"),
        calibrate_method=CalibrationMethod.Entropy,
        # With as many bins as levels, which is its default, the whole range is the only one that it tries.
        extra_options={"num_bins": _ENTROPY_BINS, "num_quantized_bins": _ENTROPY_LEVELS},
    )
    calibrator.collect_data(_Reader(batches))
    return calibrator.compute_data()
