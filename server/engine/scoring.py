"""Users' own metrics: outputs on their way to a user's machine and scores on their way back.

A scorer leases as an agent does: for a limited time, with a fencing token, and its report counts once. A job is scored by one
source of a metric from its first score on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from fleetfit.core.digests import is_sha256, key_of, short
from fleetfit.core.errors import InvalidInput, LeaseLost, NotFound
from fleetfit.core.metrics import is_user_metric, judged_name
from fleetfit.proto.printable import printable
from fleetfit.proto.v1 import common_pb2, jobs_pb2, scoring_pb2
from fleetfit.server.engine.facts import metric_of
from fleetfit.server.engine.leases import DEFAULT_LEASE_MS, fail_task, monotonic_ms
from fleetfit.server.engine.library import keep_artifact
from fleetfit.server.engine.states import (
    NO_SPLITS,
    CandidateState,
    JobState,
    ScoringState,
    TaskState,
    follow,
    follow_scoring,
)
from fleetfit.server.engine.subsets import given_to_devices
from fleetfit.server.report.summary import MeasurementSummary, MetricSummary
from fleetfit.server.storage.artifacts import ArtifactStore
from fleetfit.server.storage.database import Database
from fleetfit.server.storage.ids import new_id, now_ms
from fleetfit.server.storage.tables import (
    CandidateRow,
    DeviceRow,
    JobRow,
    MeasurementRow,
    ScorerRow,
    ScoringRow,
    TaskRow,
)

_MOST_ATTEMPTS: Final = 5
# A scorer asks every second; one that was not heard for so long is away.
_AWAY_MS: Final = 10_000
_MOST_TOLD: Final = 500
TRAINED_BY_LOSS: Final = (
    "where a recipe trains, it stops early by the loss, because the server cannot compute this metric"
)


def scorer_command(metric: str) -> str:
    """The command that computes a user's metric, as people are told it."""
    return f"fleetfit scorer MODULE:FUNCTION --name {metric.partition(':')[2].partition(',')[0]}"


class Scoring:
    """Hands outputs to scorers. Deadlines are on this machine's monotonic clock, as those of `Leases`.

    `changed` is called with the id of a job that may go on.
    """

    def __init__(
        self,
        database: Database,
        store: ArtifactStore,
        *,
        lease_ms: int = DEFAULT_LEASE_MS,
        clock_ms: Callable[[], int] = monotonic_ms,
        changed: Callable[[str], None] = lambda job_id: None,
    ) -> None:
        self._database = database
        self._store = store
        self._lease_ms = lease_ms
        self._clock_ms = clock_ms
        self._changed = changed
        self._heard: dict[str, int] = {}

    async def extend_all(self) -> None:
        """After a start: nobody's lease has run out while nobody could renew."""
        deadline = self._clock_ms() + self._lease_ms

        def extend(session: Session) -> None:
            for row in session.scalars(select(ScoringRow).where(ScoringRow.state == ScoringState.LEASED)):
                row.lease_deadline_ms = deadline

        await self._database.write(extend)

    async def register(self, owner: str, request: scoring_pb2.RegisterScorerRequest) -> str:
        """A scorer's id; the same for the same metric. Raises InvalidInput."""
        judged_name(request.name, lower_is_better=request.lower_is_better, unit=request.unit)
        if printable(request.unit) != request.unit or not is_sha256(request.source_sha256):
            raise InvalidInput("the scorer sent a unit or a digest that is none; choose another --unit, or update it")
        content = [owner, request.name, request.source_sha256, request.lower_is_better, request.unit]
        scorer_id = key_of(content)

        def write(session: Session) -> None:
            row = session.get(ScorerRow, scorer_id)
            if row is None:
                row = ScorerRow(
                    id=scorer_id,
                    owner=owner,
                    name=request.name,
                    source_sha256=request.source_sha256,
                    lower_is_better=request.lower_is_better,
                    unit=request.unit,
                    seen_ms=0,
                )
                session.add(row)
            row.seen_ms = now_ms()

        await self._database.write(write)
        self._heard[scorer_id] = self._clock_ms()
        return scorer_id

    async def lease(self, owner: str, scorer_id: str) -> scoring_pb2.LeaseScoringResponse:
        """Outputs to score, if there are any, of the owner's jobs. Raises NotFound for a scorer that is not registered."""
        self._heard[scorer_id] = self._clock_ms()
        settled: list[str] = []

        def take(session: Session) -> scoring_pb2.LeaseScoringResponse:
            scorer = _scorer(session, owner, scorer_id)
            answer = scoring_pb2.LeaseScoringResponse()
            for job in _jobs_of(session, scorer):
                if job.scorer_id not in ("", scorer_id):
                    other = session.get_one(ScorerRow, job.scorer_id)
                    answer.refusals.append(_refusal(job, scorer, other))
                    continue
                answer.waiting_jobs += 1
                for task, measurement in _unscored(session, job):
                    row = _scoring(session, measurement, scorer_id)
                    job.scorer_id = scorer_id
                    if row.state == ScoringState.DONE:
                        _finish(session, row, task, measurement)
                        settled.append(job.id)
                    elif row.state == ScoringState.WAITING and not answer.HasField("lease"):
                        row.state = follow_scoring(row.state, ScoringState.LEASED)
                        row.fence += 1
                        row.attempts += 1
                        row.lease_deadline_ms = self._clock_ms() + self._lease_ms
                        answer.lease.CopyFrom(self._message(session, row, job, task, measurement))
            return answer

        answer = await self._database.write(take)
        for job_id in settled:
            self._changed(job_id)
        return answer

    async def renew(self, owner: str, request: scoring_pb2.RenewScoringRequest) -> scoring_pb2.RenewScoringResponse:
        """More time. Raises LeaseLost for an older fence."""

        def extend(session: Session) -> scoring_pb2.RenewScoringResponse:
            row, job = _held(session, owner, request.scoring_id, request.fence)
            self._heard[row.scorer_id] = self._clock_ms()
            if job.state != JobState.RUNNING:
                return scoring_pb2.RenewScoringResponse(cancelled=True)
            if row.state == ScoringState.WAITING:
                # The lease ran out unheard but nobody else has it yet: the same holder may go on.
                row.state = follow_scoring(row.state, ScoringState.LEASED)
            if row.state != ScoringState.LEASED:
                raise LeaseLost(f"the scoring {row.id} has ended; drop it")
            row.lease_deadline_ms = self._clock_ms() + self._lease_ms
            return scoring_pb2.RenewScoringResponse(lease_ms=self._lease_ms)

        return await self._database.write(extend)

    async def report(self, owner: str, request: scoring_pb2.ReportScoringRequest) -> bool:
        """Take scores, or why there are none; False where they were accepted before. Raises LeaseLost for an older fence."""
        size = 0 if request.error else self._store.path(request.scores.sha256).stat().st_size
        failed: list[str] = []

        def accept(session: Session) -> bool:
            row, job = _held(session, owner, request.scoring_id, request.fence)
            if row.state in (ScoringState.REPORTED, ScoringState.DONE, ScoringState.FAILED):
                return False
            if job.state != JobState.RUNNING:
                raise LeaseLost(f"the job of the scoring {row.id} is {job.state}; drop its scores")
            if row.state == ScoringState.WAITING:
                row.state = follow_scoring(row.state, ScoringState.LEASED)
            if request.error:
                _fail(session, row, printable(request.error)[:_MOST_TOLD])
                failed.append(job.id)
                return True
            keep_artifact(session, request.scores.sha256, size)
            row.state, row.scores_sha256 = follow_scoring(row.state, ScoringState.REPORTED), request.scores.sha256
            return True

        first = await self._database.write(accept)
        for job_id in failed:
            self._changed(job_id)
        return first

    async def expire(self) -> None:
        """Make outputs free whose leases ran out."""
        now = self._clock_ms()
        late = select(ScoringRow).where(ScoringRow.state == ScoringState.LEASED, ScoringRow.lease_deadline_ms < now)
        if not await self._database.read(lambda session: session.scalars(late).first() is not None):
            return

        def free(session: Session) -> list[str]:
            failed = []
            for row in session.scalars(late).all():
                if row.attempts < _MOST_ATTEMPTS:
                    row.state = follow_scoring(row.state, ScoringState.WAITING)
                else:
                    _fail(session, row, f"the scorer was lost {row.attempts} times while it scored this build")
                    failed.append(_task_of(session, row).job_id)
            return failed

        for job_id in await self._database.write(free):
            self._changed(job_id)

    def missing(self, session: Session, job: JobRow) -> str:
        """The command to run where a job is judged by a user's metric and nobody computes it now, else empty."""
        metric = jobs_pb2.JobSpec.FromString(job.spec).metric
        if not is_user_metric(metric):
            return ""
        since = self._clock_ms() - _AWAY_MS
        here = [scorer_id for scorer_id, heard in self._heard.items() if heard > since]
        for scorer in session.scalars(select(ScorerRow).where(ScorerRow.id.in_(here), ScorerRow.owner == job.owner)):
            if f"user:{scorer.name}" == metric and job.scorer_id in ("", scorer.id):
                return ""
        return scorer_command(metric)

    def _message(
        self, session: Session, row: ScoringRow, job: JobRow, task: TaskRow, measurement: MeasurementRow
    ) -> scoring_pb2.ScoringLease:
        outputs = MeasurementSummary.model_validate(measurement.summary).outputs
        if outputs is None:
            raise NotFound(f"the measurement {measurement.id} has no outputs; resume the job")
        split = given_to_devices(session, job, task.split)
        return scoring_pb2.ScoringLease(
            scoring_id=row.id,
            fence=row.fence,
            lease_ms=self._lease_ms,
            outputs=common_pb2.ArtifactRef(sha256=outputs.sha256, size_bytes=outputs.size_bytes),
            data=common_pb2.ArtifactRef(sha256=split["sha256"], size_bytes=split["size_bytes"]),
            split=task.split,
            count=outputs.n,
            job_id=job.id,
            device=session.get_one(DeviceRow, task.device_id).name,
            recipe=session.get_one(CandidateRow, task.candidate_id).recipe,
        )


@dataclass(frozen=True)
class ReportedScores:
    """Scores that came and were not looked at yet."""

    id: str
    job_id: str
    metric: str
    split: str
    count: int
    sha256: str


def next_scores(session: Session) -> ReportedScores | None:
    """The oldest scores to look at."""
    query = select(ScoringRow).where(ScoringRow.state == ScoringState.REPORTED).order_by(ScoringRow.id)
    row = session.scalars(query).first()
    if row is None:
        return None
    task = _task_of(session, row)
    job = session.get_one(JobRow, task.job_id)
    outputs = MeasurementSummary.model_validate(session.get_one(MeasurementRow, row.measurement_id).summary).outputs
    metric = metric_of(session, job, jobs_pb2.JobSpec.FromString(job.spec))
    return ReportedScores(row.id, job.id, metric, task.split, outputs.n if outputs else 0, row.scores_sha256)


def keep_scores(session: Session, scoring_id: str, answer: dict[str, Any]) -> None:
    """Keep what scores say, or fail their candidate with the reason why they are none."""
    row = session.get(ScoringRow, scoring_id)
    if row is None or row.state != ScoringState.REPORTED:
        return
    if "metric" not in answer:
        _fail(session, row, str(answer["refused"]))
        return
    row.state, row.metric = follow_scoring(row.state, ScoringState.DONE), answer["metric"]
    _finish(session, row, _task_of(session, row), session.get_one(MeasurementRow, row.measurement_id))


def rescore(session: Session, job: JobRow, tasks: Sequence[TaskRow]) -> set[str]:
    """Before a job is resumed: where its metric failed, let all of it be scored anew; the candidates that are.

    Nothing is measured again. The metric may have been corrected, so the job is free for another source; what this one has
    scored already is not computed again.
    """
    if not job.scorer_id:
        return set()
    rows = {
        row.task_id: row
        for row in session.scalars(select(MeasurementRow).where(MeasurementRow.task_id.in_([t.id for t in tasks])))
    }
    measured = select(ScoringRow).where(ScoringRow.measurement_id.in_([row.id for row in rows.values()]))
    failed = [row for row in session.scalars(measured) if row.state == ScoringState.FAILED]
    if not failed:
        return set()
    for row in failed:
        row.state, row.attempts, row.reason = follow_scoring(row.state, ScoringState.WAITING), 0, ""
    job.scorer_id = ""
    candidates = set()
    for task in tasks:
        if task.id not in rows or task.split in NO_SPLITS:
            continue
        task.state = TaskState.SCORING
        candidate = session.get_one(CandidateRow, task.candidate_id)
        if not task.metric_only:
            # No step forward, so `follow` has no say: a figure of the old metric is taken back.
            candidate.state, candidate.reason = CandidateState.SCORING, ""
            candidates.add(candidate.id)
    session.flush()
    return candidates


def scores_of_job(session: Session, job: JobRow, device_id: str, split: str) -> dict[str, str]:
    """Digests of the scores on one device and split, by candidate."""
    found = session.execute(
        select(MeasurementRow.candidate_id, ScoringRow.scores_sha256)
        .join(ScoringRow, ScoringRow.measurement_id == MeasurementRow.id)
        .join(CandidateRow, CandidateRow.id == MeasurementRow.candidate_id)
        .where(
            CandidateRow.job_id == job.id,
            MeasurementRow.device_id == device_id,
            MeasurementRow.split == split,
            ScoringRow.scorer_id == job.scorer_id,
            ScoringRow.state == ScoringState.DONE,
        )
    )
    return {row.candidate_id: row.scores_sha256 for row in found}


def _scorer(session: Session, owner: str, scorer_id: str) -> ScorerRow:
    row = session.get(ScorerRow, scorer_id)
    if row is None or row.owner != owner:
        raise NotFound("this scorer is not registered here; start it again", field="scorer")
    return row


def _jobs_of(session: Session, scorer: ScorerRow) -> list[JobRow]:
    """The running jobs of the scorer's owner that are judged by its metric."""
    query = select(JobRow).where(JobRow.state == JobState.RUNNING, JobRow.owner == scorer.owner).order_by(JobRow.id)
    wanted = f"user:{scorer.name}"
    return [job for job in session.scalars(query) if jobs_pb2.JobSpec.FromString(job.spec).metric == wanted]


def _unscored(session: Session, job: JobRow) -> list[tuple[TaskRow, MeasurementRow]]:
    query = (
        select(TaskRow, MeasurementRow)
        .join(MeasurementRow, MeasurementRow.task_id == TaskRow.id)
        .where(TaskRow.job_id == job.id, TaskRow.state == TaskState.SCORING)
        .order_by(TaskRow.id)
    )
    return [(row[0], row[1]) for row in session.execute(query)]


def _scoring(session: Session, measurement: MeasurementRow, scorer_id: str) -> ScoringRow:
    query = select(ScoringRow).where(ScoringRow.measurement_id == measurement.id, ScoringRow.scorer_id == scorer_id)
    row = session.scalars(query).first()
    if row is None:
        row = ScoringRow(
            id=new_id(),
            measurement_id=measurement.id,
            scorer_id=scorer_id,
            state=ScoringState.WAITING,
            fence=0,
            lease_deadline_ms=0,
            attempts=0,
            scores_sha256="",
            reason="",
            metric=None,
        )
        session.add(row)
        session.flush()
    return row


def _task_of(session: Session, row: ScoringRow) -> TaskRow:
    return session.get_one(TaskRow, session.get_one(MeasurementRow, row.measurement_id).task_id)


def _held(session: Session, owner: str, scoring_id: str, fence: int) -> tuple[ScoringRow, JobRow]:
    row = session.get(ScoringRow, scoring_id)
    if row is None or session.get_one(ScorerRow, row.scorer_id).owner != owner:
        raise NotFound(f"there is no scoring {scoring_id} for this scorer; drop it")
    if row.fence != fence:
        raise LeaseLost(f"the scoring {scoring_id} was leased again since (token {row.fence}, not {fence}); drop it")
    return row, session.get_one(JobRow, _task_of(session, row).job_id)


def _fail(session: Session, row: ScoringRow, reason: str) -> None:
    row.state, row.reason = follow_scoring(row.state, ScoringState.FAILED), reason
    task = _task_of(session, row)
    name = session.get_one(ScorerRow, row.scorer_id).name
    fail_task(session, task, f"user:{name} gave no scores for this build: {reason}")


def _finish(session: Session, row: ScoringRow, task: TaskRow, measurement: MeasurementRow) -> None:
    """Put a scoring's figure beside what was measured, and go on with the candidate."""
    metric = MetricSummary.model_validate(row.metric)
    summary = MeasurementSummary.model_validate(measurement.summary)
    candidate = session.get_one(CandidateRow, task.candidate_id)
    note = f"run on the device, scored by {metric.name} on its user's machine"
    if candidate.role == "recipe":
        note += f"; {TRAINED_BY_LOSS}"
    notes = [*(one for one in summary.notes if one != note), note]
    measurement.summary = summary.model_copy(update={"metric": metric, "notes": notes}).model_dump()
    task.state = TaskState.DONE
    if candidate.state == CandidateState.SCORING:
        candidate.state, candidate.reason = follow(candidate.state, CandidateState.MEASURED), ""


def _refusal(job: JobRow, scorer: ScorerRow, other: ScorerRow) -> str:
    what = "its file" if other.source_sha256 != scorer.source_sha256 else "its direction or unit"
    return (
        f"the job {job.id[-6:]} was begun with another user:{scorer.name}: {what} has changed since (it was "
        f"{short(other.source_sha256)}); bring that one back, or cancel the job and start it again"
    )
