"""Tasks on their way to agents and back: leases for a limited time, fencing tokens, reports that count once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from fleetfit.compress.tasks import Build
from fleetfit.core.errors import InvalidInput, LeaseLost, NotFound
from fleetfit.core.metrics import known_metric
from fleetfit.device_profiles.loader import load_profiles
from fleetfit.proto.methods import for_emulated
from fleetfit.proto.printable import printable
from fleetfit.proto.v1 import common_pb2, jobs_pb2, measurement_pb2, work_pb2
from fleetfit.server.engine.fleet import check_session
from fleetfit.server.engine.health import (
    HealthSettings,
    check_lease,
    check_reads,
    fail_check,
    is_being_judged,
    leased_check,
    next_check,
)
from fleetfit.server.engine.hours import within_hours
from fleetfit.server.engine.library import keep_artifact
from fleetfit.server.engine.lookup import read_snapshot
from fleetfit.server.engine.lowering import build_of
from fleetfit.server.engine.messages import tensor_messages
from fleetfit.server.engine.parts import add_parts
from fleetfit.server.engine.states import FAILED_BECAUSE, NO_SPLITS, PROFILE, SCALING, CandidateState, TaskState
from fleetfit.server.engine.subsets import given_to_devices
from fleetfit.server.storage.artifacts import ArtifactStore
from fleetfit.server.storage.database import Database
from fleetfit.server.storage.tables import (
    BuildRow,
    CandidateRow,
    DatasetRow,
    DeviceRow,
    HealthCheckRow,
    JobRow,
    ModelRow,
    TaskRow,
)

_log: Final = logging.getLogger(__name__)
DEFAULT_LEASE_MS: Final = 30_000
_MOST_ATTEMPTS: Final = 5
# A measurement for a job, or a health check: leased, renewed and reported alike.
Leased = TaskRow | HealthCheckRow


def monotonic_ms() -> int:
    """The machine's clock that never goes back, in milliseconds."""
    return time.monotonic_ns() // 1_000_000


class Leases:
    """Hands measuring tasks to devices, one at a time each.

    Deadlines are on this machine's monotonic clock. A restarted server gives every open lease its whole time again: it
    could not hear renewals while it was away.
    """

    def __init__(
        self,
        database: Database,
        store: ArtifactStore,
        method: measurement_pb2.Method,
        *,
        lease_ms: int = DEFAULT_LEASE_MS,
        clock_ms: Callable[[], int] = monotonic_ms,
        changed: Callable[[str], None] = lambda job_id: None,
        now: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
        health: HealthSettings = HealthSettings(),  # noqa: B008 - frozen
    ) -> None:
        self._database = database
        self._store = store
        self._method = method
        self._lease_ms = lease_ms
        self._clock_ms = clock_ms
        self._now = now
        self._health = health
        # Called with the id of a job of which a task failed here.
        self._changed = changed

    async def extend_all(self) -> None:
        """After a start: nobody's lease has run out while nobody could renew."""
        deadline = self._clock_ms() + self._lease_ms

        def extend(session: Session) -> None:
            for task in _leased(session):
                task.lease_deadline_ms = deadline

        await self._database.write(extend)

    async def lease(self, device_id: str, session_number: int) -> work_pb2.TaskLease | None:
        """The device's next task, if there is one. Raises Superseded for an older session.

        A device asks only when it holds nothing, so one that still has a lease is a new process: its task is handed out again
        with the next fencing token.
        """
        deadline = self._clock_ms() + self._lease_ms
        broken: list[str] = []

        def take(session: Session) -> work_pb2.TaskLease | None:
            device = check_session(session, device_id, session_number)
            held = select(TaskRow).where(TaskRow.device_id == device_id, TaskRow.state == TaskState.LEASED)
            task = session.scalars(held).first()
            if task is not None and task.attempts >= _MOST_ATTEMPTS:
                # What ends the agent each time, or can never be fetched, would be begun for ever.
                fail_task(
                    session,
                    task,
                    f"the device began this measurement {task.attempts} times and came to no result; see its agent's log, "
                    "then resume the job",
                )
                session.flush()
                broken.append(task.job_id)
                task = None
            waiting = (
                select(TaskRow)
                .join(JobRow, JobRow.id == TaskRow.job_id)
                .where(TaskRow.device_id == device_id, TaskRow.state == TaskState.WAITING, JobRow.state == "running")
                .order_by(TaskRow.job_id, TaskRow.id)
            )
            open_now = not device.paused and within_hours(device.hours, self._now())
            if task is None:
                check = leased_check(session, device_id)
                if check is not None and check.attempts >= _MOST_ATTEMPTS:
                    fail_check(session, check, f"it began {check.attempts} health checks and came to no result")
                    session.flush()
                    check = None
                if check is None and is_being_judged(session, device_id):
                    return None
                if check is None and open_now:
                    check = next_check(session, device, self._health)
                if check is not None:
                    return self._hand_out(session, check, deadline)
                if device.set_aside:
                    return None
            while task is not None or open_now:
                task = task or session.scalars(waiting).first()
                if task is None:
                    return None
                try:
                    return self._hand_out(session, task, deadline)
                except (NotFound, KeyError) as error:
                    # One broken task must not keep the device from all its other work.
                    _log.warning("task %s cannot be handed out: %s", task.id, error)
                    fail_task(session, task, f"the server cannot hand this measurement out: {error}; resume the job")
                    session.flush()
                    broken.append(task.job_id)
                    task = None
            return None

        lease = await self._database.write(take)
        for job_id in broken:
            self._changed(job_id)
        return lease

    def _hand_out(self, session: Session, task: Leased, deadline: int) -> work_pb2.TaskLease:
        if isinstance(task, HealthCheckRow):
            message = check_lease(task, self._health, self._lease_ms)
        else:
            message = self._message(session, task)
        task.state = TaskState.LEASED
        task.fence += 1
        task.attempts += 1
        task.lease_deadline_ms = deadline
        task.progress = None
        message.fence = task.fence
        return message

    async def renew(self, device_id: str, request: work_pb2.RenewLeaseRequest) -> tuple[int, bool, str]:
        """More time for a task: milliseconds, whether it was cancelled, and its job. Raises LeaseLost for an older fence."""
        deadline = self._clock_ms() + self._lease_ms
        said = request.progress

        def extend(session: Session) -> tuple[int, bool, str]:
            check_session(session, device_id, request.session_number)
            task = self._held(session, device_id, request.task_id, request.fence)
            if task.state == TaskState.CANCELLED:
                return 0, True, "" if isinstance(task, HealthCheckRow) else task.job_id
            if task.state == TaskState.WAITING:
                # The lease ran out unheard but nobody else has it yet: the same holder may go on.
                task.state = TaskState.LEASED
            if task.state != TaskState.LEASED:
                raise LeaseLost(f"the task {request.task_id} has ended; drop it")
            task.lease_deadline_ms = deadline
            task.progress = {"activity": printable(said.activity), "fraction": said.fraction}
            return self._lease_ms, False, "" if isinstance(task, HealthCheckRow) else task.job_id

        return await self._database.write(extend)

    async def report(self, device_id: str, request: work_pb2.ReportTaskRequest) -> bool:
        """Take a task's result; False where the same report was accepted before. Raises LeaseLost for an older fence."""
        size = self._store.path(request.result.sha256).stat().st_size
        outputs = request.outputs.sha256 if request.HasField("outputs") else ""
        outputs_size = self._store.path(outputs).stat().st_size if outputs else 0

        def accept(session: Session) -> bool:
            check_session(session, device_id, request.session_number)
            task = self._held(session, device_id, request.task_id, request.fence)
            if task.state in (TaskState.REPORTED, TaskState.SCORING, TaskState.DONE, TaskState.FAILED):
                return False
            if task.state == TaskState.CANCELLED:
                raise LeaseLost(f"the task {request.task_id} was cancelled; drop its result")
            keep_artifact(session, request.result.sha256, size)
            if outputs:
                keep_artifact(session, outputs, outputs_size)
            task.state = TaskState.REPORTED
            task.result_sha256, task.result_fence = request.result.sha256, request.fence
            if isinstance(task, HealthCheckRow):
                task.outputs_sha256 = outputs
            return True

        return await self._database.write(accept)

    async def expire(self) -> set[str]:
        """Make tasks free whose leases ran out; the devices that should be told."""
        now = self._clock_ms()
        # Looked for by a reader first: writers take turns, and mostly there is nothing to write.
        if not await self._database.read(lambda session: bool(_leased(session, now))):
            return set()
        lost: list[str] = []

        def free(session: Session) -> set[str]:
            devices = set()
            for task in _leased(session, now):
                if task.attempts < _MOST_ATTEMPTS:
                    task.state = TaskState.WAITING
                elif isinstance(task, HealthCheckRow):
                    fail_check(session, task, f"it was lost in the middle of a health check {task.attempts} times")
                else:
                    fail_task(session, task, f"the device was lost {task.attempts} times while it measured this build")
                    lost.append(task.job_id)
                devices.add(task.device_id)
            return devices

        devices = await self._database.write(free)
        for job_id in lost:
            self._changed(job_id)
        return devices

    async def may_download(self, device_id: str, sha256: str) -> bool:
        """Whether one of the device's open tasks reads this content.

        One whose lease ran out is open still: its holder goes on fetching as soon as it is heard again, before it renews.
        """

        def look(session: Session) -> bool:
            held = (TaskRow.state == TaskState.LEASED) | ((TaskRow.state == TaskState.WAITING) & (TaskRow.fence > 0))
            tasks = select(TaskRow).where(TaskRow.device_id == device_id, held)
            for task in session.scalars(tasks):
                if any(named.artifact.sha256 == sha256 for named in self._message(session, task).artifacts):
                    return True
            check = leased_check(session, device_id)
            return check is not None and sha256 in check_reads(check)

        return await self._database.read(look)

    @staticmethod
    def _held(session: Session, device_id: str, task_id: str, fence: int) -> Leased:
        task = session.get(TaskRow, task_id) or session.get(HealthCheckRow, task_id)
        if task is None or task.device_id != device_id:
            raise NotFound(f"this device has no task {task_id}; drop it")
        if task.fence != fence:
            raise LeaseLost(f"the task {task_id} was leased again since (token {task.fence}, not {fence}); drop it")
        return task

    def _method_for(self, session: Session, task: TaskRow) -> measurement_pb2.Method:
        snapshot = read_snapshot(session, session.get_one(DeviceRow, task.device_id))
        return for_emulated(self._method) if snapshot is not None and snapshot.emulated else self._method

    def _message(self, session: Session, task: TaskRow) -> work_pb2.TaskLease:
        candidate = session.get_one(CandidateRow, task.candidate_id)
        job = session.get_one(JobRow, task.job_id)
        spec = jobs_pb2.JobSpec.FromString(job.spec)
        build = _build_of(session, candidate)
        artifacts = {"candidate": build}
        apart = task.split in NO_SPLITS
        split = "validation" if apart else task.split
        measure = measurement_pb2.MeasureTask(
            job_id=task.job_id,
            candidate=_ref(build, "candidate"),
            threads=candidate.threads,
            batch=candidate.batch,
            split=split,
            method=self._method_for(session, task),
            metric_only=task.metric_only and not apart,
            scaling=task.split == SCALING,
            profile=task.split == PROFILE,
        )
        if not task.metric_only:
            measure.method.sustained_ns = spec.sustained_ms * 1_000_000
            measure.method.refuse_unfit = spec.refuse_unfit
            measure.method.power_mode = spec.power_mode or _declared_mode(session, task.device_id)
        facts = (session.get_one(DatasetRow, job.dataset_id).facts or {}) if job.dataset_id and task.split else {}
        judged = None if apart else known_metric(spec.metric or facts.get("metric", ""))
        returns = judged is not None and judged.is_user
        compares = judged is not None and not judged.needs_targets and not returns
        if not task.metric_only or compares:
            artifacts["baseline"] = _build_of(session, original_of(session, candidate))
            measure.baseline.CopyFrom(_ref(artifacts["baseline"], "baseline"))
        named = [
            common_pb2.NamedArtifact(name=name, artifact=_artifact(row.sha256, row.size_bytes))
            for name, row in artifacts.items()
        ]
        if not task.metric_only:
            named += add_parts(measure, session.get_one(ModelRow, job.model_id))
        data = session.get(DatasetRow, job.dataset_id) if job.dataset_id else None
        if data is not None and split:
            stored: dict[str, Any] = given_to_devices(session, job, split)
            measure.data_artifact_name = f"{split}.npz"
            named.append(
                common_pb2.NamedArtifact(
                    name=measure.data_artifact_name, artifact=_artifact(stored["sha256"], stored["size_bytes"])
                )
            )
            measure.return_outputs = returns
            measure.metric = judged.name if judged is not None and (compares or facts.get("targets")) else ""
        return work_pb2.TaskLease(
            task_id=task.id, fence=task.fence, lease_ms=self._lease_ms, measure=measure, artifacts=named
        )


def _declared_mode(session: Session, device_id: str) -> str:
    """The power mode that the device's profile declares, empty where it declares none."""
    profile = load_profiles().get(session.get_one(DeviceRow, device_id).profile)
    return (profile.conditions.power_mode or "") if profile is not None else ""


def _leased(session: Session, before_ms: int = 2**62) -> list[Leased]:
    """What is leased by whichever device, with a deadline before that."""
    tasks = select(TaskRow).where(TaskRow.state == TaskState.LEASED, TaskRow.lease_deadline_ms < before_ms)
    checks = select(HealthCheckRow).where(
        HealthCheckRow.state == TaskState.LEASED, HealthCheckRow.lease_deadline_ms < before_ms
    )
    return [*session.scalars(tasks), *session.scalars(checks)]


def fail_task(session: Session, task: TaskRow, reason: str) -> None:
    """End a task without a result, and with it the candidate that waits for its first one."""
    task.state, task.progress = TaskState.FAILED, {FAILED_BECAUSE: reason}
    candidate = session.get_one(CandidateRow, task.candidate_id)
    if candidate.state == CandidateState.MEASURING or (
        candidate.state == CandidateState.SCORING and not task.metric_only
    ):
        candidate.state, candidate.reason = CandidateState.FAILED, reason


def original_of(session: Session, candidate: CandidateRow) -> CandidateRow:
    """The original under the same condition and in the same runtime: what a candidate is timed beside.

    The first runtime's original is timed beside itself (A/A), those of the others beside that one, which ties the runtimes
    together.
    """
    rows = session.scalars(
        select(CandidateRow)
        .where(
            CandidateRow.job_id == candidate.job_id,
            CandidateRow.device_id == candidate.device_id,
            CandidateRow.threads == candidate.threads,
            CandidateRow.batch == candidate.batch,
            CandidateRow.role == "original",
        )
        .order_by(CandidateRow.position)
    ).all()
    if candidate.role != "original":
        rows = [row for row in rows if row.runtime == candidate.runtime]
    if not rows:
        raise InvalidInput(f"the job {candidate.job_id} has no original on this device; start it again")
    return rows[0]


def _build_of(session: Session, candidate: CandidateRow) -> BuildRow:
    row = build_of(session, candidate)
    if row is None:
        raise NotFound(f"there is no build of {candidate.variant_key[:10]} for {candidate.runtime} yet")
    return row


def _artifact(sha256: str, size_bytes: int) -> common_pb2.ArtifactRef:
    return common_pb2.ArtifactRef(sha256=sha256, size_bytes=size_bytes)


def _ref(build: BuildRow, artifact_name: str) -> measurement_pb2.BuildRef:
    facts = Build.model_validate(build.facts)
    return measurement_pb2.BuildRef(
        artifact_name=artifact_name,
        runtime=build.runtime,
        format=build.format,
        inputs=tensor_messages(facts.inputs),
        outputs=tensor_messages(facts.outputs),
        build_id=build.id,
    )
