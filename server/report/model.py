"""The report object, schema 1: what `fleetfit report --json` prints. Fields may be added, never renamed.

Any figure may be null; the notes beside it then say why.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from fleetfit.core.ties import EQUIVALENCE_MARGIN

Bounds = tuple[float | None, float | None]


class _Part(BaseModel):
    # Reports of newer servers must stay readable.
    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


class MetricReport(_Part):
    """What candidates are judged by; all empty where the job had no targets to judge by."""

    name: str
    unit: str
    higher_is_better: bool


class LimitsReport(_Part):
    """What the job asked a selected variant to hold; null is no limit. Drops: in the metric's unit, or in percent.

    `p95_ms` is of the model alone, `p95_end_to_end_ms` of the whole chain, where the model has parts.
    """

    max_drop_points: float | None = None
    max_drop_percent: float | None = None
    p95_ms: float | None = None
    max_peak_memory_bytes: int | None = None
    max_size_bytes: int | None = None
    p95_end_to_end_ms: float | None = None


class ConditionReport(BaseModel):
    """What figures were measured under. Figures are compared only within one condition."""

    model_config = ConfigDict(frozen=True, extra="allow")

    threads: int
    batch: int
    power_mode: str = ""


class RawSamples(_Part):
    """A raw result in the store: everything that figures were computed from, compressed."""

    sha256: str
    size_bytes: int


class ServerFigure(_Part):
    """What the same build gave on the server for the same samples, in the runtime of that version."""

    value: float
    ci95: Bounds
    runtime_version: str = ""


class WorstSample(_Part):
    """The sample, by its place in the split, at which device and server differ most.

    `here` (device) and `there` (server) are its scores, `distance` that of its outputs, as a share of the largest value; null
    where they are no single numbers, or were not compared.
    """

    index: int
    here: float | None
    there: float | None
    distance: float | None


class GapFigure(_Part):
    """How much worse the metric is on the device than on the server (positive: worse), paired sample by sample.

    `p` is the probability of such a gap by chance, by `test`. Of the samples `differing` have another score; of `compared`
    outputs the farthest is `distance` away, and `beyond` of them are farther than `tolerance`, which is what rounding explains.
    `flagged`: by more than chance, or than rounding; `words` then say so. `evidence` is what the build gave on the server,
    `rows` the samples that the device was given.
    """

    value: float
    ci95: Bounds
    p: float | None
    test: str
    flagged: bool
    words: str
    differing: int
    compared: int
    distance: float | None
    tolerance: float
    beyond: int
    worst_sample: WorstSample | None
    evidence: RawSamples
    rows: RawSamples | None = None


class MetricFigure(_Part):
    """The metric's value over `n` samples of a split, which has `of` (null: all of it)."""

    value: float
    ci95: Bounds
    n: int
    split: str
    where: Literal["device", "server"] = "device"
    of: int | None = None
    server: ServerFigure | None = None
    """Null where the server has not run the build, or not with this metric; on the test split always."""
    gap: GapFigure | None = None


class DropFigure(_Part):
    """The loss of the metric, paired sample by sample, in the metric's unit; positive is worse.

    `against` is the recipe that stands for the original: `original`, or `original-retrained`, the original given the same
    training; for a network that its user trained also an original that its user trained (`original-recovered`).
    """

    value: float
    ci95: Bounds
    against: str


class LatencyFigure(_Part):
    """Time of one inference call, in milliseconds; `ci95` belongs to p50, `p95_ci95` and `p99_ci95` to the others."""

    p50: float
    p95: float | None
    p99: float | None
    ci95: Bounds
    samples: int
    processes: int
    load: float | None = None
    first: float | None = None
    p95_ci95: Bounds = (None, None)
    p99_ci95: Bounds = (None, None)


class SustainedFigure(_Part):
    """What a call takes cool (`burst`, the first seconds) and warm (`p50`, the last third of `seconds` without a pause), in ms.

    Each `ci95` is of one process. `slowdown` is how many times as long a warm call takes. `counts`: on this kind of device
    the warm figure decides about the limit on p95 and between conditions.
    """

    burst: float
    burst_ci95: Bounds
    p50: float
    ci95: Bounds
    p95: float | None
    slowdown: float
    slowdown_ci95: Bounds
    seconds: float
    counts: bool


class SamplingReport(_Part):
    """How sampling of the ratio against the original ended: `precise`, or because `time` or `processes` were used up.

    Or by `engines`: only more of them would have narrowed it. `asked` and `reached` are half the width of its interval as a
    share of it (0.01: within 1 % either way); `processes` are those that held both builds.
    """

    end: str
    asked: float
    reached: float | None
    processes: int


class EnginesReport(_Part):
    """Engines that the device built of one network: how many of them were timed.

    `apart` is how many times as long the slowest takes as the fastest (null below two), `seconds` what the first one took
    to build, or to be found built.
    """

    built: int
    apart: float | None
    seconds: float


class EnergyFigure(_Part):
    """Energy of one inference call above the device at rest, in joules, as `meter` saw what it `covers`."""

    joules: float
    ci95: Bounds
    idle_watts: float
    busy_watts: float
    meter: str
    covers: str


class MemoryReport(_Part):
    """Peaks over the runtime's own floor, in bytes: of loading, of everything after; and the whole process's PSS at the end.

    `gpu_bytes` is what less of the GPU's memory was free at the end than before loading; where null, why.
    """

    load_bytes: int
    run_bytes: int
    proportional_bytes: int | None = None
    gpu_bytes: int | None = None
    no_gpu_bytes_because: str = ""


class SeenReport(_Part):
    """What the device was like while it measured, least and most; null where it does not tell."""

    celsius: tuple[float, float] | None = None
    clock_hz: tuple[int, int] | None = None
    cpu_pressure_percent: float | None = None
    memory_pressure_percent: float | None = None
    steal_percent: float | None = None
    least_free_memory_bytes: int | None = None
    throttled_by: list[str] = []


class RatioFigure(_Part):
    """How many times as fast: 2 is twice as fast. A tie is neither faster nor slower: see `tie_margin`."""

    ratio: float
    ci95: Bounds
    tie: bool = False


class SpeedupReport(_Part):
    """The three questions: against the original in the same runtime, the best uncompressed build here, today's build."""

    original: RatioFigure | None = None
    best_uncompressed: RatioFigure | None = None
    incumbent: RatioFigure | None = None


class EndToEndFigure(_Part):
    """Time of a call from what the model's `pre` part takes to what its `post` part gives, in milliseconds.

    As `LatencyFigure`; `speedup` is against the chain of the original in the same runtime, timed in turn with it in one process.
    """

    p50: float
    p95: float | None
    p99: float | None
    ci95: Bounds
    samples: int
    processes: int
    p95_ci95: Bounds = (None, None)
    p99_ci95: Bounds = (None, None)
    speedup: RatioFigure | None = None


class PartFigure(_Part):
    """Time of a part by itself, called with the inputs that it has in the chain, in milliseconds; `ci95` belongs to p50."""

    p50: float
    ci95: Bounds
    samples: int


class PartsFigure(_Part):
    """The parts of a chain; null are those that the model has not. `core` is called as `pre` and `post` are, with new outputs."""

    core: PartFigure
    pre: PartFigure | None = None
    post: PartFigure | None = None


class PartFile(_Part):
    """A part that is never compressed, an ONNX file: its SHA-256 and bytes."""

    sha256: str
    size_bytes: int


class RecoveredReport(_Part):
    """A network that its user trained outside fleetfit: its name, the variant whose network it is, the file's SHA-256."""

    name: str
    variant: str
    file: str


class ScaledFigure(_Part):
    """A figure of a scaling point, with its 95 % interval over rounds of fresh processes; null twice after one round."""

    value: float
    ci95: Bounds


class ScalingPointReport(_Part):
    """`instances` processes at once, each with `threads` threads and batches of `batch`; figures are null where not `measured`.

    `throughput` is in samples a second of all processes together, and `gain` that over the throughput of the curve's first
    point. `p50_ms` and `p95_ms` are of a call while the others run; `memory_bytes` is what one process holds, shared pages
    in part (PSS). `message` says what happened where `status` is not `measured`.
    """

    threads: int
    batch: int
    instances: int
    status: str
    message: str
    throughput: ScaledFigure | None
    gain: ScaledFigure | None
    p50_ms: ScaledFigure | None
    p95_ms: ScaledFigure | None
    memory_bytes: ScaledFigure | None
    rounds: int
    calls: int


class ScalingCurveReport(_Part):
    """Points in their order, and why there is no further one, as a clause."""

    points: list[ScalingPointReport]
    ended: str


class ScalingReport(_Part):
    """More threads, larger batches, more processes that share the device's `cores`."""

    threads: ScalingCurveReport
    batch: ScalingCurveReport
    instances: ScalingCurveReport
    cores: int
    trust: Literal["clean", "noisy", "throttled"]
    notes: list[str]


class OperatorReport(_Part):
    """One operator as the runtime calls it: it may stand for several of the build, or for what the runtime added.

    `operator` is its type, `placed` the provider or device that ran it, `number_format` such as `float32`; empty where the
    runtime does not tell. `ms` is its time in a call of the build, in which it runs `runs` times, `share` that of all operators'.
    """

    name: str
    operator: str
    placed: str
    number_format: str
    runs: float
    ms: float
    share: float


class ProfileReport(_Part):
    """The largest of a build's `count` operators (at most 100), by the runtime's own profiler; empty with the reason why.

    `operators_ms` is the time of all of them in a call, `call_ms` what a call took with the profiler on; both are means over
    `calls`. Neither is a latency: the profiler slows calls, and what happens between operators is in none of them.
    """

    operators: list[OperatorReport]
    count: int
    operators_ms: float
    call_ms: float
    calls: int
    not_offered_because: str
    trust: Literal["clean", "noisy", "throttled"]
    notes: list[str]


class CandidateReport(_Part):
    """One variant under one condition on one device."""

    variant: str
    recipe: str
    runtime: str
    baseline: bool
    status: Literal["measured", "failed", "skipped"]
    condition: ConditionReport
    metric: MetricFigure | None
    test_metric: MetricFigure | None
    size_bytes: int | None
    parameters: int | None
    latency_ms: LatencyFigure | None
    speedup: SpeedupReport
    peak_memory_bytes: int | None
    trust: Literal["clean", "noisy", "throttled"]
    tie_with: list[str]
    meets_limits: bool
    rejected_because: list[str]
    notes: list[str]
    role: Literal["original", "control", "recipe"] = "recipe"
    selected: bool = False
    """True for exactly one candidate of a device that has a selected variant: the condition chosen for is its own."""
    drop: DropFigure | None = None
    test_drop: DropFigure | None = None
    macs: int | None = None
    integer_operators: int = 0
    total_operators: int = 0
    memory: MemoryReport | None = None
    energy: EnergyFigure | None = None
    seen: SeenReport | None = None
    lineage: list[dict[str, Any]] = []
    sustained_ms: SustainedFigure | None = None
    """Null where it was not asked for."""
    raw: dict[str, RawSamples] = {}
    """The samples behind the figures: `measured`; `test`, `scaling` and `profile` where those were run."""
    sampling: SamplingReport | None = None
    """Null where no precision was asked for."""
    scaling: ScalingReport | None = None
    """Null where it was not asked for, and for all but the chosen candidate and its original."""
    profile: ProfileReport | None = None
    """As `scaling`."""
    engines: EnginesReport | None = None
    """Null of a runtime that builds none."""
    recovered: RecoveredReport | None = None
    """Set where a user's training stands for a part of the recipe."""
    end_to_end_ms: EndToEndFigure | None = None
    """Null where the model has no parts; `latency_ms` and `speedup` are those of the model alone."""
    parts_ms: PartsFigure | None = None


class ControlReport(_Part):
    """An A/A control: the original timed beside itself under one condition. `words` say what came out."""

    runtime: str
    threads: int
    batch: int
    ratio: RatioFigure
    words: str


class DeviceReport(_Part):
    """One device: what was chosen for it, why, and everything that was measured on it."""

    device: str
    profile: str
    snapshot: str
    emulated: bool
    selected: str | None
    why: str
    candidates: list[CandidateReport]
    closest: str | None = None
    """Where nothing meets the limits: the variant that comes nearest."""
    controls: list[ControlReport] = []
    doubt: str = ""
    """Why the ratios of this device are doubtful, judged by its controls; empty where they are not."""
    warnings: list[str] = []
    """What a reader must not miss: builds that do something else on this device than on the server."""


class Report(_Part):
    """Everything measured for a job."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    job: str
    model: str
    metric: MetricReport
    devices: list[DeviceReport]
    kind: str = "compress"
    objective: str = "latency"
    limits: LimitsReport = LimitsReport()
    created: str = ""
    """When the job was asked for, ISO 8601, UTC."""
    parts: dict[str, PartFile] = {}
    """The model's `pre` and `post`, those that it has."""
    tie_margin: float = EQUIVALENCE_MARGIN
    """A ratio is a tie where its interval holds 1, or lies within this share of 1."""
