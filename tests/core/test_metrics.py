from __future__ import annotations

import subprocess
import sys

import pytest

from fleetfit.core.errors import InvalidInput
from fleetfit.core.metrics import DEFAULT_METRIC, METRICS, metric_info


def test_accuracy_is_in_points_and_errors_fall() -> None:
    assert METRICS["accuracy"].unit == "points"
    assert [name for name, info in METRICS.items() if info.higher_is_better] == ["accuracy"]


def test_every_task_has_a_default_metric_of_its_own_kind() -> None:
    assert {metric_info(name).task for name in METRICS} == set(DEFAULT_METRIC)
    for task, name in DEFAULT_METRIC.items():
        assert metric_info(name).task == task


def test_an_unknown_metric_is_answered_with_those_there_are() -> None:
    with pytest.raises(InvalidInput, match="'f1'; choose one of accuracy, mean_absolute_error") as caught:
        metric_info("f1")
    assert caught.value.field == "metric"


def test_the_server_can_read_them_without_numpy() -> None:
    code = "import sys, fleetfit.core.metrics; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
