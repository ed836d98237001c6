"""Scaling curves of a job: whose are measured, once everything else of a device is known."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from fleetfit.proto.versions import SCALES
from fleetfit.server.engine.facts import read_facts
from fleetfit.server.engine.lookup import read_snapshot
from fleetfit.server.engine.states import ENDED_TASK, SCALING
from fleetfit.server.selection.choose import select_variant
from fleetfit.server.selection.finalists import finalists
from fleetfit.server.storage.tables import CandidateRow, DeviceRow, JobRow, TaskRow


def scaling_left(session: Session, job: JobRow, device_id: str) -> tuple[list[CandidateRow], bool]:
    """The candidates of a device whose curves are still to be asked for, and whether some are being measured.

    None where the agent is too old to measure them, or the device is emulated: what would they say?
    """
    device = session.get_one(DeviceRow, device_id)
    snapshot = read_snapshot(session, device)
    if SCALES not in device.capabilities or (snapshot is not None and snapshot.emulated):
        return [], False
    tasks = session.scalars(
        select(TaskRow).where(TaskRow.job_id == job.id, TaskRow.device_id == device_id, TaskRow.split == SCALING)
    ).all()
    facts = read_facts(session, job)
    own = next(d for d in facts.devices if d.device_id == device_id)
    wished = finalists(own, select_variant(facts, own)) - {task.candidate_id for task in tasks}
    rows = session.scalars(select(CandidateRow).where(CandidateRow.id.in_(wished)).order_by(CandidateRow.position))
    return list(rows), any(task.state not in ENDED_TASK for task in tasks)
