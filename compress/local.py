"""Compression without a server: the same pipeline, in this process."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from fleetfit.compress.recipe import Recipe
from fleetfit.compress.tasks import Compress, CompressFacts, IntakeData
from fleetfit.core.errors import AlreadyExists, InvalidInput


def compress_local(
    model: Path,
    data: Path | None,
    recipe: Recipe,
    out: Path,
    *,
    metric: str = "",
    seed: int = 0,
    threads: int = 1,
    report: Callable[[float, str], None] = lambda fraction, activity: None,
) -> CompressFacts:
    """Carry `recipe` out on a `.pt2` or `.onnx` file and put the build, its lineage and the changed model into `out`.

    `data` is an `.npz` as `fleetfit data push` takes it; it is checked and split the same way. Nothing is measured on any
    device, so the result says nothing about speed. Raises FleetfitError with a sentence for whatever is wrong.
    """
    if out.exists() and any(out.iterdir()):
        raise AlreadyExists(f"{out} is not empty; name a new folder with -o")
    if not model.exists():
        raise InvalidInput(f"there is no file {model}; give a .pt2 or .onnx file", field="model")
    form = "onnx" if model.suffix == ".onnx" else "pt2"
    # Heavy: imported only when there is something to do.
    from fleetfit.compress.intake.data import check_and_split
    from fleetfit.compress.intake.onnx import check_onnx
    from fleetfit.compress.intake.pt2 import load_pt2
    from fleetfit.compress.pipeline import Sources, run_recipe

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        task, sources = "", Sources(model, None, None)
        if data is not None:
            facts = check_onnx(model) if form == "onnx" else load_pt2(model).facts()
            wanted = IntakeData(inputs=facts.inputs, outputs=facts.outputs, seed=seed, metric=metric)
            found = check_and_split(data, None, wanted, folder)
            task, metric = found.task, found.metric
            sources = Sources(model, folder / "train.npz", folder / "validation.npz")
        made = folder / "made"
        made.mkdir()
        work = Compress(
            format=form,  # type: ignore[arg-type]
            recipe=recipe.to_yaml() if recipe.steps else "",
            task=task,  # type: ignore[arg-type]
            metric=metric,
            seed=seed,
            threads=threads,
        )
        result = run_recipe(work, sources, made, report)
        out.mkdir(parents=True, exist_ok=True)
        for file in made.iterdir():
            shutil.move(file, out / file.name)
    (out / "recipe.yaml").write_text(recipe.to_yaml())
    (out / "lineage.json").write_text(json.dumps(result.model_dump(), indent=2) + "\n")
    return result
