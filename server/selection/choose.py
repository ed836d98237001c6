"""The choice for one device: among what meets the limits and is worth it, the best by the objective.

Only figures of the validation split are read here, so that the best of many is not flattered by the split it is shown
with. The order of candidates does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from fleetfit.server.report.facts import CandidateFacts, DeviceFacts, JobFacts
from fleetfit.server.report.summary import Figure
from fleetfit.server.selection.limits import Breach, Judged, broken_limits
from fleetfit.server.selection.objectives import ORIGINAL, better_because, cost, joules_of, why_not_worth
from fleetfit.server.selection.ratios import UNITY, is_faster, is_tie, product, quotient
from fleetfit.server.selection.sentences import Chosen, no_choice, sentence
from fleetfit.server.selection.words import USERS_ORIGINAL, condition

_OBSTACLES: Final = {
    "energy": "energy was not measured, so nothing can be chosen by it",
    "emulated": "the device is emulated, so its timings choose nothing",
    "bench": "a benchmark chooses nothing",
    "": "nothing was chosen",
}


@dataclass(frozen=True)
class Verdict:
    """What the choice says of one candidate. Names in `tie_with` are variants in the same runtime under the same condition."""

    meets_limits: bool
    rejected_because: tuple[str, ...]
    tie_with: tuple[str, ...]
    versus_original: Figure | None
    versus_best_uncompressed: Figure | None


@dataclass(frozen=True)
class Selection:
    """The choice for a device. `selected` and `closest` are candidates' ids; `closest` is set where limits left nothing."""

    selected: str | None
    why: str
    closest: str | None
    verdicts: Mapping[str, Verdict]


@dataclass(frozen=True)
class _Group:
    """The candidates of one condition; figures are compared within it only.

    `originals` are by runtime. What they were timed beside, and all speeds are told in, is the `reference`.
    """

    originals: Mapping[str, CandidateFacts]
    reference: CandidateFacts | None
    best_uncompressed: CandidateFacts | None
    measured: tuple[CandidateFacts, ...]


@dataclass(frozen=True)
class _Rated:
    """A measured recipe with everything that decides about it."""

    facts: CandidateFacts
    group: _Group
    breaches: tuple[Breach, ...]
    not_worth: str
    judged: Judged
    speed: Figure | None

    @property
    def reference(self) -> str:
        """What its speed is told in."""
        return _the_original(self.group.reference)


def select_variant(job: JobFacts, device: DeviceFacts) -> Selection:
    """The choice for `device`, with a verdict on each of its candidates."""
    candidates = sorted(device.candidates, key=_canonical)
    groups = {
        key: _group([c for c in candidates if _condition(c) == key]) for key in sorted(map(_condition, candidates))
    }
    obstacle = _obstacle(job, device)
    # Without a meter it is told what latency would have chosen.
    rated_by = replace(job, objective="latency") if obstacle == "energy" else job
    recipes = [c for c in candidates if c.compressed and c.state == "measured"]
    rated = [_rate(rated_by, device, c, groups[_condition(c)]) for c in recipes]
    eligible = [one for one in rated if not one.breaches and not one.not_worth]
    winners = [_winner(rated_by, [one for one in eligible if one.group is group]) for group in groups.values()]
    chosen = None if obstacle else min((w for w in winners if w), key=_across_conditions, default=None)
    closest = None if chosen or obstacle else _closest(rated)
    verdicts = {c.id: _verdict(job, device, c, groups[_condition(c)], rated, chosen) for c in candidates}
    if chosen is None:
        would_be = min((w for w in winners if w), key=_across_conditions, default=None) if obstacle else None
        nearest = _nearest_in_speed(rated)
        why = no_choice(
            job,
            device,
            obstacle=obstacle,
            would_be=would_be.facts if would_be else None,
            closest=(closest.facts, closest.breaches, closest.not_worth) if closest else None,
            keep=_the_original(nearest.group.best_uncompressed) if nearest else ORIGINAL,
            nearest=(nearest.facts, nearest.not_worth) if nearest else None,
        )
        return Selection(None, why, closest.facts.id if closest else None, verdicts)
    verdict = verdicts[chosen.facts.id]
    why = sentence(
        job,
        Chosen(
            facts=chosen.facts,
            original=chosen.group.originals.get(chosen.facts.runtime),
            best_uncompressed=chosen.group.best_uncompressed,
            versus_original=verdict.versus_original,
            versus_best_uncompressed=verdict.versus_best_uncompressed,
            judged=chosen.judged,
            tied=tuple(_tied_eligible(chosen, eligible)),
            condition=_told_condition(chosen, groups),
        ),
    )
    return Selection(chosen.facts.id, why, None, verdicts)


def _canonical(c: CandidateFacts) -> tuple[object, ...]:
    return (c.batch, c.threads, {"original": 0, "control": 1}.get(c.role, 2), c.runtime, c.recipe, c.variant, c.id)


def _condition(c: CandidateFacts) -> tuple[int, int]:
    return c.batch, c.threads


def _group(candidates: Sequence[CandidateFacts]) -> _Group:
    measured = tuple(c for c in candidates if c.state == "measured")
    originals = {c.runtime: c for c in measured if c.role == "original"}
    reference = next((c for c in originals.values() if not c.beside_another_runtime), None)
    group = _Group(originals, reference, reference, measured)
    # The original itself, unless another uncompressed build, in any runtime, is faster beyond doubt.
    faster = [c for c in measured if not c.compressed and c is not reference and is_faster(_speed(c, group))]
    best = max(faster, key=lambda c: (_speed(c, group) or UNITY).value, default=reference)
    return replace(group, best_uncompressed=best)


def _the_original(c: CandidateFacts | None) -> str:
    return f"the {c.title}" if c is not None and c.title else ORIGINAL


def _raw_ratio(c: CandidateFacts) -> Figure | None:
    return c.validation.ratio if c.validation else None


def _versus_original(c: CandidateFacts, group: _Group) -> Figure | None:
    """Against the original in the same runtime."""
    # The original is measured beside itself too; that tells about the device, not about the original.
    return UNITY if c is group.originals.get(c.runtime) else _raw_ratio(c)


def _speed(c: CandidateFacts, group: _Group) -> Figure | None:
    """Against the reference: directly, or by way of the original in the candidate's runtime, which was timed beside it."""
    own, reference = group.originals.get(c.runtime), group.reference
    if c is reference:
        return UNITY
    ratio = _raw_ratio(c)
    if reference is None or c.runtime == reference.runtime or c is own:
        return ratio
    of_own = _raw_ratio(own) if own is not None else None
    return None if ratio is None or of_own is None else product(ratio, of_own)


def _versus_best(c: CandidateFacts, group: _Group) -> Figure | None:
    best = group.best_uncompressed
    if best is None:
        return None
    return UNITY if c is best else _apart(c, best, group)


def _apart(c: CandidateFacts, other: CandidateFacts, group: _Group) -> Figure | None:
    """How many times as fast as another candidate one is; within a runtime what both were timed beside cancels out."""
    ratio_of = _versus_original if c.runtime == other.runtime else _speed
    ours, theirs = ratio_of(c, group), ratio_of(other, group)
    if ours is None or theirs is None:
        return None
    return ours if theirs is UNITY else quotient(ours, theirs)


def _rate(job: JobFacts, device: DeviceFacts, c: CandidateFacts, group: _Group) -> _Rated:
    judged = _judged(job, device, c)
    return _Rated(
        c,
        group,
        tuple(broken_limits(c, job.limits, judged)),
        why_not_worth(
            job.objective, c, group.originals.get(c.runtime), _versus_original(c, group), _versus_best(c, group)
        ),
        judged,
        _speed(c, group),
    )


def _judged(job: JobFacts, device: DeviceFacts, c: CandidateFacts) -> Judged:
    drops = device.validation_drops
    if drops is None:
        return Judged(job.metric, None, None, "the original")
    reference = drops.references.get(c.id, drops.against)
    stand_in = next((one for one in device.candidates if one.id == reference), None)
    measured = stand_in.validation.metric if stand_in and stand_in.validation else None
    name = "the original"
    if stand_in and stand_in.role == "control":
        name = USERS_ORIGINAL if stand_in.recovered else "the original given the same training"
    return Judged(job.metric, drops.by_candidate.get(c.id), measured.figure.value if measured else None, name)


def _obstacle(job: JobFacts, device: DeviceFacts) -> str:
    """What forbids any choice on this device: `bench`, `energy` or `emulated`; empty where nothing does."""
    if job.kind == "bench":
        return "bench"
    if job.objective == "energy" and not any(joules_of(c) for c in device.candidates):
        return "energy"
    return "emulated" if device.emulated and not job.accept_emulated else ""


def _winner(job: JobFacts, eligible: Sequence[_Rated]) -> _Rated | None:
    """The best by the objective; among those that cannot be told apart from it, the smallest, then the one losing least."""
    if not eligible:
        return None
    best = min(eligible, key=lambda one: (cost(job.objective, one), *_smallest(one)))
    tied = [one for one in eligible if one is best or _same(job.objective, one, best)]
    return min(tied, key=_smallest)


def _same(objective: str, a: _Rated, b: _Rated) -> bool:
    if objective != "latency":
        return better_because(objective, a, b) == "" == better_because(objective, b, a)
    apart = _apart(a.facts, b.facts, a.group)
    return apart is not None and is_tie(apart, UNITY)


def _smallest(one: _Rated) -> tuple[float, float, float, str, str]:
    ratio = one.speed
    return (
        float(one.facts.size_bytes) if one.facts.size_bytes is not None else math.inf,
        one.judged.drop.value if one.judged.drop else math.inf,
        -ratio.value if ratio else math.inf,
        one.facts.variant,
        one.facts.id,
    )


def _across_conditions(one: _Rated) -> tuple[float, int, int]:
    """Between conditions the one under which a call is shortest decides; no ratio spans two conditions."""
    return (math.inf if one.facts.p50_ms is None else one.facts.p50_ms, one.facts.batch, one.facts.threads)


def _closest(rated: Sequence[_Rated]) -> _Rated | None:
    """Of those that only limits keep out, the one with the smallest overshoot of its worst broken limit."""
    kept_out = [one for one in rated if one.breaches and not one.not_worth] or [one for one in rated if one.breaches]
    return min(kept_out, key=lambda one: (max(b.excess for b in one.breaches), *_smallest(one)), default=None)


def _nearest_in_speed(rated: Sequence[_Rated]) -> _Rated | None:
    refused = [one for one in rated if not one.breaches and one.not_worth]

    def order(one: _Rated) -> tuple[float, str, str]:
        ratio = _versus_best(one.facts, one.group)
        return (-ratio.value if ratio else math.inf, one.facts.variant, one.facts.id)

    return min(refused, key=order, default=None)


def _tied_eligible(chosen: _Rated, eligible: Sequence[_Rated]) -> list[str]:
    others = (one for one in eligible if one.group is chosen.group and one is not chosen)
    return [one.facts.name for one in others if _same("latency", one, chosen)]


def _told_condition(chosen: _Rated, groups: Mapping[tuple[int, int], _Group]) -> str:
    return condition(chosen.facts.threads, chosen.facts.batch) if len(groups) > 1 else ""


def _verdict(
    job: JobFacts,
    device: DeviceFacts,
    c: CandidateFacts,
    group: _Group,
    rated: Sequence[_Rated],
    chosen: _Rated | None,
) -> Verdict:
    if c.state != "measured":
        return Verdict(False, (c.reason or f"it was {c.state}",), (), None, None)
    ours = _versus_original(c, group)
    others = [other for other in group.measured if other is not c and other.runtime == c.runtime]
    ties = [other.variant for other in others if (apart := _apart(c, other, group)) and is_tie(apart, UNITY)]
    one = next((one for one in rated if one.facts is c), None)
    breaches = one.breaches if one else broken_limits(c, job.limits, _judged(job, device, c))
    reasons = [breach.reason for breach in one.breaches] + [one.not_worth] if one else []
    if one and one is not chosen and not any(reasons):
        reasons = [_second_best(job, one, chosen) if chosen else _OBSTACLES[_obstacle(job, device)]]
    return Verdict(not breaches, tuple(filter(None, reasons)), tuple(dict.fromkeys(ties)), ours, _versus_best(c, group))


def _second_best(job: JobFacts, one: _Rated, chosen: _Rated) -> str:
    name = chosen.facts.name
    if one.group is not chosen.group:
        there = condition(chosen.facts.threads, chosen.facts.batch)
        return f"it is good, but a call of {name} with {there} is shorter"
    if _same(job.objective, one, chosen):
        return f"it ties with {name} by {job.objective}, and {name} {_tie_break(one, chosen)}"
    return better_because(job.objective, chosen, one) or f"{name} was better by {job.objective}"


def _tie_break(one: _Rated, chosen: _Rated) -> str:
    a, b = _smallest(chosen), _smallest(one)
    if a[0] != b[0]:
        return "is smaller"
    return "loses less" if a[1] != b[1] else "is as good"
