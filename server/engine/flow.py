"""What follows from what in a job. Each step reads the database, writes the database, and can be taken again after a crash."""

from __future__ import annotations

from dataclasses import dataclass, field

from sqlalchemy import select
from sqlalchemy.orm import Session

from fleetfit.core.durations import duration
from fleetfit.proto.v1 import jobs_pb2
from fleetfit.server.engine.facts import metric_of, read_facts
from fleetfit.server.engine.last_tasks import left_to_ask, wanted_last
from fleetfit.server.engine.leases import original_of
from fleetfit.server.engine.lowering import readiness
from fleetfit.server.engine.scoring import scores_of_job
from fleetfit.server.engine.states import (
    ENDED_CANDIDATE,
    ENDED_TASK,
    CandidateState,
    JobState,
    TaskState,
    follow,
    next_candidate_state,
)
from fleetfit.server.engine.subsets import WantedSubset, missing_subsets
from fleetfit.server.report.facts import DeviceFacts
from fleetfit.server.selection.choose import select_variant
from fleetfit.server.storage.ids import new_id, now_ms
from fleetfit.server.storage.tables import (
    CandidateRow,
    DropsRow,
    JobRow,
    MeasurementRow,
    TaskRow,
)


@dataclass
class Wanted:
    """What must happen outside the database before a job can go on."""

    wake: set[str] = field(default_factory=set)
    drops: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    """Device, split, and the raw results' digests by candidate."""
    subsets: list[WantedSubset] = field(default_factory=list)
    """Parts of splits, before anything is measured."""
    report: bool = False


def advance(session: Session, job: JobRow) -> Wanted:
    """Take every step that the job's state allows."""
    wanted = Wanted()
    if job.state != JobState.RUNNING:
        return wanted
    spec = jobs_pb2.JobSpec.FromString(job.spec)
    judged = bool(metric_of(session, job, spec))
    if judged:
        wanted.subsets = missing_subsets(session, job)
        if wanted.subsets:
            return wanted
    rows = session.scalars(
        select(CandidateRow).where(CandidateRow.job_id == job.id).order_by(CandidateRow.position)
    ).all()
    over_budget = spec.budget_ms > 0 and now_ms() - job.created_ms > spec.budget_ms
    by_device: dict[str, list[CandidateRow]] = {}
    for row in rows:
        by_device.setdefault(row.device_id, []).append(row)
        if over_budget and row.role == "recipe" and _not_begun(session, row):
            row.state = follow(row.state, CandidateState.SKIPPED)
            row.reason = f"the job's budget of {duration(spec.budget_ms / 1000)} was used up before it was measured"
        elif row.state in (CandidateState.WAITING, CandidateState.COMPRESSING):
            _prepare(session, job, row, judged, wanted)
    last = [] if over_budget else wanted_last(spec)
    # Every device is looked at: each may have something to do next.
    finished = [
        _device_finished(session, job, device_id, judged, wanted)
        and all(_measured_last(session, job, device_id, kind, wanted) for kind in last)
        for device_id in by_device
    ]
    wanted.report = all(finished)
    return wanted


def _not_begun(session: Session, row: CandidateRow) -> bool:
    """Whether no device has begun to measure a candidate; a measurement that nobody has heard of yet is taken back."""
    if row.state != CandidateState.MEASURING:
        return row.state in (CandidateState.WAITING, CandidateState.COMPRESSING)
    query = select(TaskRow).where(
        TaskRow.candidate_id == row.id, TaskRow.state == TaskState.WAITING, TaskRow.fence == 0
    )
    task = session.scalars(query).first()
    if task is None:
        return False
    session.delete(task)
    session.flush()
    return True


def _prepare(session: Session, job: JobRow, row: CandidateRow, judged: bool, wanted: Wanted) -> None:
    build, reason = readiness(session, row)
    beside, of_original = readiness(session, original_of(session, row))
    state, measure = next_candidate_state(build, beside)
    row.state = follow(row.state, state)
    if state is CandidateState.FAILED:
        row.reason = reason or f"the original could not be built: {of_original}"
    if measure:
        _add_task(session, job, row, "validation" if judged else "", metric_only=False)
        wanted.wake.add(row.device_id)


def _add_task(session: Session, job: JobRow, row: CandidateRow, split: str, *, metric_only: bool) -> None:
    session.add(
        TaskRow(
            id=new_id(),
            job_id=job.id,
            device_id=row.device_id,
            candidate_id=row.id,
            split=split,
            metric_only=metric_only,
            state=TaskState.WAITING,
            fence=0,
            lease_deadline_ms=0,
            attempts=0,
            result_sha256="",
            result_fence=0,
            progress=None,
            created_ms=now_ms(),
        )
    )


def _device_finished(session: Session, job: JobRow, device_id: str, judged: bool, wanted: Wanted) -> bool:
    """Whether nothing is left to do on a device; asks for what is next where something is."""
    rows = session.scalars(
        select(CandidateRow).where(CandidateRow.job_id == job.id, CandidateRow.device_id == device_id)
    ).all()
    if any(row.state not in ENDED_CANDIDATE for row in rows):
        return False
    if not judged:
        return True
    if not _compared(session, job, device_id, "validation", wanted):
        return False
    facts = next(d for d in read_facts(session, job).devices if d.device_id == device_id)
    tasks = session.scalars(
        select(TaskRow).where(TaskRow.job_id == job.id, TaskRow.device_id == device_id, TaskRow.split == "test")
    ).all()
    known = {task.candidate_id for task in tasks}
    wished = _to_test(session, job, facts)
    missing = [row for row in rows if row.id in wished and row.id not in known]
    for row in missing:
        _add_task(session, job, row, "test", metric_only=True)
        wanted.wake.add(device_id)
    if missing or any(task.state not in ENDED_TASK for task in tasks):
        return False
    return not tasks or _compared(session, job, device_id, "test", wanted)


def _measured_last(session: Session, job: JobRow, device_id: str, kind: str, wanted: Wanted) -> bool:
    """Whether one kind of what is measured last is known of a device's finalists; asks for it where not."""
    missing, measuring = left_to_ask(session, job, device_id, kind)
    for row in missing:
        _add_task(session, job, row, kind, metric_only=True)
        wanted.wake.add(device_id)
    return not missing and not measuring


def _to_test(session: Session, job: JobRow, device: DeviceFacts) -> set[str]:
    """Whose test figures are computed: the original's, the control's and the selected one's, under each condition."""
    chosen = select_variant(read_facts(session, job), device).selected
    return {c.id for c in device.candidates if c.state == "measured" and (c.role != "recipe" or c.id == chosen)}


def _compared(session: Session, job: JobRow, device_id: str, split: str, wanted: Wanted) -> bool:
    """Whether paired losses on a split are known; asks for them where not."""
    if session.get(DropsRow, (job.id, device_id, split)) is not None:
        return True
    measured = session.execute(
        select(MeasurementRow.candidate_id, MeasurementRow.raw_sha256)
        .join(CandidateRow, CandidateRow.id == MeasurementRow.candidate_id)
        .where(CandidateRow.job_id == job.id, CandidateRow.device_id == device_id, MeasurementRow.split == split)
    ).all()
    raw = {row.candidate_id: row.raw_sha256 for row in measured}
    if job.scorer_id:
        raw = scores_of_job(session, job, device_id, split)
    if not raw:
        return True
    wanted.drops.append((device_id, split, raw))
    return False
