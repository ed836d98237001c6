"""Everything a report is made from, as plain values: what the engine reads from the database, and tests write by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fleetfit.server.report.summary import Drops, MeasurementSummary


@dataclass(frozen=True)
class LimitFacts:
    """What a selected variant must hold; None is no limit. Drops: in the metric's units, or percent of the original's."""

    max_drop_points: float | None = None
    max_drop_percent: float | None = None
    p95_ms: float | None = None
    max_peak_memory_bytes: int | None = None
    max_size_bytes: int | None = None


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
    notes: tuple[str, ...] = ()

    @property
    def compressed(self) -> bool:
        """Whether a recipe changed it."""
        return self.role == "recipe"

    @property
    def name(self) -> str:
        """What sentences call it."""
        return self.title or self.recipe

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
