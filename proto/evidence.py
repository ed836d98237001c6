"""A device's result held against what the same build gave on the server: what the server prints, and anybody can compute again.

Needs NumPy; the resident agent and the server's process keep away from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetfit.core.errors import InvalidData
from fleetfit.core.statistics import metric_value
from fleetfit.core.statistics_gap import Gap, gap_between
from fleetfit.core.statistics_student import Interval
from fleetfit.proto.figures import scores_of
from fleetfit.proto.v1 import measurement_pb2

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Evidence:
    """What a build gave over the split on the server: scores (N,) or (N, several), and outputs (M, values) of the first."""

    scores: Floats
    outputs: Floats
    rounding: float


def read_evidence(path: Path) -> Evidence | None:
    """A stored evidence; None where it has no scores. Raises InvalidData for a file that is none."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            if "scores" not in archive:
                return None
            found = Evidence(archive["scores"], archive["outputs"], float(archive["rounding"]))
    except (OSError, ValueError, KeyError, EOFError, TypeError) as error:
        raise InvalidData(
            "what the build gave on the server cannot be read; its server is newer, or lost it"
        ) from error
    if found.scores.dtype.kind != "f" or found.outputs.dtype.kind != "f" or found.outputs.ndim != 2:
        raise InvalidData("what the build gave on the server are no numbers; its server is newer, or lost it")
    return found


def read_rows(path: Path) -> NDArray[np.int64]:
    """Which samples of a split a device was given, in their order. Raises InvalidData for a file that is none."""
    try:
        rows = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InvalidData(
            "which samples the device was given cannot be read; its server is newer, or lost it"
        ) from error
    if not isinstance(rows, np.ndarray) or rows.dtype != np.int64 or rows.ndim != 1:
        raise InvalidData("which samples the device was given cannot be read; its server is newer, or lost it")
    return rows


@dataclass(frozen=True)
class Compared:
    """The server's figure over the device's samples, and the gap; `index` is the worst sample's place in the whole split."""

    server: Interval
    gap: Gap
    index: int | None


def compared(
    raw: measurement_pb2.MeasurementResult, evidence: Evidence, rows: NDArray[np.int64] | None
) -> Compared | None:
    """The device's metric against the server's, over the same samples; None where there is nothing to compare.

    `rows` says which samples the device was given, None: all.
    """
    here, there, outputs = scores_of(raw), evidence.scores, evidence.outputs
    if not len(here):
        return None
    if rows is not None:
        if len(rows) == 0 or rows.min() < 0 or rows.max() >= len(there):
            return None
        there = there[rows]
        # Sorted, so that those whose outputs the server kept come first.
        outputs = outputs[rows[rows < len(outputs)]]
    if there.shape != here.shape:
        return None
    width = raw.metric.judged_width
    judged = None
    if width > 0 and len(raw.metric.judged) % width == 0:
        judged = np.asarray(raw.metric.judged, dtype=np.float32).reshape(-1, width), outputs
    found = gap_between(raw.metric.metric, here, there, judged, rounding=evidence.rounding)
    index = None
    if found.worst is not None:
        index = found.worst.row if rows is None else int(rows[found.worst.row])
    return Compared(metric_value(raw.metric.metric, there), found, index)
