from __future__ import annotations

import subprocess
import sys

import pytest

from fleetfit.core.errors import InvalidInput
from fleetfit.core.metrics import DEFAULT_METRIC, METRICS, metric_info


def test_accuracy_is_in_points_and_errors_fall() -> None:
    assert METRICS["accuracy"].unit == "points"
    assert [name for name, info in METRICS.items() if not info.higher_is_better] == [
        "kl",
        "mean_absolute_error",
        "mean_squared_error",
    ]


def test_every_task_has_a_default_metric_of_its_own_kind() -> None:
    assert {task for name in METRICS for task in metric_info(name).tasks} == set(DEFAULT_METRIC)
    for task, name in DEFAULT_METRIC.items():
        assert task in metric_info(name).tasks


def test_an_unknown_metric_is_answered_with_those_there_are() -> None:
    with pytest.raises(InvalidInput, match="'f1'; choose one of accuracy, macro_f1") as caught:
        metric_info("f1")
    assert caught.value.field == "metric"


def test_the_server_can_read_them_without_numpy() -> None:
    code = "import sys, fleetfit.core.metrics; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(("name", "k", "threshold"), [("top5_accuracy", 5, 0), ("f1@0.5", 1, 0.5), ("f1@-2", 1, -2)])
def test_what_a_name_says_is_read(name: str, k: int, threshold: float) -> None:
    info = metric_info(name)
    assert (info.name, info.k, info.threshold, info.unit) == (name, k, threshold, "points")


@pytest.mark.parametrize(
    "name", ["top0_accuracy", "top_accuracy", "f1@", "f1@x", "f1@1e9", " accuracy", "top5_accuracy "]
)
def test_names_that_say_nothing_are_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match="there is no metric"):
        metric_info(name)


def test_a_metric_may_name_its_output() -> None:
    info = metric_info("f1@0.5:masks")
    assert (info.name, info.threshold, info.output, info.kind) == ("f1@0.5:masks", 0.5, "masks", "f1")
    for name in ("accuracy:", ":logits", "beauty:logits"):
        with pytest.raises(InvalidInput, match="there is no metric"):
            metric_info(name)
