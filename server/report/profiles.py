"""The time of each operator, from what a device sent to what the report says. No NumPy: the server's process builds reports."""

from __future__ import annotations

from dataclasses import asdict
from typing import Final, Literal, cast

from fleetfit.proto.profile import profile_figures
from fleetfit.proto.v1 import measurement_pb2
from fleetfit.server.report.facts import CandidateFacts, DeviceFacts, JobFacts
from fleetfit.server.report.model import OperatorReport, ProfileReport
from fleetfit.server.report.summary import Operator, ProfileSummary

# Networks have thousands; the smallest of so many take no time that anybody would look for.
_MOST: Final = 100
_EMPTY: Final = "the device's runtime told the time of no operator"


def summarize_profile(raw: measurement_pb2.MeasurementResult) -> ProfileSummary | None:
    """The largest operators, and what the others take together; None where it was not asked for."""
    if not raw.HasField("profile"):
        return None
    found = profile_figures(raw.profile)
    if found is None:
        return ProfileSummary(because=raw.profile.not_offered_because or _EMPTY)
    return ProfileSummary(
        operators=[Operator(**asdict(one)) for one in found.operators[:_MOST]],
        count=len(found.operators),
        operators_ms=found.operators_ms,
        call_ms=found.call_ms,
        calls=found.calls,
        notes=list(raw.profile.notes),
    )


def profile_report(c: CandidateFacts) -> ProfileReport | None:
    """The operators of a candidate; None where they were not asked for."""
    found = c.profile.profile if c.profile is not None else None
    if c.profile is None or found is None:
        return None
    return ProfileReport(
        operators=[OperatorReport.model_validate(one.model_dump()) for one in found.operators],
        count=found.count,
        operators_ms=found.operators_ms,
        call_ms=found.call_ms,
        calls=found.calls,
        not_offered_because=found.because,
        trust=cast(Literal["clean", "noisy", "throttled"], c.profile.trust),
        notes=[*found.notes, *c.profile.notes],
    )


def profile_notes(job: JobFacts, device: DeviceFacts, c: CandidateFacts, *, finalist: bool) -> list[str]:
    """Why a profile that was asked for is missing."""
    if not job.profile or not finalist:
        return []
    if c.profile is not None:
        because = c.profile.profile.because if c.profile.profile is not None else _EMPTY
        return [f"its operators were not timed: {because}"] if because else []
    return [f"its operators were not timed: {device.why_not_last(c.no_profile_because, able=device.profiles)}"]
