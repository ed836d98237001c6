"""What a person writes, as the protocol has it: limits, durations, recipes, names."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fleetfit.core.durations import milliseconds
from fleetfit.core.errors import InvalidInput, UsageError
from fleetfit.proto.v1 import jobs_pb2

_NUMBER: Final = re.compile(r"\d+(?:\.\d+)?")
_OBJECTIVES: Final = {
    "latency": jobs_pb2.OBJECTIVE_LATENCY,
    "size": jobs_pb2.OBJECTIVE_SIZE,
    "memory": jobs_pb2.OBJECTIVE_MEMORY,
    "energy": jobs_pb2.OBJECTIVE_ENERGY,
}
_MB: Final = 1_000_000
# A recipe is a page of text; whatever is larger is another file.
_LARGEST_RECIPE: Final = 64 * 1024


@dataclass(frozen=True)
class Wanted:
    """A job as a person asks for it: `fleetfit compress` and `Client.compress` alike.

    `p95_ms` is of the model alone, `p95_end_to_end_ms` of the chain with its `pre` and `post` parts.

    `max_drop` is text: "1" is in points of the metric, "2%" relative to the original's value. Sizes are in megabytes of a
    million bytes. `recipes` are names or files; none is the default set. `recovered` are networks that were trained elsewhere,
    by the names that `push_recovered` gave. `budget` and `sustained` are text such as "30m". `if_not_quiet` is what becomes of a
    device that is not quiet, cool and in `power_mode` (else in what its profile declares): "mark" its figures, or "refuse".
    """

    model: str
    data: str = ""
    on: Sequence[str] = ()
    recipes: Sequence[str | Path] = ()
    max_drop: str = ""
    p95_ms: float | None = None
    p95_end_to_end_ms: float | None = None
    max_memory_mb: float | None = None
    max_size_mb: float | None = None
    threads: Sequence[int] = ()
    batch: Sequence[int] = ()
    minimize: str = "latency"
    budget: str = ""
    seed: int = 0
    metric: str = ""
    accept_emulated: bool = False
    scaling: bool = False
    profile: bool = False
    sustained: str = ""
    device_samples: int = 0
    if_not_quiet: str = "mark"
    power_mode: str = ""
    runtimes: Sequence[str] = ()
    recovered: Sequence[str] = ()
    bench: bool = field(default=False, kw_only=True)


def job_spec(wanted: Wanted) -> jobs_pb2.JobSpec:
    """The request for a job. Raises UsageError for what cannot be meant, InvalidInput for an unreadable recipe file."""
    devices = split_names(wanted.on)
    if not devices:
        raise UsageError(
            "no device is named; give a name, a label or 'all' (`fleetfit devices list` shows them)", field="on"
        )
    return jobs_pb2.JobSpec(
        kind=jobs_pb2.JOB_KIND_BENCH if wanted.bench else jobs_pb2.JOB_KIND_COMPRESS,
        model=wanted.model,
        dataset=wanted.data,
        devices=devices,
        recipes=[recipe_source(str(one)) for one in wanted.recipes],
        limits=limits_given(wanted),
        objective=objective(wanted.minimize),
        threads=[_count(n, "threads") for n in wanted.threads],
        batches=[_count(n, "batch") for n in wanted.batch],
        budget_ms=duration_ms(wanted.budget) if wanted.budget else 0,
        seed=wanted.seed,
        metric=wanted.metric,
        accept_emulated=wanted.accept_emulated,
        scaling=wanted.scaling,
        profile=wanted.profile,
        sustained_ms=duration_ms(wanted.sustained, "sustained") if wanted.sustained else 0,
        device_samples=_samples(wanted.device_samples),
        power_mode=wanted.power_mode.strip(),
        refuse_unfit=_refuses(wanted.if_not_quiet),
        runtimes=split_names(wanted.runtimes),
        recovered=split_names(wanted.recovered),
    )


def drop(text: str) -> tuple[float, bool]:
    """The largest loss of the metric: the number, and whether it is in percent of the original's value."""
    trimmed = text.strip()
    number = trimmed.removesuffix("%").strip()
    if _NUMBER.fullmatch(number) is None:
        raise UsageError(
            f"'{text}' is not a loss of the metric; write points such as 1, or percent of the original's value such as 2%",
            field="max-drop",
        )
    return float(number), trimmed.endswith("%")


def duration_ms(text: str, field: str = "budget") -> int:
    """Milliseconds of `90s`, `30m`, `1.5h` or `1d`; a bare number is seconds. Raises UsageError."""
    try:
        return milliseconds(text)
    except InvalidInput as error:
        raise UsageError(error.message, field=field) from error


def objective(text: str) -> jobs_pb2.Objective.ValueType:
    """What to minimize."""
    try:
        return _OBJECTIVES[text]
    except KeyError:
        raise UsageError(
            f"'{text}' cannot be minimized; choose one of {', '.join(_OBJECTIVES)}", field="minimize"
        ) from None


def _refuses(if_not_quiet: str) -> bool:
    if if_not_quiet not in ("mark", "refuse"):
        raise UsageError(f"'{if_not_quiet}' is not known; choose mark or refuse", field="if-not-quiet")
    return if_not_quiet == "refuse"


def recipe_source(name_or_file: str) -> jobs_pb2.RecipeSource:
    """A recipe of the server's by its name, or the text of a file; the server checks it."""
    path = Path(name_or_file)
    looks_like_file = path.suffix in (".yaml", ".yml") or len(path.parts) > 1
    if not looks_like_file and not path.is_file():
        return jobs_pb2.RecipeSource(name=name_or_file)
    return jobs_pb2.RecipeSource(yaml=read_recipe(path))


def read_recipe(path: Path) -> str:
    """The text of a recipe file. Raises InvalidInput."""
    try:
        if path.stat().st_size > _LARGEST_RECIPE:
            raise InvalidInput(f"{path} is too large for a recipe; name the YAML file with the steps", field="recipe")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidInput(
            f"the recipe file {path} cannot be read ({error.strerror}); check the path, or name one of the server's recipes",
            field="recipe",
        ) from error
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path} is not text; a recipe is a YAML file", field="recipe") from error


def split_names(texts: Sequence[str]) -> list[str]:
    """Names that were given one by one or with commas between, each once and in order."""
    names = [name.strip() for text in texts for name in text.split(",")]
    return list(dict.fromkeys(name for name in names if name))


def name_for(stem: str) -> str:
    """A name for a model or a dataset, made from its file's: letters, digits, `_`, `.` and `-`, at most 64."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", stem).strip("-._")[:64]
    if not name:
        raise InvalidInput(f"'{stem}' gives no name; choose one with --name", field="name")
    return name


def limits_given(wanted: Wanted) -> jobs_pb2.Limits:
    """What a build must hold, where anything was said of it. Raises UsageError for what is no limit."""
    limits = jobs_pb2.Limits()
    if wanted.max_drop:
        value, in_percent = drop(wanted.max_drop)
        if in_percent:
            limits.max_drop_percent = value
        else:
            limits.max_drop_points = value
    if wanted.p95_ms is not None:
        limits.p95_ms = _positive(wanted.p95_ms, "p95-ms")
    if wanted.p95_end_to_end_ms is not None:
        limits.p95_end_to_end_ms = _positive(wanted.p95_end_to_end_ms, "p95-end-to-end-ms")
    if wanted.max_memory_mb is not None:
        limits.max_peak_memory_bytes = round(_positive(wanted.max_memory_mb, "max-memory-mb") * _MB)
    if wanted.max_size_mb is not None:
        limits.max_size_bytes = round(_positive(wanted.max_size_mb, "max-size-mb") * _MB)
    return limits


def _positive(value: float, option: str) -> float:
    if not (math.isfinite(value) and 0 < value < 1e9):
        raise UsageError(f"--{option} {value:g} is no limit; give a number above 0", field=option)
    return value


def _samples(value: int) -> int:
    if value < 0:
        raise UsageError(f"--device-samples {value} is not possible; give a whole number", field="device-samples")
    return value


def _count(value: int, option: str) -> int:
    if not 1 <= value <= 1024:
        raise UsageError(f"--{option} {value} is not possible; give a whole number from 1 to 1024", field=option)
    return value
