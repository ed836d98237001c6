"""The states of jobs, variants, candidates, tasks and scorings, and which may follow which. Pure."""

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
    """A variant, and each build of it, is made once, for whichever jobs want it."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class CandidateState(StrEnum):
    """One variant on one device."""

    WAITING = "waiting"
    COMPRESSING = "compressing"
    MEASURING = "measuring"
    SCORING = "scoring"
    MEASURED = "measured"
    FAILED = "failed"
    SKIPPED = "skipped"


class TaskState(StrEnum):
    """A measurement: `reported` is between an agent's report and the end of its analysis, `scoring` until a user has scored it."""

    WAITING = "waiting"
    LEASED = "leased"
    REPORTED = "reported"
    SCORING = "scoring"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class ScoringState(StrEnum):
    """One measurement's outputs at one scorer: `reported` is between its report and the check of its scores."""

    WAITING = "waiting"
    LEASED = "leased"
    REPORTED = "reported"
    DONE = "done"
    FAILED = "failed"


FAILED_BECAUSE: Final = "failed_because"
"""Under this name the progress of a task that failed says why."""
# In place of a split, where a task measures how its candidate scales, or the time of each of its operators.
SCALING: Final = "scaling"
PROFILE: Final = "profile"
NO_SPLITS: Final = frozenset({SCALING, PROFILE})

_SCORING: Final = {
    ScoringState.WAITING: {ScoringState.LEASED},
    # Lost and free again; reported; failed where it was lost too often, or its metric raised.
    ScoringState.LEASED: {ScoringState.WAITING, ScoringState.REPORTED, ScoringState.FAILED},
    ScoringState.REPORTED: {ScoringState.DONE, ScoringState.FAILED},
    ScoringState.DONE: set(),
    # Only a resumed job leaves this again.
    ScoringState.FAILED: {ScoringState.WAITING},
}
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
    CandidateState.MEASURING: {
        CandidateState.MEASURED,
        CandidateState.SCORING,
        CandidateState.FAILED,
        CandidateState.SKIPPED,
    },
    CandidateState.SCORING: {CandidateState.MEASURED, CandidateState.FAILED},
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


def follow_scoring(present: str, wanted: ScoringState) -> ScoringState:
    """`wanted`, if a scoring may go there from `present`. Raises Conflict."""
    before = ScoringState(present)
    if wanted not in _SCORING[before]:
        raise Conflict(f"a scoring that is {before} cannot become {wanted}; this is a bug, please report it")
    return wanted


def next_candidate_state(build: str, original: str) -> tuple[CandidateState, bool]:
    """What a candidate that is not measured yet should be, by how far its build and the original's are; and if to measure it."""
    if VariantState(build) is VariantState.FAILED or VariantState(original) is VariantState.FAILED:
        return CandidateState.FAILED, False
    if VariantState(build) is VariantState.DONE and VariantState(original) is VariantState.DONE:
        return CandidateState.MEASURING, True
    if VariantState(build) is VariantState.RUNNING:
        return CandidateState.COMPRESSING, False
    return CandidateState.WAITING, False
