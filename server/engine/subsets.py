"""Parts of splits that devices compute metrics on, where a job gives them fewer samples than there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy.orm import Session

from fleetfit.core.digests import key_of
from fleetfit.proto.v1 import jobs_pb2
from fleetfit.server.engine.library import keep_artifact
from fleetfit.server.storage.tables import DatasetRow, JobRow, SubsetRow

# Grows whenever the same seed would give other samples.
_METHOD: Final = 1


@dataclass(frozen=True)
class WantedSubset:
    """A part of a split to be made: `count` of its samples."""

    key: str
    sha256: str
    count: int
    seed: int


def subset_key(sha256: str, count: int, seed: int) -> str:
    """The name of a part of a split: the same for every device, candidate and job that gives devices so many samples."""
    return key_of({"split": sha256, "count": count, "seed": seed, "method": _METHOD})


def given_to_devices(session: Session, job: JobRow, split: str) -> dict[str, Any]:
    """Digest, size and count of what devices get of a split: all of it, or the part that the job asks for.

    Raises KeyError where there is no such split, or its part is not made yet.
    """
    data = session.get_one(DatasetRow, job.dataset_id or "")
    whole: dict[str, Any] = data.splits[split]
    row = subset_of(session, job, split)
    if row is not None:
        return {"sha256": row.sha256, "size_bytes": row.size_bytes, "count": row.count}
    if _wanted(data, job, split) is not None:
        raise KeyError(f"the part of the {split} split is not made yet")
    return whole


def subset_of(session: Session, job: JobRow, split: str) -> SubsetRow | None:
    """The part of a split that a job's devices get; None where they get all of it."""
    data = session.get(DatasetRow, job.dataset_id) if job.dataset_id else None
    wanted = _wanted(data, job, split) if data is not None else None
    return session.get(SubsetRow, wanted.key) if wanted is not None else None


def missing_subsets(session: Session, job: JobRow) -> list[WantedSubset]:
    """What must be made before devices can be given samples."""
    data = session.get(DatasetRow, job.dataset_id) if job.dataset_id else None
    if data is None:
        return []
    wanted = [_wanted(data, job, split) for split in ("validation", "test")]
    return [one for one in wanted if one is not None and session.get(SubsetRow, one.key) is None]


def keep_subset(
    session: Session, wanted: WantedSubset, count: int, data: tuple[str, int], rows: tuple[str, int]
) -> None:
    """A part is there: its content and its rows, each with digest and size."""
    if session.get(SubsetRow, wanted.key) is not None:
        return
    for sha256, size in (data, rows):
        keep_artifact(session, sha256, size)
    row = SubsetRow(
        id=wanted.key,
        split_sha256=wanted.sha256,
        count=count,
        sha256=data[0],
        size_bytes=data[1],
        rows_sha256=rows[0],
        rows_size_bytes=rows[1],
    )
    session.add(row)


def _wanted(data: DatasetRow, job: JobRow, split: str) -> WantedSubset | None:
    most = jobs_pb2.JobSpec.FromString(job.spec).device_samples
    whole = data.splits.get(split)
    if most <= 0 or whole is None or whole["count"] <= most:
        return None
    return WantedSubset(subset_key(whole["sha256"], most, data.seed), whole["sha256"], most, data.seed)
