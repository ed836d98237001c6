"""A job's facts, read from the database: what selections and reports are made from."""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy import select
from sqlalchemy.orm import Session

from fleetfit.compress.tasks import CompressFacts, DataFacts
from fleetfit.core.digests import short
from fleetfit.core.metrics import is_user_metric, judged_name
from fleetfit.device_profiles.loader import load_profiles
from fleetfit.proto.v1 import jobs_pb2
from fleetfit.proto.versions import PROFILES, SCALES
from fleetfit.server.engine.lookup import read_snapshot
from fleetfit.server.engine.lowering import build_of
from fleetfit.server.engine.messages import parts_of
from fleetfit.server.engine.planning import OBJECTIVES, limits_of
from fleetfit.server.engine.states import FAILED_BECAUSE, NO_SPLITS, PROFILE, SCALING, CandidateState, TaskState
from fleetfit.server.report.facts import CandidateFacts, DeviceFacts, JobFacts, RecoveredFrom
from fleetfit.server.report.summary import Drops, MeasurementSummary
from fleetfit.server.storage.tables import (
    ArtifactRow,
    CandidateRow,
    DatasetRow,
    DeviceRow,
    DropsRow,
    JobRow,
    MeasurementRow,
    ModelRow,
    RecoveredRow,
    ScorerRow,
    TaskRow,
    VariantRow,
)


def metric_of(session: Session, job: JobRow, spec: jobs_pb2.JobSpec) -> str:
    """The job's metric, a user's own under its judged name; empty where nothing can be judged."""
    data = session.get(DatasetRow, job.dataset_id) if job.dataset_id else None
    if data is None or data.facts is None:
        return ""
    facts = DataFacts.model_validate(data.facts)
    name = spec.metric or facts.metric
    if not is_user_metric(name):
        return name
    scorer = session.get(ScorerRow, job.scorer_id) if job.scorer_id else _newest_scorer(session, job.owner, name)
    if scorer is None:
        return name
    return judged_name(scorer.name, lower_is_better=scorer.lower_is_better, unit=scorer.unit)


def _newest_scorer(session: Session, owner: str, metric: str) -> ScorerRow | None:
    name = metric.partition(":")[2]
    query = select(ScorerRow).where(ScorerRow.owner == owner, ScorerRow.name == name).order_by(ScorerRow.seen_ms.desc())
    return session.scalars(query).first()


def trained_by(metric: str) -> str:
    """What compression judges by: the job's metric, or nothing (the loss then) where only the user can compute it."""
    return "" if is_user_metric(metric) else metric


def read_facts(session: Session, job: JobRow) -> JobFacts:
    """Everything measured for a job so far."""
    spec = jobs_pb2.JobSpec.FromString(job.spec)
    model = session.get_one(ModelRow, job.model_id)
    metric = metric_of(session, job, spec)
    parts = {str(name): (str(kept["sha256"]), int(kept["size_bytes"])) for name, kept, _ in parts_of(model)}
    rows = session.scalars(
        select(CandidateRow).where(CandidateRow.job_id == job.id).order_by(CandidateRow.position)
    ).all()
    devices: dict[str, list[CandidateRow]] = {}
    for row in rows:
        devices.setdefault(row.device_id, []).append(row)
    return JobFacts(
        job_id=job.id,
        kind="bench" if spec.kind == jobs_pb2.JOB_KIND_BENCH else "compress",
        model=f"{model.name}:{model.version}",
        metric=metric,
        objective=OBJECTIVES[spec.objective],
        limits=replace(limits_of(spec, metric), parted=bool(parts)),
        accept_emulated=spec.accept_emulated,
        created_ms=job.created_ms,
        sustained_ms=spec.sustained_ms,
        parts=parts,
        scaling=spec.scaling,
        profile=spec.profile,
        devices=tuple(_device(session, job, device_id, candidates) for device_id, candidates in devices.items()),
    )


def _device(session: Session, job: JobRow, device_id: str, rows: list[CandidateRow]) -> DeviceFacts:
    device = session.get_one(DeviceRow, device_id)
    snapshot = read_snapshot(session, device)
    profile = load_profiles().get(device.profile)
    warm = profile is None or profile.conditions.sustained
    several = len({row.runtime for row in rows}) > 1
    # In the order of their positions: the first is what the others are timed beside.
    first = {(row.threads, row.batch): row.runtime for row in reversed(rows) if row.role == "original"}
    beside = {row.id: first[row.threads, row.batch] if row.role == "original" else row.runtime for row in rows}
    return DeviceFacts(
        device_id=device_id,
        name=device.name,
        profile=device.profile,
        snapshot_id=device.snapshot_id or "",
        emulated=snapshot is not None and snapshot.emulated,
        candidates=tuple(
            replace(
                _candidate(session, row, beside[row.id], f"{row.recipe} in {row.runtime}" if several else ""),
                warm_counts=warm,
            )
            for row in rows
        ),
        validation_drops=_drops(session, job.id, device_id, "validation"),
        test_drops=_drops(session, job.id, device_id, "test"),
        scales=SCALES in device.capabilities,
        profiles=PROFILES in device.capabilities,
    )


def _drops(session: Session, job_id: str, device_id: str, split: str) -> Drops | None:
    row = session.get(DropsRow, (job_id, device_id, split))
    return None if row is None else Drops.model_validate(row.content)


def _candidate(session: Session, row: CandidateRow, beside: str, title: str) -> CandidateFacts:
    variant = session.get_one(VariantRow, row.variant_key)
    build = build_of(session, row)
    facts = CompressFacts.model_validate(variant.facts) if variant.facts is not None else None
    rows = session.scalars(select(MeasurementRow).where(MeasurementRow.candidate_id == row.id)).all()
    measured = {m.split: MeasurementSummary.model_validate(m.summary) for m in rows}
    raw = {
        m.split if m.split == "test" or m.split in NO_SPLITS else "measured": (m.raw_sha256, artifact.size_bytes)
        for m in rows
        if (artifact := session.get(ArtifactRow, m.raw_sha256)) is not None
    }
    ended = (
        row.state
        if row.state in (CandidateState.MEASURED, CandidateState.FAILED, CandidateState.SKIPPED)
        else "skipped"
    )
    return CandidateFacts(
        id=row.id,
        variant=short(row.variant_key),
        recipe=row.recipe,
        role=row.role,
        runtime=row.runtime,
        threads=row.threads,
        batch=row.batch,
        state=ended,
        beside=beside,
        title=title,
        reason=row.reason or ("" if ended == row.state else "the job ended before it was measured"),
        size_bytes=build.size_bytes if build is not None else None,
        parameters=facts.parameters if facts is not None else None,
        macs=facts.macs if facts is not None else None,
        integer_operators=int((build.facts if build is not None else {}).get("integer_operators", 0)),
        total_operators=int((build.facts if build is not None else {}).get("total_operators", 0)),
        lineage=tuple(step.model_dump() for step in facts.lineage) if facts is not None else (),
        validation=measured.get("validation") or measured.get(""),
        test=measured.get("test"),
        scaling=measured.get(SCALING),
        no_scaling_because=_failed_because(session, row, SCALING),
        profile=measured.get(PROFILE),
        no_profile_because=_failed_because(session, row, PROFILE),
        raw=raw,
        notes=tuple(facts.notes) if facts is not None else (),
        recovered=_recovered(session, variant),
    )


def _failed_because(session: Session, row: CandidateRow, kind: str) -> str:
    query = select(TaskRow).where(
        TaskRow.candidate_id == row.id, TaskRow.split == kind, TaskRow.state == TaskState.FAILED
    )
    task = session.scalars(query).first()
    return "" if task is None else str((task.progress or {}).get(FAILED_BECAUSE, ""))


def _recovered(session: Session, variant: VariantRow) -> RecoveredFrom | None:
    if not variant.recovered:
        return None
    row = session.get_one(RecoveredRow, variant.recovered)
    return RecoveredFrom(short(row.id), short(row.variant_key), row.sha256)
