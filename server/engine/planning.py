"""From a request to candidates: which variants are made, and where each is measured. Pure: no database, no clock."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fleetfit.compress.export.registry import DEFAULT
from fleetfit.compress.passes.base import Stage
from fleetfit.compress.recipe import Recipe, control_for
from fleetfit.compress.tasks import CudaDevice, DataFacts, ModelFacts
from fleetfit.core.errors import InvalidData, InvalidInput, InvalidRecipe
from fleetfit.core.metrics import USER, is_user_metric, metric_info, with_boxes
from fleetfit.device_profiles.matching import GENERIC
from fleetfit.device_profiles.schema import USUAL_ROUND_TO
from fleetfit.proto.v1 import jobs_pb2, snapshot_pb2
from fleetfit.proto.versions import MOST_OUTPUT_BYTES, PAIRS_RUNTIMES, REFUSES, RETURNS_OUTPUTS
from fleetfit.server.engine.keys import variant_key
from fleetfit.server.engine.targets import Target, targets
from fleetfit.server.report.facts import LimitFacts

ONNX: Final = "onnx"
# The splits that compression reads; the test split is nobody's before the report.
MADE_FROM: Final[tuple[str, ...]] = ("train", "validation")
ALL_RUNTIMES: Final = "all"
_FLOAT_BYTES: Final = 4
# A device is not warm earlier, and a job of many candidates should end.
_SUSTAINED_MS: Final = (10_000, 30 * 60_000)
# First guesses, replaced by what earlier work really took: seconds to load, export and check a model; bytes of a graph.
_FIXED_COMPRESS_S: Final = 8.0
_MACS_PER_S: Final = 2e10
_GRAPH_BYTES: Final = 8_000
OBJECTIVES: Final = {
    jobs_pb2.OBJECTIVE_UNSPECIFIED: "latency",
    jobs_pb2.OBJECTIVE_LATENCY: "latency",
    jobs_pb2.OBJECTIVE_SIZE: "size",
    jobs_pb2.OBJECTIVE_MEMORY: "memory",
    jobs_pb2.OBJECTIVE_ENERGY: "energy",
}


@dataclass(frozen=True)
class PlannedModel:
    """The model to plan with."""

    id: str
    name: str
    sha256: str
    format: str
    size_bytes: int
    facts: ModelFacts
    parts_bytes: int = 0
    """Of the parts that are never compressed, which every device fetches beside the builds."""


@dataclass(frozen=True)
class PlannedData:
    """The dataset to plan with; `splits` are digests by name."""

    id: str
    name: str
    facts: DataFacts
    splits: dict[str, str]
    sizes: dict[str, int]


@dataclass(frozen=True)
class PlannedDevice:
    """A device to plan for, with what its profile says.

    `recipes` are the names of its default set (empty: all there are), `round_to` is the multiple in which it likes widths,
    `runtimes` are those that builds are made for by default.
    """

    id: str
    name: str
    snapshot: snapshot_pb2.DeviceSnapshot
    recipes: frozenset[str] = frozenset()
    profile: str = GENERIC
    round_to: int = USUAL_ROUND_TO
    capabilities: frozenset[str] = frozenset()
    runtimes: tuple[str, ...] = (DEFAULT,)
    set_aside: str = ""
    """Why it gets no work until a health check passes or a person clears it; empty where it gets work."""

    def takes(self, recipe: Recipe) -> bool:
        """Whether a recipe of the default set is meant for this kind of device."""
        return not self.recipes or recipe.name in self.recipes

    @property
    def available(self) -> list[str]:
        """The runtimes that its agent can use."""
        return [runtime.name for runtime in self.snapshot.runtimes if runtime.available]


@dataclass(frozen=True)
class PlannedRecovered:
    """A variant's network that its user trained, by its key, with the recipe that made the variant, under a name of its own."""

    key: str
    recipe: Recipe

    @property
    def role(self) -> str:
        """A network of which nothing was taken away is the original, trained: a control, as far as its user trained alike."""
        return "control" if all(step.stage is Stage.RECOVER for step in self.recipe.steps) else "recipe"


@dataclass(frozen=True)
class PlannedCandidate:
    """One variant in one runtime on one device under one condition. `recipe` is fitted to the device: it says every width.

    `recovered` is the key of the network that its user trained, empty where all of the recipe is carried out.
    """

    device: PlannedDevice
    recipe: Recipe
    role: str
    variant_key: str
    runtime: str
    threads: int
    batch: int
    skip_reason: str = ""
    recovered: str = ""

    @property
    def to_do(self) -> Recipe:
        """What is left of the recipe to be carried out."""
        return self.recipe.for_builds() if self.recovered else self.recipe


def plan_candidates(
    spec: jobs_pb2.JobSpec,
    model: PlannedModel,
    data: PlannedData | None,
    devices: Sequence[PlannedDevice],
    recipes: Sequence[Recipe],
    *,
    compress_threads: int,
    cuda: CudaDevice | None = None,
    recovered: Sequence[PlannedRecovered] = (),
) -> list[PlannedCandidate]:
    """All candidates, the original first, in the order they are made. Recipes that make the same variant count once.

    Each recipe is fitted to each device, so it becomes as many variants as there are vector widths among the devices. `cuda` is
    what the server trains on, None for its processor.

    Raises InvalidInput (or InvalidRecipe, InvalidData) with a sentence where the request cannot be met.
    """
    if not devices:
        raise InvalidInput("no device is named; add --on DEVICE, or --on all", field="devices")
    if data is not None:
        _check_fit(model, data)
    metric = judged_by(spec, data)
    _check_output(metric, model)
    _check_refuses(spec, devices)
    returns_outputs = is_user_metric(metric)
    if returns_outputs and data is not None:
        _check_returns(metric, model, data, devices)
    wanted = _wishes(spec, model, data, recipes, recovered)
    splits = {} if data is None else {name: data.splits[name] for name in MADE_FROM if name in data.splits}
    task = data.facts.task if data is not None else ""
    found: list[PlannedCandidate] = []
    for device in devices:
        runtimes = runtimes_for(spec, model, device, targets())
        reason = "" if set(runtimes) & set(device.available) else _no_runtime(device)
        for threads, batch in _conditions(spec, model, device):
            seen = set()
            for runtime, wish in _in_runtimes(device, runtimes, wanted):
                # A network that was trained has its widths.
                recipe = wish.recipe if wish.recovered else wish.recipe.fitted(device.round_to)
                key = variant_key(
                    model.sha256,
                    splits,
                    recipe,
                    metric="" if returns_outputs else metric,
                    task=task,
                    seed=spec.seed,
                    threads=compress_threads,
                    cuda=cuda,
                    recovered=wish.recovered,
                )
                if (key, runtime) not in seen:
                    seen.add((key, runtime))
                    found.append(
                        PlannedCandidate(
                            device, recipe, wish.role, key, runtime, threads, batch, reason, wish.recovered
                        )
                    )
        _check_recipes(spec, device, runtimes, [*recipes, *(one.recipe for one in recovered)])
    return found


def _in_runtimes(
    device: PlannedDevice, runtimes: Sequence[str], wanted: Sequence[_Wish]
) -> Iterator[tuple[str, _Wish]]:
    """Runtime and variant of what a device measures."""
    for runtime, wish in itertools.product(runtimes, wanted):
        meant = not wish.optional or device.takes(wish.recipe)
        # The control stands for what training gives, which no runtime changes.
        repeats = wish.role == "control" and runtime != runtimes[0]
        if meant and not repeats and can_have(runtime, wish.recipe):
            yield runtime, wish


def _conditions(spec: jobs_pb2.JobSpec, model: PlannedModel, device: PlannedDevice) -> list[tuple[int, int]]:
    """Threads and batch sizes to measure with. Raises InvalidInput for what the device or the model cannot."""
    usable = max(device.snapshot.processor.usable_cores, 1)
    found = []
    for threads in dict.fromkeys(spec.threads) or [device.snapshot.threads or usable]:
        if not 1 <= threads <= usable:
            raise InvalidInput(
                f"{device.name} has {usable} usable cores, so it cannot be measured with {threads} threads"
            )
        for batch in dict.fromkeys(spec.batches) or [fixed_batch(model.facts) or 1]:
            _check_batch(model, batch)
            found.append((threads, batch))
    return found


def can_have(runtime: str, recipe: Recipe) -> bool:
    """Whether a recipe's builds can be made for a runtime: what quantizes makes ONNX files, which some take in their dialect."""
    if runtime == DEFAULT or not (recipe.steps and recipe.steps[-1].must_be_last):
        return True
    target = targets().get(runtime)
    return target is not None and recipe.steps[-1].numbers() in target.quantized


def runtimes_for(
    spec: jobs_pb2.JobSpec, model: PlannedModel, device: PlannedDevice, targets: Mapping[str, Target]
) -> list[str]:
    """The runtimes that a device is measured in, the first being what the others are compared with.

    Raises InvalidInput for a runtime that the job names and the device, the server or the model does not allow.
    """
    asked = list(dict.fromkeys(spec.runtimes))
    named = [name for name in asked if name != ALL_RUNTIMES]
    for name in named:
        _check_runtime(name, model, device, targets)
    makeable = [name for name, target in targets.items() if not target.missing]
    if model.format == ONNX:
        makeable = [DEFAULT]
    possible = [name for name in makeable if name in device.available]
    if ALL_RUNTIMES in asked:
        chosen = list(dict.fromkeys([*named, *possible]))
    else:
        chosen = named or [name for name in device.runtimes if name in possible]
    if len(chosen) > 1 and PAIRS_RUNTIMES not in device.capabilities:
        if asked:
            raise InvalidInput(
                f"the agent of {device.name} cannot compare {' and '.join(chosen)} with each other; update fleetfit there, or "
                "name one runtime",
                field="runtimes",
            )
        chosen = chosen[:1]
    return chosen or [DEFAULT]


def _check_runtime(name: str, model: PlannedModel, device: PlannedDevice, targets: Mapping[str, Target]) -> None:
    if name not in targets:
        raise InvalidInput(
            f"no builds can be made for '{name}'; choose among {', '.join(targets)}, or {ALL_RUNTIMES}",
            field="runtimes",
        )
    if targets[name].missing:
        raise InvalidInput(f"the server makes no builds for {name}: {targets[name].missing}", field="runtimes")
    if name != DEFAULT and model.format == ONNX:
        raise InvalidInput(
            f"builds for {name} are proven against PyTorch, which cannot run an ONNX file; push the model as a .pt2, or leave "
            f"--runtime {name} out",
            field="runtimes",
        )
    if name not in device.available:
        why = next((r.reason for r in device.snapshot.runtimes if r.name == name), "its agent does not know it")
        raise InvalidInput(
            f"{device.name} cannot use {name} ({why}); put that right there and start its agent again, or leave "
            f"--runtime {name} out",
            field="runtimes",
        )


def _check_recipes(
    spec: jobs_pb2.JobSpec, device: PlannedDevice, runtimes: Sequence[str], recipes: Sequence[Recipe]
) -> None:
    for recipe in recipes if spec.recipes else ():
        if not any(can_have(runtime, recipe) for runtime in runtimes):
            raise InvalidRecipe(
                f"the recipe '{recipe.name}' ends with {recipe.steps[-1].pass_name()}, which builds for {DEFAULT} alone, and "
                f"{device.name} is to be measured in {' and '.join(runtimes)}; add --runtime {DEFAULT}, or leave the recipe out",
                field="recipes",
            )


def runtime_notes(candidates: Sequence[PlannedCandidate]) -> list[str]:
    """Which recipes are not built for every runtime of their device, in a sentence; none where all are."""
    runtimes: dict[str, set[str]] = {}
    for c in candidates:
        runtimes.setdefault(c.device.name, set()).add(c.runtime)
    found: dict[tuple[str, ...], dict[str, None]] = {}
    for c in candidates:
        there = sorted(runtimes[c.device.name], key=lambda name: name != DEFAULT)
        some = tuple(name for name in there if can_have(name, c.recipe))
        if c.role == "recipe" and len(some) < len(there):
            found.setdefault(some, {})[c.recipe.name] = None
    return [
        f"{', '.join(recipes)}: built for {' and '.join(some)} alone, because quantization makes ONNX files"
        for some, recipes in found.items()
    ]


def emulation_notes(spec: jobs_pb2.JobSpec, devices: Sequence[PlannedDevice]) -> list[str]:
    """That nothing will be chosen for devices that are emulated, in a sentence; none where that is accepted."""
    played = [device.name for device in devices if device.snapshot.emulated]
    if not played or spec.accept_emulated or spec.kind == jobs_pb2.JOB_KIND_BENCH:
        return []
    return [f"{', '.join(played)}: emulated, so nothing will be chosen there; --accept-emulated chooses all the same"]


def width_notes(devices: Sequence[PlannedDevice], recipes: Sequence[Recipe]) -> list[str]:
    """Which multiple widths are rounded up to for whom, in a sentence; none where every recipe says it itself."""
    general = [recipe.name for recipe in recipes if recipe.fitted(USUAL_ROUND_TO) != recipe]
    if not general:
        return []
    by_width: dict[int, list[str]] = {}
    for device in devices:
        by_width.setdefault(device.round_to, []).append(f"{device.name} ({device.profile})")
    widths = [f"{width} for {', '.join(names)}" for width, names in sorted(by_width.items())]
    return [
        f"{', '.join(general)}: widths are rounded up to multiples of {' and of '.join(widths)}; "
        "'round_to' in a recipe overrides this"
    ]


def judged_by(spec: jobs_pb2.JobSpec, data: PlannedData | None) -> str:
    """The metric of a job; empty where nothing can be judged."""
    name = spec.metric or (data.facts.metric if data is not None else "")
    if name.startswith(f"{USER}:") and "," in name:
        raise InvalidInput(f"'{name}' is no metric's name; write user:NAME", field="metric")
    if not name:
        return ""
    info = metric_info(name)
    tasks = info.tasks
    if data is None or (tasks and data.facts.targets is None):
        raise InvalidInput(
            f"'{name}' needs a dataset{' with targets' if tasks else ''}; name one with --data"
            + ("" if data is None else ", or judge by agreement, cosine or kl"),
            field="metric",
        )
    if tasks and data.facts.task not in tasks:
        raise InvalidInput(
            f"'{name}' judges a {' or '.join(tasks)}, and {data.name} is a {data.facts.task}; "
            f"leave --metric out to use {data.facts.metric}",
            field="metric",
        )
    if info.kind == "map":
        declared = metric_info(data.facts.metric).boxes
        if "@" in name and info.boxes != declared:
            raise InvalidInput(
                f"'{name}' reads boxes as {info.boxes}, and those of {data.name} were declared as {declared}; write "
                f"{info.base}@{declared}, or push the data again with --boxes {info.boxes}",
                field="metric",
            )
        name = with_boxes(name, declared)
    return name


def _check_refuses(spec: jobs_pb2.JobSpec, devices: Sequence[PlannedDevice]) -> None:
    """Raise InvalidInput where a device would be measured though the job asks to refuse."""
    old = [device.name for device in devices if REFUSES not in device.capabilities]
    if spec.refuse_unfit and old:
        raise InvalidInput(
            f"the agent of {', '.join(old)} cannot refuse a device that is not quiet; update fleetfit there, or leave "
            "--if-not-quiet out",
            field="if_not_quiet",
        )


def _check_returns(metric: str, model: PlannedModel, data: PlannedData, devices: Sequence[PlannedDevice]) -> None:
    """Raise InvalidInput where outputs cannot be returned for the user's metric."""
    old = [device.name for device in devices if RETURNS_OUTPUTS not in device.capabilities]
    if old:
        raise InvalidInput(
            f"the agent of {', '.join(old)} cannot return outputs, which {metric} is computed from; update fleetfit there",
            field="devices",
        )
    shapes = [tensor.shape[1:] for tensor in model.facts.outputs]
    if all(size > 0 for shape in shapes for size in shape):
        row = sum(math.prod(shape) * _FLOAT_BYTES for shape in shapes)
        most = max((split.count for split in data.facts.splits if split.name in ("validation", "test")), default=0)
        if row * most > MOST_OUTPUT_BYTES:
            raise InvalidInput(
                f"the outputs of {model.name} for {most} samples are {row * most / 1e6:.0f} MB, and at most "
                f"{MOST_OUTPUT_BYTES / 1e6:.0f} MB are returned for {metric}; push fewer samples, or export a model that "
                "returns less",
                field="metric",
            )


def _check_output(metric: str, model: PlannedModel) -> None:
    judged, names = metric_info(metric).outputs if metric else (), [tensor.name for tensor in model.facts.outputs]
    if not set(judged) <= set(names):
        raise InvalidInput(
            f"'{metric}' names an output that {model.name} has not; its outputs are {', '.join(names)}", field="metric"
        )


def check_wishes(spec: jobs_pb2.JobSpec, metric: str) -> None:
    """Raise InvalidInput for an objective, a limit or a seed that no job could be carried out with.

    They are read again only when everything is measured, and a job that fails there cannot end.
    """
    if spec.objective not in OBJECTIVES:
        raise InvalidInput(
            "what to minimize is unknown to this server; update it, or choose latency, size or memory",
            field="objective",
        )
    if spec.seed < 0:
        raise InvalidInput(f"the seed {spec.seed} is negative; give 0 or more", field="seed")
    if spec.sustained_ms and not _SUSTAINED_MS[0] <= spec.sustained_ms <= _SUSTAINED_MS[1]:
        raise InvalidInput(
            f"{spec.sustained_ms / 1000:g} s without a pause cannot be measured; give --sustained from 10s to 30m",
            field="sustained",
        )
    limits_of(spec, metric)


def limits_of(spec: jobs_pb2.JobSpec, metric: str) -> LimitFacts:
    """The job's limits, with the metric's default for the loss where the request names none. Raises InvalidInput."""
    given = spec.limits
    points = given.max_drop_points if given.HasField("max_drop_points") else None
    percent = given.max_drop_percent if given.HasField("max_drop_percent") else None
    for value in (points, percent):
        # Written so that what is not a number is refused too.
        if value is not None and not 0 <= value < math.inf:
            raise InvalidInput("the largest loss cannot be negative; give --max-drop 0 to allow none", field="max_drop")
    for name in ("p95_ms", "p95_end_to_end_ms", "max_peak_memory_bytes", "max_size_bytes"):
        if given.HasField(name) and not 0 < getattr(given, name) < math.inf:
            raise InvalidInput(f"{name} {getattr(given, name):g} is no limit; give a number above 0", field=name)
    if points is None and percent is None and metric and spec.kind != jobs_pb2.JOB_KIND_BENCH:
        default = metric_info(metric).default_drop
        if default.endswith("%"):
            percent = float(default[:-1])
        else:
            points = float(default)
    return LimitFacts(
        max_drop_points=points,
        max_drop_percent=percent,
        p95_ms=given.p95_ms if given.HasField("p95_ms") else None,
        p95_end_to_end_ms=given.p95_end_to_end_ms if given.HasField("p95_end_to_end_ms") else None,
        max_peak_memory_bytes=given.max_peak_memory_bytes if given.HasField("max_peak_memory_bytes") else None,
        max_size_bytes=given.max_size_bytes if given.HasField("max_size_bytes") else None,
    )


def fixed_batch(facts: ModelFacts) -> int | None:
    """The only batch size the model takes, or None where any will do."""
    sizes = [tensor.shape[0] for tensor in facts.inputs if tensor.shape]
    return sizes[0] if sizes and sizes[0] != -1 else None


def expected_size_bytes(model: PlannedModel, recipe: Recipe) -> int:
    """A first guess of a build's size: what quantization does is known, what pruning leaves is not."""
    weights = model.facts.parameters * _FLOAT_BYTES
    if recipe.steps and recipe.steps[-1].must_be_last:
        weights //= _FLOAT_BYTES
    return weights + _GRAPH_BYTES


def expected_compress_s(model: PlannedModel, data: PlannedData | None, recipe: Recipe) -> float:
    """A first guess of a recipe's time; three passes' worth of arithmetic for each sample trained on, and the teacher."""
    trained = 4 * recipe.training_effort(_trained_on(data)) * model.facts.macs / _MACS_PER_S
    return _FIXED_COMPRESS_S + recipe.training_seconds() + trained


def _trained_on(data: PlannedData | None) -> int:
    """Samples of the training split."""
    return next((s.count for s in data.facts.splits if s.name == "train"), 0) if data is not None else 0


@dataclass(frozen=True)
class _Wish:
    """One variant of a job before it is fitted to a device. `optional`: only where the device's profile names its recipe."""

    role: str
    recipe: Recipe
    optional: bool = False
    recovered: str = ""


def _wishes(
    spec: jobs_pb2.JobSpec,
    model: PlannedModel,
    data: PlannedData | None,
    recipes: Sequence[Recipe],
    recovered: Sequence[PlannedRecovered],
) -> list[_Wish]:
    wanted = [_Wish("original", Recipe.original())]
    if spec.kind == jobs_pb2.JOB_KIND_BENCH:
        return wanted
    for recipe in recipes:
        if recipe.needs_trainable() and model.format == ONNX:
            raise InvalidRecipe(
                f"the recipe '{recipe.name}' changes layers, and {model.name} is an ONNX file, which has none that can be "
                "trained; push the model as a .pt2, or use recipes that only quantize",
                field="recipes",
            )
    for recipe in (*recipes, *(one.recipe.for_builds() for one in recovered)):
        if recipe.needs_data() and data is None:
            raise InvalidInput(f"the recipe '{recipe.name}' needs data; name a dataset with --data", field="dataset")
    # What fleetfit trained a network with, before its user did, the control is to get too.
    control = control_for([*recipes, *(one.recipe for one in recovered)], _trained_on(data))
    if control is not None:
        wanted.append(_Wish("control", control))
    wanted += [_Wish(one.role, one.recipe, recovered=one.key) for one in recovered if one.role == "control"]
    wanted += [_Wish("recipe", recipe, optional=not spec.recipes) for recipe in recipes]
    return wanted + [_Wish(one.role, one.recipe, recovered=one.key) for one in recovered if one.role == "recipe"]


def _check_fit(model: PlannedModel, data: PlannedData) -> None:
    have = {tensor.name: tensor for tensor in data.facts.inputs}
    for wanted in model.facts.inputs:
        got = have.get(wanted.name)
        if got is None:
            raise InvalidData(
                f"{data.name} has no array '{wanted.name}', which {model.name} takes; push data with "
                f"{', '.join(tensor.name for tensor in model.facts.inputs)}",
                field="dataset",
            )
        sizes = zip(got.shape[1:], wanted.shape[1:], strict=False)
        if len(got.shape) != len(wanted.shape) or any(a != b for a, b in sizes if b != -1):
            raise InvalidData(
                f"'{wanted.name}' of {data.name} has the shape {got.shape}, but {model.name} takes {wanted.shape}; "
                "push data of that shape",
                field="dataset",
            )
        if got.dtype != wanted.dtype:
            raise InvalidData(
                f"'{wanted.name}' of {data.name} is {got.dtype}, but {model.name} takes {wanted.dtype}; convert it",
                field="dataset",
            )


def _check_batch(model: PlannedModel, batch: int) -> None:
    fixed = fixed_batch(model.facts)
    if batch < 1:
        raise InvalidInput(f"a batch of {batch} cannot be measured; give --batch 1 or more", field="batches")
    if fixed is not None and batch != fixed:
        raise InvalidInput(
            f"{model.name} was exported for batches of {fixed} only; export it with a dynamic batch, or give --batch {fixed}",
            field="batches",
        )


def _no_runtime(device: PlannedDevice) -> str:
    reasons = "; ".join(f"{r.name}: {r.reason}" for r in device.snapshot.runtimes if not r.available)
    return f"{device.name} has no runtime that loads ONNX builds ({reasons or 'none is installed'})"
