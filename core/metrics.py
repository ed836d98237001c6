"""The metrics that fleetfit knows by name. Standard library only, so that every process may import it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fleetfit.core.errors import InvalidInput


@dataclass(frozen=True)
class MetricInfo:
    """One metric. `unit` is what its values are counted in; `task` is the kind of dataset it judges."""

    name: str
    unit: str
    higher_is_better: bool
    task: str
    default_drop: str
    """The largest loss a job allows unless it says otherwise, as `--max-drop` writes it."""


METRICS: Final[dict[str, MetricInfo]] = {
    info.name: info
    for info in (
        MetricInfo("accuracy", "points", True, "classification", "1"),
        MetricInfo("mean_absolute_error", "units of the target", False, "regression", "2%"),
        MetricInfo("mean_squared_error", "squared units of the target", False, "regression", "2%"),
    )
}

DEFAULT_METRIC: Final = {"classification": "accuracy", "regression": "mean_absolute_error"}


def metric_info(name: str) -> MetricInfo:
    """The metric of that name. Raises InvalidInput, naming those there are."""
    try:
        return METRICS[name]
    except KeyError:
        known = ", ".join(METRICS)
        raise InvalidInput(f"there is no metric '{name}'; choose one of {known}", field="metric") from None
