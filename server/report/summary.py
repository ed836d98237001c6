"""What is kept of a measurement beside its raw samples: every figure with its interval. No numpy here."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Figure(_Frozen):
    """A value with its 95 % interval; a bound that is not known is None."""

    value: float
    low: float | None
    high: float | None


class Latency(_Frozen):
    """Time of one inference call, in milliseconds. Percentiles are None where the samples cannot carry them."""

    p50_ms: Figure
    p95_ms: float | None
    p99_ms: float | None
    samples: int
    processes: int
    load_ms: float
    first_ms: float
    steady: bool
    p95_bounds: tuple[float | None, float | None] = (None, None)
    p99_bounds: tuple[float | None, float | None] = (None, None)


class PartTime(_Frozen):
    """Time of one part of a chain alone, in milliseconds."""

    p50_ms: Figure
    samples: int


class Chain(_Frozen):
    """Time of one call from the inputs of `pre` to the outputs of `post`, in milliseconds, as `Latency` has it.

    `ratio` is how many times as fast as the original's chain it is, from interleaved trials. `parts` are `pre`, `core` and `post`.
    """

    p50_ms: Figure
    p95_ms: float | None
    p99_ms: float | None
    p95_bounds: tuple[float | None, float | None] = (None, None)
    p99_bounds: tuple[float | None, float | None] = (None, None)
    samples: int
    processes: int
    steady: bool
    ratio: Figure | None
    parts: dict[str, PartTime]


class Sustained(_Frozen):
    """What a call takes cool, in the first seconds, and warm, in the last third of `seconds` without a pause, in ms.

    `slowdown` is how many times as long a warm call takes.
    """

    burst_ms: Figure
    p50_ms: Figure
    p95_ms: float | None
    slowdown: Figure
    seconds: float


class Sampling(_Frozen):
    """How sampling of the ratio ended: `precise`, or `time` or `processes`, whichever was used up first, or by `engines`.

    `asked` and `reached` are half the width of its interval as a share of it: 0.01 is within 1 % either way.
    """

    end: str
    asked: float
    reached: float | None
    processes: int


class Engines(_Frozen):
    """Engines that the device built of one network: how many of them were timed.

    `apart` is how many times as long the slowest takes as the fastest (None below two), `seconds` what the first one took
    to build, or to be found built.
    """

    built: int
    apart: float | None
    seconds: float


class EnergySummary(_Frozen):
    """Energy of one call above the device at rest, in joules, from `rounds` rounds of rest and work.

    `idle_watts` and `busy_watts` are what `meter` said of what it `covers` in both.
    """

    joules: Figure
    idle_watts: float
    busy_watts: float
    rounds: int
    meter: str
    covers: str


class MemorySummary(_Frozen):
    """Peaks over what the runtime needs without a model, in bytes: of loading, and of everything after it.

    `proportional_bytes` is the process at the end, with pages that others use too counted in part (PSS); `gpu_bytes` what less of
    the GPU's memory was free then than before loading.
    """

    load_bytes: int
    run_bytes: int
    proportional_bytes: int | None = None
    gpu_bytes: int | None = None
    no_gpu_bytes_because: str = ""


class Seen(_Frozen):
    """What the device was like while it measured, from the least to the most; None where it does not tell."""

    celsius: tuple[float, float] | None = None
    clock_hz: tuple[int, int] | None = None
    cpu_pressure_percent: float | None = None
    memory_pressure_percent: float | None = None
    steal_percent: float | None = None
    least_free_memory_bytes: int | None = None
    throttled_by: list[str] = []


class StoredFile(_Frozen):
    """Content of the store."""

    sha256: str
    size_bytes: int


class WorstSummary(_Frozen):
    """The sample, by its place in the whole split, at which device (`here`) and server (`there`) differ most.

    `here` and `there` are its scores where one number says them, `distance` that of its outputs where they were compared.
    """

    index: int
    here: float | None
    there: float | None
    distance: float | None


class GapSummary(_Frozen):
    """How much worse the metric is on the device than on the server, for the same build and samples: see core's `Gap`.

    `evidence` is what the build gave on the server, `rows` which samples the device was given, None for all.
    """

    loss: Figure
    p: float | None
    test: str
    by_metric: bool
    differing: int
    compared: int
    distance: float | None
    tolerance: float
    beyond: int
    worst: WorstSummary | None
    evidence: StoredFile
    rows: StoredFile | None = None
    runtime_version: str = ""


class ScalingPoint(_Frozen):
    """So many processes, each with so many threads and so large a batch; figures are None where it was not `measured`.

    Throughput is in samples a second of all processes together, gain that over the curve's first point's, memory what one
    process holds with shared pages in part (PSS).
    """

    threads: int
    batch: int
    instances: int
    status: str
    message: str = ""
    throughput: Figure | None = None
    gain: Figure | None = None
    p50_ms: Figure | None = None
    p95_ms: Figure | None = None
    memory_bytes: Figure | None = None
    rounds: int = 0
    calls: int = 0


class ScalingCurve(_Frozen):
    """Points in their order, and why there is no further one."""

    points: list[ScalingPoint]
    ended: str


class Scaling(_Frozen):
    """What a build does with more threads, larger batches, and several processes that share the device's cores."""

    threads: ScalingCurve
    batch: ScalingCurve
    instances: ScalingCurve
    cores: int


class Operator(_Frozen):
    """One operator of a build: `ms` is its time in a call, `runs` how often it runs in one, `share` of all operators' time."""

    name: str
    operator: str
    placed: str
    number_format: str
    runs: float
    ms: float
    share: float


class ProfileSummary(_Frozen):
    """The largest of a build's `count` operators, largest first; where there is no profile, `because` says why.

    `operators_ms` is the time of all of them in a call, `call_ms` what a call took with the profiler on; means over `calls`.
    """

    operators: list[Operator] = []
    count: int = 0
    operators_ms: float = 0.0
    call_ms: float = 0.0
    calls: int = 0
    because: str = ""
    notes: list[str] = []


class MetricSummary(_Frozen):
    """The metric, computed on the device over `n` samples of `split`, which has `of` (None: all of it)."""

    name: str
    split: str
    figure: Figure
    n: int
    of: int | None = None
    server: Figure | None = None
    """What the same build gave on the server for the same samples; None where that is not known."""
    gap: GapSummary | None = None


class OutputsSummary(_Frozen):
    """The outputs that a device returned for `n` samples of `split`: an artifact, to be scored elsewhere."""

    sha256: str
    size_bytes: int
    split: str
    n: int


class MeasurementSummary(_Frozen):
    """One measurement. `status` is `measured` or what went wrong (`not_loadable`, `out_of_memory`, ...)."""

    status: str
    message: str = ""
    latency: Latency | None = None
    ratio: Figure | None = None
    """How many times faster than the original, from interleaved trials."""
    sustained: Sustained | None = None
    """None where it was not asked for."""
    sampling: Sampling | None = None
    """None where no precision was asked for."""
    engines: Engines | None = None
    """None of a runtime that builds none."""
    chain: Chain | None = None
    """None where the model has no parts, or the chain was not measured."""
    peak_memory_bytes: int | None = None
    """Resident memory of the trial's process at its peak, over what the runtime needs without a model."""
    memory: MemorySummary | None = None
    energy: EnergySummary | None = None
    metric: MetricSummary | None = None
    outputs: OutputsSummary | None = None
    scaling: Scaling | None = None
    """None where it was not asked for."""
    profile: ProfileSummary | None = None
    """None where it was not asked for."""
    trust: str = "clean"
    """`clean`, `noisy` or `throttled`."""
    runtime: str = ""
    runtime_version: str = ""
    agent_version: str = ""
    method_version: str = ""
    condition: dict[str, str] = {}
    seen: Seen | None = None
    notes: list[str] = []


class Drops(_Frozen):
    """Losses of the metric on one device and split, paired sample by sample; positive is worse.

    `against` names the candidate that stands for the original: the original, or the control where that is better.
    """

    against: str
    by_candidate: dict[str, Figure]
    references: dict[str, str] = {}
    """What each candidate was compared with, where the job has several conditions: the stand-in under its own."""
