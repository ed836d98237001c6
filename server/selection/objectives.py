"""What each objective minimizes, when a candidate is worth it by that objective, and when it is better than another."""

from __future__ import annotations

import math
from typing import Final, Protocol

from fleetfit.core.figures import joules, number, size
from fleetfit.server.report.facts import CandidateFacts
from fleetfit.server.report.summary import Figure
from fleetfit.server.selection.ratios import is_faster, is_slower, quotient
from fleetfit.server.selection.words import interval, smaller, tie, times

# A build's peak memory is read in one process; smaller differences come and go between two runs of one build.
MEMORY_TIE: Final = 0.02
ORIGINAL: Final = "the original"


class Weighed(Protocol):
    """A candidate as objectives compare it with others."""

    @property
    def facts(self) -> CandidateFacts:
        """What was measured of it."""
        ...

    @property
    def speed(self) -> Figure | None:
        """How many times as fast as the original of its condition it is; of the first runtime, where there are several."""
        ...

    @property
    def reference(self) -> str:
        """What that original is called in sentences."""
        ...


def cost(objective: str, one: Weighed) -> float:
    """What is minimized; infinite where it was not measured. Latency counts by the ratio, which was measured interleaved."""
    if objective in ("size", "memory"):
        return _bytes(objective, one.facts)
    if objective == "energy":
        energy = joules_of(one.facts)
        return energy.value if energy is not None else math.inf
    return -one.speed.value if one.speed is not None else math.inf


def _bytes(objective: str, c: CandidateFacts) -> float:
    peak = c.validation.peak_memory_bytes if c.validation else None
    found = c.size_bytes if objective == "size" else peak
    return math.inf if found is None else float(found)


def joules_of(c: CandidateFacts) -> Figure | None:
    """The energy of a call; None where it was not measured, or is not above nothing."""
    energy = c.validation.energy if c.validation else None
    return energy.joules if energy is not None and energy.joules.value > 0 else None


def energy_saved(c: CandidateFacts, other: CandidateFacts) -> Figure | None:
    """How many times the energy of `c` a call of `other` takes: above 1, `c` is thriftier."""
    ours, theirs = joules_of(c), joules_of(other)
    return None if ours is None or theirs is None else quotient(theirs, ours)


def why_not_worth(
    objective: str,
    c: CandidateFacts,
    original: CandidateFacts | None,
    versus_original: Figure | None,
    versus_best: Figure | None,
) -> str:
    """Why compression gained nothing here by the objective; empty where it did. `original` is of the same runtime.

    Faster means that the whole interval of the ratio against the best uncompressed build, and of that against the original,
    lies above 1, and not all of it so near to 1 that it is a tie.
    """
    if original is None:
        return "there is nothing to compare it with: the original was not measured on this device"
    if objective == "energy":
        return _not_thriftier(c, original)
    if objective in ("size", "memory"):
        return _not_smaller(objective, c, original)
    if versus_original is None or versus_best is None:
        return "its speed was not measured beside the original's"
    if is_faster(versus_original) and is_faster(versus_best):
        return ""
    against, ratio = ("the best uncompressed build", versus_best)
    if not is_faster(versus_original):
        against, ratio = ("the original", versus_original)
    if is_slower(ratio):
        return f"compression made it no faster but slower: it runs {times(ratio)} as {against}{interval(ratio)}"
    return f"compression made it no faster: it runs {times(ratio)} as {against}{interval(ratio)}, {tie(ratio)}"


def _not_thriftier(c: CandidateFacts, original: CandidateFacts) -> str:
    saved = energy_saved(c, original)
    if saved is None:
        whose = "its" if joules_of(c) is None else "the original's"
        return f"{whose} energy was not measured, or cannot be told apart from nothing"
    if is_faster(saved):
        return ""
    told = f"the original takes {number(saved.value)} times the energy of a call{interval(saved)}"
    if is_slower(saved):
        return f"compression made it take more energy: {told}"
    return f"compression saves no energy for certain: {told}"


def _not_smaller(objective: str, c: CandidateFacts, original: CandidateFacts) -> str:
    ours, theirs = _bytes(objective, c), _bytes(objective, original)
    name = "size" if objective == "size" else "peak memory"
    if math.isinf(ours) or math.isinf(theirs):
        return f"its {name} was not measured" if math.isinf(ours) else f"the original's {name} was not measured"
    if ours < theirs * (1 - _tolerance(objective)):
        return ""
    return f"compression made its {name} no smaller: it is {smaller(round(ours), round(theirs))}"


def better_because(objective: str, winner: Weighed, other: Weighed) -> str:
    """By how much `winner` is better, as the reason against `other`; empty where it is not, beyond the tolerance."""
    ours, theirs = cost(objective, winner), cost(objective, other)
    if objective in ("size", "memory"):
        if not ours < theirs - abs(theirs) * _tolerance(objective):
            return ""
        what = "smaller" if objective == "size" else "leaner in memory"
        shown = size(theirs) if math.isfinite(theirs) else "unknown"
        return f"{winner.facts.name} is {what}: {size(ours)} against {shown}"
    if objective == "energy":
        saved = energy_saved(winner.facts, other.facts)
        if saved is None or not is_faster(saved):
            return ""
        return f"{winner.facts.name} takes less energy: {joules(ours)} a call against {joules(theirs)}"
    if not ours < theirs:
        return ""
    of = f"the speed of {winner.reference}" if winner.reference != ORIGINAL else "the original's speed"
    return f"{winner.facts.name} is faster: {number(-ours)} times {of} against {number(-theirs)}"


def _tolerance(objective: str) -> float:
    return MEMORY_TIE if objective == "memory" else 0.0
