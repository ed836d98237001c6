"""Builds of variants for other runtimes than ONNX Runtime: wanted with a job, made once, from the variant that is there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from fleetfit.compress.export.registry import DEFAULT
from fleetfit.compress.tasks import Build, CompressFacts, Lower, Task
from fleetfit.core.errors import IntegrityError
from fleetfit.core.metrics import known_metric
from fleetfit.server.engine.library import keep_artifact
from fleetfit.server.engine.states import CandidateState, JobState, VariantState
from fleetfit.server.engine.targets import targets
from fleetfit.server.storage.tables import BuildRow, CandidateRow, DatasetRow, JobRow, VariantRow

_TOO_OLD: Final = (
    "its variant was made by an older version, which kept nothing that it could be built from for another runtime; start the job "
    "again with another --seed to have it made anew"
)


@dataclass(frozen=True)
class Lowering:
    """A build to be made: its id and its variant's key, the task, and what it reads by name."""

    build_id: str
    variant_key: str
    task: Task
    inputs: dict[str, str]
    attempt: int


def want_build(session: Session, variant_key: str, runtime: str) -> str:
    """The id of a variant's build, which is made unless it is there or comes with the variant itself."""
    target = targets()[runtime]
    name = target.build_key(variant_key)
    row = session.get(BuildRow, name)
    if runtime == DEFAULT:
        return name
    if row is None:
        session.add(
            BuildRow(
                id=name,
                variant_key=variant_key,
                runtime=runtime,
                format=target.format,
                sha256="",
                size_bytes=0,
                facts={},
                state=VariantState.WAITING,
                attempts=0,
                reason="",
            )
        )
        session.flush()
    elif row.state == VariantState.FAILED:
        row.state, row.attempts, row.reason = VariantState.WAITING, 0, ""
    return name


def readiness(session: Session, candidate: CandidateRow) -> tuple[str, str]:
    """How far a candidate's build is, in the states of variants, and why it failed: first its variant, then the build."""
    variant = session.get_one(VariantRow, candidate.variant_key)
    if variant.state != VariantState.DONE or candidate.runtime == DEFAULT:
        return variant.state, variant.reason
    build = session.get_one(BuildRow, candidate.build_id)
    return build.state, build.reason


def build_of(session: Session, candidate: CandidateRow) -> BuildRow | None:
    """A candidate's build, where it is made."""
    query = select(BuildRow).where(BuildRow.state == VariantState.DONE)
    if candidate.runtime == DEFAULT:
        query = query.where(BuildRow.variant_key == candidate.variant_key, BuildRow.runtime == DEFAULT)
    else:
        query = query.where(BuildRow.id == candidate.build_id)
    return session.scalars(query).first()


def take_build(session: Session, threads: int, metric_of: Callable[[Session, JobRow], str]) -> Lowering | None:
    """Mark the next wanted build whose variant is there as being made: the oldest job's first.

    `metric_of` tells the metric that a job's builds are judged by on the server, empty where there is none.
    """
    query = (
        select(BuildRow, VariantRow, JobRow)
        .join(VariantRow, VariantRow.key == BuildRow.variant_key)
        .join(CandidateRow, CandidateRow.build_id == BuildRow.id)
        .join(JobRow, JobRow.id == CandidateRow.job_id)
        .where(
            BuildRow.state == VariantState.WAITING,
            VariantRow.state == VariantState.DONE,
            JobRow.state == JobState.RUNNING,
            CandidateRow.state.in_([CandidateState.WAITING, CandidateState.COMPRESSING]),
        )
        .order_by(JobRow.id, CandidateRow.position)
        .limit(1)
    )
    while (found := session.execute(query).first()) is not None:
        build, variant = found[0], found[1]
        target = targets().get(build.runtime)
        if target is None or target.missing:
            missing = target.missing if target else "no exporter for it is installed any more"
            build.state, build.reason = (
                VariantState.FAILED,
                f"the server makes no builds for {build.runtime}: {missing}",
            )
        elif (name := target.build_key(variant.key)) != build.id:
            _rename(session, build, name)
        else:
            made = CompressFacts.model_validate(variant.facts)
            onnx = next((one.sha256 for one in made.builds if one.runtime == DEFAULT), None)
            if made.trainable is None or onnx is None:
                build.state, build.reason = VariantState.FAILED, _TOO_OLD
            else:
                metric = metric_of(session, found[2])
                inputs = {"model": made.trainable.sha256, "build.onnx": onnx} | _validation(session, variant)
                return _begin(build, threads, inputs | _original(session, found[2], metric), metric)
        session.flush()
    return None


def _begin(build: BuildRow, threads: int, inputs: dict[str, str], metric: str) -> Lowering:
    build.state = VariantState.RUNNING
    build.attempts += 1
    work = Lower(runtime=build.runtime, threads=threads, metric=metric, evidence=True)
    task = Task(task_id=f"{build.id[:20]}.{build.attempts}", work=work)
    return Lowering(build.id, build.variant_key, task, inputs, build.attempts)


def _validation(session: Session, variant: VariantRow) -> dict[str, str]:
    data = session.get(DatasetRow, variant.dataset_id) if variant.dataset_id else None
    if data is None or "validation" not in data.splits:
        return {}
    return {"validation.npz": data.splits["validation"]["sha256"]}


def _original(session: Session, job: JobRow, metric: str) -> dict[str, str]:
    """The original's build for ONNX Runtime, where the metric compares with it and it is there."""
    info = known_metric(metric)
    if info is None or info.needs_targets:
        return {}
    query = (
        select(VariantRow)
        .join(CandidateRow, CandidateRow.variant_key == VariantRow.key)
        .where(CandidateRow.job_id == job.id, CandidateRow.role == "original", VariantRow.state == VariantState.DONE)
    )
    row = session.scalars(query).first()
    made = CompressFacts.model_validate(row.facts).builds if row is not None else []
    digest = next((one.sha256 for one in made if one.runtime == DEFAULT), None)
    return {"original.onnx": digest} if digest is not None else {}


def _rename(session: Session, build: BuildRow, name: str) -> None:
    """Let those who wait for a build wait for what this server would make now: its exporter's version is another."""
    want_build(session, build.variant_key, build.runtime)
    for candidate in session.scalars(select(CandidateRow).where(CandidateRow.build_id == build.id)):
        candidate.build_id = name
    session.delete(build)


def keep_build(session: Session, build_id: str, made: Build) -> None:
    """The build is there. Raises IntegrityError where it is for another runtime."""
    row = session.get_one(BuildRow, build_id)
    if (made.runtime, made.format) != (row.runtime, row.format):
        raise IntegrityError(
            f"a build for {made.runtime} came where one for {row.runtime} was to be made; resume the job"
        )
    for one in made.files():
        keep_artifact(session, one.sha256, one.size_bytes)
    row.sha256, row.size_bytes, row.facts = made.sha256, made.size_bytes, made.model_dump()
    row.state, row.reason = VariantState.DONE, ""
