"""Small models and data sets, and how a task is run as the server runs it."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fleetfit.client.export import export
from fleetfit.compress.exporter import export_onnx
from fleetfit.compress.intake.pt2 import load_pt2
from fleetfit.compress.passes.base import Arrays
from fleetfit.compress.tasks import Compress, IntakeData, IntakeModel, IntakeRecovered, Lower, Task, TaskResult
from fleetfit.core.children import ChildOutcome, Limits, run_child

CLASSES = 4
_GENEROUS = Limits(memory_bytes=8 << 30, wall_s=90)


class Pictures(nn.Module):
    """A convolutional classifier with a fully connected head, as small as can be."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(8 * 16, 32), nn.ReLU(), nn.Linear(32, CLASSES))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(image))


def pictures(count: int, seed: int) -> Arrays:
    """Noise, with a bright quarter that is the class."""
    random = np.random.default_rng(seed)
    targets = random.integers(0, CLASSES, count)
    images = random.normal(0, 0.5, (count, 1, 8, 8)).astype(np.float32)
    for row, label in enumerate(targets):
        y, x = divmod(int(label), 2)
        images[row, 0, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4] += 1.0
    return Arrays({"image": images}, targets)


def save(path: Path, data: Arrays) -> Path:
    """The arrays as intake writes them."""
    named: dict[str, Any] = dict(data.inputs)
    if data.targets is not None:
        named["targets"] = data.targets
    np.savez(path, **named)
    return path


@dataclass(frozen=True)
class Trained:
    """One trained model with its files: `model` (.pt2), `fixed` (.onnx that takes batches of 3), the rest .npz."""

    module: nn.Module
    model: Path
    fixed: Path
    train: Path
    validation: Path
    data: Path
    train_arrays: Arrays
    validation_arrays: Arrays

    @functools.cached_property
    def onnx(self) -> bytes:
        """`model` as ONNX: exporting takes longer than most tests."""
        return export_onnx(load_pt2(self.model))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Pictures()
        train, validation = pictures(512, 1), pictures(200, 2)
        optimizer = torch.optim.Adam(module.parameters(), 3e-3)
        for _ in range(6):
            for at in range(0, 512, 64):
                images = torch.from_numpy(train.inputs["image"][at : at + 64])
                loss = nn.functional.cross_entropy(module(images), torch.from_numpy(train.targets[at : at + 64]))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    module.eval()
    sample = torch.from_numpy(train.inputs["image"][:2])
    model = export(module, (sample,), folder / "model.pt2")
    layered = load_pt2(model)
    layered.dynamic_batch = False
    layered.sample_inputs = {"image": torch.from_numpy(train.inputs["image"][:3])}
    fixed = folder / "fixed.onnx"
    fixed.write_bytes(export_onnx(layered))
    return Trained(
        module,
        model,
        fixed,
        save(folder / "train.npz", train),
        save(folder / "validation.npz", validation),
        save(folder / "data.npz", pictures(710, 3)),
        train,
        validation,
    )


@dataclass(frozen=True)
class Ended:
    """How a task's child ended. `result` is None where it wrote none."""

    outcome: ChildOutcome
    result: TaskResult | None
    folder: Path


@pytest.fixture
def run_task(tmp_path: Path) -> Callable[..., Ended]:
    """Run one task in its child, as the server does: (work, files by name) -> Ended."""

    def run(
        work: Compress | IntakeModel | IntakeData | IntakeRecovered | Lower,
        files: Mapping[str, Path],
        limits: Limits = _GENEROUS,
        environment: Mapping[str, str] | None = None,
    ) -> Ended:
        folder = tmp_path / f"task{len(list(tmp_path.iterdir()))}"
        (folder / "in").mkdir(parents=True)
        for name, path in files.items():
            (folder / "in" / name).write_bytes(path.read_bytes())
        (folder / "task.json").write_text(Task(task_id="t1", work=work).model_dump_json())
        outcome = asyncio.run(
            run_child(["-m", "fleetfit.compress.run", str(folder)], limits, cwd=folder, environment=environment)
        )
        path = folder / "result.json"
        result = TaskResult.model_validate(json.loads(path.read_text())) if path.exists() else None
        return Ended(outcome, result, folder)

    return run
