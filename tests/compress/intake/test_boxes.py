from __future__ import annotations

import numpy as np
import pytest

from fleetfit.compress.intake.boxes import check_boxes
from fleetfit.compress.tasks import Tensor
from fleetfit.core.errors import InvalidData

OUTPUTS = [Tensor(name=n, dtype="float32", shape=[-1, 9, c]) for n, c in (("boxes", 4), ("scores", 3))]
GOOD = np.array([[[5, 5, 2, 3, 2], [-1, -1, -1, -1, -1]]], dtype=np.float32)


def test_classes_are_counted() -> None:
    assert check_boxes(GOOD, "The data file", OUTPUTS, "map@cxcywh") == 3
    assert check_boxes(GOOD, "The data file", None, "map@xywh") == 3


@pytest.mark.parametrize(
    ("targets", "metric", "said"),
    [
        (GOOD[0], "map@xywh", "most boxes, 5"),
        (GOOD, "map@xyxy", "without area as xyxy, box 0 of sample 0"),
        (np.where(GOOD >= 0, GOOD + 1, GOOD), "map@xywh", "class 3 where the model's output scores has 3"),
        (GOOD * 1.1, "map@xywh", "whole numbers"),
        (-np.ones((1, 1, 5)), "map@xywh", "or none"),
        (GOOD, "map@xywh:boxes,logits", "an output logits"),
    ],
)
def test_what_is_wrong_is_said(
    targets: np.ndarray[tuple[int, ...], np.dtype[np.float32]], metric: str, said: str
) -> None:
    with pytest.raises(InvalidData, match=said):
        check_boxes(targets, "The data file", OUTPUTS, metric)
