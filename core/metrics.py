"""The metrics that fleetfit knows by name. Standard library only, so that every process may import it.

Three names stand for families: `top5_accuracy` (any number from 2), `f1@0.5` (any threshold) and `map@cxcywh`, `map50@xywh` (how
boxes are written; without it `xyxy`). Each may name the output that it judges, as in `accuracy:logits`, and those of boxes
both, as in `map:boxes,scores`.

A user's own metric is `user:NAME`. It is computed on the user's machine only; what its values mean travels in its judged name,
`user:NAME,lower,UNIT` (see `judged_name`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from fleetfit.core.errors import InvalidData, InvalidInput

USER: Final = "user"
CLASSIFICATION: Final = "classification"
MULTILABEL: Final = "multilabel"
REGRESSION: Final = "regression"
DETECTION: Final = "detection"

BOX_FORMATS: Final = ("xyxy", "xywh", "cxcywh")
"""Left, top, right, bottom; left, top, width, height; centre, width, height. Pixels or shares of the picture: an overlap is
the same in both, as long as targets and outputs are in one of them."""
OVERLAPS: Final = tuple(percent / 100 for percent in range(50, 100, 5))
"""From which overlap on a detection counts as found, from 0.5 to 0.95."""


@dataclass(frozen=True)
class MetricInfo:
    """One metric. `unit` is what its values are counted in; `tasks` are the kinds of dataset that it judges.

    One without tasks compares with the original's outputs, and so judges any dataset, also one without targets. `kind` says
    how a figure comes from samples: a `share` of right ones, a `mean` of their errors or likenesses, or an `f1`, `auroc`
    or `map` of all together.
    """

    name: str
    unit: str
    higher_is_better: bool
    tasks: tuple[str, ...]
    default_drop: str
    """The largest loss a job allows unless it says otherwise, as `--max-drop` writes it."""
    kind: Literal["share", "mean", "f1", "auroc", "map"]
    base: str
    """The name without what was chosen in it: `top` for `top5_accuracy`, `f1` for `f1@0.5`, else the name."""
    k: int = 1
    """How many classes a sample's own may be among."""
    threshold: float = 0.0
    """Above this value of the output a label is given."""

    output: str = ""
    """The output that is judged; empty for the model's first."""
    boxes: str = "xyxy"
    """How boxes are written: one of `BOX_FORMATS`."""
    overlaps: tuple[float, ...] = ()
    """The overlaps over which average precision is averaged, of `OVERLAPS`."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """The outputs that are named: one, or of boxes up to two."""
        if not self.output:
            return ()
        return tuple(self.output.split(",")) if self.kind == "map" else (self.output,)

    def detection_outputs(self, shapes: Mapping[str, Sequence[int]]) -> list[str]:
        """Of all outputs by shape those that hold detections: one of (N, K, 6), or boxes (N, K, 4) and scores (N, K, classes).

        Raises InvalidData where there are none or several such.
        """
        if self.outputs:
            return list(self.outputs)
        threes = {name: shape for name, shape in shapes.items() if len(shape) == 3}
        whole = [[name] for name, shape in threes.items() if shape[2] == 6]
        pairs = [
            [one, other]
            for one, shape in threes.items()
            for other, second in threes.items()
            if one != other and shape[2] == 4 and second[1] == shape[1]
        ]
        found = pairs or whole
        if len(found) != 1:
            raise InvalidData(
                f"{self.name} needs boxes (N, K, 4) and scores (N, K, classes), or one output (N, K, 6) of box, score and "
                f"class; {'several of' if found else 'none of'} "
                + ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items())
                + f" {'fit' if found else 'fits'}; name them, as in {self.base}@{self.boxes}:BOXES,SCORES"
            )
        return found[0]

    @property
    def is_user(self) -> bool:
        """Whether it is a user's own, which nothing but the user's own process can compute."""
        return self.base == USER

    @property
    def needs_targets(self) -> bool:
        """Whether outputs are compared with targets, and not with the original's outputs."""
        return bool(self.tasks)


_CLASSES: Final = (CLASSIFICATION,)
METRICS: Final[dict[str, MetricInfo]] = {
    info.name: info
    for info in (
        MetricInfo("accuracy", "points", True, _CLASSES, "1", "share", "top"),
        MetricInfo("macro_f1", "points", True, _CLASSES, "1", "f1", "macro_f1"),
        MetricInfo("auroc", "points", True, (CLASSIFICATION, MULTILABEL), "1", "auroc", "auroc"),
        MetricInfo("map", "points", True, (DETECTION,), "1", "map", "map", overlaps=OVERLAPS),
        MetricInfo("map50", "points", True, (DETECTION,), "1", "map", "map50", overlaps=OVERLAPS[:1]),
        MetricInfo("map75", "points", True, (DETECTION,), "1", "map", "map75", overlaps=OVERLAPS[5:6]),
        MetricInfo("agreement", "points", True, (), "1", "share", "agreement"),
        MetricInfo("cosine", "", True, (), "0.01", "mean", "cosine"),
        MetricInfo("kl", "nats", False, (), "0.05", "mean", "kl"),
        MetricInfo("mean_absolute_error", "units of the target", False, (REGRESSION,), "2%", "mean", "absolute"),
        MetricInfo("mean_squared_error", "squared units of the target", False, (REGRESSION,), "2%", "mean", "squared"),
    )
}
METRIC_NAMES: Final = (
    *METRICS,
    "topK_accuracy (such as top5_accuracy)",
    "f1@THRESHOLD (such as f1@0.5)",
    "map@BOXES (such as map@cxcywh)",
)
"""What can be chosen, as lists for people show it."""

DEFAULT_METRIC: Final = {
    CLASSIFICATION: "accuracy",
    MULTILABEL: "f1@0.5",
    REGRESSION: "mean_absolute_error",
    DETECTION: "map",
}

_TOP: Final = re.compile(r"top([2-9]|[1-9][0-9]{1,5})_accuracy")
_USER: Final = re.compile(r"(user:([A-Za-z0-9][A-Za-z0-9_.-]{0,63}))(?:,(higher|lower),([^,]{0,32}))?")
_F1: Final = re.compile(r"f1@(-?[0-9]{1,9}(?:\.[0-9]{1,9})?)")
_MAP: Final = re.compile(rf"(map|map50|map75)@({'|'.join(BOX_FORMATS)})")


def known_metric(name: str) -> MetricInfo | None:
    """The metric of that name, or None."""
    if found := _USER.fullmatch(name):
        return MetricInfo(found[1], found[4] or "", found[3] != "lower", (), "2%", "mean", USER)
    if ":" in name:
        rest, _, output = name.partition(":")
        info = known_metric(rest)
        return replace(info, name=name, output=output) if info is not None and output else None
    if name in METRICS:
        return METRICS[name]
    if found := _TOP.fullmatch(name):
        return MetricInfo(name, "points", True, _CLASSES, "1", "share", "top", k=int(found[1]))
    if found := _F1.fullmatch(name):
        return MetricInfo(name, "points", True, (MULTILABEL,), "1", "f1", "f1", threshold=float(found[1]))
    if found := _MAP.fullmatch(name):
        return replace(METRICS[found[1]], name=name, boxes=found[2])
    return None


def is_user_metric(name: str) -> bool:
    """Whether a metric is a user's own."""
    info = known_metric(name)
    return info is not None and info.is_user


def judged_name(name: str, *, lower_is_better: bool, unit: str) -> str:
    """The name under which a user's metric is judged: `user:NAME` with its direction and unit. Raises InvalidInput."""
    full = f"user:{name},{'lower' if lower_is_better else 'higher'},{unit}"
    if not _USER.fullmatch(full):
        raise InvalidInput(
            "a metric's name has letters, digits, '_', '.' or '-', at most 64, and its unit at most 32 characters and no comma; "
            "choose others with --name and --unit",
            field="name",
        )
    return full


def with_boxes(name: str, boxes: str) -> str:
    """The metric's name with how boxes are written. Raises InvalidInput where it has no boxes or has others."""
    if boxes not in BOX_FORMATS:
        raise InvalidInput(f"there is no box format '{boxes}'; choose one of {', '.join(BOX_FORMATS)}", field="boxes")
    info = metric_info(name)
    if info.kind != "map" or ("@" in name and info.boxes != boxes):
        raise InvalidInput(f"{name} does not go with boxes as {boxes}; leave one of the two out", field="boxes")
    return f"{info.base}@{boxes}" + (f":{info.output}" if info.output else "")


def metric_info(name: str) -> MetricInfo:
    """The metric of that name. Raises InvalidInput, naming those there are."""
    found = known_metric(name)
    if found is None:
        raise InvalidInput(f"there is no metric '{name}'; choose one of {', '.join(METRIC_NAMES)}", field="metric")
    return found
