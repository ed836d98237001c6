"""What recovery gives back after a hard cut of a small convolutional network on Fashion-MNIST, by how long it trains.

Every point is a training of its own, since the learning rate falls to zero at its end. Validation images choose which state
is kept, as the pass does it; accuracies are of the test split, from which nothing was chosen.
"""

from __future__ import annotations

import statistics
import sys
from functools import partial
from typing import Any

import torch

from benchmarks.harness import Outcome, Parts, run_in_parts
from benchmarks.training import start_on_fashion
from fleetfit.compress.passes.activation_pruning import ActivationPruning
from fleetfit.compress.passes.distill import Distill
from fleetfit.compress.passes.reestimate_norms import ReestimateNorms

RATIO = 0.75
TRAINED_ON, HELD_OUT, BATCH, EPOCHS = 6_000, 1_000, 64, 6
RECOVERY_EPOCHS = (1, 2, 4)
SEEDS = (0, 1, 2)
CONTROL, LABELS, OUTPUTS, BOTH = "control: the original, uncut", "labels only", "outputs only", "outputs and labels"
WAYS: dict[str, dict[str, Any]] = {
    LABELS: {"outputs": {"NAME": {"loss": "none"}}, "label_weight": 1.0},
    OUTPUTS: {"label_weight": 0.0},
    BOTH: {},
    "outputs, labels and features": {"features": "auto"},
    "outputs, labels, averaged weights": {"ema": 0.99},
    CONTROL: {},
}
LEAST_REGAINED = 0.8
CLAIM = (
    f"With {RATIO:.0%} of the channels and neurons of every layer gone, {RECOVERY_EPOCHS[-1]} epochs of distillation without any "
    f"label give back at least {LEAST_REGAINED:.0%} of the accuracy that was lost against the original given the same training "
    f"(training seeds: {len(SEEDS)})."
)


def distillation_curve(quick: bool, parts: Parts) -> Outcome:
    """Cut and recover in every way; `--quick` takes one epoch."""
    torch.set_num_threads(1)
    epochs = RECOVERY_EPOCHS[:1] if quick else RECOVERY_EPOCHS
    runs = [
        parts.part(f"seed {seed}, {epochs} epochs", partial(_one, seed, epochs))
        for seed in (SEEDS[:1] if quick else SEEDS)
    ]
    last = f"{epochs[-1]}"
    regained = [
        (one["ways"][OUTPUTS][last] - one["cut"]) / (one["ways"][CONTROL][last] - one["cut"])  # of what was lost
        for one in runs
    ]
    figures = {"trained_on": TRAINED_ON, "regained_without_labels": statistics.fmean(regained), "runs": runs}
    return CLAIM, figures, figures["regained_without_labels"] >= LEAST_REGAINED


def _one(seed: int, epochs: tuple[int, ...]) -> dict[str, Any]:
    original, context, on_test = start_on_fashion(seed, count=TRAINED_ON, held_out=HELD_OUT, epochs=EPOCHS, batch=BATCH)
    output = original.outputs[0].name

    cut = original.clone()
    ActivationPruning(ratio=RATIO).apply(cut, context)
    norms = cut.clone()
    ReestimateNorms(statistics="measured").apply(norms, context)
    ways: dict[str, dict[str, float]] = {}
    for way, parameters in WAYS.items():
        given = {**parameters}
        if "outputs" in given:
            given["outputs"] = {output: given["outputs"]["NAME"]}
        ways[way] = {}
        for count in epochs:
            student = (original if way == CONTROL else cut).clone()
            Distill(epochs=count, batch=BATCH, **given).apply(student, context)
            ways[way][f"{count}"] = on_test(student)
            print(f"seed {seed}, {way}, {count} epochs: {ways[way][f'{count}']:.2f} %", file=sys.stderr, flush=True)
    return {
        "fewer_parameters": 1 - cut.parameters_count() / original.parameters_count(),
        "fewer_macs": 1 - cut.macs() / original.macs(),
        "original": on_test(original),
        "cut": on_test(cut),
        "norms": on_test(norms),
        "ways": ways,
    }


if __name__ == "__main__":
    sys.exit(run_in_parts("distillation_curve", distillation_curve))
