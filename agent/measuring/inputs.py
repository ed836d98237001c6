"""What builds are fed with: real samples of the split where there are any, else random ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetfit.agent.measuring.split import TARGETS, Rows, Split
from fleetfit.core.errors import InvalidData, InvalidModel
from fleetfit.proto.v1 import common_pb2, measurement_pb2


def fixed_batch(ref: measurement_pb2.BuildRef) -> int | None:
    """The only batch that a build takes; None where any will do."""
    sizes = {int(spec.shape[0]) for spec in ref.inputs if spec.shape and spec.shape[0] > 0}
    return min(sizes) if sizes else None


def timing_feeds(task: measurement_pb2.MeasureTask, split: Split | None) -> dict[str, NDArray[Any]]:
    """Inputs of `task.batch` samples for the candidate: the split's first, again and again where they are too few."""
    fixed = fixed_batch(task.candidate)
    if fixed is not None and fixed != task.batch:
        raise InvalidModel(f"the build takes batches of {fixed} only; measure it with --batch {fixed}")
    rows = split.take(task.batch) if split is not None else {}
    feeds = {}
    for spec in task.candidate.inputs:
        real = rows.get(spec.name)
        if real is not None and len(real):
            feeds[spec.name] = np.ascontiguousarray(real[np.resize(np.arange(len(real)), task.batch)])
        else:
            feeds[spec.name] = made_up(spec, task.batch)
    return feeds


def made_up(spec: common_pb2.TensorSpec, batch: int) -> NDArray[Any]:
    """Random values for an input, the same each time. Raises InvalidModel for a dtype that has none."""
    shape = (batch, *(max(int(size), 1) for size in spec.shape[1:]))
    generator = np.random.default_rng(0)
    try:
        dtype = np.dtype(spec.dtype)
    except TypeError:
        raise InvalidModel(
            f"the build's input '{spec.name}' is of type {spec.dtype}, which cannot be made up here; give data with --data"
        ) from None
    if dtype.kind == "f":
        return generator.standard_normal(shape).astype(dtype)
    # 0 and 1 are valid indices of any embedding, and valid pixels.
    return generator.integers(0, 2, shape).astype(dtype)


def metric_batches(
    task: measurement_pb2.MeasureTask, split: Split, size: int, *, targets_needed: bool = True, done: int = 0
) -> Iterator[tuple[Rows, NDArray[Any] | None, int]]:
    """The split's inputs in batches of `size`, each with its targets and how many samples are real.

    The last is padded where the build needs it full. The first `done` samples, whole batches, are left out.
    """
    names = [spec.name for spec in task.candidate.inputs]
    missing = [name for name in (*names, *([TARGETS] if targets_needed else [])) if name not in split.names]
    if missing:
        raise InvalidData(f"the data has no array '{missing[0]}'; push data that fits the model")
    fixed = fixed_batch(task.candidate)
    for at in range(0, split.count, size):
        rows = split.take(size)
        if at < done:
            continue
        targets, real = rows.get(TARGETS), len(next(iter(rows.values())))
        if fixed is not None and real < fixed:
            rows = {name: values[np.resize(np.arange(len(values)), fixed)] for name, values in rows.items()}
        yield {name: np.ascontiguousarray(rows[name]) for name in names}, targets, real
