"""Jobs: from a request to rows, from rows to what people see, and the two ways to stop and go on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from fleetfit.compress.recipe import Recipe, default_recipes, named_recipe
from fleetfit.compress.tasks import CudaDevice, DataFacts, ModelFacts
from fleetfit.core.errors import Conflict, InvalidInput, UnsupportedHere
from fleetfit.core.metrics import is_user_metric
from fleetfit.device_profiles.matching import facts_of, match
from fleetfit.proto.v1 import jobs_pb2
from fleetfit.server.engine.library import check_state
from fleetfit.server.engine.lookup import find_dataset, find_devices, find_model, read_snapshot
from fleetfit.server.engine.lowering import want_build
from fleetfit.server.engine.messages import parts_of
from fleetfit.server.engine.parts import check_end_to_end, parts_notes
from fleetfit.server.engine.planning import (
    PlannedCandidate,
    PlannedData,
    PlannedDevice,
    PlannedModel,
    check_wishes,
    emulation_notes,
    judged_by,
    plan_candidates,
    runtime_notes,
    width_notes,
)
from fleetfit.server.engine.recovered import plan_recovered
from fleetfit.server.engine.scoring import TRAINED_BY_LOSS, rescore, scorer_command
from fleetfit.server.engine.states import CandidateState, JobState, TaskState, VariantState
from fleetfit.server.selection.words import TRAINED_ELSEWHERE
from fleetfit.server.storage.ids import new_id, now_ms
from fleetfit.server.storage.tables import (
    CandidateRow,
    DatasetRow,
    DeviceRow,
    DropsRow,
    JobRow,
    MeasurementRow,
    ModelRow,
    ScoringRow,
    TaskRow,
    VariantRow,
)

_JOB_STATES: Final = {
    JobState.RUNNING: jobs_pb2.JOB_STATE_RUNNING,
    JobState.DONE: jobs_pb2.JOB_STATE_DONE,
    JobState.FAILED: jobs_pb2.JOB_STATE_FAILED,
    JobState.CANCELLED: jobs_pb2.JOB_STATE_CANCELLED,
}


class Request:
    """A job's specification with all its names looked up. Raises with a sentence for what cannot be met."""

    def __init__(
        self,
        session: Session,
        spec: jobs_pb2.JobSpec,
        compress_threads: int,
        owner: str,
        cuda: CudaDevice | None = None,
    ) -> None:
        if spec.HasField("incumbent"):
            raise UnsupportedHere("comparing with an incumbent build is not possible yet; leave --incumbent out")
        if spec.kind not in (jobs_pb2.JOB_KIND_COMPRESS, jobs_pb2.JOB_KIND_BENCH):
            raise InvalidInput("the job's kind is unknown to this server; update it, or use compress or bench")
        model = find_model(session, spec.model)
        check_state(model.state, model.refusal, f"the model '{model.name}'")
        data = find_dataset(session, spec.dataset) if spec.dataset else None
        if data is not None:
            check_state(data.state, data.refusal, f"the dataset '{data.name}'")
        self.spec = spec
        self.model = _planned_model(model)
        check_end_to_end(spec, self.model)
        self.data = None if data is None else _planned_data(data)
        self.devices = _planned_devices(session, spec)
        recipes = [] if spec.kind == jobs_pb2.JOB_KIND_BENCH else _recipes(spec, self.model, self.data)
        recovered = plan_recovered(session, spec.recovered, self.model, recipes, owner)
        if recovered and spec.kind == jobs_pb2.JOB_KIND_BENCH:
            raise InvalidInput(
                "a benchmark measures the model as it is; give the recovered network to a compression job",
                field="recovered",
            )
        self.candidates = plan_candidates(
            spec,
            self.model,
            self.data,
            self.devices,
            recipes,
            compress_threads=compress_threads,
            recovered=recovered,
            cuda=cuda,
        )
        self.notes = [
            *emulation_notes(spec, self.devices),
            *width_notes(self.devices, recipes),
            *runtime_notes(self.candidates),
        ]
        self.notes += [f"{one.recipe.name}: {TRAINED_ELSEWHERE}" for one in recovered if one.role == "recipe"]
        self.notes += parts_notes(spec, self.model, self.devices)
        metric = judged_by(spec, self.data)
        check_wishes(spec, metric)
        if is_user_metric(metric):
            self.notes.append(f"{metric} is computed by `{scorer_command(metric)}` on your machine; {TRAINED_BY_LOSS}")


def insert_job(session: Session, request: Request, owner: str, request_id: str) -> JobRow:
    """Make the rows of a job: its candidates, and the variants that no earlier job has asked for."""
    job = JobRow(
        id=new_id(),
        owner=owner,
        request_id=request_id,
        spec=request.spec.SerializeToString(deterministic=True),
        model_id=request.model.id,
        dataset_id=request.data.id if request.data is not None else None,
        state=JobState.RUNNING,
        reason="",
        report=None,
        created_ms=now_ms(),
        finished_ms=0,
    )
    session.add(job)
    session.flush()
    for candidate in request.candidates:
        _want_variant(session, request, candidate)
    session.flush()
    for position, candidate in enumerate(request.candidates):
        session.add(
            CandidateRow(
                id=new_id(),
                job_id=job.id,
                device_id=candidate.device.id,
                variant_key=candidate.variant_key,
                recipe=candidate.recipe.name,
                role=candidate.role,
                runtime=candidate.runtime,
                build_id=want_build(session, candidate.variant_key, candidate.runtime),
                threads=candidate.threads,
                batch=candidate.batch,
                position=position,
                state=CandidateState.SKIPPED if candidate.skip_reason else CandidateState.WAITING,
                reason=candidate.skip_reason,
            )
        )
    session.flush()
    return job


def _want_variant(session: Session, request: Request, candidate: PlannedCandidate) -> None:
    row = session.get(VariantRow, candidate.variant_key)
    if row is None:
        session.add(
            VariantRow(
                key=candidate.variant_key,
                model_id=request.model.id,
                dataset_id=request.data.id if request.data is not None else None,
                recipe=candidate.recipe.to_yaml() if candidate.recipe.steps else "",
                seed=request.spec.seed,
                state=VariantState.WAITING,
                attempts=0,
                reason="",
                facts=None,
                seconds=0.0,
                held=None,
                recovered=candidate.recovered,
                created_ms=now_ms(),
            )
        )
    elif row.state == VariantState.FAILED:
        # What failed may have failed for want of disk or memory: whoever asks again gets another try.
        row.state, row.attempts, row.reason = VariantState.WAITING, 0, ""


def cancel_job(session: Session, job: JobRow) -> list[tuple[str, str]]:
    """Stop a job; the devices and tasks to tell. What was done stays done."""
    if job.state != JobState.RUNNING:
        raise Conflict(f"the job {job.id[-6:]} is {job.state} already; only a running job can be cancelled")
    job.state, job.reason, job.finished_ms = JobState.CANCELLED, "it was cancelled", now_ms()
    told = []
    open_states = (TaskState.WAITING, TaskState.LEASED)
    for task in session.scalars(select(TaskRow).where(TaskRow.job_id == job.id, TaskRow.state.in_(open_states))):
        if task.state == TaskState.LEASED:
            told.append((task.device_id, task.id))
        task.state = TaskState.CANCELLED
    return told


def resume_job(session: Session, job: JobRow) -> None:
    """Go on with a job: what was cancelled or failed is tried again, what was measured stays. Raises Conflict."""
    if job.state == JobState.RUNNING:
        raise Conflict(f"the job {job.id[-6:]} is running; there is nothing to resume")
    candidates = session.scalars(select(CandidateRow).where(CandidateRow.job_id == job.id)).all()
    failed = {row.id for row in candidates if row.state == CandidateState.FAILED}
    tasks = session.scalars(select(TaskRow).where(TaskRow.job_id == job.id)).all()
    again = {TaskState.FAILED, TaskState.CANCELLED}
    if job.state == JobState.DONE and not failed and not any(task.state in again for task in tasks):
        raise Conflict(f"the job {job.id[-6:]} is done and nothing in it failed; there is nothing to resume")
    rescored = rescore(session, job, tasks)
    failed -= rescored
    tasks = [task for task in tasks if task.state != TaskState.SCORING]
    for task in tasks:
        if task.candidate_id in failed:
            measured = select(MeasurementRow.id).where(MeasurementRow.task_id == task.id)
            session.execute(delete(ScoringRow).where(ScoringRow.measurement_id.in_(measured)))
            session.execute(delete(MeasurementRow).where(MeasurementRow.task_id == task.id))
        if task.candidate_id in failed or task.state in again:
            # The fence grows: an agent that still holds the old lease, or sends its report again, must not be believed.
            task.fence += 1
            task.state, task.attempts, task.progress = TaskState.WAITING, 0, None
            task.result_sha256, task.result_fence = "", 0
            task.created_ms = now_ms()
    waiting = {task.candidate_id for task in tasks if task.state == TaskState.WAITING and not task.metric_only}
    for row in candidates:
        if row.id in failed:
            row.state = CandidateState.MEASURING if row.id in waiting else CandidateState.WAITING
            row.reason = ""
            variant = session.get_one(VariantRow, row.variant_key)
            if variant.state == VariantState.FAILED:
                variant.state, variant.attempts, variant.reason = VariantState.WAITING, 0, ""
            if row.build_id:
                row.build_id = want_build(session, row.variant_key, row.runtime)
    if failed or rescored:
        # Computed over the candidates that there were.
        session.execute(delete(DropsRow).where(DropsRow.job_id == job.id))
    else:
        session.execute(delete(DropsRow).where(DropsRow.job_id == job.id, DropsRow.split == "test"))
    job.state, job.reason, job.report, job.finished_ms = JobState.RUNNING, "", None, 0


def job_message(session: Session, job: JobRow) -> jobs_pb2.Job:
    """A job as the protocol has it, without its progress."""
    message = jobs_pb2.Job(
        job_id=job.id,
        spec=jobs_pb2.JobSpec.FromString(job.spec),
        state=_JOB_STATES[JobState(job.state)],
        reason=job.reason,
        created_unix_ms=job.created_ms,
        finished_unix_ms=job.finished_ms,
    )
    names = {row.id: row.name for row in session.scalars(select(DeviceRow))}
    rows = session.scalars(select(CandidateRow).where(CandidateRow.job_id == job.id).order_by(CandidateRow.position))
    for row in rows:
        message.candidates.append(
            jobs_pb2.CandidateStatus(
                device=names[row.device_id],
                recipe=row.recipe,
                runtime=row.runtime,
                state=row.state,
                detail=row.reason,
                threads=row.threads,
                batch=row.batch,
            )
        )
    return message


def _planned_model(row: ModelRow) -> PlannedModel:
    facts = ModelFacts.model_validate(row.facts)
    parts_bytes = sum(int(kept["size_bytes"]) for _, kept, _ in parts_of(row))
    return PlannedModel(row.id, row.name, row.sha256, row.format, row.size_bytes, facts, parts_bytes)


def _planned_data(row: DatasetRow) -> PlannedData:
    return PlannedData(
        row.id,
        row.name,
        DataFacts.model_validate(row.facts),
        {name: split["sha256"] for name, split in row.splits.items()},
        {name: split["size_bytes"] for name, split in row.splits.items()},
    )


def _planned_devices(session: Session, spec: jobs_pb2.JobSpec) -> list[PlannedDevice]:
    found, unknown = [], []
    for row in find_devices(session, spec.devices):
        snapshot = read_snapshot(session, row)
        if snapshot is not None:
            profile = match(facts_of(snapshot)).profile
            found.append(
                PlannedDevice(
                    row.id,
                    row.name,
                    snapshot,
                    frozenset(profile.recipes),
                    profile.name,
                    profile.round_to,
                    frozenset(row.capabilities),
                    tuple(profile.runtimes),
                    row.set_aside,
                )
            )
        else:
            unknown.append(row)
    # A label or `all` means the devices that are there; one that is named is wanted.
    missed = [row.name for row in unknown if not found or {row.name, row.id} & set(spec.devices)]
    if missed:
        raise InvalidInput(
            f"{', '.join(missed)} has never connected, so nothing is known about it; start its agent first",
            field="devices",
        )
    return found


def _recipes(spec: jobs_pb2.JobSpec, model: PlannedModel, data: PlannedData | None) -> list[Recipe]:
    asked = [_recipe(source, number) for number, source in enumerate(spec.recipes, 1)]
    names = [recipe.name for recipe in asked]
    twice = next((a for a in asked for b in asked if a.name == b.name and a.key_material() != b.key_material()), None)
    if twice is not None:
        raise InvalidInput(f"two different recipes are named '{twice.name}'; rename one", field="recipes")
    if names:
        return asked
    return _that_can_be_made(list(default_recipes().values()), model, data)


def _that_can_be_made(recipes: Sequence[Recipe], model: PlannedModel, data: PlannedData | None) -> list[Recipe]:
    """Of the default set, what this model and these data allow; what a user names is refused instead."""
    return [
        recipe
        for recipe in recipes
        if (model.facts.trainable or not recipe.needs_trainable()) and (data is not None or not recipe.needs_data())
    ]


def _recipe(source: jobs_pb2.RecipeSource, number: int) -> Recipe:
    if source.WhichOneof("source") == "yaml":
        return Recipe.from_user(source.yaml, source=f"recipe {number}")
    return named_recipe(source.name)
