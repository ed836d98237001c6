"""The job's limits: which a candidate breaks, by how much, and what would allow it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context
from typing import Final

from fleetfit.core.figures import number, size
from fleetfit.core.metrics import known_metric
from fleetfit.server.report.facts import CandidateFacts, LimitFacts
from fleetfit.server.report.summary import Figure
from fleetfit.server.selection.words import loss

_MB: Final = 1e6
_UPWARDS: Final = Context(prec=3, rounding=ROUND_CEILING)


@dataclass(frozen=True)
class Breach:
    """One broken limit. `excess` is the overshoot relative to the limit (infinite where nothing was measured)."""

    reason: str
    excess: float
    relax: str
    """The option that would allow it, empty where none would."""


@dataclass(frozen=True)
class Judged:
    """What a candidate's loss is judged by: the paired loss, the reference's metric, and what the reference is called."""

    metric: str
    drop: Figure | None
    reference_value: float | None
    reference: str


def broken_limits(candidate: CandidateFacts, limits: LimitFacts, judged: Judged) -> list[Breach]:
    """The limits that a measured candidate breaks, in a fixed order. A loss counts by its point estimate."""
    found = [
        _drop(limits, judged),
        _p95(candidate, limits),
        _p95_end_to_end(candidate, limits.p95_end_to_end_ms),
        _bytes(
            candidate.validation.peak_memory_bytes if candidate.validation else None,
            limits.max_peak_memory_bytes,
            "peak memory",
            "--max-memory-mb",
        ),
        _bytes(candidate.size_bytes, limits.max_size_bytes, "size", "--max-size-mb"),
    ]
    return [breach for breach in found if breach is not None]


def allowed_drop(limits: LimitFacts, reference_value: float | None) -> float | None:
    """The largest loss allowed, in the metric's unit; None is no limit, or one relative to an unknown value."""
    if limits.max_drop_points is not None:
        return limits.max_drop_points
    if limits.max_drop_percent is not None and reference_value is not None:
        return limits.max_drop_percent / 100 * abs(reference_value)
    return None


def _drop(limits: LimitFacts, judged: Judged) -> Breach | None:
    if limits.max_drop_points is None and limits.max_drop_percent is None:
        return None
    if judged.drop is None or (limits.max_drop_points is None and judged.reference_value is None):
        return Breach("its loss was not measured on this device, so it may not be chosen", math.inf, "")
    allowed = allowed_drop(limits, judged.reference_value)
    if allowed is None or judged.drop.value <= allowed:
        return None
    lost = loss(judged.metric, judged.drop)
    if limits.max_drop_points is not None:
        wanted, relax = f"{allowed:g}", f"--max-drop {rounded_up(judged.drop.value)}"
    else:
        percent = 100 * judged.drop.value / abs(judged.reference_value) if judged.reference_value else math.inf
        wanted = f"{number(allowed, 2)} ({limits.max_drop_percent:g} % of {number(judged.reference_value or 0.0)})"
        relax = f"--max-drop {rounded_up(percent)}%" if math.isfinite(percent) else ""
    excess = (judged.drop.value - allowed) / (allowed or _unit(judged.metric))
    return Breach(f"it {lost} against {judged.reference}, where {wanted} is allowed", excess, relax)


def _unit(metric: str) -> float:
    # Against a limit of 0 an overshoot has no relative size: one unit of the metric stands for it.
    info = known_metric(metric)
    return 1.0 if info is None or info.higher_is_better else 1e-3


def _p95(candidate: CandidateFacts, limits: LimitFacts) -> Breach | None:
    limit = limits.p95_ms
    if limit is None:
        return None
    latency = candidate.validation.latency if candidate.validation else None
    if latency is None:
        return Breach("its latency was not measured, so the limit on p95 cannot be checked", math.inf, "")
    warm = candidate.warm
    found, name = (latency.p95_ms, "p95") if warm is None else (warm.p95_ms, "p95 on a warm device")
    if limits.parted:
        name = f"{name}, without its pre and post parts,"
    if found is None:
        samples = f" from {latency.samples} samples" if warm is None else ""
        return Breach(f"its {name} is not known{samples}, so the limit cannot be checked", math.inf, "")
    if found <= limit:
        return None
    return Breach(
        f"its {name} is {number(found)} ms, where {limit:g} ms is allowed",
        (found - limit) / limit,
        f"--p95-ms {rounded_up(found)}",
    )


def _p95_end_to_end(candidate: CandidateFacts, limit: float | None) -> Breach | None:
    if limit is None:
        return None
    chain = candidate.validation.chain if candidate.validation else None
    if chain is None:
        return Breach("end to end it was not measured, so the limit on that cannot be checked", math.inf, "")
    if chain.p95_ms is None:
        reason = f"its p95 end to end is not known from {chain.samples} samples, so the limit cannot be checked"
        return Breach(reason, math.inf, "")
    if chain.p95_ms <= limit:
        return None
    return Breach(
        f"its p95 end to end is {number(chain.p95_ms)} ms, where {limit:g} ms is allowed",
        (chain.p95_ms - limit) / limit,
        f"--p95-end-to-end-ms {rounded_up(chain.p95_ms)}",
    )


def _bytes(value: int | None, limit: int | None, name: str, option: str) -> Breach | None:
    if limit is None:
        return None
    if value is None:
        return Breach(f"its {name} was not measured, so the limit on it cannot be checked", math.inf, "")
    if value <= limit:
        return None
    return Breach(
        f"its {name} is {size(value)}, where at most {size(limit)} is allowed",
        (value - limit) / limit,
        f"{option} {rounded_up(value / _MB)}",
    )


def rounded_up(value: float) -> str:
    """Rounded up to three significant digits, so that the limit that is proposed really allows it."""
    if value <= 0:
        return "0"
    text = format(_UPWARDS.create_decimal(value), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
