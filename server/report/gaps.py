"""The metric on a device beside the server's, for the same build and samples: simulated accuracy is what nobody may rely on.

`Against` is what crosses to the child that analyses a result.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from pydantic import BaseModel, ConfigDict

from fleetfit.core.figures import number
from fleetfit.server.report.facts import CandidateFacts
from fleetfit.server.report.model import GapFigure, MetricFigure, RawSamples, ServerFigure, WorstSample
from fleetfit.server.report.summary import Figure, GapSummary, MetricSummary, StoredFile, WorstSummary

if TYPE_CHECKING:
    from fleetfit.proto.v1 import measurement_pb2

_SPLIT: Final = "validation"


class Against(BaseModel):
    """Where the evidence of a build lies, and which samples a device was given (no rows: all)."""

    model_config = ConfigDict(frozen=True)

    evidence: StoredFile
    evidence_path: str
    runtime_version: str
    rows: StoredFile | None = None
    rows_path: str = ""


def with_gap(
    found: MetricSummary, raw: measurement_pb2.MeasurementResult, against: Against | None
) -> tuple[MetricSummary, list[str]]:
    """The metric with the server's figure and the gap, where that can be compared; and what readers should know.

    For the child that has NumPy.
    """
    from fleetfit.core.errors import InvalidData
    from fleetfit.proto.evidence import compared, read_evidence, read_rows
    from fleetfit.server.report.figures import figure

    if against is None or found.split != _SPLIT:
        return found, []
    try:
        evidence = read_evidence(Path(against.evidence_path))
        rows = read_rows(Path(against.rows_path)) if against.rows is not None else None
        both = compared(raw, evidence, rows) if evidence is not None else None
    except InvalidData as error:
        return found, [f"the metric was not compared with the server's: {error.message}"]
    if both is None:
        return found, ["the metric was not compared with the server's: there are no scores of the same samples"]
    gap, worst = both.gap, None
    if gap.worst is not None and both.index is not None:
        worst = WorstSummary(index=both.index, here=gap.worst.here, there=gap.worst.there, distance=gap.worst.distance)
    summary = GapSummary(
        loss=figure(gap.loss),
        p=gap.p,
        test=gap.test,
        by_metric=gap.by_metric,
        differing=gap.differing,
        compared=gap.compared,
        distance=gap.distance,
        tolerance=gap.tolerance,
        beyond=gap.beyond,
        worst=worst,
        evidence=against.evidence,
        rows=against.rows,
        runtime_version=against.runtime_version,
    )
    return found.model_copy(update={"server": figure(both.server), "gap": summary}), []


def gap_words(found: MetricSummary) -> str:
    """What a flagged gap is, in words; empty where there is none."""
    gap, server = found.gap, found.server
    if gap is None or server is None or not (gap.by_metric or gap.beyond):
        return ""
    parts = []
    if gap.by_metric and gap.p is not None:
        better = gap.loss.value < 0
        chance = f"p {gap.p:.2g}" if gap.p >= 1e-9 else "p below 1e-9"
        parts.append(
            f"{found.name} is {number(found.figure.value, 4)} on the device and {number(server.value, 4)} on the server for the "
            f"same build and {found.n} samples: {'better' if better else 'worse'} by {number(abs(gap.loss.value), 2)}, which is "
            f"no chance ({chance}, {gap.test})"
        )
    if gap.beyond:
        parts.append(
            f"outputs of {gap.beyond} of {gap.compared} samples lie farther from the server's than rounding explains "
            f"(up to {_apart(gap.distance)}, where {number(gap.tolerance, 2)} is allowed)"
        )
    words = "; ".join(parts)
    return f"{words}; {_worst_words(gap.worst)}" if gap.worst is not None else words


def _worst_words(worst: WorstSummary) -> str:
    said = f"the worst sample is {worst.index}"
    if worst.here is not None and worst.there is not None and worst.here != worst.there:
        said += f" (scored {worst.here:.3g} here, {worst.there:.3g} there"
        return said + (f", outputs {_apart(worst.distance)} apart)" if worst.distance is not None else ")")
    return said + (f" (outputs {_apart(worst.distance)} apart)" if worst.distance is not None else "")


def _apart(distance: float | None) -> str:
    if distance is None:
        return "an unknown distance"
    return "infinitely far, one is no number" if distance >= 1e6 else f"{number(distance, 2)} of the largest value"


def metric_figure(found: MetricSummary) -> MetricFigure:
    """The metric as the report prints it."""
    gap, server = found.gap, found.server
    return MetricFigure(
        value=found.figure.value,
        ci95=_bounds(found.figure),
        n=found.n,
        split=found.split,
        of=found.of,
        server=None
        if server is None or gap is None
        else ServerFigure(value=server.value, ci95=_bounds(server), runtime_version=gap.runtime_version),
        gap=None
        if gap is None
        else GapFigure(
            value=gap.loss.value,
            ci95=_bounds(gap.loss),
            p=gap.p,
            test=gap.test,
            flagged=gap.by_metric or gap.beyond > 0,
            words=gap_words(found),
            differing=gap.differing,
            compared=gap.compared,
            distance=gap.distance,
            tolerance=gap.tolerance,
            beyond=gap.beyond,
            worst_sample=None if gap.worst is None else WorstSample(**gap.worst.model_dump()),
            evidence=RawSamples(**gap.evidence.model_dump()),
            rows=None if gap.rows is None else RawSamples(**gap.rows.model_dump()),
        ),
    )


def warnings_of(candidates: tuple[CandidateFacts, ...]) -> list[str]:
    """A line for each candidate whose metric on the device is not what its build gave on the server."""
    found = []
    for c in candidates:
        metric = c.validation.metric if c.state == "measured" and c.validation is not None else None
        words = gap_words(metric) if metric is not None else ""
        if words:
            found.append(f"{c.name} does not do on this device what it did on the server: {words}.")
    return found


def _bounds(one: Figure) -> tuple[float | None, float | None]:
    return one.low, one.high
