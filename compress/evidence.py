"""What a build gives on the server, kept beside it.

The evidence: scores and outputs over the validation split, to hold a device's against. The samples: a few inputs with what the
build gave for them, to hold any machine's against, long after.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fleetfit.compress.exporter import Session, predict
from fleetfit.compress.passes.base import Arrays
from fleetfit.compress.tasks import Build, Evidence, Samples, Tensor
from fleetfit.core.digests import sha256_file
from fleetfit.core.metrics import MetricInfo, metric_info
from fleetfit.core.statistics import score_samples
from fleetfit.core.statistics_gap import MOST_COMPARED, compared_rows, distances
from fleetfit.core.statistics_scores import judged_output

Outputs = Mapping[str, NDArray[Any]]
# A device returns the outputs of its first samples; of a part of the split these are farther back than of the whole.
_MOST_VALUES: Final = 16 * MOST_COMPARED
_MOST_SAMPLES: Final = 8
# They travel with the build.
_MOST_SAMPLES_BYTES: Final = 8 << 20


@dataclass(frozen=True)
class Judged:
    """What a build is judged by: the metric (empty: none) on `data`; `floats` are the float model's outputs for it.

    `reference` holds the original's, for metrics that compare with it, where they are known. `outputs` are the build's own where
    they are known.
    """

    metric: str
    data: Arrays | None
    floats: Outputs | None = None
    reference: Outputs | None = None
    outputs: Outputs | None = None


def with_evidence(
    build: Build,
    session: Session,
    judged: Judged,
    samples: Mapping[str, NDArray[Any]],
    float_model: Callable[[Mapping[str, NDArray[Any]]], Outputs] | None,
    runtime_version: str,
    out: Path,
) -> Build:
    """The build with its evidence and samples written to `out`; no evidence where nothing is judged here.

    `samples` are inputs of some samples, as many as the build takes at once. `float_model` gives the float model's outputs.
    """
    found = _samples(build, session, samples, float_model, out)
    evidence = None
    if judged.metric and judged.data is not None:
        evidence, rounding = _evidence(build, session, judged, runtime_version, out)
        found = found.model_copy(update={"rounding": round(max(found.rounding, rounding), 9)})
    return build.model_copy(update={"samples": found, "evidence": evidence})


def first_samples(inputs: Sequence[Tensor], data: Arrays | None, batch: int | None) -> dict[str, NDArray[Any]]:
    """Real inputs of a few samples, or of the only batch that a build takes; made up where there is no data."""
    count = batch or _MOST_SAMPLES
    if data is None:
        return {tensor.name: _made_up(tensor, count) for tensor in inputs}
    if batch is None:
        each = sum(values[:1].nbytes for values in data.inputs.values())
        count = max(1, min(count, _MOST_SAMPLES_BYTES // max(each, 1)))
    rows = np.resize(np.arange(min(count, len(data))), count if batch else min(count, len(data)))
    return {tensor.name: np.ascontiguousarray(data.inputs[tensor.name][rows]) for tensor in inputs}


def _made_up(tensor: Tensor, count: int) -> NDArray[Any]:
    shape, generator = (count, *(max(size, 1) for size in tensor.shape[1:])), np.random.default_rng(0)
    dtype = np.dtype(tensor.dtype)
    if dtype.kind == "f":
        return generator.standard_normal(shape).astype(dtype)
    # 0 and 1 are valid indices of any embedding.
    return generator.integers(0, 2, shape).astype(dtype)


def _samples(
    build: Build,
    session: Session,
    inputs: Mapping[str, NDArray[Any]],
    float_model: Callable[[Mapping[str, NDArray[Any]]], Outputs] | None,
    out: Path,
) -> Samples:
    read = {name: inputs[name] for name in session.input_names}
    outputs = session.run(read)
    rounding = 0.0
    if float_model is not None:
        wanted = float_model(inputs)
        rounding = max((_farthest(outputs[name], wanted[name]) for name in outputs if name in wanted), default=0.0)
    path = out / f"{build.file}.samples.npz"
    arrays = {f"inputs/{name}": values for name, values in read.items()}
    arrays |= {f"outputs/{name}": values for name, values in outputs.items()}
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return Samples(
        file=path.name, size_bytes=path.stat().st_size, sha256=sha256_file(path), rounding=round(rounding, 9)
    )


def _farthest(ours: NDArray[Any], theirs: NDArray[Any]) -> float:
    if ours.shape != theirs.shape or ours.ndim == 0 or ours.dtype.kind != "f":
        return 0.0
    a, b = (one.reshape(len(one), -1) for one in (ours, theirs))
    return float(distances(a, b).max(initial=0.0))


def _evidence(
    build: Build, session: Session, judged: Judged, runtime_version: str, out: Path
) -> tuple[Evidence, float]:
    assert judged.data is not None  # noqa: S101 - the caller looked
    fixed = build.inputs[0].shape[0]
    outputs = judged.outputs or predict(session, judged.data, None if fixed < 0 else fixed)
    info = metric_info(judged.metric)
    scored = info.needs_targets or judged.reference is not None
    arrays: dict[str, NDArray[Any]] = {}
    if scored:
        arrays["scores"] = score_samples(judged.metric, outputs, judged.data.targets, judged.reference)
    values = _values(info, outputs)
    arrays["outputs"] = compared_rows(values, 0, most=_MOST_VALUES)
    rounding = 0.0
    if judged.floats is not None and len(arrays["outputs"]):
        rows = arrays["outputs"][: max(MOST_COMPARED // max(values.shape[1], 1), 1)]
        rounding = float(distances(rows, _values(info, judged.floats)[: len(rows)]).max(initial=0.0))
    path = out / f"{build.file}.evidence.npz"
    np.savez(path, rounding=np.float64(rounding), **arrays)  # type: ignore[arg-type]
    made = Evidence(
        file=path.name,
        size_bytes=path.stat().st_size,
        sha256=sha256_file(path),
        metric=judged.metric,
        scored=scored,
        runtime_version=runtime_version,
    )
    return made, rounding


def _values(info: MetricInfo, outputs: Outputs) -> NDArray[Any]:
    first = judged_output(info, outputs)
    return first.reshape(len(first), -1)
