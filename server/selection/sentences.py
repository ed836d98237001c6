"""Why a variant was chosen, or none, in plain words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fleetfit.core.figures import joules, number, size
from fleetfit.server.report.facts import CandidateFacts, DeviceFacts, JobFacts
from fleetfit.server.report.summary import Figure
from fleetfit.server.selection.limits import Breach, Judged
from fleetfit.server.selection.objectives import energy_saved, joules_of
from fleetfit.server.selection.ratios import is_faster, is_slower
from fleetfit.server.selection.words import (
    TRAINED_ELSEWHERE,
    USERS_ORIGINAL,
    enumerate_names,
    interval,
    loss,
    smaller,
    tie,
    times,
)

_NO_ENERGY: Final = "energy was not measured: "


@dataclass(frozen=True)
class Chosen:
    """The winner and what is said of it. `condition` is empty where there is only one."""

    facts: CandidateFacts
    original: CandidateFacts | None
    best_uncompressed: CandidateFacts | None
    versus_original: Figure | None
    versus_best_uncompressed: Figure | None
    judged: Judged
    tied: tuple[str, ...]
    condition: str


def sentence(job: JobFacts, chosen: Chosen) -> str:
    """The winner with its ratios, size and loss in one sentence; what else matters in short ones after it."""
    parts = []
    original = chosen.original
    if chosen.facts.size_bytes is not None and original is not None and original.size_bytes:
        parts.append(f"is {smaller(chosen.facts.size_bytes, original.size_bytes)}")
    if job.objective == "memory" and (memory := _memory(chosen)):
        parts.append(memory)
    if job.objective == "energy" and (energy := _energy(chosen)):
        parts.append(energy)
    if chosen.judged.drop is not None:
        parts.append(f"{loss(job.metric, chosen.judged.drop)} against {chosen.judged.reference}")
    rest = f"; it {enumerate_names(parts)}" if parts else ""
    said = [f"{chosen.facts.name} {_speed(chosen)}{rest}."]
    if chosen.judged.drop is None:
        said.append("How accurate it is was not measured: the job has no targets to judge by.")
    elif chosen.facts.recovered is not None:
        said.append(_trained_elsewhere(chosen))
    if chosen.tied:
        said.append(f"In speed it ties with {enumerate_names(list(chosen.tied))}.")
    said += [*_end_to_end(chosen), *_which_limit(job)]
    if chosen.condition:
        said.append(f"This is for {chosen.condition}, where a call is shortest.")
    summary = chosen.facts.validation
    if summary is not None and summary.trust != "clean":
        said.append(f"The device was {summary.trust} while it was measured, so measure again before you rely on it.")
    return " ".join(said)


def _trained_elsewhere(chosen: Chosen) -> str:
    if chosen.judged.reference == USERS_ORIGINAL:
        return "Both were trained by their user: the loss is fair if both were trained alike."
    return f"{TRAINED_ELSEWHERE[0].upper()}{TRAINED_ELSEWHERE[1:]}."


def _speed(chosen: Chosen) -> str:
    ours, best = chosen.versus_original, chosen.versus_best_uncompressed
    if ours is None:
        return "has no measured speed"
    same = " in the same runtime" if chosen.facts.title else ""
    text = f"runs {times(ours)} as the original{same}{interval(ours)}{_certainty(ours)}"
    if best is None or chosen.best_uncompressed is None:
        return text
    if chosen.best_uncompressed is chosen.original:
        return f"{text}, and the {chosen.best_uncompressed.name} is the best uncompressed build here"
    name = chosen.best_uncompressed.name
    return f"{text} and {times(best)} as the best uncompressed build, {name}{interval(best)}{_certainty(best)}"


def _certainty(ratio: Figure) -> str:
    return ", which is slower" if is_slower(ratio) else "" if is_faster(ratio) else f", {tie(ratio)}"


def _end_to_end(chosen: Chosen) -> list[str]:
    chain = chosen.facts.validation.chain if chosen.facts.validation else None
    if chain is None:
        return []
    text = (
        f"End to end, with its pre and post parts, a call takes {number(chain.p50_ms.value)} ms{interval(chain.p50_ms)}"
    )
    if chain.ratio is None:
        return [f"{text}."]
    return [f"{text}, {times(chain.ratio)} as the original's{interval(chain.ratio)}{_certainty(chain.ratio)}."]


def _which_limit(job: JobFacts) -> list[str]:
    """What a limit on p95 is on, where the model has parts."""
    limits = job.limits
    if not limits.parted or (limits.p95_ms is None and limits.p95_end_to_end_ms is None):
        return []
    said = [f"{limits.p95_ms:g} ms for the model alone"] if limits.p95_ms is not None else []
    said += [f"{limits.p95_end_to_end_ms:g} ms end to end"] if limits.p95_end_to_end_ms is not None else []
    return [f"The limit on p95 was {enumerate_names(said)}."]


def _memory(chosen: Chosen) -> str:
    ours = chosen.facts.validation.peak_memory_bytes if chosen.facts.validation else None
    theirs = chosen.original.validation.peak_memory_bytes if chosen.original and chosen.original.validation else None
    return f"needs {size(ours)} of memory at its peak instead of {size(theirs)}" if ours and theirs else ""


def _energy(chosen: Chosen) -> str:
    ours, theirs = joules_of(chosen.facts), joules_of(chosen.original) if chosen.original else None
    saved = energy_saved(chosen.facts, chosen.original) if chosen.original else None
    if ours is None or theirs is None or saved is None:
        return ""
    share = 100 * (1 - 1 / saved.value)
    meter = chosen.facts.validation.energy if chosen.facts.validation else None
    of = f" ({meter.covers})" if meter else ""
    return f"takes {joules(ours.value)} a call above rest instead of {joules(theirs.value)}, {share:.0f} % less{of}"


def _why_no_energy(device: DeviceFacts) -> str:
    """The device's own reason, as its measurements note it."""
    notes = (note for c in device.candidates if c.validation for note in c.validation.notes)
    reason = next((note for note in notes if note.startswith(_NO_ENERGY)), "")
    return (
        f" on {device.name}: {reason.removeprefix(_NO_ENERGY)}"
        if reason
        else f": fleetfit reads no meter on {device.name}"
    )


def no_choice(
    job: JobFacts,
    device: DeviceFacts,
    *,
    obstacle: str,
    would_be: CandidateFacts | None,
    closest: tuple[CandidateFacts, Sequence[Breach], str] | None,
    nearest: tuple[CandidateFacts, str] | None,
    keep: str,
) -> str:
    """Why nothing was chosen, and what to do."""
    if obstacle == "bench":
        return _bench(device)
    if obstacle == "energy":
        otherwise = f"; by latency it would be {would_be.name}" if would_be is not None else ""
        return f"Energy was not measured{_why_no_energy(device)}{otherwise}. Choose another --minimize."
    if obstacle == "emulated":
        otherwise = f"; it would have been {would_be.name}" if would_be is not None else ""
        return (
            f"{device.name} is emulated, so its timings mean nothing and nothing is chosen for it{otherwise}. "
            "Add --accept-emulated to choose all the same."
        )
    recipes = [c for c in device.candidates if c.compressed]
    if not recipes:
        return "There was nothing to choose from: the job has no recipe for this device."
    if not any(c.state == "measured" for c in recipes):
        return f"No compressed variant could be measured here; the first says: {recipes[0].reason or recipes[0].state}."
    if closest is not None and nearest is None:
        facts, breaches, not_worth = closest
        text = f"Nothing meets the limits. {facts.name} comes closest: {'; '.join(b.reason for b in breaches)}."
        relax = _relax(breaches)
        if not_worth:
            return f"{text} To relax the limits{f' to {relax}' if relax else ''} is not enough: {not_worth}."
        return f"{text} Allow it with {relax}, or add recipes that keep more." if relax else text
    if nearest is None:
        return "Nothing could be chosen: see the reason beside each candidate."
    facts, reason = nearest
    gain = {"size": "smaller", "memory": "leaner in memory", "energy": "thriftier"}.get(job.objective, "faster")
    text = f"Keep {keep}: no variant that meets the limits is {gain} here. The nearest is {facts.name}: {reason}."
    if closest is not None and not closest[2] and _relax(closest[1]):
        text += (
            f" Outside the limits, {closest[0].name} comes closest: {'; '.join(b.reason for b in closest[1])}; "
            f"allow it with {_relax(closest[1])}."
        )
    return text


def _relax(breaches: Sequence[Breach]) -> str:
    """The options that would allow a candidate; empty where no option would, as something was not measured."""
    return " ".join(breach.relax for breach in breaches) if all(breach.relax for breach in breaches) else ""


def _bench(device: DeviceFacts) -> str:
    measured = [c for c in device.candidates if c.state == "measured" and c.validation and c.validation.latency]
    if not measured:
        reason = next((c.reason for c in device.candidates if c.reason), "no measurement came back")
        return f"The model could not be measured here: {reason}."
    return f"Measured as it is, nothing is compressed: {'; '.join(_as_it_is(c) for c in measured)}."


def _as_it_is(c: CandidateFacts) -> str:
    latency = c.validation.latency if c.validation else None
    assert latency is not None  # noqa: S101 - the caller looked
    p95 = f", p95 {number(latency.p95_ms)} ms" if latency.p95_ms is not None else ""
    where = f"{c.runtime} " if c.title else ""
    chain = c.validation.chain if c.validation else None
    whole = f", end to end p50 {number(chain.p50_ms.value)} ms{interval(chain.p50_ms)}" if chain is not None else ""
    return f"{where}p50 {number(latency.p50_ms.value)} ms{interval(latency.p50_ms)}{p95}{whole}"
