"""The time of each operator, as the page shows it: the largest ones of each build side by side, with bars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fleetfit.core.figures import number
from fleetfit.server.report.model import CandidateReport, OperatorReport, ProfileReport

_SHOWN: Final = 10


@dataclass(frozen=True)
class OperatorRow:
    """An operator as text; `width` is its bar's, of 100 for the largest of all builds beside it."""

    name: str
    about: str
    ms: str
    share: str
    width: str


@dataclass(frozen=True)
class ProfiledPage:
    """One candidate: its largest operators and the rest, or why there are none (`because`)."""

    name: str
    css: str
    rows: list[OperatorRow]
    rest: tuple[str, str, str] | None
    words: str
    because: str
    notes: list[str]


def profile_page(candidates: Sequence[CandidateReport]) -> list[ProfiledPage]:
    """What a device's candidates show of it, the chosen one first; empty where nobody asked."""
    found = [(c, c.profile) for c in candidates if c.profile is not None]
    found.sort(key=lambda one: not one[0].selected)
    several = len({c.runtime for c, _ in found}) > 1
    largest = max((one.ms for _, profile in found for one in profile.operators), default=0.0)
    return [_profiled(c, profile, largest, named_by_runtime=several) for c, profile in found]


def _profiled(c: CandidateReport, profile: ProfileReport, largest: float, *, named_by_runtime: bool) -> ProfiledPage:
    shown = profile.operators[:_SHOWN]
    rest = profile.count - len(shown)
    rest_ms = profile.operators_ms - sum(one.ms for one in shown)
    return ProfiledPage(
        name=f"{c.recipe} in {c.runtime}" if named_by_runtime else c.recipe,
        css="selected" if c.selected else "",
        rows=[_row(one, largest) for one in shown],
        rest=(
            f"{rest} other{'' if rest == 1 else 's'}",
            f"{number(max(rest_ms, 0.0))} ms",
            _percent(max(rest_ms, 0.0) / profile.operators_ms),
        )
        if rest > 0
        else None,
        words=_words(c, profile),
        because=profile.not_offered_because,
        notes=list(profile.notes),
    )


def _row(one: OperatorReport, largest: float) -> OperatorRow:
    about = [one.operator if one.operator != one.name else "", one.number_format, one.placed]
    if one.runs > 1:
        about.append(f"{number(one.runs)} runs a call")
    return OperatorRow(
        name=one.name,
        about=", ".join(part for part in about if part),
        ms=f"{number(one.ms)} ms",
        share=_percent(one.share),
        width=f"{100 * one.ms / largest:.1f}",
    )


def _percent(share: float) -> str:
    return f"{number(100 * share, 2)} %" if share >= 1e-3 else "0 %"


def _words(c: CandidateReport, profile: ProfileReport) -> str:
    if not profile.operators:
        return ""
    beside = f", where one takes {number(c.latency_ms.p50)} ms without it" if c.latency_ms is not None else ""
    return (
        f"{profile.count} operator{'' if profile.count == 1 else 's'} take {number(profile.operators_ms)} ms of a call of "
        f"{number(profile.call_ms)} ms with the profiler on{beside}; means of {profile.calls} calls."
    )
