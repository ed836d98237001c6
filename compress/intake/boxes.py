"""Check of targets that are boxes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fleetfit.compress.intake.arrays import Array
from fleetfit.compress.tasks import Tensor
from fleetfit.core.errors import InvalidData
from fleetfit.core.metrics import metric_info
from fleetfit.core.statistics_detection import corners


def check_boxes(targets: Array | None, what: str, outputs: Sequence[Tensor] | None, metric: str) -> int:
    """The number of classes; `targets` is (N, M, 5): a box as the metric says, and its class; -1 where there is none.

    Raises InvalidData where boxes have no area (most often: they are written in another format), classes are no whole
    numbers, or the model has no such outputs or fewer classes.
    """
    info = metric_info(metric)
    if targets is None or targets.ndim != 3 or targets.shape[2] != 5 or targets.dtype.kind not in "fi":
        raise InvalidData(
            f"{what} has targets of the shape {() if targets is None else targets.shape} where {metric} needs (samples, most "
            "boxes, 5): a box and its class, and -1 where a sample has fewer boxes."
        )
    classes = targets[..., 4].astype(np.float64)
    if (classes != np.rint(classes)).any() or (classes < -1).any() or not (classes >= 0).any():
        raise InvalidData(
            f"{what} has other classes than whole numbers from 0 in targets[..., 4], or none; -1 stands where there is no box."
        )
    edges = corners(targets[..., :4].astype(np.float64), info.boxes)
    wrong = np.argwhere((classes >= 0) & (edges[..., 2:] <= edges[..., :2]).any(axis=-1))
    if len(wrong):
        sample, place = wrong[0].tolist()
        raise InvalidData(
            f"{what} has a box without area as {info.boxes}, box {place} of sample {sample}; write boxes in the format that the "
            "model gives, and name it with --boxes."
        )
    count = int(classes.max()) + 1
    if outputs is None:
        return count
    shapes = {tensor.name: tensor.shape for tensor in outputs}
    names = info.detection_outputs(shapes)
    missing = [name for name in names if name not in shapes]
    if missing:
        raise InvalidData(
            f"{metric} names an output {missing[0]} that the model has not; its outputs are {', '.join(shapes)}.",
            field="metric",
        )
    known = shapes[names[1]][-1] if len(names) == 2 else -1
    if 0 <= known < count:
        raise InvalidData(f"{what} has the class {count - 1} where the model's output {names[1]} has {known} classes.")
    return max(known, count)
