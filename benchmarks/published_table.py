"""The published table: a 784-512-512-256-10 network on Fashion-MNIST, pruned by activation and by redundancy, not retrained.

No recovery anywhere, so the original itself is the fair control. Cuts are chosen on validation, the test split is read once.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.harness import Outcome, run
from fleetfit.client.demo.images import load_images
from fleetfit.client.export import export
from fleetfit.compress.graph import LayeredModel
from fleetfit.compress.intake.pt2 import load_pt2
from fleetfit.compress.passes.activation_pruning import ActivationPruning
from fleetfit.compress.passes.base import Arrays, Pass, PassContext
from fleetfit.compress.passes.redundancy_pruning import RedundancyPruning
from fleetfit.core.statistics_student import student_quantile

MOST_DROP, LEAST_SAVING = 0.62, 0.75
ENERGIES = (0.97, 0.98, 0.985, 0.9875, 0.99, 0.9925, 0.995, 0.9975)
THRESHOLDS = (0.025, 0.05, 0.1, 0.2, 0.4)
TRAINED_ON, BATCH, EPOCHS = 51_000, 128, 12
CLAIM = (
    f"Redundancy pruning without any retraining removes at least {LEAST_SAVING:.0%} of the parameters for at most {MOST_DROP} "
    "points of accuracy on the test split (mean of five training seeds; the cut is chosen on validation)."
)


def published_table(quick: bool) -> Outcome:
    """Train with five seeds and cut by both criteria; `--quick` takes one seed and one epoch."""
    images = load_images(lambda text: print(text, file=sys.stderr))
    train = images.images.reshape(len(images.images), -1).astype(np.float32) / 255
    test = images.test_images.reshape(len(images.test_images), -1).astype(np.float32) / 255
    runs = []
    for seed in (0,) if quick else (0, 1, 2, 3, 4):
        runs.append(_one(seed, 1 if quick else EPOCHS, train, images.targets, test, images.test_targets))
        print(f"seed {seed}: {runs[-1]['chosen']}", file=sys.stderr, flush=True)
    summary = {name: _summary([one["chosen"][name] for one in runs]) for name in ("redundancy", "activation")}
    found = summary["redundancy"]
    holds = found["fewer_parameters"]["mean"] >= LEAST_SAVING and found["test_drop"]["mean"] <= MOST_DROP
    return CLAIM, {"summary": summary, "runs": runs}, holds


def _one(
    seed: int, epochs: int, images: np.ndarray, targets: np.ndarray, test: np.ndarray, test_targets: np.ndarray
) -> dict[str, Any]:
    order = np.random.default_rng(seed).permutation(len(images))
    rows, held_out = order[:TRAINED_ON], order[TRAINED_ON:]
    original = _train(seed, epochs, images[rows], targets[rows])
    name = original.inputs[0].name
    context = PassContext(Arrays({name: images[rows]}, None), None, None, "", "", seed, lambda part, activity: None)
    before = _accuracy(original, images[held_out], targets[held_out])
    before_on_test = _accuracy(original, test, test_targets)
    sweeps: dict[str, list[Pass]] = {
        "redundancy": [RedundancyPruning(energy=energy, samples=8192) for energy in ENERGIES],
        "activation": [ActivationPruning(threshold=threshold, samples=8192) for threshold in THRESHOLDS],
    }
    curves, chosen = {}, {}
    for criterion, steps in sweeps.items():
        curve, best = [], None
        for step in steps:
            cut = original.clone()
            step.apply(cut, context)
            fewer = 1 - cut.parameters_count() / original.parameters_count()
            drop = before - _accuracy(cut, images[held_out], targets[held_out])
            curve.append({"parameters": step.parameters(), "fewer_parameters": fewer, "drop": drop})
            if drop <= MOST_DROP and (best is None or fewer > best[0]):
                best = fewer, drop, cut
        curves[criterion] = curve
        # Nothing within the limit: the original stays.
        fewer, drop, cut = best or (0.0, 0.0, original)
        lost = before_on_test - _accuracy(cut, test, test_targets)
        chosen[criterion] = {"fewer_parameters": fewer, "drop": drop, "test_drop": lost}
    return {"seed": seed, "accuracy": before, "chosen": chosen, "curves": curves}


def _train(seed: int, epochs: int, images: np.ndarray, targets: np.ndarray) -> LayeredModel:
    torch.manual_seed(seed)
    widths = (784, 512, 512, 256, 10)
    layers: list[nn.Module] = []
    for width, after in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(width, after), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    x, y = torch.from_numpy(images), torch.from_numpy(targets)
    steps = len(x) // BATCH
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=epochs * steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(x))[: steps * BATCH].split(BATCH):
            loss = functional.cross_entropy(model(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with tempfile.TemporaryDirectory() as folder:
        return load_pt2(export(model.eval(), (x[:2],), Path(folder) / "model.pt2"))


def _accuracy(model: LayeredModel, images: np.ndarray, targets: np.ndarray) -> float:
    with torch.no_grad():
        (logits,) = model.call({model.inputs[0].name: torch.from_numpy(images)}).values()
    return 100 * float((logits.argmax(1).numpy() == targets).mean())


def _summary(chosen: list[dict[str, float]]) -> dict[str, Any]:
    """The mean over seeds with its 95 % interval (Student), and the range."""
    found = {}
    for name in ("fewer_parameters", "drop", "test_drop"):
        values = [one[name] for one in chosen]
        half = (
            student_quantile(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
            if len(values) > 1
            else None
        )
        mean = statistics.fmean(values)
        found[name] = {"mean": mean, "ci95_half_width": half, "least": min(values), "most": max(values)}
    return found


if __name__ == "__main__":
    sys.exit(run("published_table", published_table))
