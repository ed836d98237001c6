"""What batch norms give back after a cut without training: moved by what the cut changed, or measured anew.

Small convolutional networks on Fashion-MNIST. The statistics are found once on pictures like those of the training, and once on
pictures of two of the ten classes, as when what is at hand is unlike what a network was trained on. Accuracies are of the test
split. Half of the channels gone, it is also distilled for one epoch with and without that step before it.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch

from benchmarks.harness import Outcome, Parts, run_in_parts
from benchmarks.training import start_on_fashion
from fleetfit.compress.passes.activation_pruning import ActivationPruning
from fleetfit.compress.passes.base import Arrays
from fleetfit.compress.passes.distill import Distill
from fleetfit.compress.passes.reestimate_norms import ReestimateNorms

RATIOS = (0.0, 0.25, 0.5)
DISTILLED_AT = 0.5
TRAINED_ON, HELD_OUT, BATCH, EPOCHS, SAMPLES = 6_000, 1_000, 64, 4, 1024
TWO_CLASSES = (1, 9)
"""Trousers and ankle boots."""
WAYS: tuple[Literal["moved"], Literal["measured"]] = ("moved", "measured")
SEEDS = (0, 1, 2)
NO_WORSE = 1.0
CLAIM = (
    f"Moved batch norms leave a cut network at most {NO_WORSE:g} point behind measured ones where the data are like those of the "
    f"training, and ahead of them where the data show two classes of ten (means of {len(SEEDS)} training seeds, "
    f"{', '.join(f'{ratio:.0%}' for ratio in RATIOS)} of the channels and neurons of every layer gone)."
)


def norms(quick: bool, parts: Parts) -> Outcome:
    """Train, cut and correct; `--quick` takes one seed and one epoch."""
    torch.set_num_threads(1)
    epochs = 1 if quick else EPOCHS
    runs = [
        parts.part(f"seed {seed}, {epochs} epochs", partial(_one, seed, epochs))
        for seed in (SEEDS[:1] if quick else SEEDS)
    ]

    def mean(ratio: float, way: str) -> float:
        return statistics.fmean(run["cuts"][f"{ratio}"][way] for run in runs)

    holds = all(
        mean(ratio, "moved, like") >= mean(ratio, "measured, like") - NO_WORSE
        and mean(ratio, "moved, unlike") > mean(ratio, "measured, unlike")
        for ratio in RATIOS
    )
    return CLAIM, {"trained_on": TRAINED_ON, "samples": SAMPLES, "runs": runs}, holds


def _one(seed: int, epochs: int) -> dict[str, Any]:
    original, labelled, on_test = start_on_fashion(
        seed, count=TRAINED_ON, held_out=HELD_OUT, epochs=epochs, batch=BATCH
    )
    given = labelled.training_data("norms")
    shown = given.inputs
    like = replace(labelled, train=Arrays(shown, None))
    two = np.isin(given.targets, TWO_CLASSES)
    contexts = {
        "like": like,
        "unlike": replace(like, train=Arrays({name: values[two] for name, values in shown.items()}, None)),
    }
    cuts = {}
    for ratio in RATIOS:
        cut = original.clone()
        if ratio:
            # Which channels go is the same for all, so that only the statistics differ.
            ActivationPruning(ratio=ratio, samples=SAMPLES).apply(cut, like)
        found = {"left": on_test(cut)}
        for data, context in contexts.items():
            for way in WAYS:
                model = cut.clone()
                ReestimateNorms(statistics=way, samples=SAMPLES).apply(model, context)
                found[f"{way}, {data}"] = on_test(model)
                if (ratio, data, way) == (DISTILLED_AT, "like", "moved"):
                    Distill(epochs=1).apply(model, like)
                    found["moved, distilled"] = on_test(model)
        if ratio == DISTILLED_AT:
            Distill(epochs=1).apply(cut, like)
            found["distilled"] = on_test(cut)
        cuts[f"{ratio}"] = found
    return {"cuts": cuts}


if __name__ == "__main__":
    sys.exit(run_in_parts("norms", norms))
