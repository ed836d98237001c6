"""Compression without a server: the same pipeline, in this process."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from fleetfit.compress.recipe import Recipe
from fleetfit.compress.tasks import WAITING_FOR_HOST, Compress, CompressFacts, IntakeData, Limits
from fleetfit.core.digests import sha256_file
from fleetfit.core.errors import AlreadyExists, InvalidInput, InvalidRecipe, UnsupportedHere
from fleetfit.core.hostlock import host_lock


def compress_local(
    model: Path,
    data: Path | None,
    recipe: Recipe,
    out: Path,
    *,
    metric: str = "",
    seed: int = 0,
    threads: int = 1,
    runtimes: Sequence[str] = ("onnxruntime",),
    limits: Limits | None = None,
    compute: Literal["auto", "cpu", "cuda"] = "cpu",
    report: Callable[[float, str], None] = lambda fraction, activity: None,
) -> CompressFacts:
    """Carry `recipe` out on a `.pt2` or `.onnx` file and put the builds for `runtimes` and the changed model into `out`.

    Beside them lie `lineage.json` (what every step did), `recipe.yaml`, and `manifest.json` with the digests of all.

    `data` is an `.npz` as `fleetfit data push` takes it; it is checked and split the same way. Nothing is measured on any
    device, so the result says nothing about speed. Raises OutOfReach once `limits` cannot be met any more, and FleetfitError with
    a sentence for whatever is wrong.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise AlreadyExists(f"{out} is not an empty folder; name a new one with -o")
    if not model.exists():
        raise InvalidInput(f"there is no file {model}; give a .pt2 or .onnx file", field="model")
    form = "onnx" if model.suffix == ".onnx" else "pt2"
    if recipe.needs_data() and data is None:
        raise InvalidRecipe(f"the recipe '{recipe.name}' needs data; give an .npz with --data", field="data")
    if data is not None and not data.exists():
        raise InvalidInput(
            f"there is no file {data}; give an .npz with one array for each input and 'targets'", field="data"
        )
    # Heavy: imported only when there is something to do.
    try:
        from fleetfit.compress.intake.data import check_and_split
        from fleetfit.compress.intake.onnx import check_onnx
        from fleetfit.compress.intake.pt2 import load_pt2
        from fleetfit.compress.pipeline import Sources, run_recipe
    except ImportError as error:
        raise UnsupportedHere(
            f'compressing on this machine needs {error.name}; install it with `pip install "fleetfit[compress]"`'
        ) from error

    report(0.0, WAITING_FOR_HOST)
    # An agent of this host may be measuring: its samples are not to be disturbed.
    with host_lock(), tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        task, sources = "", Sources(model, None, None)
        if data is not None:
            report(0.0, "checking the model and the data")
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
            runtimes=list(runtimes),
            compute=compute,
            limits=[limits] if limits is not None else [],
        )
        result = run_recipe(work, sources, made, report)
        (made / "recipe.yaml").write_text(recipe.to_yaml())
        (made / "lineage.json").write_text(json.dumps(result.model_dump(), indent=2) + "\n")
        manifest = {
            "schema": 1,
            "model": {"file": model.name, "sha256": sha256_file(model)},
            "data": None if data is None else {"file": data.name, "sha256": _digest_of_data(data)},
            "recipe": {"name": recipe.name, "passes": recipe.key_material()},
            "seed": seed,
            "environment": result.environment,
            "files": {file.name: _described(file) for file in sorted(made.iterdir())},
        }
        (made / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
        try:
            out.mkdir(parents=True, exist_ok=True)
            for file in made.iterdir():
                shutil.move(file, out / file.name)
        except OSError as error:
            raise InvalidInput(
                f"{out} cannot be written ({error.strerror}); name another folder with -o", field="out"
            ) from error
    return result


def _described(file: Path) -> dict[str, object]:
    return {"sha256": sha256_file(file), "size_bytes": file.stat().st_size}


def _digest_of_data(data: Path) -> str | None:
    """A file's digest; None for a folder, whose files are named in no order of their own."""
    return sha256_file(data) if data.is_file() else None
