"""A model with parts in the report: its figures end to end and part by part, and the words for them. No NumPy."""

from __future__ import annotations

from typing import Final

from fleetfit.server.report.facts import CandidateFacts, JobFacts
from fleetfit.server.report.model import EndToEndFigure, PartFigure, PartsFigure, RatioFigure
from fleetfit.server.report.summary import Chain, MeasurementSummary, PartTime
from fleetfit.server.selection.ratios import is_a_tie

# How the note begins that says why a chain has no figures.
NOT_MEASURED: Final = "end to end was not measured: "
_ITSELF: Final = RatioFigure(ratio=1.0, ci95=(1.0, 1.0))


def end_to_end_figure(c: CandidateFacts, summary: MeasurementSummary | None) -> EndToEndFigure | None:
    """The whole chain; None where the model has no parts, or it was not measured."""
    found = summary.chain if summary is not None else None
    if found is None:
        return None
    return EndToEndFigure(
        p50=found.p50_ms.value,
        p95=found.p95_ms,
        p99=found.p99_ms,
        ci95=(found.p50_ms.low, found.p50_ms.high),
        samples=found.samples,
        processes=found.processes,
        p95_ci95=found.p95_bounds,
        p99_ci95=found.p99_bounds,
        speedup=_ITSELF if c.role == "original" else _speedup(found),
    )


def _speedup(found: Chain) -> RatioFigure | None:
    ratio = found.ratio
    return None if ratio is None else RatioFigure(ratio=ratio.value, ci95=(ratio.low, ratio.high), tie=is_a_tie(ratio))


def parts_figure(summary: MeasurementSummary | None) -> PartsFigure | None:
    """Each part alone; None as for the whole chain."""
    found = summary.chain if summary is not None else None
    if found is None or "core" not in found.parts:
        return None
    return PartsFigure(**{name: _part(part) for name, part in found.parts.items()})


def _part(found: PartTime) -> PartFigure:
    return PartFigure(p50=found.p50_ms.value, ci95=(found.p50_ms.low, found.p50_ms.high), samples=found.samples)


def chain_notes(job: JobFacts, c: CandidateFacts, summary: MeasurementSummary | None) -> list[str]:
    """Why figures of a model with parts are missing, where the measurement itself does not say it."""
    if not job.parts or summary is None or summary.latency is None:
        return []
    if summary.chain is None:
        told = any(note.startswith(NOT_MEASURED) for note in summary.notes)
        return [] if told else [f"{NOT_MEASURED}the agent is older; update it"]
    if summary.chain.ratio is None and c.role != "original":
        return ["its speed end to end was not measured beside the original's"]
    return []
