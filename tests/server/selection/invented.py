"""Candidates with invented figures, to choose from."""

from __future__ import annotations

from fleetfit.server.report.facts import CandidateFacts, DeviceFacts, JobFacts, LimitFacts
from fleetfit.server.report.summary import Drops, Figure, Latency, MeasurementSummary, MetricSummary, Sustained

Ratio = tuple[float, float | None, float | None]


def candidate(
    recipe: str,
    *,
    role: str = "recipe",
    ratio: Ratio | None = (2.0, 1.9, 2.1),
    size: int | None = 500,
    memory: int | None = 1000,
    accuracy: float = 90.0,
    test_accuracy: float | None = None,
    p95: float | None = 1.0,
    threads: int = 1,
    batch: int = 1,
    state: str = "measured",
    reason: str = "",
    trust: str = "clean",
    p50: float | None = None,
    runtime: str = "",
    beside: str = "",
    warm_p95: float | None = None,
) -> CandidateFacts:
    """One candidate; its id says its condition too. Where `runtime` is given, its title says it."""
    latency = Latency(
        p50_ms=Figure(value=p50 if p50 is not None else 2 / (ratio[0] if ratio else 1), low=None, high=None),
        p95_ms=p95, p99_ms=None, samples=400, processes=5, load_ms=1.0, first_ms=1.0, steady=True,
    )  # fmt: skip
    validation = MeasurementSummary(
        status="measured",
        latency=latency,
        ratio=None if ratio is None else Figure(value=ratio[0], low=ratio[1], high=ratio[2]),
        peak_memory_bytes=memory,
        metric=_metric(accuracy, "validation"),
        trust=trust,
        sustained=None if warm_p95 is None else _warm(warm_p95),
    )
    test = MeasurementSummary(status="measured", metric=_metric(test_accuracy, "test")) if test_accuracy else None
    return CandidateFacts(
        id="/".join(filter(None, (recipe, str(threads), str(batch), runtime))), variant=f"v-{recipe}", recipe=recipe,
        role=role, runtime=runtime or "onnxruntime", title=f"{recipe} in {runtime}" if runtime else "", beside=beside,
        threads=threads, batch=batch, state=state, reason=reason, size_bytes=size, parameters=10,
        validation=validation if state == "measured" else None, test=test, warm_counts=warm_p95 is not None,
    )  # fmt: skip


def _warm(p95: float) -> Sustained:
    p50 = Figure(value=p95 / 1.1, low=None, high=None)
    return Sustained(burst_ms=p50, p50_ms=p50, p95_ms=p95, slowdown=p50, seconds=60)


def _metric(value: float, split: str) -> MetricSummary:
    return MetricSummary(name="accuracy", split=split, figure=Figure(value=value, low=value - 1, high=value + 1), n=100)


def original(**more: object) -> CandidateFacts:
    """The original, timed beside itself."""
    figures: dict[str, object] = {"ratio": (1.0, 0.99, 1.01), "size": 1000, "memory": 2000, "accuracy": 91.0}
    return candidate("original", role="original", **{**figures, **more})  # type: ignore[arg-type]


def control(**more: object) -> CandidateFacts:
    """The original given the same training."""
    figures: dict[str, object] = {"ratio": (1.0, 0.99, 1.01), "size": 1000, "memory": 2000, "accuracy": 91.5}
    return candidate("original-retrained", role="control", **{**figures, **more})  # type: ignore[arg-type]


def device(*candidates: CandidateFacts, drops: dict[str, float] | None = None, emulated: bool = False) -> DeviceFacts:
    """A device; losses are given by recipe, and by default 0.5."""
    against = next((c for c in candidates if c.role == "control"), candidates[0])
    losses = {
        c.id: Figure(value=loss, low=loss - 0.2, high=loss + 0.2)
        for c in candidates
        if (loss := (drops or {}).get(c.recipe, 0.0 if c.role != "recipe" else 0.5)) is not None
    }
    return DeviceFacts(
        device_id="1", name="lab", profile="x86-avx2", snapshot_id="s", emulated=emulated, candidates=candidates,
        validation_drops=Drops(against=against.id, by_candidate=losses),
    )  # fmt: skip


def job(of: DeviceFacts, *, limits: LimitFacts | None = None, objective: str = "latency", **more: object) -> JobFacts:
    """A job on one device, which allows the loss of 1 point."""
    known: dict[str, object] = {"kind": "compress", "metric": "accuracy", "accept_emulated": False, **more}
    return JobFacts(
        job_id="j", model="net:1", objective=objective, created_ms=0, devices=(of,),
        limits=LimitFacts(max_drop_points=1.0) if limits is None else limits, **known,  # type: ignore[arg-type]
    )  # fmt: skip
