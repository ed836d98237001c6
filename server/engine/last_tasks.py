"""What is measured last of a device: how the finalists scale, and the time of each of their operators."""

from __future__ import annotations

from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from fleetfit.proto.v1 import jobs_pb2
from fleetfit.proto.versions import PROFILES, SCALES
from fleetfit.server.engine.facts import read_facts
from fleetfit.server.engine.lookup import read_snapshot
from fleetfit.server.engine.states import ENDED_TASK, PROFILE, SCALING
from fleetfit.server.selection.choose import select_variant
from fleetfit.server.selection.finalists import finalists
from fleetfit.server.storage.tables import CandidateRow, DeviceRow, JobRow, TaskRow

_NEEDS: Final = {SCALING: SCALES, PROFILE: PROFILES}


def wanted_last(spec: jobs_pb2.JobSpec) -> list[str]:
    """What a job asks for of it, in the order in which it is measured."""
    return [kind for kind, asked in ((SCALING, spec.scaling), (PROFILE, spec.profile)) if asked]


def left_to_ask(session: Session, job: JobRow, device_id: str, kind: str) -> tuple[list[CandidateRow], bool]:
    """The candidates of a device whose curves or profiles are still to be asked for, and whether some are being measured.

    None where the agent is too old to measure it, or the device is emulated: what would its timings say?
    """
    device = session.get_one(DeviceRow, device_id)
    snapshot = read_snapshot(session, device)
    if _NEEDS[kind] not in device.capabilities or (snapshot is not None and snapshot.emulated):
        return [], False
    tasks = session.scalars(
        select(TaskRow).where(TaskRow.job_id == job.id, TaskRow.device_id == device_id, TaskRow.split == kind)
    ).all()
    facts = read_facts(session, job)
    own = next(d for d in facts.devices if d.device_id == device_id)
    wished = finalists(own, select_variant(facts, own)) - {task.candidate_id for task in tasks}
    rows = session.scalars(select(CandidateRow).where(CandidateRow.id.in_(wished)).order_by(CandidateRow.position))
    return list(rows), any(task.state not in ENDED_TASK for task in tasks)
