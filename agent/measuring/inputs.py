"""What builds are fed with: real samples of the split where there are any, else random ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetfit.core.errors import InvalidData, InvalidModel
from fleetfit.proto.v1 import common_pb2, measurement_pb2

TARGETS = "targets"


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The split's arrays, `targets` among them."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError) as error:
        raise InvalidData(f"the data that came with the task cannot be read ({error}); push the data again") from error


def timing_feeds(task: measurement_pb2.MeasureTask, data: dict[str, NDArray[Any]] | None) -> dict[str, NDArray[Any]]:
    """Inputs of `task.batch` samples for the candidate."""
    feeds = {}
    for spec in task.candidate.inputs:
        fixed = spec.shape[0] if spec.shape else -1
        if fixed not in (-1, task.batch):
            raise InvalidModel(f"the build takes batches of {fixed} only; measure it with --batch {fixed}")
        if data is not None and spec.name in data and len(data[spec.name]):
            rows = np.resize(np.arange(len(data[spec.name])), task.batch)
            feeds[spec.name] = np.ascontiguousarray(data[spec.name][rows])
        else:
            feeds[spec.name] = _random(spec, task.batch)
    return feeds


def _random(spec: common_pb2.TensorSpec, batch: int) -> NDArray[Any]:
    shape = (batch, *(max(int(size), 1) for size in spec.shape[1:]))
    generator = np.random.default_rng(0)
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "f":
        return generator.standard_normal(shape).astype(dtype)
    # 0 and 1 are valid indices of any embedding, and valid pixels.
    return generator.integers(0, 2, shape).astype(dtype)


def batches(
    task: measurement_pb2.MeasureTask, data: dict[str, NDArray[Any]]
) -> list[tuple[dict[str, NDArray[Any]], int]]:
    """The split in batches that the build takes, each with the number of its rows that count (the last may be padded)."""
    specs = task.candidate.inputs
    missing = [spec.name for spec in specs if spec.name not in data]
    if missing:
        raise InvalidData(f"the data has no array '{missing[0]}', which the build takes; push data that fits the model")
    fixed = specs[0].shape[0] if specs[0].shape else -1
    size = 128 if fixed == -1 else int(fixed)
    count = len(data[specs[0].name])
    found = []
    for at in range(0, count, size):
        rows = np.arange(at, min(at + size, count))
        padded = rows if fixed == -1 else np.resize(rows, size)
        found.append(({spec.name: np.ascontiguousarray(data[spec.name][padded]) for spec in specs}, len(rows)))
    return found
