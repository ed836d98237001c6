"""One recipe from a loaded model to its builds, with a line of lineage for every step."""

from __future__ import annotations

import platform
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from fleetfit.compress.arrays import read_split
from fleetfit.compress.compute import choose_device, described, generators
from fleetfit.compress.evidence import Judged, first_samples, with_evidence
from fleetfit.compress.export.base import Exporter
from fleetfit.compress.export.registry import DEFAULT, exporter
from fleetfit.compress.exporter import (
    OnnxSession,
    export_onnx,
    largest_difference,
    predict_onnx,
    prove_equal,
)
from fleetfit.compress.graph import LayeredModel
from fleetfit.compress.graph.batches import outputs_over
from fleetfit.compress.intake.pt2 import load_pt2
from fleetfit.compress.lowering import build_for, judged_here, layered_outputs
from fleetfit.compress.passes.base import Arrays, Pass, PassContext, PassReport, QuantizedBuild
from fleetfit.compress.reach import Loss, check_reach
from fleetfit.compress.recipe import Recipe
from fleetfit.compress.tasks import Build, Compress, CompressFacts, Recovered, Score, Step, Tensor, Trainable
from fleetfit.core.digests import sha256_file, short
from fleetfit.core.errors import FleetfitError, InternalError, InvalidModel, InvalidRecipe, UsageError
from fleetfit.core.statistics import metric_value, paired_drop, score_samples

Report = Callable[[float, str], None]
_EVALUATION_BATCH: Final = 256
# Shares of the whole that the parts take, for the progress bar.
_LOADED, _PASSED, _BUILT = 0.1, 0.85, 0.98


@dataclass
class Sources:
    """Where the model and its splits lie; splits may be None. `recovered` goes with the work's `recovered`."""

    model: Path
    train: Path | None
    validation: Path | None
    recovered: Path | None = None


def run_recipe(work: Compress, sources: Sources, out: Path, report: Report) -> CompressFacts:
    """Carry a recipe out and write `build.onnx` (and `variant.pt2` for layered models) to `out`.

    Deterministic for the same work, sources, versions, instruction set and number of threads. Raises InvalidRecipe and
    InvalidModel with a sentence for the report.
    """
    device = choose_device(work.compute)
    # What was chosen once holds for all passes.
    work = work.model_copy(update={"compute": device.type})
    with _reproducible(work, device):
        recipe = Recipe.from_yaml(work.recipe) if work.recipe.strip() else Recipe.original()
        exporters = _exporters(recipe, work)
        train = read_split(sources.train) if sources.train is not None else None
        validation = read_split(sources.validation) if sources.validation is not None else None
        left = recipe if work.recovered is None else recipe.for_builds()
        if left.needs_data() and train is None:
            raise InvalidRecipe(f"the recipe '{recipe.name}' needs data; name a dataset with --data", field="data")
        if work.format == "onnx":
            return _from_onnx(recipe, work, sources.model, train, validation, out, report)
        return _from_layers(recipe, work, exporters, sources, train, validation, out, report)


@contextmanager
def _reproducible(work: Compress, device: torch.device) -> Iterator[None]:
    """Seed, threads and deterministic kernels, and afterwards what the caller had: this may run in a user's process."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    with torch.random.fork_rng(devices=generators(device)):
        torch.manual_seed(work.seed)
        torch.set_num_threads(work.threads)
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(strict, warn_only=warn_only)
            torch.set_num_threads(threads)


def _exporters(recipe: Recipe, work: Compress) -> list[Exporter]:
    """Those that are asked for besides ONNX; refused before anything is computed where they cannot work."""
    others = [name for name in dict.fromkeys(work.runtimes) if name != DEFAULT]
    if not work.runtimes:
        raise UsageError("no runtime is named; leave --runtime out for ONNX Runtime", field="runtime")
    if others and work.format == "onnx":
        raise InvalidModel(
            f"builds for {others[0]} are proven against PyTorch, which cannot run an ONNX file; give the model as a .pt2"
        )
    found = [exporter(name) for name in others]
    last = recipe.steps[-1] if recipe.steps and recipe.steps[-1].must_be_last else None
    for one in found:
        if last is not None and last.numbers() not in one.quantized:
            raise InvalidRecipe(
                f"the recipe '{recipe.name}' ends with {last.pass_name()}, whose {last.numbers()} builds are not for "
                f"{one.title}; leave the step out for {one.runtime}",
                field="runtime",
            )
    return found


def _from_layers(
    recipe: Recipe,
    work: Compress,
    exporters: list[Exporter],
    sources: Sources,
    train: Arrays | None,
    validation: Arrays | None,
    out: Path,
    report: Report,
) -> CompressFacts:
    report(0.0, "loading the model")
    began = time.monotonic()
    model = load_pt2(sources.model)
    teacher = model.clone() if recipe.steps else model
    judge = _Judge(work.metric, validation)
    lineage = [_line("original", {}, model, judge, time.monotonic() - began, PassReport(notes=list(model.notes)))]
    made = 0
    if work.recovered is not None:
        if sources.recovered is None:
            raise InternalError("the network that was trained did not come with its task; please report it")
        model, made = load_pt2(sources.recovered), len(recipe.steps) - len(recipe.for_builds().steps)
        lineage += [*work.recovered.lineage, _recovered_line(work.recovered, model, judge)]
    context = _context(work, teacher, train, validation)
    advice = recipe.advice()
    reach = _Reach(work, judge)
    for number, step in enumerate(recipe.steps[made:], made):
        reach.check(recipe.steps, number, model.weight_bytes(), lambda: export_onnx(model))
        low = _LOADED + (_PASSED - _LOADED) * number / len(recipe.steps)
        share = (_PASSED - _LOADED) / len(recipe.steps)
        name = step.pass_name()
        context.report = lambda part, activity, low=low, share=share: report(low + share * part, activity)  # type: ignore[misc]
        context.report(0.0, name.replace("_", " "))
        began = time.monotonic()
        done = _apply(step, model, context)
        done.notes += advice.get(number, [])
        parameters = {**step.parameters(), **done.parameters}
        lineage.append(_line(name, parameters, model, judge, time.monotonic() - began, done))
    if not (recipe.steps and recipe.steps[-1].must_be_last):
        reach.check(recipe.steps, len(recipe.steps), model.weight_bytes(), lambda: export_onnx(model))
    report(_PASSED, "building for the runtime")
    content = export_onnx(model)
    difference = prove_equal(model, content, validation)
    context.report = lambda part, activity: report(_PASSED + (_BUILT - _PASSED) * part, activity)
    quantized = _quantized(recipe, content, context)
    if quantized is not None:
        content = quantized.content
        difference = largest_difference(model, content, validation)
        score = judge.score_onnx(content, _only_batch(model.inputs))
        notes = [*lineage[-1].notes, *quantized.notes]
        lineage[-1] = lineage[-1].model_copy(update={"weight_bytes": len(content), "metric": score, "notes": notes})
    kept = out / "variant.pt2"
    model.save_pt2(kept)
    builds, missed = [], []
    if DEFAULT in work.runtimes:
        built = _write_build(content, quantized, model.inputs, model.outputs, difference, out)
        if work.evidence:
            report(_BUILT, "computing what the build gives here")
            samples = first_samples(model.inputs, validation, None if model.dynamic_batch else model.sample_batch())
            known = judge.known(built=quantized is not None, original=not recipe.steps and work.recovered is None)
            session, version = OnnxSession(content), environment(1)["onnxruntime"]
            built = with_evidence(built, session, known, samples, layered_outputs(model), version, out)
        builds.append(built)
    for one in exporters:
        report(_BUILT, f"building for {one.title}")
        try:
            builds.append(build_for(one, model, content, validation, out))
        except InvalidModel as error:
            if len(exporters) == 1 and not builds:
                raise
            missed.append(f"there is no build for {one.title}: {error.message}")
    if not builds:
        raise InvalidModel("; ".join(missed))
    return CompressFacts(
        lineage=lineage,
        builds=builds,
        notes=missed,
        trainable=Trainable(file=kept.name, size_bytes=kept.stat().st_size, sha256=sha256_file(kept)),
        parameters=lineage[-1].parameters,
        macs=lineage[-1].macs,
        environment=environment(work.threads, work.compute),
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

    batch = _only_batch(facts.inputs)

    def line(name: str, parameters: dict[str, Any], size: int, seconds: float, notes: list[str]) -> Step:
        return Step(
            pass_name=name,
            parameters_of_pass=parameters,
            parameters=facts.parameters,
            macs=facts.macs,
            weight_bytes=size,
            metric=judge.score_onnx(content, batch),
            seconds=seconds,
            notes=notes,
        )

    lineage = [line("original", {}, len(content), 0.0, list(facts.notes))]
    _Reach(work, judge).check(recipe.steps, 0, len(content), lambda: content)
    context = _context(work, None, train, validation)
    began = time.monotonic()
    report(_LOADED, "quantizing")
    context.report = lambda part, activity: report(_LOADED + (_BUILT - _LOADED) * part, activity)
    quantized = _quantized(recipe, content, context)
    difference = None
    if quantized is not None:
        if validation is not None:
            difference = _distance(content, quantized.content, validation.head(batch or _EVALUATION_BATCH), batch)
        content = quantized.content
        step = recipe.steps[-1]
        seconds = time.monotonic() - began
        lineage.append(line(step.pass_name(), step.parameters(), len(content), seconds, quantized.notes))
    build = _write_build(content, quantized, facts.inputs, facts.outputs, difference, out)
    if work.evidence:
        report(_BUILT, "computing what the build gives here")
        samples = first_samples(facts.inputs, validation, batch)
        original = None if quantized is None else OnnxSession(path.read_bytes())
        version = environment(1)["onnxruntime"]
        known = judge.known(built=True, original=quantized is None)
        float_model = None if original is None else _fed(original)
        build = with_evidence(build, OnnxSession(content), known, samples, float_model, version, out)
    return CompressFacts(
        lineage=lineage,
        builds=[build],
        parameters=facts.parameters,
        macs=facts.macs,
        environment=environment(work.threads, work.compute),
    )


def _fed(session: OnnxSession) -> Callable[[Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]]:
    return lambda inputs: session.run({name: inputs[name] for name in session.input_names})


def _only_batch(inputs: list[Tensor]) -> int | None:
    first = inputs[0].shape[0]
    return None if first < 0 else first


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
        compute=work.compute,
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
    """Computes the metric on the validation split, where there is one with what the metric needs.

    What is scored first is the original: metrics that need no targets compare with it.
    """

    def __init__(self, metric: str, validation: Arrays | None) -> None:
        self._metric = metric
        self._data = judged_here(metric, validation)
        self._original: dict[str, Any] | None = None
        self._newest: dict[str, Any] | None = None
        # The newest of layers, not of a build.
        self._floats: dict[str, Any] | None = None
        self._first: NDArray[Any] | None = None
        self._last: NDArray[Any] | None = None

    def known(self, *, built: bool, original: bool) -> Judged:
        """What a build's evidence can do with: `built` where what was scored last is the build, not the layers.

        An `original` is compared with itself, as devices do it.
        """
        outputs = self._newest if built else None
        reference = outputs if original and outputs is not None else self._original
        return Judged(self._metric, self._data, self._floats or self._original, reference, outputs)

    def loss(self) -> Loss | None:
        """Of what was scored last against what was scored first."""
        if self._first is None or self._last is None:
            return None
        return Loss(
            self._metric,
            paired_drop(self._metric, self._last, self._first),
            metric_value(self._metric, self._first).value,
        )

    def score(self, model: LayeredModel) -> Score | None:
        """With PyTorch, in evaluation mode."""
        if self._data is None:
            return None
        outputs = outputs_over(model, self._data, _EVALUATION_BATCH)
        self._floats = {name: value.numpy() for name, value in outputs.items()}
        return self._summarize(self._floats)

    def score_onnx(self, content: bytes, batch: int | None) -> Score | None:
        """With ONNX Runtime; `batch` is the only size that the file takes, None where it takes any."""
        if self._data is None:
            return None
        return self._summarize(predict_onnx(content, self._data, batch))

    def _summarize(self, outputs: dict[str, Any]) -> Score:
        assert self._data is not None  # noqa: S101 - the callers looked
        self._newest, self._original = outputs, outputs if self._original is None else self._original
        self._last = score_samples(self._metric, outputs, self._data.targets, self._original)
        self._first = self._last if self._first is None else self._first
        figure = metric_value(self._metric, self._last)
        return Score(
            name=self._metric,
            value=figure.value,
            ci95=(figure.low, figure.high),
            n=len(self._data),
            split="validation",
        )


class _Reach:
    """Stops a recipe once none of the work's limits can be met any more; see `fleetfit.compress.reach`."""

    def __init__(self, work: Compress, judge: _Judge) -> None:
        # Another runtime's build of the same model may be smaller than ONNX Runtime's.
        alone = work.runtimes == [DEFAULT]
        without = {"max_size_bytes": None}
        self._limits = work.limits if alone else [one.model_copy(update=without) for one in work.limits]
        self._judge = judge

    def check(self, steps: Sequence[Pass], number: int, weight_bytes: int, build: Callable[[], bytes]) -> None:
        """Raises OutOfReach before the step of that number, from 0, would be a waste."""
        if self._limits and steps:
            done = f"after {steps[number - 1].pass_name()}" if number else f"before {steps[0].pass_name()}"
            check_reach(self._limits, done, steps[number:], self._judge.loss(), weight_bytes, build)


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


def _recovered_line(recovered: Recovered, model: LayeredModel, judge: _Judge) -> Step:
    parameters = {"variant": recovered.variant, "file": recovered.file}
    note = (
        f"trained by its user, outside fleetfit: the file {short(recovered.file)} of the network of the variant "
        f"{short(recovered.variant)}"
    )
    return _line("recovered", parameters, model, judge, 0.0, PassReport(notes=[note]))


def _distance(one: bytes, other: bytes, data: Arrays, batch: int | None) -> float:
    """The largest absolute difference between two ONNX files on the same inputs."""
    a, b = predict_onnx(one, data, batch), predict_onnx(other, data, batch)
    return max(float(np.abs(a[name].astype(np.float64) - b[name]).max(initial=0.0)) for name in a)


def _apply(step: Pass, model: LayeredModel, context: PassContext) -> PassReport:
    """One pass, and what its contract promises checked: finite weights, the same outputs by name, shape and dtype."""
    name = step.pass_name()
    before, broken = _signature(model), _not_finite(model)
    try:
        report = step.apply(model, context)
        after = _signature(model)
    except (FleetfitError, MemoryError):
        raise
    except Exception as error:
        raise InternalError(
            f"the pass {name} failed on this model ({type(error).__name__}); leave it out of the recipe, and please report it",
            private=traceback.format_exc()[-8000:],
        ) from error
    if after != before:
        raise InternalError(
            f"the pass {name} changed what the model gives ({before} became {after}); leave it out of the recipe, and please "
            "report it"
        )
    worse = sorted(_not_finite(model) - broken)
    if worse:
        raise InvalidRecipe(
            f"after {name} the weights {worse[0]} are no longer finite; use a smaller learning rate or ratio"
        )
    return report


def _signature(model: LayeredModel) -> dict[str, str]:
    model.module.eval()
    with torch.no_grad():
        outputs = model.call(model.sample_inputs)
    return {name: f"{value.dtype} {list(value.shape)}".removeprefix("torch.") for name, value in outputs.items()}


def _not_finite(model: LayeredModel) -> set[str]:
    # A mask of -inf that came with the model is not a pass's doing.
    tensors = (*model.module.named_parameters(), *model.module.named_buffers())
    return {key for key, value in tensors if not bool(torch.isfinite(value).all())}


def environment(threads: int, compute: str = "cpu") -> dict[str, str]:
    """The numeric environment that results depend on: versions, instruction set, threads, where training passes compute."""
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
        "compute": described(choose_device(compute)),
    }
