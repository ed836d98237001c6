"""From a job's facts to its report. No NumPy: the server's process builds reports."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence
from typing import Final, Literal, cast

from fleetfit.core.digests import short
from fleetfit.core.figures import number
from fleetfit.core.metrics import known_metric
from fleetfit.server.report.chains import chain_notes, end_to_end_figure, parts_figure
from fleetfit.server.report.controls import control_words, controls_of, doubt_of
from fleetfit.server.report.facts import CandidateFacts, DeviceFacts, JobFacts, LimitFacts
from fleetfit.server.report.gaps import metric_figure, warnings_of
from fleetfit.server.report.model import (
    Bounds,
    CandidateReport,
    ConditionReport,
    DeviceReport,
    DropFigure,
    EnergyFigure,
    EnginesReport,
    LatencyFigure,
    LimitsReport,
    MemoryReport,
    MetricFigure,
    MetricReport,
    PartFile,
    RatioFigure,
    RawSamples,
    RecoveredReport,
    Report,
    SamplingReport,
    SeenReport,
    SpeedupReport,
    SustainedFigure,
)
from fleetfit.server.report.profiles import profile_notes, profile_report
from fleetfit.server.report.scaling_report import scaling_notes, scaling_report
from fleetfit.server.report.summary import Drops, Figure, MeasurementSummary
from fleetfit.server.selection.choose import Verdict, select_variant
from fleetfit.server.selection.finalists import finalists
from fleetfit.server.selection.ratios import UNITY, is_a_tie
from fleetfit.server.selection.words import TRAINED_ELSEWHERE, USERS_ORIGINAL, interval

_EMULATED: Final = "its timings mean nothing: the device is emulated"


def build_report(facts: JobFacts) -> Report:
    """The report object of a job, chosen variants and reasons included."""
    info = known_metric(facts.metric)
    return Report(
        job=facts.job_id,
        model=facts.model,
        metric=MetricReport(
            name=info.name if info else facts.metric,
            unit=info.unit if info else "",
            higher_is_better=info.higher_is_better if info else True,
        ),
        devices=[_device(facts, device) for device in facts.devices],
        kind=facts.kind,
        objective=facts.objective,
        limits=_limits(facts.limits),
        parts={name: PartFile(sha256=sha256, size_bytes=size) for name, (sha256, size) in facts.parts.items()},
        created=datetime.datetime.fromtimestamp(facts.created_ms / 1000, datetime.timezone.utc).isoformat(),
    )


def _limits(limits: LimitFacts) -> LimitsReport:
    return LimitsReport(
        max_drop_points=limits.max_drop_points,
        max_drop_percent=limits.max_drop_percent,
        p95_ms=limits.p95_ms,
        p95_end_to_end_ms=limits.p95_end_to_end_ms,
        max_peak_memory_bytes=limits.max_peak_memory_bytes,
        max_size_bytes=limits.max_size_bytes,
    )


def _device(job: JobFacts, device: DeviceFacts) -> DeviceReport:
    choice = select_variant(job, device)
    variants = {c.id: c.variant for c in device.candidates}
    last = finalists(device, choice)
    return DeviceReport(
        device=device.name,
        profile=device.profile,
        snapshot=device.snapshot_id,
        emulated=device.emulated,
        selected=variants[choice.selected] if choice.selected else None,
        why=choice.why,
        candidates=[
            _candidate(job, device, c, choice.verdicts[c.id], selected=c.id == choice.selected, finalist=c.id in last)
            for c in device.candidates
        ],
        closest=variants[choice.closest] if choice.closest else None,
        controls=controls_of(device),
        doubt=doubt_of(device),
        warnings=warnings_of(device.candidates),
    )


def _candidate(
    job: JobFacts, device: DeviceFacts, c: CandidateFacts, verdict: Verdict, *, selected: bool, finalist: bool
) -> CandidateReport:
    summary = c.validation if c.state == "measured" else None
    drop = _drop(device, c, device.validation_drops)
    test_drop = _drop(device, c, device.test_drops)
    return CandidateReport(
        variant=c.variant,
        recipe=c.recipe,
        runtime=c.runtime,
        baseline=not c.compressed,
        status=cast(Literal["measured", "failed", "skipped"], c.state),
        condition=_condition(c, summary),
        metric=_metric(summary),
        test_metric=_metric(c.test),
        size_bytes=c.size_bytes,
        parameters=c.parameters,
        latency_ms=_latency(summary),
        speedup=SpeedupReport(
            original=_ratio(verdict.versus_original), best_uncompressed=_ratio(verdict.versus_best_uncompressed)
        ),
        peak_memory_bytes=summary.peak_memory_bytes if summary else None,
        trust=cast(Literal["clean", "noisy", "throttled"], summary.trust) if summary else "clean",
        tie_with=list(verdict.tie_with),
        meets_limits=verdict.meets_limits,
        rejected_because=list(verdict.rejected_because),
        notes=[
            *_notes(job, device, c, summary, drop),
            *scaling_notes(job, device, c, finalist=finalist),
            *profile_notes(job, device, c, finalist=finalist),
        ],
        role=cast(Literal["original", "control", "recipe"], c.role),
        selected=selected,
        drop=drop,
        test_drop=test_drop,
        macs=c.macs,
        integer_operators=c.integer_operators,
        total_operators=c.total_operators,
        memory=MemoryReport.model_validate(summary.memory.model_dump()) if summary and summary.memory else None,
        energy=_energy(summary),
        seen=SeenReport.model_validate(summary.seen.model_dump()) if summary and summary.seen else None,
        lineage=[dict(step) for step in c.lineage],
        raw={kind: RawSamples(sha256=sha256, size_bytes=size) for kind, (sha256, size) in c.raw.items()},
        sustained_ms=_sustained(c, summary),
        scaling=scaling_report(c),
        profile=profile_report(c),
        sampling=SamplingReport.model_validate(summary.sampling.model_dump()) if summary and summary.sampling else None,
        engines=EnginesReport.model_validate(summary.engines.model_dump()) if summary and summary.engines else None,
        end_to_end_ms=end_to_end_figure(c, summary),
        parts_ms=parts_figure(summary),
        recovered=None if c.recovered is None else RecoveredReport(**dataclasses.asdict(c.recovered)),
    )


def _condition(c: CandidateFacts, summary: MeasurementSummary | None) -> ConditionReport:
    found: dict[str, str] = dict(summary.condition) if summary else {}
    more = {key: value for key, value in found.items() if key not in ("threads", "batch")}
    return ConditionReport.model_validate({"power_mode": "", **more, "threads": c.threads, "batch": c.batch})


def _metric(summary: MeasurementSummary | None) -> MetricFigure | None:
    if summary is None or summary.metric is None:
        return None
    return metric_figure(summary.metric)


def _latency(summary: MeasurementSummary | None) -> LatencyFigure | None:
    if summary is None or summary.latency is None:
        return None
    found = summary.latency
    return LatencyFigure(
        p50=found.p50_ms.value,
        p95=found.p95_ms,
        p99=found.p99_ms,
        ci95=_bounds(found.p50_ms),
        samples=found.samples,
        processes=found.processes,
        load=found.load_ms,
        first=found.first_ms,
        p95_ci95=found.p95_bounds,
        p99_ci95=found.p99_bounds,
    )


def _energy(summary: MeasurementSummary | None) -> EnergyFigure | None:
    if summary is None or summary.energy is None:
        return None
    found = summary.energy
    return EnergyFigure(
        joules=found.joules.value,
        ci95=_bounds(found.joules),
        idle_watts=found.idle_watts,
        busy_watts=found.busy_watts,
        meter=found.meter,
        covers=found.covers,
    )


def _sustained(c: CandidateFacts, summary: MeasurementSummary | None) -> SustainedFigure | None:
    found = summary.sustained if summary else None
    if found is None:
        return None
    return SustainedFigure(
        burst=found.burst_ms.value,
        burst_ci95=_bounds(found.burst_ms),
        p50=found.p50_ms.value,
        ci95=_bounds(found.p50_ms),
        p95=found.p95_ms,
        slowdown=found.slowdown.value,
        slowdown_ci95=_bounds(found.slowdown),
        seconds=found.seconds,
        counts=c.warm is not None,
    )


def _ratio(figure: Figure | None) -> RatioFigure | None:
    if figure is None:
        return None
    # A build is no tie with itself.
    return RatioFigure(ratio=figure.value, ci95=_bounds(figure), tie=figure != UNITY and is_a_tie(figure))


def _drop(device: DeviceFacts, c: CandidateFacts, drops: Drops | None) -> DropFigure | None:
    figure = drops.by_candidate.get(c.id) if drops else None
    if drops is None or figure is None:
        return None
    reference = drops.references.get(c.id, drops.against)
    against = next((one.recipe for one in device.candidates if one.id == reference), "original")
    return DropFigure(value=figure.value, ci95=_bounds(figure), against=against)


def _bounds(figure: Figure) -> Bounds:
    return figure.low, figure.high


def _notes(
    job: JobFacts,
    device: DeviceFacts,
    c: CandidateFacts,
    summary: MeasurementSummary | None,
    drop: DropFigure | None,
) -> list[str]:
    """What a reader should know, and why figures are missing."""
    if c.state != "measured":
        return [c.reason or f"it was {c.state}, so it has no figures", *c.notes]
    found = [*_trained_by_user(device, c, drop), *c.notes, *(summary.notes if summary else ())]
    found += _beside_itself(c, summary)
    if device.emulated:
        found.append(_EMULATED)
    if summary is None or summary.latency is None:
        found.append("latency was not measured")
    if summary is not None and summary.ratio is None and (c.role != "original" or c.beside_another_runtime):
        found.append("its speed was not measured beside the original's")
    found += chain_notes(job, c, summary)
    if job.sustained_ms and summary is not None and summary.latency is not None and summary.sustained is None:
        found.append("what it does on a warm device was not measured: the agent is older; update it")
    if summary is not None and summary.peak_memory_bytes is None and not _mentions("memory", found):
        found.append("peak memory was not measured")
    if summary is not None and summary.energy is None and not _mentions("energy", found):
        found.append(
            "energy was not measured: the device's agent is too old to measure it, or its method leaves it out"
        )
    if not job.metric:
        found.append("no metric: the job has no targets to judge by")
    elif summary is not None and summary.metric is None:
        found.append(f"{job.metric} was not measured")
    elif drop is None:
        found.append("its loss could not be paired with the original's, sample by sample")
    if summary is not None and summary.metric is not None and summary.metric.of is not None:
        found.append(f"metrics are over {summary.metric.n} of {summary.metric.of} samples, as --device-samples says")
    if job.metric and c.test is None:
        found.append("the test split is run for the originals and the selected variant only")
    found.append("no build that is shipped today was given, so there is no ratio against it")
    return list(dict.fromkeys(found))


def _trained_by_user(device: DeviceFacts, c: CandidateFacts, drop: DropFigure | None) -> list[str]:
    """Where a network came back from its user's training: from which file, and what that means for its loss."""
    if c.recovered is None:
        return []
    made_of = (
        f"made of the file {short(c.recovered.file)}, the network of the variant {c.recovered.variant} after training"
    )
    if not c.compressed:
        return [f"{made_of} by its user: a fair control for what the user trained alike, and for nothing else"]
    against = next((one for one in device.candidates if drop and one.recipe == drop.against), None)
    if against is not None and against.recovered is not None:
        return [
            f"{made_of} by its user; its loss is against {USERS_ORIGINAL}, which is fair if both were trained alike"
        ]
    original = next((one.variant for one in device.candidates if one.role == "original"), "ORIGINAL")
    return [
        f"{made_of}: {TRAINED_ELSEWHERE}; `fleetfit models pull {original} --trainable` gives the original's network, to be "
        "trained in the same way and pushed with --recovers as the fair control"
    ]


def _mentions(word: str, notes: Sequence[str]) -> bool:
    return any(word in note for note in notes)


def _beside_itself(c: CandidateFacts, summary: MeasurementSummary | None) -> list[str]:
    """The original timed against itself: what the device makes of no difference at all; or against another runtime's."""
    ratio = summary.ratio if summary and c.role == "original" else None
    if ratio is None or ratio.low is None or ratio.high is None:
        return []
    if c.beside_another_runtime:
        return [
            f"timed beside the original in {c.beside} it came out {number(ratio.value)} times as fast{interval(ratio)}"
        ]
    return [control_words(ratio)]
