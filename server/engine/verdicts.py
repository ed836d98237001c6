"""What a health check says of a device, and when the next one is due. Pure: no database, no clock, no NumPy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean, stdev
from typing import Final

from fleetfit.core.figures import number
from fleetfit.core.statistics_student import student_quantile

FEWEST: Final = 5
"""So many checks under one condition only build a history."""
# One check in two hundred of a device that is as it was is slower than this says; two in a row set it aside.
_BELOW: Final = 0.995
# On the scale of logarithms: a device whose checks happened to agree closer is not held to it. 6 % slower than 20 checks then
# still passes, 10 % slower than five.
_LEAST_SPREAD: Final = 0.02
# A check that does not know its own figure better than this, either way, says nothing about another's.
_WIDEST: Final = 1.2
_BUILDING_MS: Final = 3_600_000
_SOON_MS: Final = 900_000


class Verdict(StrEnum):
    """`new` while a history is built, `unclear` where the check must be repeated to say anything."""

    PASSED = "passed"
    FAILED = "failed"
    NEW = "new"
    UNCLEAR = "unclear"


@dataclass(frozen=True)
class Found:
    """What a device made of the golden model; times in milliseconds of a call, None where there are none."""

    p50_ms: float | None = None
    low_ms: float | None = None
    high_ms: float | None = None
    wrong: str = ""
    """What is wrong with its outputs, as a clause."""
    trust: str = "clean"
    failure: str = ""
    """Why there is no measurement, as a clause."""
    excused: bool = False
    """Whether the failure says nothing about the device."""


@dataclass(frozen=True)
class Judgement:
    """`expected` are the bounds that p50 was held against, None where the history is too short."""

    verdict: Verdict
    why: str = ""
    expected: tuple[float, float] | None = None


def judge(found: Found, history_ms: Sequence[float]) -> Judgement:
    """A check beside the p50 of earlier ones of the device under the same condition.

    Outputs that are wrong fail whatever else was seen. A device fails by speed where p50 lies above what one more check is
    expected to show (`expect`), and the check's own interval leaves the history's mean out.
    """
    if found.failure:
        return Judgement(Verdict.UNCLEAR if found.excused else Verdict.FAILED, found.failure)
    if found.wrong:
        return Judgement(Verdict.FAILED, found.wrong)
    expected = expect(history_ms)
    p50, low, high = found.p50_ms, found.low_ms, found.high_ms
    if p50 is None:
        return Judgement(Verdict.UNCLEAR, "the golden model was not timed", expected)
    if found.trust != "clean":
        why = "the device throttled meanwhile" if found.trust == "throttled" else "the device was not quiet"
        return Judgement(Verdict.UNCLEAR, why, expected)
    if low is None or high is None or low <= 0 or high / low > _WIDEST**2:
        return Judgement(Verdict.UNCLEAR, "its samples differ too much to say anything", expected)
    if expected is None:
        return Judgement(Verdict.NEW, f"check {len(history_ms) + 1} of the {FEWEST} that begin a history")
    said = f"a call takes {number(p50)} ms, where {number(expected[0])} to {number(expected[1])} were expected"
    if p50 < expected[0]:
        return Judgement(Verdict.PASSED, f"it is faster than before: {said}", expected)
    if p50 <= expected[1]:
        return Judgement(Verdict.PASSED, "", expected)
    if low <= _centre(history_ms):
        return Judgement(
            Verdict.UNCLEAR, f"it seems slower, but its samples differ too much to be sure: {said}", expected
        )
    slower = 100 * (p50 / _centre(history_ms) - 1)
    return Judgement(Verdict.FAILED, f"it is {slower:.0f} % slower than before: {said}", expected)


def expect(history_ms: Sequence[float]) -> tuple[float, float] | None:
    """The bounds of one more check's p50, in milliseconds; None for too short a history.

    Student's prediction interval of one more value, over logarithms: mean -+ t s sqrt(1 + 1/n).
    """
    count = len(history_ms)
    if count < FEWEST:
        return None
    logs = [math.log(value) for value in history_ms]
    spread = max(stdev(logs), _LEAST_SPREAD)
    half = student_quantile(_BELOW, count - 1) * spread * math.sqrt(1 + 1 / count)
    centre = fmean(logs)
    return math.exp(centre - half), math.exp(centre + half)


def _centre(history_ms: Sequence[float]) -> float:
    return math.exp(fmean(math.log(value) for value in history_ms))


@dataclass(frozen=True)
class Past:
    """A check that has ended, or a person's word that a device is well (as one that passed)."""

    verdict: Verdict
    at_ms: int


def sets_aside(judgement: Judgement, *, wrong: bool, earlier: Sequence[Past]) -> bool:
    """Whether a check sets its device aside. `earlier` are those before it, the newest first.

    Wrong outputs do at once; anything else once it is confirmed, with nothing but unclear checks in between.
    """
    if judgement.verdict is not Verdict.FAILED:
        return False
    clear = (past.verdict for past in earlier if past.verdict is not Verdict.UNCLEAR)
    return wrong or next(clear, None) is Verdict.FAILED


def is_due(past: Sequence[Past], now_ms: int, *, every_ms: int, wanted: bool, set_aside: bool) -> bool:
    """Whether a device that is free should be checked now. `past` is the newest first; `every_ms` 0: only where asked for.

    What failed is repeated at once, what was unclear once at once and then now and then; a history is built within hours, and
    a device that is set aside may come back soon after it is well.
    """
    if wanted:
        return True
    last = past[0].verdict if past else None
    if last is Verdict.FAILED and not set_aside:
        return True
    if last is Verdict.UNCLEAR and not (len(past) > 1 and past[1].verdict is Verdict.UNCLEAR):
        return True
    if every_ms <= 0:
        return False
    if not past:
        return True
    wait_ms = every_ms
    if set_aside or last in (Verdict.FAILED, Verdict.UNCLEAR):
        wait_ms = min(every_ms, _SOON_MS)
    elif last is Verdict.NEW:
        wait_ms = min(every_ms, _BUILDING_MS)
    return now_ms - past[0].at_ms >= wait_ms


_FIRST: Final = ("power_mode", "governor", "clocks")
_WORDS: Final = {"runtime_version": "version of the runtime", "method_version": "method", "golden": "golden model"}


def described_change(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """What differs between two conditions: `15W -> MAXN` for the power mode, the others by their names."""
    names = [*_FIRST, *sorted({*before, *after} - {*_FIRST})]
    changed = {name: (before.get(name, ""), after.get(name, "")) for name in names}
    changed = {name: pair for name, pair in changed.items() if pair[0] != pair[1]}
    # Where a device has no power modes the governor stands for them.
    if changed.get("governor") == changed.get("power_mode"):
        changed.pop("governor", None)
    parts = []
    for name, (old, new) in changed.items():
        word = "" if name == "power_mode" else f"{_WORDS.get(name, name.replace('_', ' '))} "
        parts.append(f"{word}{old or 'none'} -> {new or 'none'}")
    return ", ".join(parts)
