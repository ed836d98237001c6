"""The tables. Alembic migrations make them; `tests/server/storage` proves that both agree."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, LargeBinary, MetaData, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

LOCAL_OWNER = "local"


class Base(DeclarativeBase):
    """All constraints are named: SQLite cannot drop unnamed ones later."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {dict[str, Any]: JSON, list[str]: JSON, list[int]: JSON, int: BigInteger, str: Text}


class ArtifactRow(Base):
    """One complete piece of content in the store."""

    __tablename__ = "artifact"
    sha256: Mapped[str] = mapped_column(primary_key=True)
    size_bytes: Mapped[int]
    owner: Mapped[str]
    created_ms: Mapped[int]


class PersonRow(Base):
    """Someone who may use the people's listener; only the digest of their token is kept."""

    __tablename__ = "person"
    token_sha256: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    created_ms: Mapped[int]


class EnrolmentTokenRow(Base):
    """A one-time token; only the digest of its secret is kept."""

    __tablename__ = "enrolment_token"
    secret_sha256: Mapped[str] = mapped_column(primary_key=True)
    device_name: Mapped[str]
    labels: Mapped[list[str]]
    created_ms: Mapped[int]
    expires_ms: Mapped[int]
    used_ms: Mapped[int | None]


class ModelRow(Base):
    """One version of a model. `facts` is `compress.tasks.ModelFacts`.

    `parts` has digest and size of what stands before and behind it: `{"pre": {"sha256": ..., "size_bytes": ...}}`.
    """

    __tablename__ = "model"
    __table_args__ = (UniqueConstraint("owner", "name", "version"),)
    id: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str]
    name: Mapped[str]
    version: Mapped[int]
    format: Mapped[str]
    sha256: Mapped[str]
    size_bytes: Mapped[int]
    state: Mapped[str]
    refusal: Mapped[str]
    facts: Mapped[dict[str, Any] | None]
    parts: Mapped[dict[str, Any]] = mapped_column(default=dict)
    created_ms: Mapped[int]


class DatasetRow(Base):
    """One version of a dataset. `facts` is `compress.tasks.DataFacts`; `splits` names the digests of its splits."""

    __tablename__ = "dataset"
    __table_args__ = (UniqueConstraint("owner", "name", "version"),)
    id: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str]
    name: Mapped[str]
    version: Mapped[int]
    sha256: Mapped[str]
    test_sha256: Mapped[str]
    model_id: Mapped[str | None] = mapped_column(ForeignKey("model.id"))
    seed: Mapped[int]
    metric: Mapped[str]
    state: Mapped[str]
    refusal: Mapped[str]
    facts: Mapped[dict[str, Any] | None]
    splits: Mapped[dict[str, Any]]
    created_ms: Mapped[int]


class DeviceRow(Base):
    """One registered device."""

    __tablename__ = "device"
    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    labels: Mapped[list[str]]
    paused: Mapped[bool]
    agent_version: Mapped[str]
    profile: Mapped[str]
    profile_reason: Mapped[str]
    session_number: Mapped[int]
    snapshot_id: Mapped[str | None] = mapped_column(ForeignKey("device_snapshot.id"))
    capabilities: Mapped[list[str]] = mapped_column(default=list)
    hours: Mapped[list[str]] = mapped_column(default=list)
    # Why it gets no work until a check passes or a person clears it; empty where it does.
    set_aside: Mapped[str] = mapped_column(default="")
    # A check is wanted as soon as the device is free; and the agent's process that said Hello last.
    check_wanted: Mapped[bool] = mapped_column(default=False)
    life: Mapped[str] = mapped_column(default="")
    # When a person called it well, and since when checks count as its history.
    cleared_ms: Mapped[int] = mapped_column(default=0)
    history_from_ms: Mapped[int] = mapped_column(default=0)
    enrolled_ms: Mapped[int]
    last_seen_ms: Mapped[int]


class DeviceSnapshotRow(Base):
    """Immutable facts about a device, by the digest of their content."""

    __tablename__ = "device_snapshot"
    id: Mapped[str] = mapped_column(primary_key=True)
    content: Mapped[bytes] = mapped_column(LargeBinary)
    created_ms: Mapped[int]


class ConditionRow(Base):
    """What a measurement was made under, by the digest of its content."""

    __tablename__ = "condition"
    id: Mapped[str] = mapped_column(primary_key=True)
    content: Mapped[dict[str, Any]]


class JobRow(Base):
    """A user's request. `spec` is a serialized JobSpec; `report` the final report's JSON.

    `scorer_id` is the only scorer that may score it, once one has begun: figures of two metrics cannot be compared.
    """

    __tablename__ = "job"
    id: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str]
    request_id: Mapped[str] = mapped_column(unique=True)
    spec: Mapped[bytes] = mapped_column(LargeBinary)
    model_id: Mapped[str] = mapped_column(ForeignKey("model.id"))
    dataset_id: Mapped[str | None] = mapped_column(ForeignKey("dataset.id"))
    state: Mapped[str] = mapped_column(index=True)
    reason: Mapped[str]
    report: Mapped[str | None]
    scorer_id: Mapped[str] = mapped_column(default="")
    created_ms: Mapped[int]
    finished_ms: Mapped[int]


class VariantRow(Base):
    """A model after a recipe, by its key: made once, whichever jobs ask for it. `facts` is `CompressFacts`.

    `recovered` is the id of the `RecoveredRow` whose network stands for what the recipe does to layers; empty where it was done.
    """

    __tablename__ = "variant"
    key: Mapped[str] = mapped_column(primary_key=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("model.id"))
    dataset_id: Mapped[str | None] = mapped_column(ForeignKey("dataset.id"))
    recipe: Mapped[str]
    seed: Mapped[int]
    state: Mapped[str] = mapped_column(index=True)
    attempts: Mapped[int]
    reason: Mapped[str]
    facts: Mapped[dict[str, Any] | None]
    seconds: Mapped[float]
    held: Mapped[dict[str, Any] | None]
    recovered: Mapped[str] = mapped_column(default="")
    created_ms: Mapped[int]


class RecoveredRow(Base):
    """A variant's network that a user trained, by the key of variant and file. `facts` is `compress.tasks.RecoveredFacts`."""

    __tablename__ = "recovered"
    id: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str]
    variant_key: Mapped[str] = mapped_column(ForeignKey("variant.key"))
    sha256: Mapped[str]
    size_bytes: Mapped[int]
    state: Mapped[str] = mapped_column(index=True)
    refusal: Mapped[str]
    facts: Mapped[dict[str, Any] | None]
    created_ms: Mapped[int]


class BuildRow(Base):
    """A variant lowered to one runtime's format. `facts` is `compress.tasks.Build`, empty until it is made."""

    __tablename__ = "build"
    id: Mapped[str] = mapped_column(primary_key=True)
    variant_key: Mapped[str] = mapped_column(ForeignKey("variant.key"), index=True)
    runtime: Mapped[str]
    format: Mapped[str]
    sha256: Mapped[str]
    size_bytes: Mapped[int]
    facts: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(default="done")
    attempts: Mapped[int] = mapped_column(default=0)
    reason: Mapped[str] = mapped_column(default="")


class CandidateRow(Base):
    """One variant in one runtime on one device under one wanted condition, in one job.

    `build_id` names its build, which may not be made yet; it is empty in rows from before there were several runtimes.
    """

    __tablename__ = "candidate"
    __table_args__ = (UniqueConstraint("job_id", "device_id", "variant_key", "runtime", "threads", "batch", "role"),)
    id: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("job.id"), index=True)
    device_id: Mapped[str] = mapped_column(ForeignKey("device.id"), index=True)
    variant_key: Mapped[str] = mapped_column(ForeignKey("variant.key"), index=True)
    recipe: Mapped[str]
    role: Mapped[str]
    runtime: Mapped[str]
    build_id: Mapped[str] = mapped_column(default="")
    threads: Mapped[int]
    batch: Mapped[int]
    position: Mapped[int]
    state: Mapped[str]
    reason: Mapped[str]


class TaskRow(Base):
    """A measurement that an agent leases. `fence` grows with each lease; a report with an older one is refused.

    `split` is what its metric is computed on, or `scaling` or `profile` where it measures that; `metric_only` is false for the
    candidate's own measurement only. `progress` is what its agent said last, of one that failed why (`failed_because`).
    """

    __tablename__ = "task"
    __table_args__ = (UniqueConstraint("candidate_id", "split"),)
    id: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("job.id"), index=True)
    device_id: Mapped[str] = mapped_column(ForeignKey("device.id"), index=True)
    candidate_id: Mapped[str] = mapped_column(ForeignKey("candidate.id"))
    split: Mapped[str]
    metric_only: Mapped[bool]
    state: Mapped[str] = mapped_column(index=True)
    fence: Mapped[int]
    lease_deadline_ms: Mapped[int]
    attempts: Mapped[int]
    result_sha256: Mapped[str]
    result_fence: Mapped[int]
    progress: Mapped[dict[str, Any] | None]
    created_ms: Mapped[int]


class MeasurementRow(Base):
    """What one task found: the digest of the raw samples, and their summary (`server.report.summary`)."""

    __tablename__ = "measurement"
    id: Mapped[str] = mapped_column(primary_key=True)
    task_id: Mapped[str] = mapped_column(ForeignKey("task.id"), unique=True)
    candidate_id: Mapped[str] = mapped_column(ForeignKey("candidate.id"), index=True)
    build_id: Mapped[str] = mapped_column(ForeignKey("build.id"))
    device_id: Mapped[str] = mapped_column(ForeignKey("device.id"))
    snapshot_id: Mapped[str] = mapped_column(ForeignKey("device_snapshot.id"))
    condition_id: Mapped[str] = mapped_column(ForeignKey("condition.id"))
    split: Mapped[str]
    raw_sha256: Mapped[str]
    summary: Mapped[dict[str, Any]]
    agent_version: Mapped[str]
    method_version: Mapped[str]
    created_ms: Mapped[int]


class SubsetRow(Base):
    """A part of a split, by the key of the split, how many samples and the seed. `rows_sha256`: which samples these are."""

    __tablename__ = "subset"
    id: Mapped[str] = mapped_column(primary_key=True)
    split_sha256: Mapped[str]
    count: Mapped[int]
    sha256: Mapped[str]
    size_bytes: Mapped[int]
    rows_sha256: Mapped[str]
    rows_size_bytes: Mapped[int]


class HealthCheckRow(Base):
    """The golden model on a device: leased as a `TaskRow` is, in whose states it is, and judged when it was reported.

    `verdict` is `server.engine.verdicts.Verdict`, empty until then; times are milliseconds of a call.
    """

    __tablename__ = "health_check"
    id: Mapped[str] = mapped_column(primary_key=True)
    device_id: Mapped[str] = mapped_column(ForeignKey("device.id"), index=True)
    snapshot_id: Mapped[str] = mapped_column(ForeignKey("device_snapshot.id"))
    condition_id: Mapped[str | None] = mapped_column(ForeignKey("condition.id"))
    runtime: Mapped[str]
    format: Mapped[str]
    state: Mapped[str] = mapped_column(index=True)
    fence: Mapped[int]
    lease_deadline_ms: Mapped[int]
    attempts: Mapped[int]
    result_sha256: Mapped[str]
    result_fence: Mapped[int]
    outputs_sha256: Mapped[str]
    progress: Mapped[dict[str, Any] | None]
    verdict: Mapped[str]
    why: Mapped[str]
    outputs_right: Mapped[bool | None]
    p50_ms: Mapped[float | None]
    low_ms: Mapped[float | None]
    high_ms: Mapped[float | None]
    expected_low_ms: Mapped[float | None]
    expected_high_ms: Mapped[float | None]
    history: Mapped[int]
    trust: Mapped[str]
    created_ms: Mapped[int]
    finished_ms: Mapped[int]


class DeviceEventRow(Base):
    """Something that happened to a device, in words."""

    __tablename__ = "device_event"
    id: Mapped[str] = mapped_column(primary_key=True)
    device_id: Mapped[str] = mapped_column(ForeignKey("device.id"), index=True)
    text: Mapped[str]
    at_ms: Mapped[int]


class DropsRow(Base):
    """Paired losses of one device's candidates on one split, computed once all of them were measured."""

    __tablename__ = "drops"
    job_id: Mapped[str] = mapped_column(ForeignKey("job.id"), primary_key=True)
    device_id: Mapped[str] = mapped_column(ForeignKey("device.id"), primary_key=True)
    split: Mapped[str] = mapped_column(primary_key=True)
    content: Mapped[dict[str, Any]]


class ScorerRow(Base):
    """A user's own metric, by the digest of its owner, name, source, direction and unit."""

    __tablename__ = "scorer"
    id: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str]
    name: Mapped[str]
    source_sha256: Mapped[str]
    lower_is_better: Mapped[bool]
    unit: Mapped[str]
    seen_ms: Mapped[int]


class ScoringRow(Base):
    """One measurement's outputs under one scorer. `metric` is `server.report.summary.MetricSummary` once they are scored."""

    __tablename__ = "scoring"
    __table_args__ = (UniqueConstraint("measurement_id", "scorer_id"),)
    id: Mapped[str] = mapped_column(primary_key=True)
    measurement_id: Mapped[str] = mapped_column(ForeignKey("measurement.id"))
    scorer_id: Mapped[str] = mapped_column(ForeignKey("scorer.id"))
    state: Mapped[str] = mapped_column(index=True)
    fence: Mapped[int]
    lease_deadline_ms: Mapped[int]
    attempts: Mapped[int]
    scores_sha256: Mapped[str]
    reason: Mapped[str]
    metric: Mapped[dict[str, Any] | None]
