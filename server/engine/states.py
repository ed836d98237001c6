"""The states of jobs, variants, candidates and tasks, and which may follow which. Pure."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from fleetfit.core.errors import Conflict


class JobState(StrEnum):
    """A job runs from its creation; queueing happens per task."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class VariantState(StrEnum):
    """A variant is made once, for whichever jobs want it."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class CandidateState(StrEnum):
    """One variant on one device."""

    WAITING = "waiting"
    COMPRESSING = "compressing"
    MEASURING = "measuring"
    MEASURED = "measured"
    FAILED = "failed"
    SKIPPED = "skipped"


class TaskState(StrEnum):
    """A measurement: `reported` is between an agent's report and the end of its analysis."""

    WAITING = "waiting"
    LEASED = "leased"
    REPORTED = "reported"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDED_CANDIDATE: Final = frozenset({CandidateState.MEASURED, CandidateState.FAILED, CandidateState.SKIPPED})
ENDED_TASK: Final = frozenset({TaskState.DONE, TaskState.FAILED, TaskState.CANCELLED})
ENDED_JOB: Final = frozenset({JobState.DONE, JobState.FAILED, JobState.CANCELLED})

_CANDIDATE: Final = {
    CandidateState.WAITING: {
        CandidateState.COMPRESSING,
        CandidateState.MEASURING,
        CandidateState.FAILED,
        CandidateState.SKIPPED,
    },
    CandidateState.COMPRESSING: {
        CandidateState.WAITING,
        CandidateState.MEASURING,
        CandidateState.FAILED,
        CandidateState.SKIPPED,
    },
    CandidateState.MEASURING: {CandidateState.MEASURED, CandidateState.FAILED, CandidateState.SKIPPED},
    CandidateState.MEASURED: set(),
    # Only a resumed job leaves these again.
    CandidateState.FAILED: {CandidateState.WAITING},
    CandidateState.SKIPPED: {CandidateState.WAITING},
}


def follow(present: str, wanted: CandidateState) -> CandidateState:
    """`wanted`, if a candidate may go there from `present`. Raises Conflict."""
    before = CandidateState(present)
    if wanted is not before and wanted not in _CANDIDATE[before]:
        raise Conflict(f"a candidate that is {before} cannot become {wanted}; this is a bug, please report it")
    return wanted


def next_candidate_state(variant: str, original_variant: str) -> tuple[CandidateState, bool]:
    """What a candidate that is not measured yet should be, by its variant and the original's; and whether to measure it."""
    if VariantState(variant) is VariantState.FAILED or VariantState(original_variant) is VariantState.FAILED:
        return CandidateState.FAILED, False
    if VariantState(variant) is VariantState.DONE and VariantState(original_variant) is VariantState.DONE:
        return CandidateState.MEASURING, True
    if VariantState(variant) is VariantState.RUNNING:
        return CandidateState.COMPRESSING, False
    return CandidateState.WAITING, False
