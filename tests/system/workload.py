"""Three small jobs for system tests: models that were really trained, their data, and recipes that take seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import fleetfit

if TYPE_CHECKING:
    from .conftest import Fleet

SAMPLES: Final = 900

NARROW: Final = """name: narrow
steps:
  - activation_pruning: {ratio: 0.5, round_to: 8}
  - distill: {epochs: 8}
"""
FLAT: Final = """name: flat
steps:
  - low_rank: {ratio: 0.25}
"""


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(16, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Pictures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU())
        self.head = nn.Linear(16, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(image).mean((2, 3)))


class Waves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(12, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))

    def forward(self, signal: torch.Tensor) -> torch.Tensor:
        return self.layers(signal)


@dataclass(frozen=True)
class Order:
    """One job to ask for: the model's name, its recipes, and the devices."""

    model: str
    recipes: tuple[str, ...]
    devices: tuple[str, ...]


# What a report says of a candidate that has nothing to do with time; with `--minimize size` the choice hasn't either.
UNTIMED: Final = (
    *("variant", "runtime", "role", "baseline", "status", "selected", "meets_limits", "rejected_because"),
    *("size_bytes", "parameters", "macs", "integer_operators", "total_operators"),
    *("metric", "test_metric", "drop", "test_drop"),
)
ORDERS: Final = (
    Order("dense", ("narrow.yaml", "flat.yaml"), ("left",)),
    Order("pictures", ("int8-static", "int8-dynamic"), ("right",)),
    Order("waves", ("flat.yaml",), ("left", "right")),
)


def make_goods(folder: Path, models: Sequence[str] = ("dense", "pictures", "waves")) -> None:
    """Write NAME.pt2 and NAME.npz for these models, and the recipes, into `folder`."""
    random = np.random.default_rng(7)
    flat = random.normal(size=(SAMPLES, 16)).astype(np.float32)
    if "dense" in models:
        _make(folder, "dense", Dense(), "x", flat, (flat @ random.normal(size=(16, 4))).argmax(1))
    labels = random.integers(0, 4, SAMPLES)
    images = random.normal(size=(SAMPLES, 1, 8, 8)).astype(np.float32)
    images[np.arange(SAMPLES), 0, labels * 2, :] += 1.5
    if "pictures" in models:
        _make(folder, "pictures", Pictures(), "image", images, labels)
    signals = random.normal(size=(SAMPLES, 12)).astype(np.float32)
    if "waves" in models:
        _make(folder, "waves", Waves(), "signal", signals, np.sin(signals.sum(1, keepdims=True)).astype(np.float32))
    (folder / "narrow.yaml").write_text(NARROW)
    (folder / "flat.yaml").write_text(FLAT)


def _make(folder: Path, name: str, model: nn.Module, given: str, inputs: NDArray[Any], targets: NDArray[Any]) -> None:
    x, y = torch.from_numpy(inputs), torch.from_numpy(targets)
    torch.manual_seed(3)
    for layer in model.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            layer.reset_parameters()
    loss = nn.functional.mse_loss if y.is_floating_point() else nn.functional.cross_entropy
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()
    fleetfit.export(model.eval(), (x[:2],), folder / f"{name}.pt2", name=name)
    np.savez(folder / f"{name}.npz", **{given: inputs, "targets": targets})


def push_goods(fleet: Fleet, goods: Path) -> None:
    """Register every model and its data."""
    for order in ORDERS:
        fleet.run("models", "push", f"{order.model}.pt2", cwd=goods)
        fleet.run("data", "push", f"{order.model}.npz", "--model", order.model, cwd=goods)


def start_jobs(fleet: Fleet, goods: Path, orders: Sequence[Order] = ORDERS) -> dict[str, str]:
    """Ask for every order at once; the jobs' ids by model."""
    jobs = {}
    for order in orders:
        asked = ["compress", order.model, "--data", order.model, "--on", *order.devices]
        asked += ["--recipe", *order.recipes, "--minimize", "size", "--max-drop", "100%", "--seed", "5", "--json"]
        jobs[order.model] = fleet.run(*asked, cwd=goods).json["job"]["job_id"]
    return jobs


def finish_jobs(fleet: Fleet, jobs: dict[str, str]) -> dict[str, Any]:
    """Wait for the jobs; their reports by model."""
    for job in jobs.values():
        fleet.run("jobs", "watch", job, timeout_s=600)
    return {model: fleet.run("report", job, "--json").json for model, job in jobs.items()}


def settled(report: dict[str, Any]) -> dict[str, Any]:
    """What of a report does not depend on time: for each device the choice, and the figures of each candidate."""
    return {
        device["device"]: {
            "selected": device["selected"],
            "candidates": {
                candidate["recipe"]: {name: candidate[name] for name in UNTIMED} for candidate in device["candidates"]
            },
        }
        for device in report["devices"]
    }
