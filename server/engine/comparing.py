"""What a device's metric is compared with: what the same build gave when it was made here."""

from __future__ import annotations

from sqlalchemy.orm import Session

from fleetfit.compress.tasks import Build
from fleetfit.server.engine.lowering import build_of
from fleetfit.server.engine.subsets import subset_of
from fleetfit.server.report.gaps import Against
from fleetfit.server.report.summary import StoredFile
from fleetfit.server.storage.artifacts import ArtifactStore
from fleetfit.server.storage.tables import CandidateRow, DatasetRow, JobRow, TaskRow


def against_of(session: Session, task_id: str, store: ArtifactStore) -> Against | None:
    """The evidence of the build that a task measured on the validation split; None where there is none."""
    task = session.get(TaskRow, task_id)
    if task is None or task.split != "validation":
        return None
    build = build_of(session, session.get_one(CandidateRow, task.candidate_id))
    evidence = Build.model_validate(build.facts).evidence if build is not None else None
    if evidence is None or not evidence.scored or not store.has(evidence.sha256):
        return None
    found = Against(
        evidence=StoredFile(sha256=evidence.sha256, size_bytes=evidence.size_bytes),
        evidence_path=str(store.path(evidence.sha256).resolve()),
        runtime_version=evidence.runtime_version,
    )
    subset = subset_of(session, session.get_one(JobRow, task.job_id), task.split)
    if subset is None:
        return found
    rows = StoredFile(sha256=subset.rows_sha256, size_bytes=subset.rows_size_bytes)
    return found.model_copy(update={"rows": rows, "rows_path": str(store.path(rows.sha256).resolve())})


def samples_in_split(session: Session, task_id: str) -> int | None:
    """How many samples the split has of which a task's device got a part; None where it got all."""
    task = session.get(TaskRow, task_id)
    job = session.get_one(JobRow, task.job_id) if task is not None else None
    if task is None or job is None or not task.split or subset_of(session, job, task.split) is None:
        return None
    return int(session.get_one(DatasetRow, job.dataset_id or "").splits[task.split]["count"])
