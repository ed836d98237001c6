"""The two tasks as `fleetfit.compress.run` calls them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fleetfit.compress.intake.handlers import intake_data, intake_model
from fleetfit.compress.tasks import IntakeData, IntakeModel, Task, TaskProgress
from fleetfit.core.errors import InternalError


def test_a_model_and_then_data_for_it(archive_of: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    shutil.copy(archive_of("two_inputs"), tmp_path / "in" / "model")
    seen: list[TaskProgress] = []
    facts = intake_model(Task(task_id="t", work=IntakeModel(format="pt2")), tmp_path, seen.append)
    assert [(t.name, t.dtype, t.shape) for t in facts.inputs] == [
        ("tokens", "int64", [-1, 7]),
        ("numbers", "float32", [-1, 3]),
    ]
    assert [(t.name, t.shape) for t in facts.outputs] == [("output", [-1, 4])]
    assert facts.trainable and facts.recognised_share == 1.0
    fractions = [progress.fraction for progress in seen]
    assert fractions == sorted(fractions) and len(fractions) >= 3 and all(progress.activity for progress in seen)

    with (tmp_path / "in" / "data").open("wb") as file:
        np.savez(
            file,
            tokens=np.ones((40, 7), np.int64),
            numbers=np.ones((40, 3), np.float32),
            targets=np.arange(40) % 4,
        )
    data = IntakeData(inputs=facts.inputs, outputs=facts.outputs, seed=3)
    described = intake_data(Task(task_id="t", work=data), tmp_path, seen.append)
    assert [split.count for split in described.splits] == [28, 6, 6]
    assert all((tmp_path / "out" / split.file).is_file() for split in described.splits)


def test_a_task_of_another_kind_is_our_bug(tmp_path: Path) -> None:
    with pytest.raises(InternalError):
        intake_model(Task(task_id="t", work=IntakeData()), tmp_path, lambda progress: None)
    with pytest.raises(InternalError):
        intake_data(Task(task_id="t", work=IntakeModel(format="pt2")), tmp_path, lambda progress: None)
