"""Everything a report is made from, as plain values: what the engine reads from the database, and tests write by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fleetfit.server.report.summary import Drops, MeasurementSummary, Sustained


@dataclass(frozen=True)
class LimitFacts:
    """What a selected variant must hold; None is no limit. Drops: in the metric's units, or percent of the original's."""

    max_drop_points: float | None = None
    max_drop_percent: float | None = None
    p95_ms: float | None = None
    max_peak_memory_bytes: int | None = None
    max_size_bytes: int | None = None
    p95_end_to_end_ms: float | None = None
    parted: bool = False
    """The model has parts: `p95_ms` is that of the model alone."""


@dataclass(frozen=True)
class RecoveredFrom:
    """A network that its user trained outside fleetfit: its short name, the variant's whose network it is, the file's digest."""

    name: str
    variant: str
    file: str


@dataclass(frozen=True)
class CandidateFacts:
    """One variant in one runtime on one device under one condition.

    `role` is `original`, `control` or `recipe`. `variant` is a short digest. `compressed` is False where nothing was made
    smaller or narrower (the original, the control). `state` is `measured`, `failed` or `skipped`. `beside` is the runtime of
    the original that it was timed beside: its own, which may be left out, but for the originals of all runtimes after the first.
    """

    id: str
    variant: str
    recipe: str
    role: str
    runtime: str
    threads: int
    batch: int
    state: str
    beside: str = ""
    title: str = ""
    """What sentences call it, where its recipe alone would not tell it from another."""
    reason: str = ""
    size_bytes: int | None = None
    parameters: int | None = None
    macs: int | None = None
    integer_operators: int = 0
    total_operators: int = 0
    lineage: tuple[Mapping[str, Any], ...] = ()
    validation: MeasurementSummary | None = None
    test: MeasurementSummary | None = None
    scaling: MeasurementSummary | None = None
    """How it scales, which is measured last and only of those worth it."""
    no_scaling_because: str = ""
    """Why that failed, where it was begun and came to nothing."""
    profile: MeasurementSummary | None = None
    """The time of each of its operators; of the same ones."""
    no_profile_because: str = ""
    """As `no_scaling_because`."""
    notes: tuple[str, ...] = ()
    raw: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    """Where raw samples are: digest and bytes, of what was `measured`, of the `test` split's metric, of `scaling`, of `profile`."""
    warm_counts: bool = False
    """On this kind of device what a build does when it is warm decides, where that was measured."""
    recovered: RecoveredFrom | None = None

    @property
    def compressed(self) -> bool:
        """Whether a recipe changed it."""
        return self.role == "recipe"

    @property
    def name(self) -> str:
        """What sentences call it."""
        return self.title or self.recipe

    @property
    def p50_ms(self) -> float | None:
        """The median by which conditions are compared: warm where that counts."""
        warm, found = self.warm, self.validation.latency if self.validation else None
        return warm.p50_ms.value if warm is not None else found.p50_ms.value if found is not None else None

    @property
    def warm(self) -> Sustained | None:
        """The sustained figures, where they were measured and count."""
        return self.validation.sustained if self.warm_counts and self.validation is not None else None

    @property
    def beside_another_runtime(self) -> bool:
        """Whether its ratio compares two runtimes."""
        return self.beside not in ("", self.runtime)


@dataclass(frozen=True)
class DeviceFacts:
    """One device of a job, and its candidates in the order they were planned."""

    device_id: str
    name: str
    profile: str
    snapshot_id: str
    emulated: bool
    candidates: tuple[CandidateFacts, ...]
    validation_drops: Drops | None = None
    test_drops: Drops | None = None
    scales: bool = True
    """Whether its agent can measure how builds scale."""
    profiles: bool = True
    """Whether its agent can time their operators."""

    def why_not_last(self, failed_because: str, *, able: bool) -> str:
        """Why what is measured last was not; `able` says whether its agent can, `failed_because` why it came to nothing."""
        if self.emulated:
            return "the device is emulated"
        if failed_because:
            return failed_because
        return "the job's time was over before" if able else "its agent is too old to do it; update fleetfit there"


@dataclass(frozen=True)
class JobFacts:
    """One job. `metric` is empty where there is no dataset with targets; `objective` is `latency`, `size`, ..."""

    job_id: str
    kind: str
    model: str
    metric: str
    objective: str
    limits: LimitFacts
    accept_emulated: bool
    created_ms: int
    devices: tuple[DeviceFacts, ...] = field(default=())
    sustained_ms: int = 0
    """For how long each build was to be called without a pause; 0 is not at all."""
    parts: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    """What stands before and behind the model, `pre` and `post`: digest and bytes."""
    scaling: bool = False
    """Whether scaling curves were asked for."""
    profile: bool = False
    """Whether the time of each operator was asked for."""
