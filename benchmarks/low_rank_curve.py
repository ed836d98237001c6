"""Low-rank factorization of a small convolutional network on Fashion-MNIST: what each method keeps at each cost, not retrained.

One network, one seed, one thread: a curve to compare the methods by, no interval. Amounts are chosen on held-out images, the test
split is read once.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
import torch

from benchmarks.harness import Outcome, run
from benchmarks.training import accuracy, convolutional, pictures, trained
from fleetfit.client.demo.images import load_images
from fleetfit.compress.graph import LayeredModel
from fleetfit.compress.passes.base import Arrays, PassContext
from fleetfit.compress.passes.low_rank import LowRank

MOST_DROP, LEAST_SAVING = 1.0, 0.4
ENERGIES = (0.8, 0.9, 0.95, 0.98, 0.99)
BUDGETS = (0.3, 0.4, 0.5, 0.6, 0.7)
TRAINED_ON, HELD_OUT, BATCH, EPOCHS, SAMPLES = 12_000, 4_000, 64, 4, 1024
WAYS: dict[str, dict[str, Any]] = {
    "linear": {"layers": "linear"},
    **{name: {"layers": "convolution", "method": name} for name in ("channel", "tucker2", "spatial", "best")},
}
CLAIM = (
    f"Without any retraining, ranks allotted to a budget remove at least {LEAST_SAVING:.0%} of the multiply-accumulates of a small "
    f"convolutional network for at most {MOST_DROP:g} point of accuracy (chosen on held-out images, checked on the test split; one "
    "seed), and at every energy 'best' needs no more of them than any single method."
)


def low_rank_curve(quick: bool) -> Outcome:
    """Train one network and split it by every method at several energies and budgets; `--quick` trains for half an epoch."""
    torch.set_num_threads(1)
    began = time.monotonic()
    images = load_images(lambda text: print(text, file=sys.stderr))
    order = np.random.default_rng(0).permutation(len(images.images))
    rows, held_out = order[: TRAINED_ON // (8 if quick else 1)], order[-HELD_OUT:]
    known, test = pictures(images.images), pictures(images.test_images)
    original = _train(1 if quick else EPOCHS, known[rows], images.targets[rows])
    name = original.inputs[0].name
    context = PassContext(Arrays({name: known[rows]}, None), None, None, "", "", 0, lambda part, activity: None)
    before = accuracy(original, known[held_out], images.targets[held_out])
    print(f"accuracy {before:.2f} % after {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)

    def point(**parameters: Any) -> tuple[dict[str, Any], LayeredModel]:
        cut = original.clone()
        report = LowRank(samples=SAMPLES, **parameters).apply(cut, context)
        figures = {
            "parameters_of_pass": parameters,
            "fewer_parameters": 1 - cut.parameters_count() / original.parameters_count(),
            "fewer_macs": 1 - cut.macs() / original.macs(),
            "accuracy": accuracy(cut, known[held_out], images.targets[held_out]),
            "notes": report.notes,
        }
        print(_line(figures), file=sys.stderr, flush=True)
        return figures, cut

    curves = {way: [point(energy=energy, **fixed)[0] for energy in ENERGIES] for way, fixed in WAYS.items()}
    budgets, best = [], (0.0, original)
    for share in BUDGETS:
        figures, cut = point(fewer_macs=share, layers="all")
        budgets.append(figures)
        if before - figures["accuracy"] <= MOST_DROP and figures["fewer_macs"] > best[0]:
            best = figures["fewer_macs"], cut
    on_test = [accuracy(model, test, images.test_targets) for model in (original, best[1])]
    chosen = {"fewer_macs": best[0], "test_accuracy": on_test[1], "test_drop": on_test[0] - on_test[1]}
    fewest = all(
        curves["best"][at]["fewer_macs"] >= curves[way][at]["fewer_macs"] - 1e-9
        for at in range(len(ENERGIES))
        for way in ("channel", "tucker2", "spatial")
    )
    figures = {
        "parameters": original.parameters_count(),
        "macs": original.macs(),
        "accuracy": before,
        "test_accuracy": on_test[0],
        "chosen": chosen,
        "energies": curves,
        "budgets": budgets,
        "seconds": time.monotonic() - began,
    }
    return CLAIM, figures, chosen["fewer_macs"] >= LEAST_SAVING and chosen["test_drop"] <= MOST_DROP and fewest


def _line(figures: dict[str, Any]) -> str:
    told = " ".join(f"{name}={value}" for name, value in figures["parameters_of_pass"].items())
    return (
        f"{told}: {figures['fewer_macs']:.1%} fewer MACs, {figures['fewer_parameters']:.1%} fewer parameters, "
        f"{figures['accuracy']:.2f} %"
    )


def _train(epochs: int, images: np.ndarray, targets: np.ndarray) -> LayeredModel:
    torch.manual_seed(0)
    return trained(convolutional(), images, targets, epochs=epochs, batch=BATCH, learning_rate=4e-3)


if __name__ == "__main__":
    sys.exit(run("low_rank_curve", low_rank_curve))
