"""The metrics that fleetfit knows by name. Standard library only, so that every process may import it.

Two names stand for families: `top5_accuracy` (any number from 2) and `f1@0.5` (any threshold). Each may name the output
that it judges, as in `accuracy:logits`.

A user's own metric is `user:NAME`. It is computed on the user's machine only; what its values mean travels in its judged name,
`user:NAME,lower,UNIT` (see `judged_name`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final, Literal

from fleetfit.core.errors import InvalidInput

USER: Final = "user"
CLASSIFICATION: Final = "classification"
MULTILABEL: Final = "multilabel"
REGRESSION: Final = "regression"


@dataclass(frozen=True)
class MetricInfo:
    """One metric. `unit` is what its values are counted in; `tasks` are the kinds of dataset that it judges.

    One without tasks compares with the original's outputs, and so judges any dataset, also one without targets. `kind` says
    how a figure comes from samples: a `share` of right ones, a `mean` of their errors or likenesses, or an `f1` or `auroc`
    of all together.
    """

    name: str
    unit: str
    higher_is_better: bool
    tasks: tuple[str, ...]
    default_drop: str
    """The largest loss a job allows unless it says otherwise, as `--max-drop` writes it."""
    kind: Literal["share", "mean", "f1", "auroc"]
    base: str
    """The name without what was chosen in it: `top` for `top5_accuracy`, `f1` for `f1@0.5`, else the name."""
    k: int = 1
    """How many classes a sample's own may be among."""
    threshold: float = 0.0
    """Above this value of the output a label is given."""

    output: str = ""
    """The output that is judged; empty for the model's first."""

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
        MetricInfo("agreement", "points", True, (), "1", "share", "agreement"),
        MetricInfo("cosine", "", True, (), "0.01", "mean", "cosine"),
        MetricInfo("kl", "nats", False, (), "0.05", "mean", "kl"),
        MetricInfo("mean_absolute_error", "units of the target", False, (REGRESSION,), "2%", "mean", "absolute"),
        MetricInfo("mean_squared_error", "squared units of the target", False, (REGRESSION,), "2%", "mean", "squared"),
    )
}
METRIC_NAMES: Final = (*METRICS, "topK_accuracy (such as top5_accuracy)", "f1@THRESHOLD (such as f1@0.5)")
"""What can be chosen, as lists for people show it."""

DEFAULT_METRIC: Final = {CLASSIFICATION: "accuracy", MULTILABEL: "f1@0.5", REGRESSION: "mean_absolute_error"}

_TOP: Final = re.compile(r"top([2-9]|[1-9][0-9]{1,5})_accuracy")
_USER: Final = re.compile(r"(user:([A-Za-z0-9][A-Za-z0-9_.-]{0,63}))(?:,(higher|lower),([^,]{0,32}))?")
_F1: Final = re.compile(r"f1@(-?[0-9]{1,9}(?:\.[0-9]{1,9})?)")


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
    return None


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


def metric_info(name: str) -> MetricInfo:
    """The metric of that name. Raises InvalidInput, naming those there are."""
    found = known_metric(name)
    if found is None:
        raise InvalidInput(f"there is no metric '{name}'; choose one of {', '.join(METRIC_NAMES)}", field="metric")
    return found
