"""How far a job is, and for how long it will still run: from its rows, in words and seconds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from fleetfit.compress.tasks import TaskProgress
from fleetfit.proto.v1 import common_pb2, jobs_pb2
from fleetfit.server.engine.health import waiting_words
from fleetfit.server.engine.hours import within_hours
from fleetfit.server.engine.last_tasks import wanted_last
from fleetfit.server.engine.lookup import read_snapshot
from fleetfit.server.engine.states import (
    ENDED_CANDIDATE,
    ENDED_TASK,
    PROFILE,
    SCALING,
    JobState,
    TaskState,
    VariantState,
)
from fleetfit.server.storage.tables import BuildRow, CandidateRow, DeviceRow, JobRow, TaskRow, VariantRow

# Before anything was seen: what a variant and a measurement take, in seconds.
DEFAULT_COMPRESS_S: Final = 15.0
DEFAULT_MEASURE_S: Final = 20.0
_START_S: Final = 3.0
# What a build for another runtime takes, in seconds: mostly the start of a process.
LOWER_S: Final = 8.0
# What timing each operator of a build takes: the wait for quiet, a process, at most three seconds of calls.
PROFILE_S: Final = 8.0
_COMING: Final = (VariantState.WAITING, VariantState.RUNNING)


@dataclass(frozen=True)
class Pace:
    """Seconds that a variant and a measurement took lately, the most that curves of one build take, and what its profile takes."""

    compress_s: float = DEFAULT_COMPRESS_S
    measure_s: float = DEFAULT_MEASURE_S
    scaling_s: float = 0.0
    profile_s: float = PROFILE_S

    def of(self, split: str) -> float:
        """What a task takes that is for this split."""
        return {SCALING: self.scaling_s, PROFILE: self.profile_s}.get(split, self.measure_s)


def job_progress(
    session: Session,
    job: JobRow,
    pace: Pace,
    compressing: Mapping[str, TaskProgress],
    online: Mapping[str, bool],
    missing_scorer: str = "",
) -> common_pb2.Progress:
    """Progress of a job. `compressing` is by the key of a variant or build, `online` by device id.

    `missing_scorer` is the command to start it.
    """
    rows = session.scalars(select(CandidateRow).where(CandidateRow.job_id == job.id)).all()
    if job.state != JobState.RUNNING:
        return common_pb2.Progress(activity=job.state, fraction=1.0 if job.state == JobState.DONE else 0.0)
    recipes = {row.variant_key: row.recipe for row in rows}
    variants = session.scalars(select(VariantRow).where(VariantRow.key.in_(recipes))).all()
    tasks = session.scalars(select(TaskRow).where(TaskRow.job_id == job.id)).all()
    if done := [v.seconds for v in variants if v.state == VariantState.DONE and v.seconds > 0]:
        # What this model really takes, and the start of a process, which is not in the time that the host was held.
        pace = replace(pace, compress_s=sum(done) / len(done) + _START_S)
    # One that was stopped waits for another job, which may never come.
    wanted = {row.variant_key for row in rows if row.state not in ENDED_CANDIDATE}
    coming = {row.build_id for row in rows if row.state not in ENDED_CANDIDATE}
    builds = session.scalars(select(BuildRow).where(BuildRow.id.in_(coming), BuildRow.state.in_(_COMING))).all()
    left_compress = _left_to_compress([v for v in variants if v.key in wanted], compressing, pace) + LOWER_S * len(
        builds
    )
    left_measure: defaultdict[str, float] = defaultdict(float)
    hosts = {row.device_id: _host(session, row.device_id) for row in rows}
    begun = {task.candidate_id for task in tasks}
    for row in rows:
        if row.state not in ENDED_CANDIDATE and row.id not in begun:
            left_measure[hosts[row.device_id]] += pace.measure_s
    for task in tasks:
        if task.state not in ENDED_TASK:
            part = float((task.progress or {}).get("fraction", 0.0)) if task.state == TaskState.LEASED else 0.0
            left_measure[hosts[task.device_id]] += pace.of(task.split) * (1 - min(max(part, 0.0), 1.0))
    for kind in wanted_last(jobs_pb2.JobSpec.FromString(job.spec)):
        for device_id in hosts.keys() - {task.device_id for task in tasks if task.split == kind}:
            # Still to come: the chosen build's and its original's.
            left_measure[hosts[device_id]] += 2 * pace.of(kind)
    made = sum(v.state == VariantState.DONE for v in variants)
    ended = sum(row.state in ENDED_CANDIDATE for row in rows)
    done_s = made * pace.compress_s + ended * pace.measure_s
    # One host measures one thing at a time; hosts work side by side.
    left_s = left_compress + max(left_measure.values(), default=0.0)
    total_left = left_compress + sum(left_measure.values())
    fraction = done_s / (done_s + total_left) if done_s + total_left > 0 else 0.0
    progress = common_pb2.Progress(fraction=min(fraction, 0.99), remaining_ms=int(left_s * 1000))
    making = {v.key: recipes[v.key] for v in variants if v.state == VariantState.RUNNING}
    making |= {b.id: f"{recipes[b.variant_key]} for {b.runtime}" for b in builds if b.state == VariantState.RUNNING}
    words = _words(session, making, compressing, list(tasks), (ended, len(rows)), online)
    unscored = sum(task.state == TaskState.SCORING for task in tasks)
    if unscored and missing_scorer:
        words = f"{unscored} measurements wait for their scores: run `{missing_scorer}`; {words}"
    elif unscored:
        words = f"{unscored} measurements are being scored on their user's machine; {words}"
    progress.activity = words
    return progress


def _left_to_compress(variants: list[VariantRow], compressing: Mapping[str, TaskProgress], pace: Pace) -> float:
    left = 0.0
    for variant in variants:
        if variant.state in _COMING:
            told = compressing.get(variant.key)
            left += told.remaining_s if told is not None and told.remaining_s is not None else pace.compress_s
    return left


def _host(session: Session, device_id: str) -> str:
    snapshot = read_snapshot(session, session.get_one(DeviceRow, device_id))
    return (snapshot.host_digest if snapshot is not None else "") or device_id


def _words(
    session: Session,
    making: Mapping[str, str],
    compressing: Mapping[str, TaskProgress],
    tasks: list[TaskRow],
    ended: tuple[int, int],
    online: Mapping[str, bool],
) -> str:
    parts = []
    for key, name in making.items():
        told = compressing.get(key)
        parts.append(f"making {name}" + (f" ({told.activity})" if told is not None else ""))
    devices = session.scalars(select(DeviceRow).where(DeviceRow.id.in_({task.device_id for task in tasks}))).all()
    names = {device.id: device.name for device in devices}
    measuring = sorted({names[task.device_id] for task in tasks if task.state == TaskState.LEASED})
    if measuring:
        parts.append(f"measuring on {', '.join(measuring)}")
    waiting = {task.device_id for task in tasks if task.state == TaskState.WAITING}
    away = sorted(names[device] for device in waiting if not online.get(device, False))
    if away:
        parts.append(f"waiting for {', '.join(away)}, which {'is' if len(away) == 1 else 'are'} offline")
    now = datetime.now(timezone.utc)
    closed = sorted(d.name for d in devices if not within_hours(d.hours, now) and d.id in waiting)
    if closed:
        parts.append(f"waiting for the hours of {', '.join(closed)}")
    paused = sorted(device.name for device in devices if device.paused and device.id in waiting)
    if paused:
        parts.append(f"waiting for {', '.join(paused)}, which {'is' if len(paused) == 1 else 'are'} paused")
    parts += waiting_words(session, [device for device in devices if device.id in waiting])
    counted = f"{ended[0]} of {ended[1]} candidates done"
    return "; ".join([*parts, counted])
