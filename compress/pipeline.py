"""One recipe from a loaded model to its builds, with a line of lineage for every step."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from fleetfit.compress.arrays import read_split
from fleetfit.compress.exporter import export_onnx, largest_difference, prove_equal, run_onnx
from fleetfit.compress.graph import LayeredModel
from fleetfit.compress.intake.pt2 import load_pt2
from fleetfit.compress.passes.base import Arrays, PassContext, PassReport, QuantizedBuild
from fleetfit.compress.recipe import Recipe
from fleetfit.compress.tasks import Build, Compress, CompressFacts, Score, Step, Tensor
from fleetfit.core.digests import sha256_file
from fleetfit.core.errors import InvalidRecipe
from fleetfit.core.statistics import metric_value, score_samples

Report = Callable[[float, str], None]
_EVALUATION_BATCH: Final = 256
# Shares of the whole that the parts take, for the progress bar.
_LOADED, _PASSED = 0.1, 0.85


@dataclass
class Sources:
    """Where the model and its splits lie; splits may be None."""

    model: Path
    train: Path | None
    validation: Path | None


def run_recipe(work: Compress, sources: Sources, out: Path, report: Report) -> CompressFacts:
    """Carry a recipe out and write `build.onnx` (and `variant.pt2` for layered models) to `out`.

    Deterministic for the same work, sources, versions, instruction set and number of threads. Raises InvalidRecipe and
    InvalidModel with a sentence for the report.
    """
    torch.manual_seed(work.seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_num_threads(work.threads)
    recipe = Recipe.from_yaml(work.recipe) if work.recipe.strip() else Recipe.original()
    train = read_split(sources.train) if sources.train is not None else None
    validation = read_split(sources.validation) if sources.validation is not None else None
    if work.format == "onnx":
        return _from_onnx(recipe, work, sources.model, train, validation, out, report)
    report(0.0, "loading the model")
    began = time.monotonic()
    model = load_pt2(sources.model)
    teacher = model.clone() if recipe.steps else model
    judge = _Judge(work.metric, validation)
    lineage = [_line("original", {}, model, judge, time.monotonic() - began, PassReport(notes=list(model.notes)))]
    context = _context(work, teacher, train, validation)
    for number, step in enumerate(recipe.steps):
        low = _LOADED + (_PASSED - _LOADED) * number / len(recipe.steps)
        share = (_PASSED - _LOADED) / len(recipe.steps)
        name = step.pass_name()
        context.report = lambda part, activity, low=low, share=share: report(low + share * part, activity)  # type: ignore[misc]
        context.report(0.0, name.replace("_", " "))
        began = time.monotonic()
        done = step.apply(model, context)
        _check_finite(model, name)
        lineage.append(_line(name, step.parameters(), model, judge, time.monotonic() - began, done))
    report(_PASSED, "building for the runtime")
    content = export_onnx(model)
    difference = prove_equal(model, content, validation)
    quantized = _quantized(recipe, content, context)
    if quantized is not None:
        content = quantized.content
        difference = largest_difference(model, content, validation)
        score = judge.score_onnx(content)
        lineage[-1] = lineage[-1].model_copy(update={"weight_bytes": len(content), "metric": score})
    model.save_pt2(out / "variant.pt2")
    build = _write_build(content, quantized, model.inputs, model.outputs, difference, out)
    return CompressFacts(
        lineage=lineage,
        builds=[build],
        parameters=lineage[-1].parameters,
        macs=lineage[-1].macs,
        environment=environment(work.threads),
    )


def _from_onnx(
    recipe: Recipe,
    work: Compress,
    path: Path,
    train: Arrays | None,
    validation: Arrays | None,
    out: Path,
    report: Report,
) -> CompressFacts:
    from fleetfit.compress.intake.onnx import check_onnx

    if recipe.needs_trainable():
        raise InvalidRecipe(
            f"the recipe '{recipe.name}' changes layers, and an ONNX file has none that can be trained; push the model as "
            "a .pt2, or use a recipe that only quantizes"
        )
    report(0.0, "loading the model")
    facts = check_onnx(path)
    content = path.read_bytes()
    judge = _Judge(work.metric, validation)

    def line(name: str, parameters: dict[str, Any], size: int, seconds: float) -> Step:
        return Step(
            pass_name=name,
            parameters_of_pass=parameters,
            parameters=facts.parameters,
            macs=facts.macs,
            weight_bytes=size,
            metric=judge.score_onnx(content),
            seconds=seconds,
        )

    lineage = [line("original", {}, len(content), 0.0)]
    context = _context(work, None, train, validation)
    began = time.monotonic()
    report(_LOADED, "quantizing")
    quantized = _quantized(recipe, content, context)
    if quantized is not None:
        content = quantized.content
        step = recipe.steps[-1]
        lineage.append(line(step.pass_name(), step.parameters(), len(content), time.monotonic() - began))
    build = _write_build(content, quantized, facts.inputs, facts.outputs, None, out)
    return CompressFacts(
        lineage=lineage,
        builds=[build],
        parameters=facts.parameters,
        macs=facts.macs,
        environment=environment(work.threads),
    )


def _context(
    work: Compress, teacher: LayeredModel | None, train: Arrays | None, validation: Arrays | None
) -> PassContext:
    return PassContext(
        train=train,
        validation=validation,
        teacher=teacher,
        metric=work.metric,
        task=work.task,
        seed=work.seed,
        report=lambda part, activity: None,
    )


def _quantized(recipe: Recipe, content: bytes, context: PassContext) -> QuantizedBuild | None:
    return recipe.steps[-1].build(content, context) if recipe.steps and recipe.steps[-1].must_be_last else None


def _write_build(
    content: bytes,
    quantized: QuantizedBuild | None,
    inputs: list[Tensor],
    outputs: list[Tensor],
    difference: float | None,
    out: Path,
) -> Build:
    path = out / "build.onnx"
    path.write_bytes(content)
    return Build(
        file=path.name,
        runtime="onnxruntime",
        format="onnx",
        size_bytes=len(content),
        sha256=sha256_file(path),
        inputs=inputs,
        outputs=outputs,
        integer_operators=quantized.integer_operators if quantized else 0,
        total_operators=quantized.total_operators if quantized else 0,
        largest_difference=difference,
    )


class _Judge:
    """Computes the metric on the validation split, where there is one with targets."""

    def __init__(self, metric: str, validation: Arrays | None) -> None:
        self._metric = metric
        self._data = validation if validation is not None and validation.targets is not None and metric else None

    def score(self, model: LayeredModel) -> Score | None:
        """With PyTorch, in evaluation mode."""
        if self._data is None:
            return None
        outputs = predict(model, self._data)
        return self._summarize(outputs)

    def score_onnx(self, content: bytes) -> Score | None:
        """With ONNX Runtime."""
        if self._data is None:
            return None
        parts = [
            run_onnx(content, {name: values[at : at + _EVALUATION_BATCH] for name, values in self._data.inputs.items()})
            for at in range(0, len(self._data), _EVALUATION_BATCH)
        ]
        return self._summarize({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})

    def _summarize(self, outputs: dict[str, Any]) -> Score:
        assert self._data is not None  # noqa: S101 - the callers looked
        assert self._data.targets is not None  # noqa: S101
        figure = metric_value(self._metric, score_samples(self._metric, outputs, self._data.targets))
        return Score(
            name=self._metric,
            value=figure.value,
            ci95=(figure.low, figure.high),
            n=len(self._data),
            split="validation",
        )


def predict(model: LayeredModel, data: Arrays) -> dict[str, Any]:
    """All outputs over a split, in evaluation mode, as arrays by name."""
    model.module.eval()
    batch = _EVALUATION_BATCH if model.dynamic_batch else model.sample_batch()
    parts = []
    with torch.no_grad():
        for at in range(0, len(data), batch):
            rows = {name: torch.from_numpy(values[at : at + batch]) for name, values in data.inputs.items()}
            parts.append({name: value.numpy() for name, value in model.call(rows).items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _line(
    name: str, parameters: dict[str, Any], model: LayeredModel, judge: _Judge, seconds: float, done: PassReport
) -> Step:
    return Step(
        pass_name=name,
        parameters_of_pass=parameters,
        parameters=model.parameters_count(),
        macs=model.macs(),
        weight_bytes=model.weight_bytes(),
        metric=judge.score(model),
        seconds=seconds,
        training_steps=done.training_steps,
        notes=done.notes,
    )


def _check_finite(model: LayeredModel, name: str) -> None:
    for key, parameter in model.module.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise InvalidRecipe(
                f"after {name} the weights {key} are no longer finite; use a smaller learning rate or ratio"
            )


def environment(threads: int) -> dict[str, str]:
    """The numeric environment that results depend on: versions, instruction set, threads."""
    import onnx
    import onnxruntime

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "threads": str(threads),
    }
